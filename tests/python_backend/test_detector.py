# SPDX-License-Identifier: Apache-2.0
"""The detector in process takes what the client takes, and refuses what it refuses, in the same words."""

import inspect
import io
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend import Bundle, Detector, DetectorSpec, NetworkSpec, PostprocessParams, ResizePolicy
from ocdserve.backend.detector import LocalDetector
from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.backend.gpu.steps import PreprocessStep
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.client import (
    Downloads,
    InferRequest,
    InvalidInputError,
    MockTransport,
    OcdserveError,
    TextDetector,
    UnavailableError,
)
from ocdserve.contract import Limits
from ocdserve.results.detections import Detections

# Networks take BGR by default, so that a weight on the third channel makes red count as text.
SPEC = DetectorSpec(
    network=NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255)),
    resize=ResizePolicy(kind="short_side", side=32, enlarge=False, largest_side=512, stride=32),
    postprocess=PostprocessParams(box_thresh=0.5),
)
NOT_IN_PROCESS = {"request_id", "traceparent"}


@pytest.fixture
def detector(tiny_network: Callable[..., Path]) -> Detector:
    bundle = Bundle(SPEC, tiny_network(weights=(0, 0, 1)))
    return Detector(bundle, load_network(bundle, RuntimeOptions("onnxruntime", threads=1)))


def page(width: int = 256, *boxes: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Black, with red boxes of left, top, right, bottom."""
    pixels = np.zeros((64, width, 3), np.uint8)
    for left, top, right, bottom in boxes or [(40, 20, 120, 36)]:
        pixels[top:bottom, left:right, 0] = 255
    return pixels


PAGE = page()


def png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def assert_found(found: Detections, width: int = 256) -> None:
    """Exactly the box of `page`, grown by the unclip ratio."""
    assert (found.width, found.height, len(found)) == (width, 64, 1)
    centre = found.quads[0].mean(axis=0)
    assert np.abs(centre - (80, 28)).max() < 1.5


@pytest.mark.parametrize("name", ["detect", "detect_batch", "detect_many", "detect_pages", "detect_tiled"])
def test_the_calls_have_the_clients_arguments(name: str) -> None:
    theirs = inspect.signature(getattr(TextDetector, name)).parameters
    expected = {key: parameter for key, parameter in theirs.items() if key not in NOT_IN_PROCESS}
    for kind in (Detector, GpuDetector):
        ours = inspect.signature(getattr(kind, name)).parameters
        assert list(ours) == list(expected)
        for key, parameter in ours.items():
            assert parameter.kind == expected[key].kind
            if (name, key) not in (
                ("detect_many", "concurrency"),
                ("detect_pages", "concurrency"),
            ):  # one network is not a server of several
                assert parameter.default == expected[key].default


def test_every_kind_of_image_is_taken(detector: Detector, tmp_path: Path) -> None:
    file = tmp_path / "page.png"
    file.write_bytes(png(PAGE))
    grey = Image.fromarray(PAGE[..., 0])
    kinds: list[Any] = [png(PAGE), bytearray(png(PAGE)), memoryview(png(PAGE)), file, str(file), PAGE, grey]
    kinds += [io.BytesIO(png(PAGE)), Image.fromarray(PAGE), Image.open(file), PAGE[:, ::-1][:, ::-1]]
    for image in kinds:
        assert_found(detector.detect(image))
    for found in detector.detect_batch(kinds[:-4]):
        assert_found(found)
    with file.open("rb") as opened:
        assert_found(detector.detect(opened))


def test_arrays_may_be_bgr(detector: Detector) -> None:
    swapped = np.ascontiguousarray(PAGE[..., ::-1])
    assert len(detector.detect(swapped)) == 0
    assert_found(detector.detect(swapped, bgr=True))
    assert_found(detector.detect_tiled(swapped, bgr=True))
    assert_found(detector.detect_batch([swapped], bgr=True)[0])
    assert_found(next(detector.detect_many([swapped], bgr=True)).result())
    assert_found(detector.detect(png(PAGE), bgr=True))


def test_a_large_image_is_scaled_down_first(detector: Detector) -> None:
    large = np.kron(PAGE, np.ones((4, 4, 1), np.uint8))
    stream = io.BytesIO()
    Image.fromarray(PAGE).save(stream, "TIFF", save_all=True, append_images=[Image.fromarray(large)])
    calls = [
        detector.detect(png(large), max_side=256),
        detector.detect(large[..., ::-1], bgr=True, max_side=256),
        *detector.detect_batch([large, PAGE], max_side=256),
        next(detector.detect_many([large], max_side=256)).result(),
        *detector.detect_pages(large, max_side=256),
        detector.detect(stream.getvalue(), page=2, max_side=256),
    ]
    assert [found.width for found in calls] == [1024, 1024, 1024, 256, 1024, 1024, 1024]
    for found in calls:
        scale = found.width / 256
        assert_found(found.scaled(256, 64))
        assert np.abs(found.quads[0].mean(axis=0) - np.array([80, 28]) * scale).max() < 1.5 * scale
    assert [found.page for found in calls] == [None] * 4 + [None, 1, 2]
    with pytest.raises(InvalidInputError, match="max_side must be a whole number of at least 32; got 9"):
        detector.detect(PAGE, max_side=9)


@pytest.mark.parametrize(("orientation", "stored"), [(1, 0), (6, 1)])
def test_a_reduced_jpeg_is_detected_in_its_own_pixels(
    orientation: int, stored: int, tiny_network: Callable[..., Path]
) -> None:
    def found_in(pixels: NDArray[np.uint8], largest: int) -> Detections:
        exif, stream = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        Image.fromarray(np.rot90(pixels, stored)).save(stream, "JPEG", exif=exif)
        policy = replace(SPEC.resize, largest_side=largest, reduce_jpeg=True)
        bundle = Bundle(replace(SPEC, resize=policy), tiny_network(weights=(0, 0, 1)))
        detector = Detector(bundle, load_network(bundle, RuntimeOptions("onnxruntime", threads=1)))
        _, frame = detector.preprocess(stream.getvalue())
        assert frame == detector.preprocess(pixels)[1] and frame.source == pixels.shape[:2]
        return detector.detect(stream.getvalue())

    # 10 pixels of the image are 2 of the network's input and, after a quarter, 2.5 of the decoded image.
    found = found_in(np.kron(PAGE, np.ones((10, 10, 1), np.uint8))[:-3, :-3], 512)
    assert (found.width, found.height, len(found)) == (2557, 637, 1)
    assert np.abs(found.quads[0].mean(axis=0) - (800, 280)).max() < 8
    # In tiles and an overview.
    long = page(4001, (100, 20, 220, 44), (3700, 20, 3900, 44))
    found = found_in(np.pad(long, ((60, 77), (0, 0), (0, 0))), 128)
    centres = sorted(quad.mean(axis=0).tolist() for quad in found.quads)
    np.testing.assert_allclose(centres, [(160, 92), (3800, 92)], atol=8)


def test_what_is_read_and_what_the_gpu_detects_is_not_reduced() -> None:
    policy = replace(SPEC.resize, reduce_jpeg=True)
    noise, stream = np.random.default_rng(5).integers(0, 256, (300, 1200, 3), np.uint8), io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG")
    detector = Detector(Bundle(replace(SPEC, resize=replace(policy, largest_side=256)), Path("none")), None)
    pixels = {whole: detector.preprocess(stream.getvalue(), whole=whole)[0] for whole in (False, True)}
    expected = cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(pixels[True], cv2.resize(expected, (256, 64)))
    assert pixels[False].std() < 0.8 * pixels[True].std()
    device: Any = None
    for make in (
        lambda: GpuDetector(Bundle(replace(SPEC, resize=policy), Path("none")), device, device),
        lambda: PreprocessStep(device, 0, policy),
    ):
        with pytest.raises(InvalidInputError, match=r"resize\.reduce_jpeg must be false where all stages run on a GPU"):
            make()


def test_a_url_is_fetched_where_that_is_allowed(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, limits: Downloads) -> bytes:
        asked.append((url, limits))
        return png(PAGE)

    monkeypatch.setattr("ocdserve.results.download.download", fetch)
    with pytest.raises(
        InvalidInputError, match=r"'http://h/page.png' is a URL, and .* downloads=Downloads\(\); allow it"
    ):
        detector.detect("http://h/page.png")
    assert asked == []
    detector.downloads = Downloads(timeout_s=7)
    assert_found(detector.detect("http://h/page.png"))
    assert asked == [("http://h/page.png", Downloads(timeout_s=7))]


def test_many_images_have_one_outcome_each(detector: Detector) -> None:
    images: list[Any] = [PAGE, b"not an image", png(PAGE), None, page(128)]
    found = list(detector.detect_many(iter(images), concurrency=3))
    assert [(one.index, one.image is images[one.index], one.error is None) for one in found] == [
        (0, True, True),
        (1, True, False),
        (2, True, True),
        (3, True, False),
        (4, True, True),
    ]
    assert_found(found[4].result(), 128)
    assert {one.index for one in detector.detect_many(images, ordered=False)} == {0, 1, 2, 3, 4}


def test_a_large_image_is_detected_in_tiles_whatever_the_limit_of_one_image(detector: Detector) -> None:
    wide = page(4096, (100, 20, 160, 36), (3900, 20, 4000, 36), (1000, 20, 1500, 36))
    tiled = detector.detect_tiled(png(wide), tile=256, overlap=64, concurrency=3)
    assert (tiled.width, tiled.height) == (4096, 64)
    centres = sorted(float(quad[:, 0].mean()) for quad in tiled.quads)
    assert np.abs(np.array(centres) - (130, 1250, 3950)).max() < 2
    limited = Detector.__new__(Detector)
    vars(limited).update(vars(detector), limits=Limits(max_pixels=256 * 64))
    assert len(limited.detect_tiled(png(wide), tile=256, overlap=64)) == 3


def test_a_bad_image_of_a_batch_is_named(detector: Detector) -> None:
    client = TextDetector("grpc://h:1", transport=MockTransport(unreached))
    for each in (detector, client):
        with pytest.raises(
            InvalidInputError, match=r"^image 1 of 3 \(counted from 0\): image must be encoded bytes, a"
        ):
            each.detect_batch([PAGE, None, PAGE])  # type: ignore[attr-defined]
        with pytest.raises(InvalidInputError, match=r"^image must be encoded bytes, a path"):
            each.detect_batch([None])  # type: ignore[attr-defined]
    assert detector.detect_batch([]) == []


def unreached(request: InferRequest) -> Any:
    raise AssertionError(f"the client sent {request}")


def closed_file() -> Any:
    file = io.BytesIO(b"x")
    file.close()
    return file


BAD: dict[str, tuple[Any, dict[str, Any]]] = {
    "none": (None, {}),
    "a list": ([[0, 0, 0]], {}),
    "a number": (7, {}),
    "no bytes": (b"", {}),
    "an empty bytearray": (bytearray(), {}),
    "an empty file object": (io.BytesIO(), {}),
    "floats": (np.zeros((4, 4, 3), np.float32), {}),
    "16 bits": (np.zeros((4, 4, 3), np.uint16), {}),
    "objects": (np.array([None, PAGE], object), {}),
    "grey": (np.zeros((4, 4), np.uint8), {}),
    "4 channels": (np.zeros((4, 4, 4), np.uint8), {}),
    "channels first": (np.zeros((3, 4, 4), np.uint8), {}),
    "a batch": (np.zeros((1, 4, 4, 3), np.uint8), {}),
    "no rows": (np.zeros((0, 4, 3), np.uint8), {}),
    "a scalar": (np.array(7, np.uint8), {}),
    "bgr and grey": (np.zeros((4, 4), np.uint8), {"bgr": True}),
    "no such file": ("nowhere/none.jpg", {}),
    "no such path": (Path("nowhere/none.jpg"), {}),
    "a folder": (os.curdir, {}),
    "an empty name": ("", {}),
    "a null byte": ("a\0b", {}),
    "text": (io.StringIO("text"), {}),
    "a closed file": (closed_file(), {}),
    "floats of Pillow": (Image.new("F", (2, 2)), {}),
    "a URL without a host": ("http://", {}),
    "an unknown parameter": (PAGE, {"treshold": 0.5}),
    "a bad parameter": (PAGE, {"box_thresh": 2}),
    "a parameter of another type": (PAGE, {"polygons": "perhaps"}),
}


def failure(call: Callable[[], Any]) -> tuple[type[BaseException], str]:
    with pytest.raises(OcdserveError) as caught:
        call()
    return type(caught.value), str(caught.value)


def test_an_unreachable_url_is_reported_as_by_the_client(detector: Detector) -> None:
    detector.downloads = Downloads(private=True)
    client = TextDetector("grpc://h:1", transport=MockTransport(unreached), downloads=detector.downloads)
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.png"
        ours, theirs = (failure(lambda each=each: each.detect(url)) for each in (detector, client))
    assert ours == theirs
    assert ours[0] is UnavailableError and ours[1].startswith(f"cannot fetch the image {url!r}: ")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_as_by_the_client(name: str, detector: Detector) -> None:
    image, options = BAD[name]
    client = TextDetector("grpc://h:1", transport=MockTransport(unreached))
    ours, theirs = (failure(lambda each=each: each.detect(image, **options)) for each in (detector, client))
    assert ours == theirs
    ours, theirs = (failure(lambda each=each: each.detect_tiled(image, **options)) for each in (detector, client))
    assert ours == theirs


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tile": 10}, "tile must be at least 64 pixels; got 10"),
        ({"tile": 100, "overlap": 51}, "overlap must be from 0 to half a tile, 50 pixels; got 51"),
        ({"concurrency": 0}, "concurrency must be a whole number of at least 1; got 0"),
        ({"concurrency": 1.5}, "concurrency must be a whole number of at least 1; got 1.5"),
        (
            {"thresh": -1},
            "request parameter 'thresh' must be a number from 0 to 1 (probability above which a pixel is text); got -1",
        ),
    ],
)
def test_bad_options_are_refused_as_by_the_client(options: dict[str, Any], reason: str, detector: Detector) -> None:
    client = TextDetector("grpc://h:1", transport=MockTransport(unreached))
    many = {name: value for name, value in options.items() if name not in ("tile", "overlap")}
    for each in (detector, client):
        assert failure(lambda each=each: each.detect_tiled(PAGE, **options))[1] == reason
        if many:
            # At once, not when the first outcome is taken.
            assert failure(lambda each=each: each.detect_many([PAGE], **many))[1] == reason


def test_both_detectors_in_process_are_of_one_kind() -> None:
    assert issubclass(Detector, LocalDetector) and issubclass(GpuDetector, LocalDetector)

# SPDX-License-Identifier: Apache-2.0
"""The kernels of `preprocess.cu` on the emulated device: OpenCV's bytes, wherever the sources lie."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, KernelFault, Schedule, package_sources, without_barrier
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend.device.protocol import Buffer, Stream
from ocdserve.backend.gpu.device_image import DeviceImage
from ocdserve.backend.gpu.memory import ImagePool
from ocdserve.backend.gpu.preprocess import GpuPreprocess, OutputForm, Prepared, bytes_moved, sources_of
from ocdserve.backend.spec.detector_spec import NetworkSpec
from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.contract import InvalidInputError

LETTERBOX = ResizePolicy("letterbox", width=160, height=96)
NETWORK = NetworkSpec(color="BGR", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    device = EmulatedDevice()
    yield device
    assert device.allocated == 0
    device.close()


@pytest.fixture
def stream(device: EmulatedDevice) -> Iterator[Stream]:
    stream = device.stream()
    yield stream
    stream.close()


def _fixed(height: int, width: int) -> ResizePolicy:
    return ResizePolicy("fixed", width=width, height=height, side=1, stride=1, bucket=1)


def _noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def _fetch(stream: Stream, buffer: Buffer, shape: tuple[int, ...], dtype: Any = np.uint8) -> NDArray[Any]:
    result = np.empty(shape, dtype)
    stream.to_host(result, buffer)
    stream.synchronize()
    return result


def _pixels(stream: Stream, prepared: Prepared) -> NDArray[np.uint8]:
    return _fetch(stream, prepared.data, prepared.shape)


def _resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _sizes(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Source and target height and width, mostly small, with OpenCV's special cases among them."""
    high = int(rng.choice([3, 12, 40, 150], p=[0.3, 0.4, 0.25, 0.05]))
    source_height, source_width, height, width = map(int, rng.integers(1, high + 1, 4))
    match int(rng.integers(8)):
        case 0:
            return 2 * height, 2 * width, height, width
        case 1:
            return height, width, height, width
        case 2:
            return source_height, width, height, width
        case _:
            return source_height, source_width, height, width


def test_it_returns_the_bytes_of_opencv_for_a_thousand_random_sizes(
    device: EmulatedDevice, stream: Stream, rng: np.random.Generator
) -> None:
    subject = GpuPreprocess(device, _fixed(1, 1))
    differing = compared = 0
    for _ in range(1000):
        source_height, source_width, height, width = _sizes(rng)
        image = _noise(rng, source_height, source_width)
        subject.policy = _fixed(height, width)

        found = _pixels(stream, subject([image], stream))[0]

        differing += int(np.count_nonzero(found != _resized(image, height, width)))
        compared += found.size
    subject.close()
    assert compared > 300_000
    assert differing == 0


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1080, 1920), (736, 1280)),
        ((1472, 2560), (736, 1280)),
        ((1, 20_000), (3, 2048)),
        ((20_000, 1), (2048, 3)),
        ((17, 23), (701, 1023)),
        ((3001, 4001), (97, 131)),
        ((84, 4161), (50, 63)),  # ends three bytes before its buffer does
    ],
    ids=str,
)
def test_it_returns_the_bytes_of_opencv_for_large_images(
    device: EmulatedDevice,
    stream: Stream,
    rng: np.random.Generator,
    source: tuple[int, int],
    target: tuple[int, int],
) -> None:
    image = _noise(rng, *source)
    subject = GpuPreprocess(device, _fixed(*target))

    found = _pixels(stream, subject([image], stream))[0]

    np.testing.assert_array_equal(found, _resized(image, *target))
    subject.close()


@pytest.mark.parametrize("source", [(1500, 60), (60, 1500), (131, 700), (2000, 301), (7, 3000)])
@pytest.mark.parametrize("on_device", [False, True])
def test_tiles_have_the_bytes_of_the_cpu(
    device: EmulatedDevice, stream: Stream, rng: np.random.Generator, source: tuple[int, int], on_device: bool
) -> None:
    policy = ResizePolicy(side=96, largest_side=256, tiles=True)
    image = _noise(rng, *source)
    expected, frame = preprocess(image, policy)
    assert frame.tiles > 1
    subject = GpuPreprocess(device, policy, max_batch=64)
    buffer = device.allocate(image.nbytes)
    stream.to_device(buffer, image)
    given = DeviceImage(buffer.pointer, *source, owner=buffer) if on_device else image

    sources, parts = sources_of(given, frame), frame.cut(expected)
    overview = 0 if frame.overview is None else frame.overview.tiles
    assert len(sources) == len(parts) == frame.tiles + overview
    for chosen in (slice(frame.tiles), slice(frame.tiles, None))[: len(frame.levels)]:
        prepared = subject(sources[chosen], stream)
        np.testing.assert_array_equal(_pixels(stream, prepared), np.stack(parts[chosen]))
        assert prepared.frames == list(frame.parts[chosen])
    with pytest.raises(InvalidInputError, match=f"{source[0]} x {source[1]} pixels .* is taken in tiles only"):
        subject([image], stream)
    subject.close()
    buffer.close()


def test_it_returns_the_pixels_and_frames_of_the_cpu_for_photographs(
    device: EmulatedDevice, stream: Stream, shared_data: Path
) -> None:
    policy = ResizePolicy("long_side", side=640, shrink=True)
    paths = sorted(shared_data.glob("*/**/*.jpg"))[:4]
    images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    subject = GpuPreprocess(device, policy)

    prepared = subject(images, stream)

    found = _pixels(stream, prepared)
    for image, frame, pixels in zip(images, prepared.frames, found, strict=True):
        expected, expected_frame = preprocess(image, policy)
        assert frame == expected_frame
        height, width = frame.network
        np.testing.assert_array_equal(pixels[:height, :width], expected)
        assert not pixels[height:].any()
        assert not pixels[:, width:].any()
    subject.close()


@pytest.mark.parametrize("container", [(96, 160), (101, 163), (128, 320)])
@pytest.mark.parametrize("count", range(1, 6))
def test_a_batch_of_mixed_sizes_is_letterboxed_with_black(
    device: EmulatedDevice,
    stream: Stream,
    rng: np.random.Generator,
    count: int,
    container: tuple[int, int],
) -> None:
    sizes = [(40, 50), (1, 1), (96, 160), (300, 20), (7, 1000)]
    images = [_noise(rng, *size) for size in sizes[:count]]
    subject = GpuPreprocess(device, LETTERBOX, max_batch=5)

    found = _pixels(stream, subject(images, stream, container))

    assert found.shape == (count, *container, 3)
    for image, pixels in zip(images, found, strict=True):
        expected = np.zeros((*container, 3), np.uint8)
        expected[:96, :160], _ = preprocess(image, LETTERBOX)
        np.testing.assert_array_equal(pixels, expected)
    subject.close()


def test_an_elongated_image_is_padded_with_its_edge_in_a_larger_container(
    device: EmulatedDevice, stream: Stream, rng: np.random.Generator
) -> None:
    policy = replace(LETTERBOX, tiles=True)
    images = [_noise(rng, 50, 10), _noise(rng, 10, 50), _noise(rng, 40, 50)]
    subject = GpuPreprocess(device, policy)

    found = _pixels(stream, subject(images, stream, (101, 320)))

    for image, pixels in zip(images, found, strict=True):
        expected, _ = preprocess(image, policy)
        np.testing.assert_array_equal(pixels[:96, :160], expected)
        assert not pixels[96:].any()
        assert not pixels[:, 160:].any()
    assert found[0, :96, 20:160].all(axis=2).any()
    subject.close()


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("gap", [0, 1, 2, 13])
@pytest.mark.parametrize("width", [1, 2, 33])
def test_sources_on_the_gpu_may_be_anywhere(
    device: EmulatedDevice, stream: Stream, rng: np.random.Generator, shift: int, gap: int, width: int
) -> None:
    height, pitch = 5, 3 * width + gap
    image = _noise(rng, height, width)
    # Ends with the last pixel: reading further is a fault of the emulator's.
    memory = np.full(shift + (height - 1) * pitch + 3 * width, 0xEE, np.uint8)
    for y in range(height):
        memory[shift + y * pitch :][: 3 * width] = image[y].reshape(-1)
    buffer = device.allocate(memory.size)
    stream.to_device(buffer, memory)
    subject = GpuPreprocess(device, _fixed(13, 50))

    found = _pixels(stream, subject([DeviceImage(buffer.pointer + shift, height, width, pitch)], stream))[0]

    np.testing.assert_array_equal(found, _resized(image, 13, 50))
    subject.close()
    buffer.close()


@pytest.mark.parametrize("color", ["BGR", "RGB"])
@pytest.mark.parametrize("element", ["float16", "float32"])
def test_planes_hold_the_normalised_pixels(
    device: EmulatedDevice, stream: Stream, rng: np.random.Generator, element: Any, color: Any
) -> None:
    images = [_noise(rng, 70, 90), _noise(rng, 33, 200)]
    network = NetworkSpec(color=color, mean=NETWORK.mean, std=NETWORK.std)
    subject = GpuPreprocess(device, LETTERBOX, form=OutputForm(element, network=network))

    prepared = subject(images, stream)

    found = _fetch(stream, prepared.data, prepared.shape, element)
    assert found.shape == (2, 3, 96, 160)
    pixels = np.stack([preprocess(image, LETTERBOX)[0] for image in images])
    ordered = (pixels[..., ::-1] if color == "BGR" else pixels).transpose(0, 3, 1, 2).astype(np.float32)
    mean = np.array(NETWORK.mean, np.float32).reshape(1, 3, 1, 1)
    scale = (1 / np.array(NETWORK.std)).astype(np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(found, ((ordered - mean) * scale).astype(element))
    subject.close()


@pytest.mark.parametrize(
    ("element", "tolerance"),
    [("float32", 2e-6), ("float16", 2e-3)],  # of values up to 2.7; half an ulp of float16 is 1e-3 there
)
def test_float_mode_rounds_only_at_the_end(
    device: EmulatedDevice, stream: Stream, rng: np.random.Generator, element: Any, tolerance: float
) -> None:
    image = _noise(rng, 61, 143)
    subject = GpuPreprocess(device, _fixed(96, 160), form=OutputForm(element, "float", NETWORK))

    prepared = subject([image], stream)

    found = _fetch(stream, prepared.data, prepared.shape, element)[0]
    expected = (_bilinear(image, 96, 160)[..., ::-1] - NETWORK.mean) / NETWORK.std
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), rtol=0, atol=tolerance)
    subject.close()


def _bilinear(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """float64 (height, width, 3), by linear interpolation between pixel centres along one axis after the other."""
    rows, columns = np.arange(image.shape[0]), np.arange(image.shape[1])
    y = (np.arange(height) + 0.5) * image.shape[0] / height - 0.5
    x = (np.arange(width) + 0.5) * image.shape[1] / width - 0.5
    across = np.apply_along_axis(lambda line: np.interp(x, columns, line), 1, image.astype(np.float64))
    return np.asarray(np.apply_along_axis(lambda line: np.interp(y, rows, line), 0, across))


def test_a_captured_launch_works_on_what_was_staged_last(
    device: EmulatedDevice, stream: Stream, rng: np.random.Generator
) -> None:
    first, second = [_noise(rng, 50, 60), _noise(rng, 9, 9)], [_noise(rng, 700, 300)]
    subject = GpuPreprocess(device, LETTERBOX, max_batch=2)
    output = device.allocate(subject.form.size(2, (96, 160)))
    subject.stage(first, stream)
    with stream.capture() as capture:
        subject.launch(stream, output, 2, (96, 160))

    frames = subject.stage(second, stream)
    capture.graph.launch(stream)

    found = _fetch(stream, output, (2, 96, 160, 3))
    np.testing.assert_array_equal(found[0], preprocess(second[0], LETTERBOX)[0])
    assert not found[1].any()
    assert frames == [Frame((700, 300), (96, 160), (96, 41))]
    capture.graph.close()
    output.close()
    subject.close()


def test_memory_far_too_large_for_later_batches_is_released(
    device: EmulatedDevice, stream: Stream, rng: np.random.Generator
) -> None:
    subject = GpuPreprocess(device, LETTERBOX)
    before = device.allocated
    subject([np.zeros((6000, 6000, 3), np.uint8)], stream)
    grown = device.allocated

    found = _pixels(stream, subject([_noise(rng, 8, 8)], stream))

    assert found.shape == (1, 96, 160, 3)
    assert grown - before > 108_000_000
    assert device.allocated - before < 3 * 2**20
    subject.close()
    subject.close()
    assert device.allocated == 0


def test_a_batch_may_be_released_while_it_is_in_flight(device: EmulatedDevice, stream: Stream) -> None:
    subject = GpuPreprocess(device, LETTERBOX)
    subject([np.zeros((8, 8, 3), np.uint8)], stream)

    subject.close()

    stream.synchronize()
    assert device.allocated == 0


def test_images_in_page_locked_memory_are_copied_from_where_they_are(
    device: EmulatedDevice, stream: Stream, rng: np.random.Generator
) -> None:
    images = [_noise(rng, height, width) for height, width in ((40, 90), (17, 23), (64, 64))]
    pool, subject = ImagePool(device), GpuPreprocess(device, LETTERBOX)
    locked = [pool.array(*image.shape[:2]) for image in images]
    for target, image in zip(locked, images, strict=True):
        target[:] = image
    given = [locked[0], images[1], locked[2]]

    prepared = subject(given, stream)
    sources = {source.address for source in device.pending_sources()}
    addresses = [image.ctypes.data for image in given]
    # They must be kept until the copies have happened.
    del locked, given
    found = _pixels(stream, prepared)

    assert [address in sources for address in addresses] == [True, False, True]
    for pixels, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(pixels, preprocess(image, LETTERBOX)[0])
    subject.close()


@pytest.mark.parametrize("barrier", range(2))
def test_no_barrier_is_too_many(rng: np.random.Generator, barrier: int) -> None:
    source = without_barrier(package_sources()["preprocess.cu"], barrier)
    device = EmulatedDevice(Schedule(seed=1), sources={"preprocess.cu": source})
    stream = device.stream()
    image = _noise(rng, 64, 64)
    subject = GpuPreprocess(device, _fixed(64, 64))

    with pytest.raises((AssertionError, KernelFault)):
        np.testing.assert_array_equal(_pixels(stream, subject([image], stream))[0], image)


def test_the_bytes_moved_are_those_of_source_and_result() -> None:
    frames = [Frame((1080, 1920), (736, 1280), (736, 1280))]
    tall = [Frame((8000, 10), (32, 32), (20, 32))]  # 40 of its rows count

    assert bytes_moved(OutputForm(), frames, (736, 1280)) == 6_220_800 + 2_826_240
    assert bytes_moved(OutputForm("float16"), frames, (736, 1280)) == 6_220_800 + 5_652_480
    assert bytes_moved(OutputForm(), tall, (32, 32)) == 1200 + 3072


@pytest.mark.parametrize(
    ("images", "container", "message"),
    [
        ([], None, "a batch must be of 1 to 2 images; got 0"),
        ([(4, 4, 3)] * 3, None, "a batch must be of 1 to 2 images; got 3"),
        (
            [(4, 4, 4)],
            None,
            r"pixels must be a non-empty uint8 array of shape \(H, W, 3\), RGB; got uint8 \(4, 4, 4\)",
        ),
        ([(0, 4, 3)], None, r"got uint8 \(0, 4, 3\)"),
        ([(4, 4, 3)], (96, 128), r"the container must hold the largest network sizes, 96 x 160 .*; got 96 x 128"),
    ],
)
def test_what_cannot_be_prepared_is_refused(
    device: EmulatedDevice,
    stream: Stream,
    images: list[tuple[int, ...]],
    container: tuple[int, int] | None,
    message: str,
) -> None:
    subject = GpuPreprocess(device, LETTERBOX, max_batch=2)

    with pytest.raises(InvalidInputError, match=message):
        subject([np.zeros(shape, np.uint8) for shape in images], stream, container)
    subject.close()


def test_a_buffer_that_is_too_small_is_refused(device: EmulatedDevice, stream: Stream) -> None:
    subject = GpuPreprocess(device, LETTERBOX)
    output = device.allocate(100)

    with pytest.raises(InvalidInputError, match="a batch of 1 x 96 x 160 needs a buffer of 46080 bytes; got 100"):
        subject.launch(stream, output, 1, (96, 160))
    output.close()
    subject.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"element": "int8"}, "element must be one of uint8, float16, float32; got 'int8'"),
        ({"interpolation": "cubic"}, "interpolation must be one of cv2_exact, float; got 'cubic'"),
        ({"interpolation": "float"}, "interpolation must be cv2_exact for uint8; got 'float'"),
    ],
)
def test_a_form_that_does_not_exist_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        OutputForm(**fields)

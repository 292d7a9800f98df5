# SPDX-License-Identifier: Apache-2.0
"""The published models in the real server: same answers on every path, errors that belong to one request."""

import http.client
import io
import json
import struct
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from PIL import Image, ImageDraw, ImageFont
from tritonclient.utils import InferenceServerException, shared_memory

from ocdserve.backend import Bundle, Detector
from ocdserve.backend.evaluation.dataset import load_dataset
from ocdserve.backend.evaluation.figures import total
from ocdserve.backend.evaluation.matching import match
from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import TritonServer
from ocdserve.backend.serve.canary import CanaryError, run_canary
from ocdserve.builder import BuildConfig, DataConfig, build
from ocdserve.cli import main
from ocdserve.client import TextDetector
from ocdserve.contract import DETECTING_MODELS, InvalidInputError
from ocdserve.perf.inputs.pictures import demo_pictures
from ocdserve.results.detections import Detections

pytestmark = pytest.mark.triton

ALL_OUTPUTS = ("QUADS", "SCORES", "COUNT", "SIZE", "POINTS", "POINT_COUNTS")
ENCODED_MODELS = ("ocdnet", "ocdnet_fused")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURES = [picture.png() for picture in demo_pictures()]
BLANK = encoded(Image.new("RGB", (320, 240), "white"))
JPEG = encoded(Image.open(io.BytesIO(PICTURES[0])).convert("RGB"), "JPEG")
SCAN = encoded(
    Image.open(io.BytesIO(PICTURES[0])), "TIFF", save_all=True, append_images=[Image.open(io.BytesIO(PICTURES[1]))]
)


class Raw:
    """tritonclient without ocdserve, over either protocol."""

    def __init__(self, server: TritonServer, protocol: str) -> None:
        self._module: Any = grpcclient if protocol == "grpc" else httpclient
        url = server.grpc_url if protocol == "grpc" else server.http_url
        self._client: Any = self._module.InferenceServerClient(url.partition("://")[2])

    def infer(
        self, model: str, inputs: dict[str, Any], outputs: tuple[str, ...] | None = None, **parameters: Any
    ) -> dict[str, Any]:
        tensors = []
        for name, values in inputs.items():
            kind = {"O": "BYTES", "u": "UINT8", "i": "INT32", "f": "FP32"}[values.dtype.kind]
            tensor = self._module.InferInput(name, list(values.shape), kind)
            tensor.set_data_from_numpy(values)
            tensors.append(tensor)
        wanted = [self._module.InferRequestedOutput(name) for name in outputs] if outputs else None
        result = self._client.infer(model, tensors, outputs=wanted, parameters=parameters or None)
        return {name: result.as_numpy(name) for name in outputs or ALL_OUTPUTS}

    def detect(self, model: str, images: list[bytes], **arguments: Any) -> dict[str, Any]:
        return self.infer(model, {"IMAGE": np.array(images, object).reshape(-1, 1)}, **arguments)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module", params=["grpc", "http"])
def raw(request: pytest.FixtureRequest, default_server: TritonServer) -> Any:
    client = Raw(default_server, request.param)
    yield client
    client.close()


@pytest.fixture(scope="module")
def expected(default_detector: Detector) -> list[Detections]:
    return [default_detector.detect(picture) for picture in PICTURES]


def assert_answers(answer: dict[str, Any], index: int, expected: Detections) -> None:
    count = int(answer["COUNT"][index, 0])
    assert count == len(expected)
    assert tuple(answer["SIZE"][index]) == (expected.height, expected.width)
    assert answer["QUADS"][index, :count].tobytes() == expected.quads.tobytes()
    assert answer["SCORES"][index, :count].tobytes() == expected.scores.tobytes()
    assert not answer["QUADS"][index, count:].any()
    assert not answer["SCORES"][index, count:].any()


def test_finds_the_texts_that_were_drawn(expected: list[Detections]) -> None:
    for picture, found in zip(demo_pictures(), expected, strict=True):
        from ocdserve.backend.evaluation.dataset import Truth

        truth = Truth(tuple(np.asarray(quad, np.float64) for quad in picture.quads), (False,) * len(picture.quads))
        result = match(found.quads, truth)
        assert (result.matched, result.truths) == (len(picture.quads), len(picture.quads))


@pytest.mark.parametrize("model", ENCODED_MODELS)
def test_every_path_gives_the_same_bytes(raw: Raw, model: str, expected: list[Detections]) -> None:
    for picture, found in zip(PICTURES, expected, strict=True):
        assert_answers(raw.detect(model, [picture]), 0, found)


@pytest.mark.parametrize("model", ENCODED_MODELS)
def test_a_page_is_chosen_by_the_request(raw: Raw, model: str, expected: list[Detections]) -> None:
    for index in (0, 1):
        assert_answers(raw.detect(model, [SCAN], page=index + 1), 0, expected[index])
    with pytest.raises(InferenceServerException, match="page must be from 1 to 2, the pages of this TIFF file; got 3"):
        raw.detect(model, [SCAN], page=3)


def test_all_pages_are_detected_through_a_server(default_server: TritonServer, expected: list[Detections]) -> None:
    with TextDetector(default_server.grpc_url) as detector:
        found = list(detector.detect_pages(SCAN))
    assert [each.page for each in found] == [1, 2]
    for each, alone in zip(found, expected, strict=False):
        np.testing.assert_array_equal(each.quads, alone.quads)


def test_ensemble_and_fused_model_answer_every_output_alike(raw: Raw) -> None:
    for parameters in ({}, {"polygons": True}):
        ensemble, fused = (raw.detect(model, [PICTURES[1]], **parameters) for model in ENCODED_MODELS)
        for name in ALL_OUTPUTS:
            assert ensemble[name].shape == fused[name].shape
            assert ensemble[name].tobytes() == fused[name].tobytes()


def test_pixels_give_what_the_file_gives(raw: Raw, expected: list[Detections]) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(PICTURES[0])).convert("RGB"))
    assert_answers(raw.infer("ocdnet_raw", {"PIXELS": pixels[None]}), 0, expected[0])


def test_several_images_of_different_sizes_share_a_request(raw: Raw, expected: list[Detections]) -> None:
    for model in ENCODED_MODELS:
        answer = raw.detect(model, [PICTURES[2], BLANK, PICTURES[1]])
        assert_answers(answer, 0, expected[2])
        assert int(answer["COUNT"][1, 0]) == 0
        assert_answers(answer, 2, expected[1])


def test_the_steps_can_be_called_one_by_one(raw: Raw, expected: list[Detections]) -> None:
    images = np.array([[PICTURES[1]]], object)
    first = raw.infer("ocdnet_preprocess", {"IMAGE": images}, ("NETWORK_IMAGE", "FRAME", "SIZE"))
    probability = raw.infer("ocdnet_network", {name: first[name] for name in ("NETWORK_IMAGE", "FRAME")}, ("MAP",))
    last = raw.infer("ocdnet_postprocess", {**probability, "FRAME": first["FRAME"]}, ("QUADS", "SCORES", "COUNT"))
    assert_answers({**last, "SIZE": first["SIZE"]}, 0, expected[1])


def test_an_elongated_picture_is_answered_as_in_process(raw: Raw, default_detector: Detector) -> None:
    page = Image.new("RGB", (150, 4000), "white")
    for y in range(20, 3960, 60):
        ImageDraw.Draw(page).text((20, y), "harbour", "black", ImageFont.load_default(20))
    pixels = np.asarray(page)
    stream = io.BytesIO()
    page.save(stream, "PNG")
    found = default_detector.detect(pixels)
    assert len(found) == 66
    for model in ENCODED_MODELS:
        answer = raw.detect(model, [PICTURES[0], stream.getvalue()])
        assert_answers(answer, 1, found)
        assert_answers(answer, 0, default_detector.detect(PICTURES[0]))
    assert_answers(raw.infer("ocdnet_raw", {"PIXELS": pixels[None]}), 0, found)


def test_parameters_act_on_their_own_request_only(default_server: TritonServer, default_detector: Detector) -> None:
    settings: list[dict[str, Any]] = [{}, {"box_thresh": 0.95}, {"max_candidates": 2}, {"thresh": 0.6}, {}]
    expected = [default_detector.detect(PICTURES[1], **setting) for setting in settings]
    assert len({len(found) for found in expected}) >= 3
    answers: dict[int, Detections] = {}

    def ask(index: int) -> None:
        with TextDetector(default_server.grpc_url) as detector:
            answers[index] = detector.detect(PICTURES[1], **settings[index])

    run_together(ask, len(settings))
    for index, found in enumerate(expected):
        assert answers[index].quads.tobytes() == found.quads.tobytes()


@pytest.mark.parametrize("model", ENCODED_MODELS)
def test_a_bad_request_leaves_its_neighbours_alone(
    default_server: TritonServer, model: str, expected: list[Detections]
) -> None:
    images = [PICTURES[0], b"junk", PICTURES[1], JPEG[:5000], PICTURES[2], b""]
    answers: dict[int, Detections | Exception] = {}

    def ask(index: int) -> None:
        with TextDetector(default_server.grpc_url, model=model) as detector:
            try:
                answers[index] = detector.detect(images[index])
            except InvalidInputError as error:
                answers[index] = error

    run_together(ask, len(images))
    for index, found in zip((0, 2, 4), expected, strict=True):
        answer = answers[index]
        assert isinstance(answer, Detections)
        assert answer.quads.tobytes() == found.quads.tobytes()
    for index in (1, 3, 5):
        assert isinstance(answers[index], InvalidInputError)


def test_polygons_belong_to_the_detections(raw: Raw, default_detector: Detector) -> None:
    expected = default_detector.detect(PICTURES[1], polygons=True)
    assert expected.polygons is not None
    for model in ENCODED_MODELS:
        answer = raw.detect(model, [PICTURES[1]], polygons=True)
        counts = answer["POINT_COUNTS"][0]
        assert counts.tolist() == [len(polygon) for polygon in expected.polygons]
        assert answer["POINTS"][0].tobytes() == np.concatenate(expected.polygons).tobytes()


def test_an_answer_without_polygons_says_that_none_were_computed(raw: Raw) -> None:
    answer = raw.detect("ocdnet", [PICTURES[1]])
    assert answer["POINTS"].shape == (1, 0, 2)
    assert set(answer["POINT_COUNTS"][0].tolist()) == {-1}


def test_asking_for_polygons_without_computing_them_is_refused(raw: Raw) -> None:
    with pytest.raises(InferenceServerException, match="polygons=true"):
        raw.detect("ocdnet_fused", [PICTURES[1]], outputs=("QUADS", "POINTS"))


BAD_IMAGES = {
    "empty": (b"", "empty"),
    "text": (b"this is no image", "not an image that can be read"),
    "truncated": (JPEG[: len(JPEG) // 2], "truncated"),
    "pages": (SCAN, "the TIFF file has 2 pages, and one image is detected at a time"),
    "PDF": (b"%PDF-1.7", "this is a PDF document"),
}
BAD_PARAMETERS = {
    "unknown": ({"box_treshold": 0.5}, "unknown request parameter 'box_treshold'"),
    "range": ({"box_thresh": 1.5}, "must be a number from 0 to 1"),
    "type": ({"max_candidates": "many"}, "must be a whole number"),
}


@pytest.mark.parametrize("model", ENCODED_MODELS)
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_refused_with_the_reason(raw: Raw, model: str, case: str) -> None:
    image, reason = BAD_IMAGES[case]
    with pytest.raises(InferenceServerException, match=reason) as caught:
        raw.detect(model, [image])
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")


@pytest.mark.parametrize("model", ENCODED_MODELS)
@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_bad_parameters_are_refused_with_the_rule(raw: Raw, model: str, case: str) -> None:
    parameters, reason = BAD_PARAMETERS[case]
    with pytest.raises(InferenceServerException, match=reason) as caught:
        raw.detect(model, [PICTURES[1]], **parameters)
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")


def test_a_bad_image_among_several_is_named(raw: Raw) -> None:
    with pytest.raises(InferenceServerException, match="image 1 of 3"):
        raw.detect("ocdnet", [BLANK, b"junk", BLANK])


def test_wrong_dtypes_and_shapes_are_refused(raw: Raw) -> None:
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    for model, inputs in (
        ("ocdnet_raw", {"PIXELS": pixels.astype(np.float32)}),
        ("ocdnet_raw", {"PIXELS": pixels[..., :1]}),
        ("ocdnet_raw", {"PIXELS": pixels[0]}),
        ("ocdnet", {"IMAGE": pixels}),
        ("ocdnet", {"PIXELS": pixels}),
    ):
        with pytest.raises(InferenceServerException) as caught:
            raw.infer(model, inputs, ("COUNT",))
        assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")


def test_a_huge_image_is_refused_from_its_header(raw: Raw) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # No pixel follows the header, so decoding would report "truncated" instead.
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(1_000_000))
    with pytest.raises(InferenceServerException, match="at most 80000000") as caught:
        raw.detect("ocdnet", [huge])
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")


@pytest.mark.parametrize("size", [(1, 1), (10_000, 3), (3, 10_000)])
def test_images_without_text_are_answered_with_count_zero(raw: Raw, size: tuple[int, int]) -> None:
    for model in ENCODED_MODELS:
        answer = raw.detect(model, [encoded(Image.new("RGB", size, "gray"))])
        assert answer["COUNT"].tolist() == [[0]]
        assert answer["SIZE"].tolist() == [[size[1], size[0]]]
        assert answer["QUADS"].shape == (1, 0, 4, 2)


def test_system_shared_memory_works(default_server: TritonServer, expected: list[Detections]) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(PICTURES[0])).convert("RGB"))[None]
    client = grpcclient.InferenceServerClient(default_server.grpc_url.partition("://")[2])
    assert default_server.options.shared_memory
    token = default_server.options.shared_memory.read_text()
    headers = {"triton-grpc-protocol-x-ocdserve-shared-memory": token}
    region = shared_memory.create_shared_memory_region("pixels", "/ocdserve_test_pixels", pixels.nbytes)
    try:
        shared_memory.set_shared_memory_region(region, [pixels])
        client.register_system_shared_memory("pixels", "/ocdserve_test_pixels", pixels.nbytes, headers=headers)
        tensor = grpcclient.InferInput("PIXELS", list(pixels.shape), "UINT8")
        tensor.set_shared_memory("pixels", pixels.nbytes)
        result = client.infer("ocdnet_raw", [tensor])
        assert_answers({name: result.as_numpy(name) for name in ALL_OUTPUTS}, 0, expected[0])
    finally:
        client.unregister_system_shared_memory("pixels", headers=headers)
        shared_memory.destroy_shared_memory_region(region)
        client.close()


def test_plain_http_works_as_curl_would_send_it(default_server: TritonServer, expected: list[Detections]) -> None:
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "IMAGE",
                    "shape": [1, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(PICTURES[1]) + 4},
                }
            ],
            "outputs": [{"name": name} for name in ("QUADS", "SCORES", "COUNT", "SIZE")],
        }
    ).encode()
    connection = http.client.HTTPConnection(default_server.http_url.partition("://")[2], timeout=30)
    connection.request(
        "POST",
        "/v2/models/ocdnet/infer",
        header + struct.pack("<I", len(PICTURES[1])) + PICTURES[1],
        {"Inference-Header-Content-Length": str(len(header))},
    )
    answer = json.loads(connection.getresponse().read())
    connection.close()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs["COUNT"] == [len(expected[1])]
    assert np.allclose(outputs["QUADS"], expected[1].quads.ravel())


def test_the_metrics_endpoint_counts_stages_and_detections(default_server: TritonServer) -> None:
    def read() -> dict[str, float]:
        with urllib.request.urlopen(default_server.metrics_url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("ocdserve")
        }

    # Requests are counted in the background, after their answers: those of other tests first.
    before: dict[str, float] = {}
    while before != (before := read()):
        time.sleep(0.5)
    with TextDetector(default_server.grpc_url) as detector:
        count = len(detector.detect(PICTURES[1]))
    counted = 'ocdserve_detections_per_image_count{model="ocdnet_postprocess"}'
    deadline = time.monotonic() + 10
    while (after := read()).get(counted, 0.0) == before.get(counted, 0.0) and time.monotonic() < deadline:
        time.sleep(0.05)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    for model, stage in (
        ("ocdnet_preprocess", "preprocess"),
        ("ocdnet_network", "network"),
        ("ocdnet_postprocess", "postprocess"),
    ):
        assert grown(f'ocdserve_stage_duration_seconds_count{{model="{model}",stage="{stage}"}}') == 1
        assert grown(f'ocdserve_stage_duration_seconds_sum{{model="{model}",stage="{stage}"}}') > 0
    assert grown(counted) == 1
    assert grown('ocdserve_detections_per_image_sum{model="ocdnet_postprocess"}') == count


def test_many_clients_at_once_get_their_own_answers(default_server: TritonServer, expected: list[Detections]) -> None:
    answers: dict[int, list[Detections]] = {}

    def ask(index: int) -> None:
        with TextDetector(default_server.grpc_url, model=ENCODED_MODELS[index % 2]) as detector:
            answers[index] = [detector.detect(PICTURES[(index + turn) % len(PICTURES)]) for turn in range(3)]

    run_together(ask, 8)
    for index in range(8):
        for turn, found in enumerate(answers[index]):
            assert found.quads.tobytes() == expected[(index + turn) % len(PICTURES)].quads.tobytes()


def test_real_photographs_reach_the_reference_figures(
    default_server: TritonServer, default_detector: Detector, shared_data: Path
) -> None:
    """Through the server, and bit for bit in process; the limits are RapidOCR's figures with the same network."""
    with TextDetector(default_server.grpc_url) as over_grpc, TextDetector(default_server.http_url) as over_http:
        for name, limit in (("receipts", 0.9005), ("scene", 0.594)):
            results = []
            for index, sample in enumerate(load_dataset(shared_data / name)):
                image = sample.image.read_bytes()
                found = over_grpc.detect(image)
                results.append(match(found.quads, sample.truth))
                if index % 5 == 0:
                    for other in (over_http.detect(image), default_detector.detect(image)):
                        assert other.quads.tobytes() == found.quads.tobytes()
                        assert other.scores.tobytes() == found.scores.tobytes()
            assert total(results).hmean >= limit


@pytest.mark.long
def test_all_paths_agree_on_all_photographs(
    default_server: TritonServer, default_detector: Detector, shared_data: Path
) -> None:
    with (
        TextDetector(default_server.grpc_url) as ensemble,
        TextDetector(default_server.http_url, model="ocdnet_fused") as fused,
    ):
        for name in ("receipts", "scene"):
            for sample in load_dataset(shared_data / name):
                image = sample.image.read_bytes()
                found = default_detector.detect(image, polygons=True)
                for other in (ensemble.detect(image, polygons=True), fused.detect(image, polygons=True)):
                    assert other.quads.tobytes() == found.quads.tobytes()
                    assert other.scores.tobytes() == found.scores.tobytes()
                    assert other.polygons is not None
                    assert found.polygons is not None
                    assert [p.tobytes() for p in other.polygons] == [p.tobytes() for p in found.polygons]


def run_together(ask: Any, count: int) -> None:
    threads = [threading.Thread(target=ask, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)


def test_a_quantised_bundle_answers_as_in_process(
    tmp_path: Path, running_server: Callable[..., AbstractContextManager[TritonServer]]
) -> None:
    for index, picture in enumerate(PICTURES):
        (tmp_path / f"{index}.png").write_bytes(picture)
    bundle = tmp_path / "int8"
    build(
        BuildConfig(
            Bundle.load().model_path,
            bundle,
            precision="int8",
            runtime="openvino",
            data=DataConfig(calibration_images=tmp_path, calibration_count=1),
            gate=False,
        )
    )
    detector = Detector.load(bundle)
    assert detector.spec.precision == "int8"
    with running_server(publish(PublishOptions(tmp_path / "models", bundle))) as server:
        client = Raw(server, "grpc")
        for picture in PICTURES:
            expected = detector.detect(picture)
            assert len(expected) > 5
            assert_answers(client.detect("ocdnet", [picture]), 0, expected)
        client.close()


@pytest.mark.parametrize("model", DETECTING_MODELS)
def test_a_canary_gets_its_answer(default_server: TritonServer, model: str) -> None:
    # The default detector finds the word.
    assert len(run_canary(default_server.api, model)) == 1
    with pytest.raises(CanaryError, match=rf"canary of {model}_other: .*unknown model") as caught:
        run_canary(default_server.api, model, under=f"{model}_other")
    assert caught.value.cause == "wrong"
    with pytest.raises(CanaryError, match=r"timeout|no answer") as caught:
        run_canary(default_server.api, model, timeout_s=0.0001)
    assert caught.value.cause in ("busy", "silent")


def test_a_probe_may_ask_for_canaries(default_server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", default_server.http_url, "--canary"]) == 0
    served = ("ocdnet", "ocdnet_raw", "ocdnet_fused", "ocr", "ocr_raw", "ocr_fused")
    assert capsys.readouterr().out == ", ".join(f"{name} answers" for name in served) + "\n"

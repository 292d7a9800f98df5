# SPDX-License-Identifier: Apache-2.0
"""Reading by the real server: byte for byte what a reader in this process gives, by every model and protocol."""

import io
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from front_doors import ask, door
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from ocdserve.backend import Reader
from ocdserve.backend.serve import TritonServer
from ocdserve.contract import ReadingParameters
from ocdserve.perf.inputs.pictures import demo_pictures
from ocdserve.results.reading import Reading

pytestmark = pytest.mark.triton

PAGES = [picture.png() for picture in demo_pictures()][:2]
_KINDS = {"O": "BYTES", "u": "UINT8", "i": "INT32", "f": "FP32"}


class Raw:
    """tritonclient over either protocol; answers have all outputs."""

    def __init__(self, server: TritonServer, protocol: str) -> None:
        self._module: Any = grpcclient if protocol == "grpc" else httpclient
        url = server.grpc_url if protocol == "grpc" else server.http_url
        # Over HTTP tritonclient's own limit is a minute.
        more = {} if protocol == "grpc" else {"network_timeout": 300.0, "connection_timeout": 300.0}
        self.client: Any = self._module.InferenceServerClient(url.partition("://")[2], **more)

    def infer(
        self, model: str, inputs: dict[str, NDArray[Any]], timeout_us: int | None = None, **parameters: Any
    ) -> dict[str, Any]:
        tensors = []
        for name, values in inputs.items():
            tensor = self._module.InferInput(name, list(values.shape), _KINDS[values.dtype.kind])
            tensor.set_data_from_numpy(values)
            tensors.append(tensor)
        result = self.client.infer(model, tensors, parameters=parameters or None, timeout=timeout_us)
        response = result.get_response()
        names = (
            [each["name"] for each in response["outputs"]]
            if isinstance(response, dict)
            else [each.name for each in response.outputs]
        )
        return {name: result.as_numpy(name) for name in names}


@pytest.fixture(scope="module", params=["grpc", "http"])
def raw(request: pytest.FixtureRequest, default_server: TritonServer) -> Iterator[Raw]:
    made = Raw(default_server, request.param)
    yield made
    made.client.close()


@pytest.fixture(scope="module")
def expected(reader: Reader) -> list[Reading]:
    return [reader.read(page, words=True) for page in PAGES]


def images(*encoded: bytes) -> NDArray[np.object_]:
    return np.array([[each] for each in encoded], object)


def assert_is(answer: dict[str, Any], row: int, reading: Reading) -> None:
    count = int(answer["COUNT"][row, 0])
    assert count == len(reading)
    assert answer["QUADS"][row, :count].tobytes() == reading.quads.tobytes()
    assert answer["SCORES"][row, :count].tobytes() == reading.scores.tobytes()
    assert [text.decode() for text in answer["TEXTS"][row, :count]] == list(reading.texts)
    assert not any(answer["TEXTS"][row, count:])
    assert answer["TEXT_SCORES"][row, :count].tobytes() == reading.text_scores.tobytes()
    assert reading.words is not None
    words = [word for line in reading.words for word in line]
    assert answer["WORD_COUNTS"][row, :count].tolist() == [len(line) for line in reading.words]
    assert [text.decode() for text in answer["WORD_TEXTS"][row, : len(words)]] == [word.text for word in words]
    quads = np.array([word.quad for word in words], np.float32).reshape(-1, 4, 2)
    assert answer["WORD_QUADS"][row, : len(words)].tobytes() == quads.tobytes()
    scores = np.array([word.score for word in words], np.float32)
    assert answer["WORD_SCORES"][row, : len(words)].tobytes() == scores.tobytes()


def test_the_reader_reads_what_was_drawn(expected: list[Reading]) -> None:
    assert all(len(reading) >= 3 and (reading.text_scores > 0.8).mean() > 0.5 for reading in expected)


@pytest.mark.parametrize("model", ["ocr", "ocr_fused"])
def test_a_batch_of_pages_gives_what_a_reader_gives_for_each(raw: Raw, expected: list[Reading], model: str) -> None:
    answer = raw.infer(model, {"IMAGE": images(*PAGES)}, words=True)
    assert answer["SIZE"].tolist() == [[reading.height, reading.width] for reading in expected]
    for row, reading in enumerate(expected):
        assert_is(answer, row, reading)


def test_pixels_give_the_same(raw: Raw, expected: list[Reading]) -> None:
    pixels = np.array(Image.open(io.BytesIO(PAGES[0])).convert("RGB"))
    assert_is(raw.infer("ocr_raw", {"PIXELS": pixels[None]}, words=True), 0, expected[0])


def test_lines_that_were_cut_out_give_the_same_as_in_their_page(
    raw: Raw, reader: Reader, expected: list[Reading]
) -> None:
    pixels = np.array(Image.open(io.BytesIO(PAGES[0])).convert("RGB"))
    found = reader.detector.detect(PAGES[0])
    lines = reader.recogniser.cut(pixels, found)
    sizes = np.array([[line.pixels.shape[:2] for line in lines]], np.int32)
    crops = np.zeros((1, len(lines), *sizes[0].max(axis=0), 3), np.uint8)
    for target, line in zip(crops[0], lines, strict=True):
        target[: line.pixels.shape[0], : line.pixels.shape[1]] = line.pixels
    answer = raw.infer("ocrnet_recognise", {"CROPS": crops, "CROP_SIZES": sizes}, direction=False)
    whole = reader.recognise(PAGES[0], found, direction=False, min_text_score=0)
    least = reader.recogniser.spec.min_text_score
    shown = [text if score >= least else "" for text, score in zip(whole.texts, whole.text_scores, strict=True)]
    assert [text.decode() for text in answer["TEXTS"][0]] == shown
    assert answer["TEXT_SCORES"][0].tobytes() == whole.text_scores.tobytes()
    quads = found.quads[None]
    again = raw.infer("ocrnet_recognise", {"IMAGE": images(PAGES[0]), "QUADS": quads}, words=True)
    assert [text.decode() for text in again["TEXTS"][0]] == list(expected[0].texts)


def test_nothing_is_an_answer(raw: Raw) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (320, 240), "white").save(stream, "PNG")
    for model in ("ocr", "ocr_fused"):
        answer = raw.infer(model, {"IMAGE": images(stream.getvalue())}, words=True)
        assert answer["COUNT"].tolist() == [[0]]
        assert answer["TEXTS"].shape == (1, 0) and answer["WORD_TEXTS"].shape == (1, 0)
        answer = raw.infer(model, {"IMAGE": images(PAGES[0])}, min_text_score=1.0)
        assert answer["COUNT"].tolist() == [[0]]


def test_bad_requests_are_the_clients_fault(raw: Raw) -> None:
    quads = np.full((1, 1, 4, 2), np.nan, np.float32)
    for model, inputs, parameters, message in (
        ("ocr", {"IMAGE": images(b"x")}, {}, "not an image that can be read"),
        ("ocr_fused", {"IMAGE": images(b"x")}, {}, "not an image that can be read"),
        ("ocr", {"IMAGE": images(PAGES[0])}, {"min_text_score": 2}, "must be a number from 0 to 1"),
        ("ocdnet", {"IMAGE": images(PAGES[0])}, {"words": True}, "ask a model that reads: ocr, ocr_raw, ocr_fused"),
        ("ocdnet_fused", {"IMAGE": images(PAGES[0])}, {"words": True}, "ask a model that reads"),
        ("ocrnet_recognise", {"IMAGE": images(PAGES[0]), "QUADS": quads}, {}, "QUADS must be finite coordinates"),
        ("ocrnet_recognise", {"QUADS": quads}, {}, "exactly one of the inputs"),
    ):
        with pytest.raises(InferenceServerException, match=message) as caught:
            raw.infer(model, inputs, **parameters)
        assert "INVALID_ARGUMENT" in str(caught.value.status()) or "400" in str(caught.value.status())


def test_a_page_of_many_lines_delays_no_other_and_ends_with_its_deadline(default_server: TritonServer) -> None:
    many = np.zeros((1, 600, 48, 320, 3), np.uint8)
    sizes = np.full((1, 600, 2), (48, 320), np.int32)
    errors: list[str] = []

    def read_all() -> None:
        client = Raw(default_server, "grpc")
        try:
            client.infer("ocrnet_recognise", {"CROPS": many, "CROP_SIZES": sizes}, 4_000_000, direction=False)
            errors.append("none")
        except InferenceServerException as error:
            errors.append(str(error))

    thread = threading.Thread(target=read_all)
    thread.start()
    client = Raw(default_server, "grpc")
    answers = 0
    while thread.is_alive():
        client.infer("ocrnet_recognise", {"CROPS": many[:, :1], "CROP_SIZES": sizes[:, :1]}, direction=False)
        answers += 1
    assert answers >= 3
    assert "before the stage recognise could begin" in errors[0]


def test_reading_is_measured(default_server: TritonServer) -> None:
    wanted = (
        'ocdserve_stage_duration_seconds_count{model="ocrnet_recognise",stage="recognise"}',
        'ocdserve_lines_per_image_count{model="ocr_fused"}',
        'ocdserve_requests_total{model="ocr",outcome="ok"}',
    )
    client = Raw(default_server, "grpc")
    for model in ("ocr", "ocr_fused"):
        client.infer(model, {"IMAGE": images(PAGES[0])})
    deadline, text = time.monotonic() + 30, ""
    while not all(name in text for name in wanted) and time.monotonic() < deadline:
        with urllib.request.urlopen(default_server.metrics_url, timeout=30) as answer:
            text = answer.read().decode()
    values = {
        line.partition("} ")[0] + "}": float(line.partition("} ")[2]) for line in text.splitlines() if "} " in line
    }
    assert all(values[name] >= 1 for name in wanted)


def test_clients_see_what_a_request_gets_that_sets_nothing(default_server: TritonServer) -> None:
    with urllib.request.urlopen(f"{default_server.http_url}/v2/models/ocr/config", timeout=30) as answer:
        parameters = json.load(answer)["parameters"]
    defaults = json.loads(parameters["request_defaults"]["string_value"])
    assert {name: defaults[name] for name in ("min_text_score", "words", "direction", "box_thresh")} == {
        "min_text_score": 0.5,
        "words": False,
        "direction": True,
        "box_thresh": 0.6,
    }
    assert set(defaults) == set(ReadingParameters.specs()) - {"page"}


def test_the_front_door_serves_models_that_read_and_plain_uploads(
    default_server: TritonServer, expected: list[Reading]
) -> None:
    with door(default_server, no_uploads=False) as opened:
        status, _, body = ask(opened, "/read?words=true", PAGES[0], {})
        found = json.loads(body)
        assert status == 200, body
        assert [line["text"] for line in found["detections"]] == list(expected[0].texts)
        for model, served in (("ocr", 200), ("ocr_raw", 200), ("ocr_fused", 200), ("ocrnet_recognise", 404)):
            assert ask(opened, f"/v2/models/{model}/ready", None, {}, "GET")[0] == served

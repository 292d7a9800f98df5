# SPDX-License-Identifier: Apache-2.0
"""`TextReader` and `AsyncTextReader`: the calls of the detectors, with texts."""

import asyncio
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from kserve_fakes import FOUND, grpc_server, http_server
from numpy.typing import NDArray
from PIL import Image

from ocdserve.client import (
    AsyncMockTransport,
    AsyncTextReader,
    Detections,
    Hooks,
    InferRequest,
    InvalidInputError,
    MockTransport,
    Reading,
    ReadOutcome,
    RequestEvent,
    SharedMemory,
    TextDetector,
    TextReader,
    UnavailableError,
)
from ocdserve.client._sansio.calls import CallOptions
from ocdserve.client._sansio.lines import LineCall
from ocdserve.client._wire.texts import READ
from ocdserve.contract import ReadingParameters
from ocdserve.results import second_look

URL = "grpc://server:8001"
# left, top, right, bottom, colour: red is text, green its character, blue its score times 255.
BARS = [(20, 50, 880, 80, (255, 65, 204)), (100, 200, 160, 450, (255, 66, 153)), (700, 500, 720, 530, (255, 67, 51))]
QUADS = [[[x1, y1], [x2, y1], [x2, y2], [x1, y2]] for x1, y1, x2, y2, _ in BARS]
SCORES = [np.float32(0.8), np.float32(0.6), np.float32(0.2)]


def page() -> NDArray[np.uint8]:
    pixels = np.zeros((600, 900, 3), np.uint8)
    for left, top, right, bottom, colour in BARS:
        pixels[top:bottom, left:right] = colour
    return pixels


def png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def boxes(pixels: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """Each bar that is seen, from the top."""
    found = []
    for _, _, _, _, colour in BARS:
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        if len(rows):
            found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return found


def read(line: NDArray[np.uint8], request: InferRequest) -> tuple[bytes, float]:
    """What the colour a quarter from its left says."""
    _, letter, score = line[line.shape[0] // 2, line.shape[1] // 4].tolist()
    return chr(letter).encode(), score / 255


def colours(request: InferRequest) -> Mapping[str, NDArray[Any]]:
    """A server that detects every bar, and reads the character of its colour."""
    tensors = _lines(request) if request.input_name == "CROPS" else _page(request)
    return {name: tensors[name] for name in request.outputs}


def _page(request: InferRequest) -> dict[str, NDArray[Any]]:
    [image] = request.array if request.input_name == "PIXELS" else request.array[0]
    pixels = image if isinstance(image, np.ndarray) else np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    found = boxes(pixels)
    lines = [read(pixels[top:bottom, left:right], request) for left, top, right, bottom in found]
    least = request.parameters.get("min_text_score", 0.5) if request.model.startswith("ocr") else 0
    kept = [index for index, (_, score) in enumerate(lines) if score >= least]
    quads = [[[x1, y1], [x2, y1], [x2, y2], [x1, y2]] for x1, y1, x2, y2 in (found[index] for index in kept)]
    texts = [lines[index] for index in kept]
    return {
        "QUADS": np.array([quads], np.float32).reshape(1, -1, 4, 2),
        "SCORES": np.full((1, len(kept)), 0.5, np.float32),
        "COUNT": np.array([[len(kept)]], np.int32),
        "SIZE": np.array([pixels.shape[:2]], np.int32),
    } | _texts(texts, np.array([quads], np.float32).reshape(1, -1, 4, 2))


def _lines(request: InferRequest) -> dict[str, NDArray[Any]]:
    [crops], [sizes] = request.array, request.more["CROP_SIZES"]
    assert request.model == "ocrnet_recognise"
    assert (sizes[:, 0] == 48).all()
    assert set(request.parameters) <= {"min_text_score", "words", "direction"}
    lines = [read(crop[:height, :width], request) for crop, (height, width) in zip(crops, sizes, strict=True)]
    least = request.parameters.get("min_text_score", 0.5)
    rectangles = [[[0, 0], [width, 0], [width, height], [0, height]] for height, width in sizes.tolist()]
    texts = [(text if score >= least else b"", score) for text, score in lines]
    return _texts(texts, np.array([rectangles], np.float32))


def _texts(texts: list[tuple[bytes, float]], quads: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """One word per line, which is the line."""
    words = np.array([[text for text, _ in texts]], np.object_).reshape(1, -1)
    scores = np.array([[score for _, score in texts]], np.float32).reshape(1, -1)
    ones = np.ones(scores.shape, np.int32)
    return {
        "TEXTS": words,
        "TEXT_SCORES": scores,
        "WORD_TEXTS": words,
        "WORD_SCORES": scores,
        "WORD_QUADS": quads,
        "WORD_COUNTS": ones,
    }


class Asked:
    """Either reader, and the requests that it has sent."""

    def __init__(self, is_async: bool) -> None:
        self._is_async = is_async
        self.requests: list[InferRequest] = []

    def _answer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        self.requests.append(request)
        return colours(request)

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        if not self._is_async:
            with TextReader(URL, transport=MockTransport(self._answer)) as reader:
                found = getattr(reader, name)(*arguments, **options)
                return list(found) if name in ("read_many", "read_pages") else found

        async def call() -> Any:
            async with AsyncTextReader(URL, transport=AsyncMockTransport(self._answer)) as reader:
                found = getattr(reader, name)(*arguments, **options)
                return [one async for one in found] if name in ("read_many", "read_pages") else await found

        return asyncio.run(call())


@pytest.fixture(params=[False, True], ids=["plain", "async"])
def asked(request: pytest.FixtureRequest) -> Asked:
    return Asked(request.param)


def lines(reading: Reading) -> list[tuple[str, float, list[list[float]]]]:
    assert type(reading) is Reading
    return [(line.text, line.text_score, line.quad.tolist()) for line in reading]


EVERY = list(zip("ABC", SCORES, QUADS, strict=True))
# Cut out by the client: the text of the tall bar runs down, so its quad begins where the bar is upper right.
CUT = [EVERY[0], ("B", SCORES[1], [*QUADS[1][1:], QUADS[1][0]]), EVERY[2]]


def test_an_image_is_read_by_one_request(asked: Asked) -> None:
    reading = asked("read", png(page()), box_thresh=0.7, request_id="r1")
    assert lines(reading) == EVERY[:2]
    assert (reading.text, reading.width, reading.height, reading.words) == ("A\nB", 900, 600, None)
    assert reading.request_id == "r1" and reading.latency_ms > 0
    [request] = asked.requests
    assert (request.model, dict(request.parameters)) == ("ocr", {"box_thresh": 0.7})
    assert request.outputs == ("QUADS", "SCORES", "COUNT", "SIZE", "TEXTS", "TEXT_SCORES")


def test_pixels_use_the_raw_model_and_parameters_of_reading_are_sent(asked: Asked) -> None:
    bgr = page()[..., ::-1]
    reading = asked("read", bgr, bgr=True, min_text_score=0.0, words=True, direction=False)
    assert lines(reading) == EVERY
    assert [[(word.text, word.score, word.quad.tolist()) for word in words] for words in reading.words] == [
        [line] for line in EVERY
    ]
    [request] = asked.requests
    assert (request.model, request.input_name) == ("ocr_raw", "PIXELS")
    assert dict(request.parameters) == {"min_text_score": 0.0, "words": True, "direction": False}
    assert request.outputs[4:] == ("TEXTS", "TEXT_SCORES", "WORD_TEXTS", "WORD_SCORES", "WORD_QUADS", "WORD_COUNTS")


def test_batches_and_streams_of_images_are_read(asked: Asked) -> None:
    first, second = asked("read_batch", [png(page()), page()])
    assert lines(first) == lines(second) == EVERY[:2]
    outcomes = asked("read_many", [png(page()), "no/such.png"], concurrency=2)
    assert [type(outcome) for outcome in outcomes] == [ReadOutcome, ReadOutcome]
    assert lines(outcomes[0].result()) == EVERY[:2]
    with pytest.raises(InvalidInputError, match=r"no/such\.png"):
        outcomes[1].result()


def test_pages_are_read_and_numbered(asked: Asked) -> None:
    stream = io.BytesIO()
    Image.fromarray(page()).save(stream, "TIFF", save_all=True, append_images=[Image.fromarray(page()[:300])])
    first, second = asked("read_pages", stream.getvalue(), words=True)
    assert (first.page, first.text, second.page, second.text) == (1, "A\nB", 2, "A\nB")
    assert {request.model for request in asked.requests} == {"ocr_raw"}


def test_large_images_are_scaled_down_and_the_words_back_up(asked: Asked) -> None:
    reading = asked("read", page(), max_side=450, words=True)
    assert asked.requests[0].array.shape == (1, 300, 450, 3)
    assert (reading.width, reading.height, reading.texts) == (900, 600, ("A", "B"))
    assert np.abs(reading.quads - np.array(QUADS[:2], np.float32)).max() <= 2
    assert [word.quad.tolist() for words in reading.words for word in words] == reading.quads.tolist()


def test_tiles_are_detected_merged_and_then_read(asked: Asked) -> None:
    options = {"tile": 320, "overlap": 60, "box_thresh": 0.25, "words": True, "direction": False}
    reading = asked("read_tiled", png(page()), **options)
    assert sorted(lines(reading)) == CUT[:2]
    assert {word.text: word.quad.tolist() for words in reading.words for word in words} == {
        "A": QUADS[0],
        "B": CUT[1][2],
    }
    *tiles, crops = asked.requests
    assert {(request.model, request.array.shape) for request in tiles} == {("ocdnet_raw", (1, 320, 320, 3))}
    assert [dict(request.parameters) for request in tiles] == [{"box_thresh": 0.25}] * 12
    assert dict(crops.parameters) == {"words": True, "direction": False}
    assert reading.latency_ms > 0


def test_without_a_threshold_of_texts_every_tiled_line_is_kept(asked: Asked) -> None:
    assert sorted(lines(asked("read_tiled", page(), tile=500, overlap=60, min_text_score=0))) == CUT
    assert sorted(lines(asked("read_tiled", page(), tile=500, overlap=60, min_text_score=0.7))) == EVERY[:1]


def test_an_image_without_text_is_read_in_tiles(asked: Asked) -> None:
    reading = asked("read_tiled", np.zeros((400, 400, 3), np.uint8), tile=320, overlap=60, words=True)
    assert (len(reading), reading.text, reading.words, reading.width) == (0, "", (), 400)


def test_detected_text_is_read_in_the_order_of_the_detections(asked: Asked) -> None:
    found = Detections(np.array(QUADS[::-1], np.float32), np.array([0.1, 0.2, 0.3], np.float32), 900, 600)
    reading = asked("recognise", page(), found, min_text_score=0)
    assert lines(reading) == CUT[::-1]
    assert reading.scores.tolist() == found.scores.tolist()
    assert lines(asked("recognise", page(), reading, min_text_score=0, words=True)) == CUT[::-1]
    with pytest.raises(InvalidInputError, match="an image of 900x600 pixels; got one of 900x300"):
        asked("recognise", page()[:300], found)


def test_the_lines_of_an_image_vote_on_its_direction(asked: Asked) -> None:
    """Each bar reads badly as it is; the narrow one would read well, but follows the others."""
    pixels = page()
    for (left, top, right, bottom, _), upright, turned in zip(BARS, (102, 102, 250), (229, 229, 179), strict=True):
        along = slice(top, bottom), slice(left, right)
        half = (slice(None), slice(None, (right - left) // 2))
        if bottom - top >= 1.5 * (right - left):
            half = (slice(None, (bottom - top) // 2), slice(None))
        pixels[along] = (255, ord("z"), turned)
        pixels[along][half] = (255, ord("a"), upright)
    found = Detections(np.array(QUADS, np.float32), np.ones(3, np.float32), 900, 600)
    reading = asked("recognise", pixels, found, words=True)
    assert [(line.text, round(line.text_score * 255)) for line in reading] == [("z", 229), ("z", 229), ("z", 179)]
    assert [words[0].quad.tolist() for words in reading.words] == [
        [*QUADS[0][2:], *QUADS[0][:2]],
        [QUADS[1][3], *QUADS[1][:3]],
        [QUADS[2][3], *QUADS[2][:3]],
    ]
    # The text of the second one runs up; the third is too narrow to tell.
    assert reading.quads.tolist() == [
        [*QUADS[0][2:], *QUADS[0][:2]],
        [QUADS[1][3], *QUADS[1][:3]],
        [*QUADS[2][2:], *QUADS[2][:2]],
    ]
    # The page's own top is its lower edge.
    assert [index.tolist() for index in reading.lines()] == [[2], [1], [0]]
    assert [request.array.shape[1] for request in asked.requests] == [3, 2, 1]
    assert all(request.parameters["direction"] is False for request in asked.requests)
    upright = asked("recognise", pixels, found, direction=False, min_text_score=0)
    assert upright.texts == ("a", "a", "a")


def test_the_lines_of_a_request_are_limited() -> None:
    """A long line has 48 x 1600 pixels: nine of them fit into 2 MiB."""
    rows = np.arange(100, dtype=np.float32) * 2.5
    short = np.stack([np.stack([rows * 0 + x, rows + y], axis=1) for x, y in ((0, 0), (4, 0), (4, 2), (0, 2))], axis=1)
    long = np.array([[[0, y], [1600, y], [1600, y + 48], [0, y + 48]] for y in range(20)], np.float32)
    found = Detections(np.concatenate([long, short]), np.ones(120, np.float32), 1700, 300)
    options = CallOptions(READ, None, ReadingParameters(), {}, None)
    parts = LineCall(np.zeros((300, 1700, 3), np.uint8), found, options, 0.0).next_parts()
    assert [len(part.indices) for part in parts] == [64, 36, 9, 9, 2]
    assert sorted(index for part in parts for index in part.indices) == list(range(120))
    assert {index >= 20 for part in parts[:2] for index in part.indices.tolist()} == {True}


def test_a_second_look_reads_what_the_first_did_not_find() -> None:
    def sparse(request: InferRequest) -> Mapping[str, NDArray[Any]]:
        """Finds the text in windows only, unless the threshold is low."""
        answer = dict(colours(request))
        if request.array.shape[1] == 600 and "box_thresh" not in request.parameters:
            answer["COUNT"] = np.zeros((1, 1), np.int32)
        return answer

    with TextReader(URL, transport=MockTransport(sparse)) as reader:
        reading = second_look(reader.read, page(), words=True, min_text_score=0.0)
    assert type(reading) is Reading
    assert sorted(reading.texts) == ["A", "B", "C"]


def test_a_server_without_a_recogniser_is_named_with_the_remedy(asked: Asked) -> None:
    def lacking(request: InferRequest) -> Any:
        error = UnavailableError(f"{URL}: Request for unknown model: '{request.model}' is not found (NOT_FOUND)")
        error.url, error.status = URL, "NOT_FOUND"
        raise error

    with TextReader(URL, transport=MockTransport(lacking, ready=lambda _: False)) as reader:
        with pytest.raises(UnavailableError, match=r"model 'ocr': start it with `ocdserve serve --recogniser default`"):
            reader.read(b"png")
        found = Detections(np.array(QUADS, np.float32), np.ones(3, np.float32), 900, 600)
        with pytest.raises(UnavailableError, match="no model 'ocrnet_recognise': start it with") as caught:
            reader.recognise(page(), found)
        assert (caught.value.url, caught.value.status) == (URL, "NOT_FOUND")
        assert caught.value.request_id
        [server] = reader.health().servers
        assert server.reason is not None and "'ocr' is not ready; if it is not served, start it with" in server.reason
    with TextDetector(URL, transport=MockTransport(lacking, ready=lambda _: False)) as detector:
        with pytest.raises(UnavailableError, match="unknown model: 'ocdnet'"):
            detector.detect(b"png")
        assert detector.health().servers[0].reason == "model 'ocdnet' is not ready"


def test_lines_are_balanced_over_servers_and_sent_again() -> None:
    def overloaded(request: InferRequest) -> Any:
        error = UnavailableError("too many requests")
        error.retryable = True
        raise error

    servers = [MockTransport(overloaded), MockTransport(colours)]
    with TextReader([URL, "http://other:8000"], transport=servers) as reader:
        found = reader.read_tiled(page(), tile=700, overlap=60, concurrency=1)
    assert sorted(found.texts) == ["A", "B"]
    assert [request.model for request in servers[1].requests] == ["ocdnet_raw"] * 2 + ["ocrnet_recognise"] * 2
    assert servers[0].requests


def test_capabilities_say_whether_a_server_reads() -> None:
    class Detecting(MockTransport):
        def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
            if model is not None and model.startswith("ocr"):
                raise UnavailableError(f"unknown model {model}")
            return super().describe(model, timeout_s)

    with TextReader(URL, transport=MockTransport(colours)) as reader:
        assert reader.ready()
        assert reader.health().model == "ocr"
        assert reader.capabilities().reads
    with TextDetector(URL, transport=Detecting(colours)) as detector:
        assert not detector.capabilities().reads
        assert detector.capabilities().polygons


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"min_text_score": 2}, "'min_text_score' must be a number from 0 to 1"),
        ({"words": "perhaps"}, "'words' must be true or false"),
        ({"minimum": 2}, "unknown request parameter 'minimum'; known are .*min_text_score"),
    ],
)
def test_an_invalid_parameter_is_refused_before_anything_is_sent(
    call: dict[str, Any], reason: str, asked: Asked
) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        asked("read", b"png", **call)
    assert asked.requests == []


def test_a_model_that_does_not_read_is_refused() -> None:
    reader = TextReader(URL, model="ocdnet", transport=MockTransport(colours))
    with pytest.raises(InvalidInputError, match="'ocdnet' returns no texts; use ocr, ocr_raw, ocr_fused"):
        reader.read(b"png")
    detector = TextDetector(URL, transport=MockTransport(colours))
    with pytest.raises(InvalidInputError, match="'words' is for reading text"):
        detector.detect(b"png", words=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("running", [grpc_server, http_server], ids=["grpc", "http"])
def test_texts_arrive_over_both_protocols(running: Any) -> None:
    expected = {**FOUND["detections"][0], "text": "Größe 42", "text_score": 0.75}
    with running() as (url, _):
        with TextReader(url) as reader:
            assert reader.read(b"jpeg").to_dict()["detections"] == [expected]

        async def ask() -> Reading:
            async with AsyncTextReader(url) as reader:
                return await reader.read(b"jpeg")

        assert asyncio.run(ask()).to_dict()["detections"] == [expected]


@pytest.mark.parametrize("running", [grpc_server, http_server], ids=["grpc", "http"])
def test_lines_are_sent_with_their_sizes(running: Any) -> None:
    found = Detections(np.array([[[0, 0], [6, 0], [6, 4], [0, 4]]], np.float32), np.ones(1, np.float32), 8, 6)
    with running() as (url, server), TextReader(url) as reader:
        reading = reader.recognise(np.full((6, 8, 3), 7, np.uint8), found, direction=False)
        assert (reading.texts, reading.text_scores.tolist()) == (("Größe 42",), [0.75])
        if running is grpc_server:
            inputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in server.last.inputs}
            contents = list(server.last.raw_input_contents)
            assert server.last.parameters["direction"].bool_param is False
        else:
            path, header, body = server.last
            assert path == "/v2/models/ocrnet_recognise/infer"
            inputs = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in header["inputs"]}
            contents = [body[: 48 * 72 * 3], body[48 * 72 * 3 :]]
    assert inputs == {"CROPS": ("UINT8", [1, 1, 48, 72, 3]), "CROP_SIZES": ("INT32", [1, 1, 2])}
    assert contents == [bytes([7]) * (48 * 72 * 3), bytes([48, 0, 0, 0, 72, 0, 0, 0])]


def test_shared_memory_holds_pixels_and_lines() -> None:
    events: list[RequestEvent] = []
    transport = MockTransport(colours)
    hooks = Hooks(on_request=events.append)
    with TextReader(URL, transport=transport, shared_memory=SharedMemory(), hooks=hooks) as reader:
        reader.read(page())
        reader.read_tiled(page(), tile=2000, overlap=60, direction=False)
    assert [(request.model, request.region is not None) for request in transport.requests] == [
        ("ocr_raw", True),
        ("ocdnet_raw", True),
        ("ocrnet_recognise", True),
    ]
    assert [event.nbytes for event in events] == [page().nbytes, page().nbytes, transport.requests[2].array.nbytes]
    assert transport.regions == []

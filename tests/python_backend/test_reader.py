# SPDX-License-Identifier: Apache-2.0
"""The reader in process: its calls, parameters and errors, on pages of coloured bars and with the default networks."""

import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bars_recogniser
import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend import Reader
from ocdserve.backend.detector import LocalDetector
from ocdserve.backend.network.options import CPU_RUNTIMES, RuntimeOptions
from ocdserve.backend.network.recogniser import load_recogniser
from ocdserve.backend.recogniser import Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserNetworkSpec, RecogniserSpec, WidthPolicy
from ocdserve.client import TextReader
from ocdserve.contract import InvalidInputError, Limits, RequestParameters
from ocdserve.results.detections import Detections

TEXTS = ("rgb", "bbbr", "gr")


class Known(LocalDetector):
    """Finds the lines of `page`, scaled, in every image."""

    downloads = None

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.asked: list[RequestParameters] = []

    def answer(self, images: Sequence[Any], parameters: RequestParameters, bgr: bool = False) -> list[Detections]:
        self.asked.append(parameters)
        return [_detections(image.shape[1], image.shape[0]) for image in images]


def page() -> NDArray[np.uint8]:
    pixels = np.full((180, 120, 3), 255, np.uint8)
    for row, text in enumerate(TEXTS):
        line = bars_recogniser.line(text)
        pixels[8 + 56 * row : 56 + 56 * row, 10 : 10 + line.shape[1]] = line
    return pixels


def _detections(width: int, height: int) -> Detections:
    quads = []
    for row, text in enumerate(TEXTS):
        top, right = 8 + 56 * row, 10 + bars_recogniser.line(text).shape[1]
        quads.append([(10, top), (right, top), (right, top + 48), (10, top + 48)])
    scores = np.linspace(0.9, 0.7, len(quads)).astype(np.float32)
    return Detections(np.array(quads, np.float32), scores, 120, 180).scaled(width, height)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> RecogniserBundle:
    path = tmp_path_factory.mktemp("bars") / "bars.onnx"
    onnx.save(bars_recogniser.network(), path)
    return RecogniserBundle(RecogniserSpec(name="bars", characters=("r", "g", "b")), path)


@pytest.fixture(scope="module")
def bars(bundle: RecogniserBundle) -> Reader:
    network = load_recogniser(bundle, RuntimeOptions("onnxruntime", threads=1))
    return Reader(Known(), Recogniser(bundle, network))


def png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class TestCalls:
    @pytest.mark.parametrize("name", ["read", "read_batch", "read_many", "read_pages", "read_tiled", "recognise"])
    def test_they_have_the_clients_arguments(self, name: str) -> None:
        theirs = inspect.signature(getattr(TextReader, name)).parameters
        # Of a server; and one network is not a server of several, whose default concurrency is another.
        of_servers = {"request_id", "traceparent"} | ({"concurrency"} if name == "recognise" else set())
        expected = {key: parameter for key, parameter in theirs.items() if key not in of_servers}
        ours = inspect.signature(getattr(Reader, name)).parameters
        assert list(ours) == list(expected)
        for key, parameter in ours.items():
            assert parameter.kind == expected[key].kind
            assert parameter.default == expected[key].default or key == "concurrency"

    def test_every_call_reads_the_page(self, bars: Reader, tmp_path: Path) -> None:
        pixels = page()
        (tmp_path / "page.png").write_bytes(png(pixels))
        swapped = np.ascontiguousarray(pixels[..., ::-1])
        readings = [
            bars.read(pixels),
            bars.read(png(pixels)),
            bars.read(tmp_path / "page.png"),
            bars.read(swapped, bgr=True),
            *bars.read_batch([pixels, Image.fromarray(pixels)]),
            *(outcome.result() for outcome in bars.read_many([pixels, png(pixels)])),
            *bars.read_pages(png(pixels)),
            bars.read_tiled(png(pixels)),
            bars.recognise(pixels, _detections(120, 180)),
        ]
        for reading in readings:
            assert (reading.texts, reading.width, reading.height) == (TEXTS, 120, 180)
            assert reading.text == "rgb\nbbbr\ngr"
            assert reading.text_scores.dtype == np.float32 and reading.text_scores.min() > 0.99
            assert reading.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
        assert bars.read_batch([]) == []
        assert [reading.page for reading in readings[-3:]] == [1, None, None]

    def test_a_large_image_is_read_scaled_down_in_pixels_of_the_image_before(self, bars: Reader) -> None:
        large = np.kron(page(), np.ones((4, 4, 1), np.uint8))
        reading = bars.read(large, max_side=180, words=True)
        assert (reading.texts, reading.width, reading.height) == (TEXTS, 480, 720)
        assert reading.words is not None
        np.testing.assert_allclose(reading.words[0][0].quad, reading.quads[0], atol=4 * 16)

    def test_the_pages_of_a_file_are_numbered(self, bars: Reader) -> None:
        stream = io.BytesIO()
        pages = [Image.fromarray(page()), Image.fromarray(page()[..., ::-1])]
        pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
        found = list(bars.read_pages(stream.getvalue()))
        assert [(each.page, each.texts) for each in found] == [(1, TEXTS), (2, ("bgr", "rrrb", "gb"))]
        assert bars.read(stream.getvalue(), page=2).texts == ("bgr", "rrrb", "gb")
        # A reading is read again.
        for image in (stream.getvalue(), page()[..., ::-1], pages[1]):
            assert bars.recognise(image, found[1]).texts == ("bgr", "rrrb", "gb")
        with pytest.raises(InvalidInputError, match="has 2 pages"):
            bars.read(stream.getvalue())

    def test_an_image_without_text_has_an_empty_reading(self, bars: Reader) -> None:
        empty = bars.recognise(page(), _detections(120, 180).take([]), words=True)
        assert (len(empty), empty.texts, empty.text, empty.words) == (0, (), "", ())

    def test_a_bad_image_of_several_is_named(self, bars: Reader) -> None:
        with pytest.raises(InvalidInputError, match=r"^image 1 of 2 \(counted from 0\): the image is empty"):
            bars.read_batch([page(), b""])
        outcomes = list(bars.read_many([page(), b"no image"]))
        assert outcomes[0].result().texts == TEXTS
        assert isinstance(outcomes[1].error, InvalidInputError)
        small = Reader(Known(Limits(max_pixels=100)), bars.recogniser)
        with pytest.raises(InvalidInputError, match="120 x 180 = 21600 pixels; at most 100"):
            small.read(page())


class TestParameters:
    def test_lines_that_read_badly_are_left_out(self, bars: Reader) -> None:
        pixels = page()
        pixels[64:112] = 255  # nothing is where the second line was
        reading = bars.read(pixels)
        assert reading.texts == ("rgb", "gr")
        everything = bars.read(pixels, min_text_score=0)
        assert everything.texts == ("rgb", "", "gr")
        assert everything.text_scores[1] == 0
        assert bars.read(pixels, min_text_score=1).texts == ()

    def test_words_are_where_their_characters_are(self, bars: Reader) -> None:
        assert bars.read(page()).words is None
        reading = bars.read(page(), words=True)
        assert reading.words is not None
        ((word,), *_) = reading.words
        assert (word.text, word.score) == ("rgb", pytest.approx(1, abs=0.01))
        # The bars are from 18 to 82; CTC places them to half the distance between them, of 24 pixels.
        left, right = word.quad[[0, 3], 0], word.quad[[1, 2], 0]
        assert (np.abs(left - 14) <= 4).all() and (np.abs(right - 86) <= 4).all()
        assert word.quad[:, 1].tolist() == [8, 8, 56, 56]

    def test_those_of_detection_reach_the_detector(self, bars: Reader) -> None:
        detector = bars.detector
        assert isinstance(detector, Known)
        bars.read(page(), box_thresh=0.25, words=True)
        assert detector.asked[-1].box_thresh == 0.25
        bars.read_tiled(page(), box_thresh=0.75)
        assert detector.asked[-1].box_thresh == 0.75

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"min_text_score": 2}, "request parameter 'min_text_score' must be a number from 0 to 1"),
            ({"words": "maybe"}, "request parameter 'words' must be true or false"),
            ({"tresh": 1}, "unknown request parameter 'tresh'; known are thresh, "),
        ],
    )
    def test_bad_ones_are_refused_by_every_call(self, bars: Reader, given: dict[str, Any], message: str) -> None:
        for call in (
            bars.read,
            bars.read_tiled,
            bars.read_pages,
            lambda image, **more: bars.read_many([image], **more),
        ):
            with pytest.raises(InvalidInputError, match=message):
                list(call(page(), **given))

    def test_a_detector_refuses_those_of_reading_and_names_who_takes_them(self) -> None:
        with pytest.raises(InvalidInputError, match="'words' is for reading text"):
            Known().detect(page(), words=True)  # type: ignore[call-arg]


class TestNetworks:
    @pytest.mark.parametrize("runtime", CPU_RUNTIMES)
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"network": RecogniserNetworkSpec(scores="logits")},
            {"widths": WidthPolicy(((104, 104),), 104, "stretch")},
        ],
    )
    def test_other_outputs_and_widths(
        self, bundle: RecogniserBundle, runtime: str, changes: dict[str, Any], tmp_path: Path
    ) -> None:
        output: Any = getattr(changes.get("network"), "scores", "softmax")
        onnx.save(bars_recogniser.network(output), tmp_path / "bars.onnx")
        spec = RecogniserSpec(name="bars", characters=("r", "g", "b"), **changes)
        made = RecogniserBundle(spec, tmp_path / "bars.onnx")
        recogniser = Recogniser(made, load_recogniser(made, RuntimeOptions(runtime, threads=1)))
        reading = Reader(Known(), recogniser).read(page(), words=True)
        assert reading.texts == TEXTS
        assert reading.words is not None
        for (word,), text, quad in zip(reading.words, TEXTS, reading.quads, strict=True):
            # A stretched line's words are as far from its ends as its bars.
            assert word.text == text
            assert np.abs(word.quad - quad).max() <= 16

    def test_classes_that_are_not_those_of_the_characters_are_refused(self, bundle: RecogniserBundle) -> None:
        wrong = RecogniserBundle(RecogniserSpec(characters=("r", "g")), bundle.model_path)
        with pytest.raises(
            InvalidInputError, match=r"bars.onnx fails on a line of .*scores of 18 x 4; they must be of"
        ):
            load_recogniser(wrong, RuntimeOptions("onnxruntime", threads=1))

    @pytest.mark.parametrize("runtime", CPU_RUNTIMES)
    def test_logits_that_are_called_probabilities_are_refused(self, runtime: str, tmp_path: Path) -> None:
        onnx.save(bars_recogniser.network("logits"), tmp_path / "bars.onnx")
        wrong = RecogniserBundle(RecogniserSpec(characters=("r", "g", "b")), tmp_path / "bars.onnx")
        with pytest.raises(InvalidInputError, match=r"network\.scores .*got softmax for scores .*logits"):
            load_recogniser(wrong, RuntimeOptions(runtime, threads=1))

    def test_a_network_that_is_no_recognisers_is_refused(self, tmp_path: Path) -> None:
        wrong = RecogniserBundle(RecogniserSpec(characters=("r",)), tmp_path / "p.onnx")
        onnx.save(bars_recogniser.network(gray=True), wrong.model_path)
        with pytest.raises(InvalidInputError, match="of a recogniser must be float32 N x 3 x height x W"):
            load_recogniser(wrong, RuntimeOptions("onnxruntime", threads=1))


def test_words_of_a_photograph_are_read(reader: Reader) -> None:
    pixels = np.full((160, 640, 3), 255, np.uint8)
    for row, text in enumerate(("Hello World", "Invoice 2048")):
        cv2.putText(pixels, text, (40, 60 + 70 * row), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (0, 0, 0), 3, cv2.LINE_AA)
    reading = reader.read(pixels, words=True)
    assert reading.text == "Hello World\nInvoice 2048"
    assert reading.words is not None
    assert sorted(word.text for line in reading.words for word in line) == ["2048", "Hello", "Invoice", "World"]
    turned = reader.read(np.ascontiguousarray(pixels[::-1, ::-1]))
    assert turned.text == "Hello World\nInvoice 2048"
    assert (turned.quads[:, 0, 0] > turned.quads[:, 1, 0]).all()
    for turns in (1, -1):
        vertical = reader.read(np.ascontiguousarray(np.rot90(pixels, turns)))
        assert vertical.text == "Hello World\nInvoice 2048"

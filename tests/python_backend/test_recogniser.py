# SPDX-License-Identifier: Apache-2.0
"""The default recogniser on real lines: as its own package reads them, each by itself, and either way up."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.backend import Detector, Reader
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.recogniser import load_recogniser
from ocdserve.backend.recogniser import Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import WidthPolicy
from ocdserve.backend.stages.rectify import LineImage
from ocdserve.contract import InvalidInputError, UnavailableError

RECEIPT = "receipt_000.jpg"


def line_of(pixels: NDArray[np.uint8]) -> LineImage:
    height, width = pixels.shape[:2]
    quad = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    return LineImage((height, width), quad, False, np.eye(3), pixels)


def written(text: str, width: int) -> LineImage:
    """A line of black text on white."""
    pixels = np.full((48, width, 3), 255, np.uint8)
    cv2.putText(pixels, text, (4, 36), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 0), 2, cv2.LINE_AA)
    return line_of(pixels)


@lru_cache(maxsize=1)
def lines_of_receipt(folder: Path, reader: Reader) -> list[LineImage]:
    path = folder / "receipts" / "img" / RECEIPT
    pixels = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
    # In float32, so that the lines are the same on every processor.
    return reader.recogniser.cut(pixels, Detector.load("default-fp32", threads=1).detect(pixels))


@pytest.fixture
def lines(shared_data: Path, reader: Reader) -> list[LineImage]:
    """The lines of a receipt."""
    return lines_of_receipt(shared_data, reader)


@pytest.fixture(scope="module")
def wide() -> Recogniser:
    """The default network at RapidOCR's widths, without our reading of spaces."""
    bundle = RecogniserBundle.load()
    widths = WidthPolicy(((320, 320), (3200, 16)), 320)
    spec = replace(bundle.spec, widths=widths, space_threshold=None)
    changed = RecogniserBundle(spec, bundle.model_path)
    return Recogniser(changed, load_recogniser(changed, RuntimeOptions("onnxruntime", threads=1)))


def test_lines_read_as_in_the_package_of_the_network(wide: Recogniser, lines: list[LineImage]) -> None:
    rapidocr = pytest.importorskip("rapidocr")
    from rapidocr.ch_ppocr_rec.typings import TextRecInput

    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    # Nothing but the recogniser is loaded.
    theirs: Any = rapidocr.RapidOCR(params={"Global.log_level": "critical", "Rec.rec_batch_num": 1, **threads})
    crops = [np.ascontiguousarray(line.pixels[..., ::-1]) for line in lines]
    found = theirs._load_rec_model()(TextRecInput(img=crops))
    read = wide.read_lines(lines, direction=False)
    # Ours has padding of 128 instead of 127.5, and of up to 15 more pixels beyond 320.
    equal = [ours.line.text == text for ours, text in zip(read, found.txts, strict=True)]
    assert (sum(equal), len(equal)) == (45, 46)
    for ours, score, is_equal in zip(read, found.scores, equal, strict=True):
        if is_equal and " " not in ours.line.text:
            assert ours.score == pytest.approx(score, abs=0.02)


def test_a_batch_of_lines_reads_as_each_of_them(reader: Reader, lines: list[LineImage]) -> None:
    recogniser, some = reader.recogniser, lines[::3]
    together = recogniser.read_lines(some, direction=False)
    assert together == [recogniser.read_lines([line], direction=False)[0] for line in some]
    assert recogniser.read_pages([some[:2], [], some[2:4]], direction=False) == [together[:2], [], together[2:4]]


def test_an_upside_down_page_reads_as_upright(reader: Reader, lines: list[LineImage]) -> None:
    some = [line for line in lines if line.size[1] > 150][:8]
    upright = reader.recogniser.read_lines(some)
    turned = [line_of(np.ascontiguousarray(line.pixels[::-1, ::-1])) for line in some]
    read = reader.recogniser.read_lines(turned)
    assert [(each.upside_down, other.upside_down) for each, other in zip(read, upright, strict=True)] == [
        (True, False)
    ] * 8
    assert [each.line for each in read] == [each.line for each in upright]


def test_lines_of_any_width_are_read(reader: Reader) -> None:
    texts = ["I", "Total", "Total 1234.50 EUR", "The quick brown fox jumps over the lazy dog " * 3]
    widths = [24, 110, 340, 2400]
    found = reader.recogniser.read_lines([written(*each) for each in zip(texts, widths, strict=True)])
    assert [read.text for read in found[1:]] == [text.strip() for text in texts[1:]]
    # Wider than any: squeezed, and still legible.
    largest = reader.recogniser.spec.widths.largest
    squeezed = line_of(cv2.resize(written("TOTAL 99", 180).pixels, (largest + 500, 48)))
    (read,) = reader.recogniser.read_lines([squeezed])
    assert read.pitch * 400 == pytest.approx(largest + 500)
    assert reader.recogniser.read_lines([]) == []
    (blank,) = reader.recogniser.read_lines([line_of(np.full((48, 1, 3), 255, np.uint8))])
    assert (blank.text, blank.score, blank.line.characters) == ("", 0.0, ())


def test_both_runtimes_read_the_same(wide: Recogniser, lines: list[LineImage]) -> None:
    bundle = RecogniserBundle(wide.spec, RecogniserBundle.load().model_path)
    other = Recogniser(bundle, load_recogniser(bundle, RuntimeOptions("openvino", threads=1)))
    ours, theirs = (each.read_lines(lines[:8], direction=False) for each in (other, wide))
    assert [read.text for read in ours] == [read.text for read in theirs]
    assert [read.score for read in ours] == pytest.approx([read.score for read in theirs], abs=1e-3)


def test_a_recogniser_without_a_network_says_so() -> None:
    with pytest.raises(UnavailableError, match="this recogniser was made without a network; give it one to read"):
        Recogniser(RecogniserBundle.load(), None).read_lines([written("a", 40)])


def test_detections_of_another_image_are_refused(reader: Reader) -> None:
    found = reader.detector.detect(np.full((64, 96, 3), 255, np.uint8))
    with pytest.raises(InvalidInputError, match="the detections belong to an image of 96x64 pixels; got one of 64x64"):
        reader.recogniser.cut(np.zeros((64, 64, 3), np.uint8), found)


def test_the_fast_recogniser_reads_in_bfloat16_where_the_processor_has_it(
    lines: list[LineImage], reader: Reader
) -> None:
    openvino = pytest.importorskip("openvino")
    fast = Recogniser.load("fast", "openvino", threads=1)
    assert (fast.spec.name, fast.spec.precision) == ("ppocr-fast", "bf16")
    some = lines[:8]
    exact, found = ([(each.text, each.score) for each in one.read_lines(some)] for one in (reader.recogniser, fast))
    assert [text for text, _ in found] == [text for text, _ in exact]
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert found != exact
    assert [score for _, score in found] == pytest.approx([score for _, score in exact], abs=0.02)

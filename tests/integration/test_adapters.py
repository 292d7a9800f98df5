# SPDX-License-Identifier: Apache-2.0
"""The adapters with the real libraries, with recognition if a library includes its network."""

import logging
import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve.backend.serve import TritonServer
from ocdserve.client import TextDetector
from ocdserve.client.adapters.onnxtr import DetectionPredictor
from ocdserve.client.adapters.rapidocr import use_detector
from ocdserve.perf.inputs.pictures import dense_page, receipt, street


@pytest.fixture(scope="module")
def rapid() -> Any:
    """RapidOCR's engine; its own detector is never loaded."""
    rapidocr = pytest.importorskip("rapidocr", reason="RapidOCR is not installed")
    engine = rapidocr.RapidOCR(params={"Global.log_level": "error"})
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return engine


def similar(first: str, second: str) -> float:
    return SequenceMatcher(None, first.replace(" ", ""), second.replace(" ", "")).ratio()


def test_rapidocr_reads_a_receipt_with_our_detector(rapid: Any, default_detector: Any) -> None:
    picture = receipt()
    result = use_detector(rapid, default_detector)(np.asarray(picture.image)[..., ::-1])
    assert type(rapid.text_det).__module__ == "ocdserve.client.adapters.rapidocr"
    assert result.txts[0].replace(" ", "") == "HARBOURCORNERSHOP"
    read = [max(similar(text, line) for line in result.txts) for text in picture.texts]
    assert np.mean(np.array(read) > 0.9) >= 0.95, dict(zip(picture.texts, read, strict=True))
    # Row by row, as one reads a receipt.
    assert result.txts.index("3.20") == result.txts.index(next(t for t in result.txts if "bread" in t)) + 1


@pytest.mark.triton
def test_rapidocr_reads_a_photographed_receipt_through_the_server(
    rapid: Any, default_server: TritonServer, shared_data: Path
) -> None:
    image = sorted((shared_data / "receipts" / "img").iterdir())[0]
    truth = (shared_data / "receipts" / "gt" / f"gt_{image.stem}.txt").read_text("utf-8-sig").splitlines()
    texts = [line.split(",", 8)[8] for line in truth if line.strip()]
    with TextDetector(default_server.grpc_url) as detector:
        result = use_detector(rapid, detector)(str(image))
    read = "".join(result.txts).replace(" ", "")
    legible = [text.replace(" ", "") for text in texts if text != "###"]
    assert sum(text in read for text in legible) >= 0.55 * len(legible), "texts read letter by letter"


def test_the_documentations_example_reads_a_receipt(
    rapid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "ocr.md").read_text("utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "RapidOCR()" in block)
    monkeypatch.chdir(tmp_path)
    receipt().image.save("receipt.jpg", quality=95)
    exec(example, {})
    assert "29.20" in capsys.readouterr().out


def test_rapidocr_without_text_returns_its_empty_result(rapid: Any, default_detector: Any) -> None:
    assert use_detector(rapid, default_detector)(np.full((200, 300, 3), 255, np.uint8)).txts is None


def test_onnxtr_reads_pages_with_our_detector(default_detector: Any, rapid: Any) -> None:
    predictor = pytest.importorskip("onnxtr.models.predictor", reason="OnnxTR is not installed")
    from rapidocr.ch_ppocr_rec import TextRecInput

    read_lines = rapid._load_rec_model()

    def recognise(crops: list[Any], **_: Any) -> list[tuple[str, float]]:
        """OnnxTR's own networks must be downloaded; RapidOCR's recogniser is here."""
        result = read_lines(TextRecInput(img=[np.ascontiguousarray(crop[..., ::-1]) for crop in crops]))
        return list(zip(result.txts, result.scores, strict=True))

    ocr = predictor.OCRPredictor(DetectionPredictor(default_detector), recognise)
    document = ocr([np.asarray(receipt().image), np.asarray(dense_page().image)])
    first, second = document.pages
    assert "HARBOUR" in first.render()
    assert "29.20" in first.render()
    words = [word for page in (first, second) for block in page.blocks for line in block.lines for word in line.words]
    assert len(words) > 90
    assert all(0.5 <= word.objectness_score <= 1 for word in words)


def test_onnxtr_crops_rotated_text_by_our_quads(default_detector: Any) -> None:
    geometry = pytest.importorskip("onnxtr.utils.geometry", reason="OnnxTR is not installed")
    picture = street()
    detection = DetectionPredictor(default_detector, assume_straight_pages=False)
    [boxes], [scores] = geometry.detach_scores(detection([np.asarray(picture.image)]))
    crops = geometry.extract_rcrops(np.asarray(picture.image), boxes)
    assert len(crops) == len(scores) == 10
    assert all(crop.shape[1] > crop.shape[0] > 20 for crop in crops)

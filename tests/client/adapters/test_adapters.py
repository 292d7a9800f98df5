# SPDX-License-Identifier: Apache-2.0
"""Results of the adapters around a fake detector; `tests/integration` uses the real libraries."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.client.adapters.onnxtr import DetectionPredictor, relative_boxes
from ocdserve.client.adapters.paddleocr import TextDetection
from ocdserve.client.adapters.rapidocr import RapidOcrDetector, use_detector
from ocdserve.client.adapters.transformers import TextDetectionPipeline
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections

# Best score first: the lower line.
QUADS = [[[20, 60], [60, 60], [60, 70], [20, 70]], [[-4, 20], [50, 20], [50, 30], [-4, 30]]]


class Known:
    """Two lines in every image of 80 x 100; records its calls."""

    def __init__(self, count: int = 2) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self._count = count

    def detect(self, image: Any, **overrides: Any) -> Detections:
        self.calls.append((image, overrides))
        polygons = tuple(np.array(quad[:3], np.float32) for quad in QUADS) if overrides.get("polygons") else None
        scores = np.array([0.75, 0.5], np.float32)
        return Detections(np.array(QUADS, np.float32), scores, 80, 100, polygons).take(range(self._count))


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    blue = np.zeros((100, 80, 3), np.uint8)
    blue[..., 2] = 255
    return blue


def test_onnxtr_gets_relative_boxes_with_scores(pixels: NDArray[np.uint8]) -> None:
    known = Known()
    [boxes] = DetectionPredictor(known, thresh=0.2)([pixels])
    assert boxes.tolist() == [
        [0.25, np.float32(0.6), 0.75, np.float32(0.7), 0.75],
        [0, np.float32(0.2), 0.625, np.float32(0.3), 0.5],
    ]
    assert known.calls[0][1] == {"thresh": 0.2}
    [turned] = DetectionPredictor(known, assume_straight_pages=False)([pixels])
    assert turned.shape == (2, 5, 2)
    assert turned[0, 4].tolist() == [0.75, 0.75]
    assert turned[0, 2].tolist() == [0.75, np.float32(0.7)]


def test_doctr_gets_boxes_by_class(pixels: NDArray[np.uint8]) -> None:
    [page] = DetectionPredictor(Known()).by_class([pixels])
    assert list(page) == ["words"]
    assert page["words"].shape == (2, 5)


def test_pages_without_text_have_boxes_of_the_right_shape() -> None:
    nothing = Detections(np.empty((0, 4, 2), np.float32), np.empty(0, np.float32), 80, 100)
    assert relative_boxes(nothing, straight=True).shape == (0, 5)
    assert relative_boxes(nothing, straight=False).shape == (0, 5, 2)


def test_segmentation_maps_are_refused_with_the_remedy(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidInputError, match="without detect_orientation and straighten_pages"):
        DetectionPredictor(Known())([pixels], return_maps=True)


def test_a_pipeline_returns_scores_labels_and_bounds_in_the_image() -> None:
    known = Known()
    detect = TextDetectionPipeline(known, label="line", unclip_ratio=1.8)
    expected = [
        {"score": 0.75, "label": "line", "box": {"xmin": 20, "ymin": 60, "xmax": 60, "ymax": 70}},
        {"score": 0.5, "label": "line", "box": {"xmin": 0, "ymin": 20, "xmax": 50, "ymax": 30}},
    ]
    assert detect("a.jpg", threshold=0.25) == expected
    assert detect(["a.jpg", "b.jpg"]) == [expected, expected]
    assert known.calls == [
        ("a.jpg", {"unclip_ratio": 1.8, "box_thresh": 0.25}),
        ("a.jpg", {"unclip_ratio": 1.8}),
        ("b.jpg", {"unclip_ratio": 1.8}),
    ]


def test_paddleocr_gets_its_dictionary_in_reading_order(pixels: NDArray[np.uint8]) -> None:
    known = Known()
    [result] = TextDetection(known, max_candidates=9).predict(pixels, box_thresh=0.3)
    assert result["dt_polys"].tolist() == QUADS[::-1]
    assert result["dt_polys"].dtype == np.int16
    assert result["dt_scores"] == [0.5, 0.75]
    assert result.json == {
        "res": {"input_path": None, "page_index": None, "dt_polys": QUADS[::-1], "dt_scores": [0.5, 0.75]}
    }
    [(image, overrides)] = known.calls
    assert image[0, 0].tolist() == [255, 0, 0]  # BGR in, RGB to the detector
    assert overrides == {"max_candidates": 9, "box_thresh": 0.3}


def test_paddleocr_accepts_several_paths_and_returns_polygons() -> None:
    first, second = TextDetection(Known(), polygons=True).predict(["a.jpg", "b.jpg"], batch_size=2)
    assert (first["input_path"], second["input_path"]) == ("a.jpg", "b.jpg")
    assert [polygon.tolist() for polygon in first["dt_polys"]] == [QUADS[1][:3], QUADS[0][:3]]


def test_rapidocr_gets_boxes_and_scores_in_reading_order(pixels: NDArray[np.uint8]) -> None:
    pytest.importorskip("rapidocr", reason="RapidOCR is not installed")
    known = Known()
    detector = RapidOcrDetector(known, min_size=2)
    detector.postprocess_op.box_thresh = 0.4  # as RapidOCR does when a call names it
    output = detector(pixels)
    assert output.boxes.tolist() == QUADS[::-1]
    assert output.scores == [0.5, 0.75]
    assert known.calls[0][0][0, 0].tolist() == [255, 0, 0]
    assert known.calls[0][1] == {"min_size": 2, "box_thresh": 0.4}
    empty = RapidOcrDetector(Known(0))(pixels)
    assert (empty.boxes, len(empty)) == (None, 0)


def test_any_other_engine_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"must be a RapidOCR of version 3.*got object"):
        use_detector(object(), Known())

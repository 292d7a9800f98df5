# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ocdserve.results.detections import Detections

# 40 x 20, 50 x 10 (slanted), 4 x 30.
QUADS = [
    [[10, 20], [50, 20], [50, 40], [10, 40]],
    [[0, 0], [40, 30], [34, 38], [-6, 8]],
    [[60, 10], [64, 10], [64, 40], [60, 40]],
]


@pytest.fixture
def found() -> Detections:
    polygons = tuple(np.full((3, 2), index, np.float32) for index in range(3))
    return Detections(np.array(QUADS, np.float32), np.array([0.9, 0.75, 0.5], np.float32), 80, 60, polygons)


def test_widths_and_heights_are_in_pixels(found: Detections) -> None:
    assert found.widths.tolist() == [40, 50, 4]
    assert found.heights.tolist() == [20, 10, 30]


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({}, [0, 1, 2]),
        ({"min_score": 0.75}, [0, 1]),
        ({"min_width": 40}, [0, 1]),
        ({"max_width": 40}, [0, 2]),
        ({"min_height": 10.5}, [0, 2]),
        ({"max_height": 29}, [0, 1]),
        ({"min_score": 0.6, "min_height": 20}, [0]),
        ({"min_score": 0.95}, []),
    ],
)
def test_a_filter_keeps_detections_within_its_bounds(
    found: Detections, bounds: dict[str, float], kept: list[int]
) -> None:
    left = found.filter(**bounds)
    assert left.quads.tolist() == [QUADS[index] for index in kept]
    assert left.polygons is not None
    assert [int(polygon[0, 0]) for polygon in left.polygons] == kept
    assert len(left) == len(kept)
    assert (left.width, left.height) == (80, 60)


def test_take_accepts_indices_or_a_mask(found: Detections) -> None:
    assert found.take([2, 0]).scores.tolist() == [0.5, np.float32(0.9)]
    assert found.take(np.array([True, False, True])).scores.tolist() == [np.float32(0.9), 0.5]
    assert len(found.take([])) == 0
    assert found.take([]).quads.shape == (0, 4, 2)
    with pytest.raises(IndexError):
        found.take([3])


def test_results_are_frozen(found: Detections) -> None:
    with pytest.raises(AttributeError):
        found.width = 3  # type: ignore[misc]


def test_detections_follow_an_image_to_another_size() -> None:
    quad = np.array([[[0, 0], [100, 0], [100, 50], [0, 50]]], np.float32)
    outline = (np.array([[10, 10], [90, 10], [50, 40]], np.float32),)
    scaled = Detections(quad, np.array([0.5], np.float32), 100, 50, outline, latency_ms=3).scaled(250, 100)
    assert (scaled.width, scaled.height, scaled.latency_ms, scaled.quads.dtype) == (250, 100, 3, np.float32)
    assert scaled.quads.tolist() == [[[0, 0], [250, 0], [250, 100], [0, 100]]]
    assert scaled.polygons is not None
    assert scaled.polygons[0].tolist() == [[25, 20], [225, 20], [125, 80]]
    assert Detections(quad, np.array([0.5], np.float32), 100, 50).scaled(10, 5).polygons is None


def test_detections_are_short_in_text_and_iterable() -> None:
    empty = Detections(np.empty((0, 4, 2), np.float32), np.empty(0, np.float32), 100, 50)
    assert repr(empty) == "Detections(0 in 100x50 pixels)"
    assert list(empty) == []
    quads = np.arange(16, dtype=np.float32).reshape(2, 4, 2)
    outlines = (quads[0], quads[1])
    found = Detections(quads, np.array([0.987, 0.5], np.float32), 100, 50, outlines)
    assert repr(found) == "Detections(2 in 100x50 pixels, scores 0.99 to 0.50, with polygons)"
    assert [(quad.tolist(), score) for quad, score, _ in found][1] == (quads[1].tolist(), 0.5)
    assert [detection.polygon is outline for detection, outline in zip(found, outlines, strict=True)] == [True, True]

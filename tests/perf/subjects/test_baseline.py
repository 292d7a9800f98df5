# SPDX-License-Identifier: Apache-2.0
"""The baseline on maps whose boxes can be worked out by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.backend import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.perf.subjects.baseline import baseline_postprocess

SIZE = (48, 64)
SAME = Frame(SIZE, SIZE, SIZE)


def blocks(*regions: tuple[int, int, int, int, int]) -> NDArray[np.uint8]:
    """A map with rectangles: left, top, right, bottom (included), level."""
    probability = np.zeros(SIZE, np.uint8)
    for left, top, right, bottom, level in regions:
        probability[top : bottom + 1, left : right + 1] = level
    return probability


# 19 x 9 between pixel centres: area 171, perimeter 56, so that it grows by 171 * 1.5 / 56 = 4.58 pixels.
ONE = blocks((10, 10, 29, 19, 255))
GROWN = [[5, 5], [34, 5], [34, 24], [5, 24]]


@pytest.mark.parametrize("probability", [ONE, (ONE / 255).astype(np.float32)], ids=["uint8", "float32"])
def test_a_rectangle_grows_by_area_times_ratio_over_perimeter(probability: NDArray[Any]) -> None:
    found = baseline_postprocess(probability, SAME, PostprocessParams())
    assert found.quads.tolist() == [GROWN]
    assert found.scores.tolist() == [1.0]
    assert (found.width, found.height, found.polygons) == (64, 48, None)


def test_quads_are_scaled_to_the_source_and_clipped_to_it() -> None:
    frame = Frame(source=(96, 64), network=SIZE, content=SIZE)
    at_the_border = blocks((44, 30, 63, 39, 255))
    found = baseline_postprocess(at_the_border, frame, PostprocessParams())
    assert found.quads.tolist() == [[[39, 50], [64, 50], [64, 88], [39, 88]]]


def test_padding_does_not_affect_the_scale() -> None:
    frame = Frame(source=(24, 32), network=SIZE, content=(24, 32))
    inside = blocks((8, 8, 19, 15, 255))
    assert baseline_postprocess(inside, frame, PostprocessParams(unclip_ratio=0)).quads.tolist() == [
        [[8, 8], [19, 8], [19, 15], [8, 15]]
    ]


def test_the_best_candidates_come_first() -> None:
    three = blocks((4, 4, 19, 11, 204), (4, 20, 19, 27, 255), (30, 4, 45, 11, 153))
    found = baseline_postprocess(three, SAME, PostprocessParams(max_candidates=2))
    assert found.scores.tolist() == pytest.approx([1.0, 0.8])


def test_tao_takes_the_first_contours_from_the_bottom_up_regardless_of_score() -> None:
    three = blocks((4, 4, 19, 11, 255), (4, 20, 19, 27, 204), (4, 36, 19, 43, 153))
    found = baseline_postprocess(three, SAME, PostprocessParams(mode="tao", max_candidates=2))
    assert found.scores.tolist() == pytest.approx([0.6, 0.8])


def test_tao_rounds_to_network_pixels_and_truncates_to_source_pixels() -> None:
    frame = Frame(source=(31, 43), network=SIZE, content=SIZE)
    # 34 * 43 / 64 = 22.84 and 24 * 31 / 48 = 15.5.
    found = baseline_postprocess(ONE, frame, PostprocessParams(mode="tao"))
    assert found.quads.tolist() == [[[3, 3], [22, 3], [22, 15], [3, 15]]]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"box_thresh": 0.95}, id="score too low"),
        pytest.param({"min_size": 10.0}, id="too narrow"),
        pytest.param({"unclip_ratio": 0.0, "min_size": 8.0}, id="too narrow after growing"),
        pytest.param({"thresh": 0.9}, id="under the threshold"),
    ],
)
def test_a_region_is_dropped(options: dict[str, float]) -> None:
    probability = blocks((10, 10, 29, 19, 229))
    assert len(baseline_postprocess(probability, SAME, PostprocessParams())) == 1
    assert len(baseline_postprocess(probability, SAME, PostprocessParams(**options))) == 0  # type: ignore[arg-type]


def test_dilation_joins_regions_one_pixel_apart() -> None:
    divided = blocks((10, 10, 19, 19, 255), (21, 10, 29, 19, 255))
    assert len(baseline_postprocess(divided, SAME, PostprocessParams())) == 2
    assert len(baseline_postprocess(divided, SAME, PostprocessParams(dilation=True))) == 1


def test_a_hole_is_a_region_of_its_own_that_scores_low() -> None:
    ring = blocks((10, 10, 40, 40, 255), (15, 15, 35, 35, 0))
    scores = baseline_postprocess(ring, SAME, PostprocessParams(box_thresh=0)).scores
    # 961 pixels of which 441 are 0; around the hole 23 x 23, of which 88 are not.
    assert scores.tolist() == pytest.approx([520 / 961, 88 / 529])


def test_polygons_keep_the_outline_of_an_angle() -> None:
    angle = blocks((10, 10, 13, 39, 255), (10, 36, 49, 39, 255))
    params = PostprocessParams(polygons=True, box_thresh=0, unclip_ratio=1.0)
    (polygon,) = baseline_postprocess(angle, SAME, params).polygons or ()
    # The inner corner stays free: no point of the outline lies in the upper right of the angle.
    assert not ((polygon[:, 0] > 20) & (polygon[:, 1] < 30)).any()
    # Area 87 + 108, perimeter 136: it grows by 1.43 pixels.
    assert polygon.min(axis=0).tolist() == [9, 9]
    assert polygon.max(axis=0).tolist() == [50, 40]


def test_taos_polygon_mode_scores_the_contour_and_not_its_rectangle() -> None:
    angle = blocks((10, 10, 13, 39, 255), (10, 36, 49, 39, 255))
    found = baseline_postprocess(angle, SAME, PostprocessParams(mode="tao", polygons=True, box_thresh=0.95))
    assert found.scores.tolist() == [1.0]
    assert found.polygons is not None and len(found.polygons) == 1


@pytest.mark.parametrize("mode", ["default", "tao"])
@pytest.mark.parametrize("polygons", [False, True])
def test_an_empty_map_has_no_detections(mode: Any, polygons: bool) -> None:
    found = baseline_postprocess(blocks(), SAME, PostprocessParams(mode=mode, polygons=polygons))
    assert found.quads.shape == (0, 4, 2)
    assert found.polygons == (() if polygons else None)

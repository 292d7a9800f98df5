# SPDX-License-Identifier: Apache-2.0
"""The post-processing section: what it measures, and that it notices a difference."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from ocdserve.backend import PostprocessParams
from ocdserve.backend.preprocess import Frame
from ocdserve.contract import Detections
from ocdserve.perf.plain import plain_postprocess
from ocdserve.perf.postprocess import (
    OURS,
    PLAIN,
    Comparison,
    DisagreementError,
    NamedMap,
    PostprocessResult,
    compare,
    dense_map,
    measure_postprocess,
)
from ocdserve.perf.samples import Sample

FRAME = Frame((10, 10), (10, 10), (10, 10))
MAP = NamedMap("group", "map", np.zeros((10, 10), np.uint8), FRAME)
FOUND = Detections(np.zeros((1, 4, 2), np.float32), np.ones(1, np.float32), 10, 10)
NOTHING = Detections(np.zeros((0, 4, 2), np.float32), np.ones(0, np.float32), 10, 10)


@pytest.mark.parametrize("dilation", [False, True])
def test_the_dense_map_holds_a_thousand_regions_that_both_ways_find(dilation: bool) -> None:
    dense = dense_map()
    assert len(plain_postprocess(dense.probability, dense.frame, PostprocessParams(dilation=dilation))) == 1000
    result = measure_postprocess([dense], PostprocessParams(dilation=dilation), 1, lambda done, total: None)
    (comparison,) = result.comparisons
    assert comparison.boxes == 1000
    assert comparison.largest_difference_px < 1e-3


def test_the_dense_map_is_the_same_each_time() -> None:
    assert np.array_equal(dense_map(2, 3).probability, dense_map(2, 3).probability)
    assert not np.array_equal(dense_map(2, 3, seed=1).probability, dense_map(2, 3, seed=2).probability)


def test_opencv_has_its_threads_back_afterwards() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        measure_postprocess([dense_map(2, 2)], PostprocessParams(), 1, lambda done, total: None)
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_a_missing_box_is_an_error() -> None:
    with pytest.raises(DisagreementError, match="map: 0 boxes, but 1 by the plain loop"):
        compare(MAP, NOTHING, FOUND)


def test_a_moved_corner_is_an_error_and_rounding_is_none() -> None:
    moved = replace(FOUND, quads=FOUND.quads + np.float32(0.25))
    with pytest.raises(DisagreementError, match=r"map: corners differ by up to 0\.250 pixels"):
        compare(MAP, moved, FOUND)
    rounded = replace(FOUND, quads=FOUND.quads + np.float32(2**-12))
    assert compare(MAP, rounded, FOUND) == Comparison("group", "map", 1, 2**-12)
    assert compare(MAP, NOTHING, NOTHING) == Comparison("group", "map", 0, 0.0)


def test_rows_sum_up_each_group() -> None:
    times = [("a", OURS, 2.0), ("a", PLAIN, 8.0), ("b", OURS, 4.0), ("b", PLAIN, 40.0)]
    samples = tuple(Sample(subject, "real", case, 0, ms) for case, subject, ms in times)
    comparisons = (Comparison("real", "a", 5, 0.0), Comparison("real", "b", 7, 0.5))
    (row,) = PostprocessResult(samples, comparisons).rows()
    assert (row.maps, row.count, row.boxes) == ("real", 2, 12)
    assert (row.ours_ms, row.plain_ms, row.times_ours, row.largest_difference_px) == (3.0, 24.0, 7.0, 0.5)

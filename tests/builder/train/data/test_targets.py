# SPDX-License-Identifier: Apache-2.0
"""Targets, against maps written out by hand."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from ocdserve.backend import PRESETS, Bundle, Detector, PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.builder.train.data.targets import border_map, shrink_map
from ocdserve.contract import InvalidInputError, RequestParameters

# 10 x 8 pixels: area 80, perimeter 36, D = 80 * 0.84 / 36 = 1.8667.
BOX = np.array([[2, 2], [12, 2], [12, 10], [2, 10]], np.float64)


def moved(dx: float, dy: float) -> np.ndarray:
    return BOX + np.array([dx, dy])


def rows(text: str) -> np.ndarray:
    """Parse a map of one digit per pixel."""
    return np.array([[int(digit) for digit in line.strip()] for line in text.strip().splitlines()], np.float32)


def test_a_box_shrinks_by_its_area_over_its_perimeter() -> None:
    shrunk, mask = shrink_map([BOX], [False], (13, 15))
    expected = rows("""
        000000000000000
        000000000000000
        000000000000000
        000000000000000
        000011111110000
        000011111110000
        000011111110000
        000011111110000
        000011111110000
        000000000000000
        000000000000000
        000000000000000
        000000000000000""")
    assert shrunk.dtype == mask.dtype == np.float32
    np.testing.assert_array_equal(shrunk, expected)
    np.testing.assert_array_equal(mask, np.ones((13, 15)))


@pytest.mark.parametrize("polygon", [BOX[::-1], np.roll(BOX, 1, axis=0)])
def test_the_order_of_the_corners_does_not_matter(polygon: np.ndarray) -> None:
    for draw in (shrink_map, border_map):
        for ours, expected in zip(draw([polygon], [False], (13, 15)), draw([BOX], [False], (13, 15)), strict=True):
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    ("polygon", "ignored", "least"),
    [(BOX, True, 8), (BOX, False, 8.5), (moved(0, -3), False, 8)],
    ids=["ignored", "too low", "too low when clipped to the picture"],
)
def test_what_is_not_learnt_is_masked(polygon: np.ndarray, ignored: bool, least: float) -> None:
    shrunk, mask = shrink_map([polygon], [ignored], (13, 15), min_text_size=least)
    expected = np.ones((13, 15))
    top, bottom = max(int(polygon[0, 1]), 0), int(polygon[2, 1])
    expected[top : bottom + 1, 2:13] = 0
    assert not shrunk.any()
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("unclip", [1.5, 2.0])
@pytest.mark.parametrize(("width", "height"), [(300, 30), (300, 60), (60, 60), (90, 60), (40, 280)])
def test_post_processing_gives_texts_back_that_were_shrunk_for_it(width: int, height: int, unclip: float) -> None:
    text = np.array([(40, 30), (40 + width, 30), (40 + width, 30 + height), (40, 30 + height)], np.float64)
    drawn, _ = shrink_map([text], [False], size := (340, 380), unclip=unclip)
    spec = replace(PRESETS["ppocr"], postprocess=PostprocessParams(unclip_ratio=unclip))
    found = Detector(Bundle(spec, Path()), None).postprocess(drawn, Frame(size, size, size), RequestParameters())
    (quad,) = found.quads
    np.testing.assert_allclose([quad.min(axis=0), quad.max(axis=0)], [text[0], text[2]], atol=2.5)


def test_an_instance_that_vanishes_when_shrunk_is_masked() -> None:
    # Less than a pixel high: on Clipper's whole pixels it is a line.
    line = np.array([[2, 4], [62, 4], [62, 4.9], [2, 4.9]])
    shrunk, mask = shrink_map([line], [False], (10, 70), min_text_size=0)
    assert not shrunk.any()
    assert mask.sum() == 700 - 61 and not mask[4, 2:63].any()


def test_the_border_map_falls_from_the_outline_to_both_sides() -> None:
    border, mask = border_map([BOX], [False], (13, 15))
    one, two = 0.3 + 0.4 * (1 - 1 / 1.866667), 0.3
    # Through the middle: columns 0 to 14 of row 6, the outline at 2 and 12.
    np.testing.assert_allclose(border[6], [two, one, 0.7, one, *[two] * 7, one, 0.7, one, two], atol=1e-6)
    np.testing.assert_allclose(border[:, 7], [two, one, 0.7, one, *[two] * 5, one, 0.7, one, two], atol=1e-6)
    # Outside of a corner the distance is to the corner, inside to the nearer side.
    assert border[1, 1] == pytest.approx(0.3 + 0.4 * (1 - 2**0.5 / 1.866667), abs=1e-6)
    assert border[3, 3] == pytest.approx(one, abs=1e-6)
    # Grown by D: columns 0 to 14 and rows 0 to 12, with round corners.
    assert mask[6].tolist() == [1] * 15
    assert mask[:, 7].tolist() == [1] * 13
    assert [mask[0, 0], mask[0, 14], mask[12, 0], mask[12, 14]] == [0, 0, 0, 0]


def test_where_instances_overlap_the_nearer_outline_counts() -> None:
    other = moved(6, 0)
    both, mask = border_map([BOX, other], [False, False], (13, 21))
    (first, first_mask), (second, second_mask) = (border_map([box], [False], (13, 21)) for box in (BOX, other))
    np.testing.assert_array_equal(both, np.maximum(first, second))
    np.testing.assert_array_equal(mask, np.maximum(first_mask, second_mask))


def test_ignored_instances_have_no_border() -> None:
    border, mask = border_map([BOX], [True], (13, 15))
    assert np.unique(border).tolist() == [np.float32(0.3)]
    assert not mask.any()


@pytest.mark.parametrize(
    "polygon",
    [
        [[3, 3], [9, 3], [3, 3], [9, 3]],
        [[5, 5], [5, 5], [5, 5], [5, 5]],
        [[3.1, 3.1], [3.9, 3.1], [3.9, 3.9], [3.1, 3.9]],
        [[2, 2], [8, 2]],
        [[4, 4]],
    ],
    ids=["line", "point", "less than a pixel", "two corners", "one corner"],
)
def test_instances_without_area_are_neither_drawn_nor_an_error(polygon: np.ndarray) -> None:
    shrunk, _ = shrink_map([np.array(polygon), BOX], [False, False], (13, 15))
    np.testing.assert_array_equal(shrunk, shrink_map([BOX], [False], (13, 15))[0])
    border, border_mask = border_map([np.array(polygon), BOX], [False, False], (13, 15))
    np.testing.assert_array_equal(border, border_map([BOX], [False], (13, 15))[0])
    assert border_mask.sum() > 0


def test_a_picture_without_text_has_empty_maps() -> None:
    shrunk, mask = shrink_map([], [], (4, 5))
    border, border_mask = border_map([], [], (4, 5))
    assert (shrunk.sum(), mask.sum(), border_mask.sum()) == (0, 20, 0)
    np.testing.assert_array_equal(border, np.full((4, 5), 0.3, np.float32))


def test_instances_outside_of_the_picture_leave_it_alone() -> None:
    far = [moved(100, 0), moved(-100, 0), moved(0, 1e6), moved(0, -1e6)]
    shrunk, _ = shrink_map(far, [False] * 4, (13, 15))
    border, mask = border_map(far, [False] * 4, (13, 15))
    assert not shrunk.any() and not mask.any()
    assert np.unique(border).tolist() == [np.float32(0.3)]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InvalidInputError, match="1 polygons, 2 flags"):
        shrink_map([BOX], [False, True], (4, 4))
    with pytest.raises(InvalidInputError, match=r"shrink_ratio must be between 0 and 1; got 1\.5"):
        border_map([BOX], [False], (4, 4), ratio=1.5)
    with pytest.raises(InvalidInputError, match=r"low 0\.7, high 0\.3"):
        border_map([BOX], [False], (4, 4), low=0.7, high=0.3)


coordinates = st.floats(-40, 100, allow_nan=False)
quads = st.tuples(coordinates, coordinates, st.floats(0, 60), st.floats(0, 60), st.floats(-3.2, 3.2)).map(
    lambda values: cv2.boxPoints((values[:2], values[2:4], values[4] * 57.3)).astype(np.float64)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(quads, max_size=4), st.data())
def test_maps_stay_in_their_bounds(polygons: list[np.ndarray], data: st.DataObject) -> None:
    flags = [data.draw(st.booleans()) for _ in polygons]
    shrunk, mask = shrink_map(polygons, flags, (60, 70))
    border, border_mask = border_map(polygons, flags, (60, 70), low=0.2, high=0.9)
    assert set(np.unique(shrunk)) | set(np.unique(mask)) | set(np.unique(border_mask)) <= {0, 1}
    assert border.min() >= np.float32(0.2) and border.max() <= np.float32(0.9) + 1e-6
    # What is learnt lies inside of an instance whose corners are clipped, up to the whole pixels of Clipper.
    outlines = [shapely.MultiPoint(np.clip(p, 0, (69, 59))).convex_hull.buffer(1.5) for p in polygons]
    inside = shapely.union_all([outline for outline, flag in zip(outlines, flags, strict=True) if not flag])
    assert shapely.contains_xy(inside, np.argwhere(shrunk > 0)[:, ::-1]).all()
    # The closeness against Shapely's distance.
    y, x = np.nonzero(border_mask)
    expected = np.zeros(len(x))
    for polygon, flag in zip(polygons, flags, strict=True):
        shape = shapely.Polygon(polygon)
        if not flag and shape.area > 0:
            distance = shapely.distance(shape.exterior, shapely.points(x, y))
            expected = np.maximum(expected, 1 - distance / (shape.area * 0.84 / shape.length))
    np.testing.assert_allclose(border[y, x], 0.2 + 0.7 * expected, atol=2e-3)

# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.results.quads import (
    convex_hull,
    intersection_area,
    intersection_areas,
    order_corners,
    page_angle,
    polygon_area,
    quad_areas,
    quad_sizes,
    rectangle_around,
    smallest_rectangle,
    turned,
)

# 50 x 10, its top edge rising by 3 for every 4 to the right, and 20 x 20 upright.
SLANTED = [[0, 0], [40, 30], [34, 38], [-6, 8]]
SQUARE = [[5, 5], [25, 5], [25, 25], [5, 25]]


def rectangle(x: float, y: float, width: float, height: float, angle_deg: float) -> np.ndarray:
    """Corners around the centre (x, y), from the top left of the text, by complex numbers."""
    corners = np.array([-width - height * 1j, width - height * 1j, width + height * 1j, -width + height * 1j]) / 2
    turned_corners = corners * np.exp(1j * np.deg2rad(angle_deg)) + complex(x, y)
    return np.stack([turned_corners.real, turned_corners.imag], axis=1)


def test_sizes_are_along_and_across_the_text() -> None:
    widths, heights = quad_sizes(np.array([SLANTED, SQUARE], np.float32))
    assert widths.tolist() == [50, 20]
    assert heights.tolist() == [10, 20]


def test_sizes_of_a_trapezium_are_the_means_of_opposite_edges() -> None:
    widths, heights = quad_sizes(np.array([[[0, 0], [10, 0], [13, 4], [-3, 4]]]))
    assert (widths.tolist(), heights.tolist()) == ([13], [5])


def test_areas_are_in_pixels() -> None:
    assert quad_areas(np.array([SLANTED, SQUARE])).tolist() == [500, 400]
    assert polygon_area(np.array([[0, 0], [4, 0], [4, 2], [2, 2], [2, 4], [0, 4]])) == 12
    assert polygon_area(np.array([[0, 0], [1, 1]])) == 0


def test_the_page_angle_is_the_width_weighted_median() -> None:
    quads = np.stack([rectangle(0, 0, 300, 20, 7), rectangle(0, 50, 200, 20, 7), rectangle(0, 99, 90, 20, 80)])
    assert np.rad2deg(page_angle(quads)) == pytest.approx(7, abs=1e-6)
    assert page_angle(np.empty((0, 4, 2))) == 0


@pytest.mark.parametrize("angle", [-179, -100, -20, 0, 20, 100, 179])
def test_the_page_angle_covers_the_whole_circle(angle: float) -> None:
    quads = np.stack([rectangle(0, 0, 300, 20, angle + off) for off in (-3, 0, 3)])
    assert np.rad2deg(page_angle(quads)) == pytest.approx(angle, abs=1e-6)


def test_rotated_points_lie_along_the_new_axis() -> None:
    assert turned(np.array([[3.0, 4.0]]), np.arctan2(4, 3)).round(9).tolist() == [[5, 0]]


def test_a_rectangle_around_points_has_the_given_direction() -> None:
    corners = rectangle_around(np.array([[0, 0], [10, 10], [0, 10]]), np.pi / 4)
    np.testing.assert_allclose(corners, [[0, 0], [10, 10], [5, 15], [-5, 5]], atol=1e-5)


@given(st.floats(-44, 44), st.floats(20, 300), st.floats(5, 15))
def test_the_smallest_rectangle_of_a_rectangle_is_itself(angle: float, width: float, height: float) -> None:
    quad = rectangle(200, 100, width, height, angle)
    inside = quad.mean(axis=0) + (quad - quad.mean(axis=0)) * 0.5
    np.testing.assert_allclose(smallest_rectangle(np.concatenate([inside, quad[::-1]])), quad, atol=1e-3)


@pytest.mark.parametrize("points", [[[3, 4]], [[0, 0], [10, 0]], [[0, 0], [5, 5], [10, 10]]])
def test_the_smallest_rectangle_of_points_on_a_line_is_flat(points: list[list[int]]) -> None:
    quad = smallest_rectangle(np.array(points))
    np.testing.assert_allclose(quad.min(axis=0), np.min(points, axis=0), atol=1e-6)
    np.testing.assert_allclose(quad.max(axis=0), np.max(points, axis=0), atol=1e-6)


def test_corners_are_ordered_by_the_detectors_rule() -> None:
    ordered = [[2, 0], [20, 1], [19, 9], [1, 8]]
    assert order_corners(np.array([ordered[2], ordered[0], ordered[3], ordered[1]])).tolist() == ordered


# Sides of a square, of words, of lines.
SIZES = st.sampled_from([(20, 20), (30, 20), (60, 20), (100, 20), (101, 20), (400, 20), (2000, 20)])
STARTS = st.permutations(range(4))


@given(SIZES, st.floats(-44, 44), STARTS)
def test_a_line_keeps_its_first_corner_from_minus_45_to_45_degrees(
    size: tuple[int, int], angle: float, start: list[int]
) -> None:
    quad = rectangle(1000, 1000, *size, angle)
    np.testing.assert_allclose(order_corners(quad[start]), quad, atol=1e-3)


@given(SIZES, st.floats(-11, 11), STARTS)
def test_a_column_keeps_its_first_corner_up_to_eleven_degrees_either_way(
    size: tuple[int, int], angle: float, start: list[int]
) -> None:
    quad = rectangle(1000, 1000, *reversed(size), angle)
    np.testing.assert_allclose(order_corners(quad[start]), quad, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "last"),
    [((21, 20), 46.3), ((40, 20), 63.4), ((80, 20), 75.9), ((100, 20), 78.6), ((400, 20), 78.6), ((4000, 20), 78.6)],
)
def test_a_line_becomes_a_column_at_the_angle_of_its_diagonal_but_at_79_degrees_at_the_latest(
    size: tuple[int, int], last: float
) -> None:
    for sign in (-1, 1):
        line = rectangle(5000, 5000, *size, sign * last)
        np.testing.assert_allclose(order_corners(line), line, atol=1e-3)
        # Its upper edge is then the end that was to its left, or to its right.
        column = np.roll(rectangle(5000, 5000, *size, sign * (last + 0.2)), sign, axis=0)
        np.testing.assert_allclose(order_corners(column), column, atol=1e-3)


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(
    "ordered",
    [
        [[10, 0], [20, 10], [10, 20], [0, 10]],  # a square that stands on a corner
        [[4, 0], [8, 2], [4, 10], [0, 8]],  # two opposite corners above each other
        [[5, 0], [10, 25], [5, 26], [0, 1]],  # exactly 5 to 1: a line
        [[0, 1], [2, 0], [7, 26], [5, 27]],  # a column
        [[5, 1], [31, 0], [27, 130], [1, 131]],  # a column that leans the other way
        [[7, 3], [7, 3], [7, 50], [7, 50]],  # a line without thickness
    ],
)
def test_the_order_does_not_depend_on_the_order_given(ordered: list[list[int]], start: int, direction: int) -> None:
    assert order_corners(np.roll(ordered, start, axis=0)[::direction]).tolist() == ordered


def test_the_hull_leaves_out_what_is_inside_or_on_an_edge() -> None:
    points = np.array([[0, 0], [2, 0], [4, 0], [4, 4], [0, 4], [1, 2], [4, 4]])
    assert convex_hull(points).tolist() == [[0, 0], [4, 0], [4, 4], [0, 4]]


points = st.tuples(st.integers(-40, 40), st.integers(-40, 40))


@given(st.lists(points, min_size=4, max_size=4), st.lists(points, min_size=4, max_size=4))
def test_the_intersection_area_equals_shapelys(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    hulls = [shapely.MultiPoint(corners).convex_hull for corners in (first, second)]
    expected = hulls[0].intersection(hulls[1]).area
    assert intersection_area(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-6)


def test_each_quad_is_intersected_with_each() -> None:
    first = np.array([[[0, 0], [10, 0], [10, 4], [0, 4]], [[20, 0], [30, 0], [30, 4], [20, 4]]])
    second = np.array([[[5, 2], [25, 2], [25, 9], [5, 9]], [[30, 0], [40, 0], [40, 4], [30, 4]], first[0]])
    assert intersection_areas(first, second).tolist() == [[10, 0, 40], [10, 0, 0]]
    assert intersection_areas(first, second[:0]).shape == (2, 0)

# SPDX-License-Identifier: Apache-2.0
"""Vectorised geometry compared with OpenCV, Clipper and shapely, quad by quad."""

import math
from typing import Any

import cv2
import numpy as np
import pyclipper
import pytest
import shapely
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocdserve.backend.stages import geometry

HEIGHT, WIDTH = 60, 80

ANGLES = st.sampled_from([0.0, 45.0, 90.0, -45.0, 30.0, 0.01, 89.99]) | st.floats(-90, 90, width=32)
CENTRES = st.floats(-10, 90, width=32) | st.integers(-20, 180).map(lambda half: half / 2)
# Half of all sides are tiny or nothing at all, which is where truncation bends rectangles.
SIDES = st.floats(0, 4, width=32) | st.floats(0, 70, width=32) | st.integers(0, 60).map(float)
RECTANGLES = st.tuples(CENTRES, CENTRES, SIDES, SIDES, ANGLES)
DISTANCES = st.floats(0, 3) | st.floats(0, 30) | st.integers(0, 40).map(lambda quarter: quarter / 4)


def rectangle_array(rectangles: list[tuple[float, ...]]) -> NDArray[np.float32]:
    return np.array(rectangles, np.float32).reshape(-1, 5)


def quads_of(rectangles: list[tuple[float, ...]]) -> NDArray[np.float32]:
    return geometry.order_corners(geometry.rectangle_corners(rectangle_array(rectangles)))


def box_points(row: NDArray[np.float32]) -> NDArray[np.float32]:
    x, y, width, height, angle = (float(value) for value in row)
    corners: NDArray[np.float32] = cv2.boxPoints(((x, y), (width, height), angle))
    return corners


def clipper_points(points: NDArray[Any], distance: float) -> NDArray[np.int32]:
    offset = pyclipper.PyclipperOffset()
    try:
        offset.AddPath(points.tolist(), pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    except pyclipper.ClipperException:
        return np.empty((0, 2), np.int32)
    pieces = offset.Execute(distance)
    return np.array([point for piece in pieces for point in piece], np.int32).reshape(-1, 2)


def hull(points: NDArray[np.int32]) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for x, y in cv2.convexHull(points)[:, 0]}


def filled_mean(values: NDArray[Any], polygon: NDArray[Any]) -> float:
    mask = np.zeros(values.shape, np.uint8)
    cv2.fillPoly(mask, [polygon.astype(np.int32)], 1)
    inside = values[mask == 1]
    return float(inside.mean(dtype=np.float64)) if len(inside) else 0.0


class TestRectangleCorners:
    def test_an_upright_rectangle_has_the_corners_of_opencv(self) -> None:
        corners = geometry.rectangle_corners(rectangle_array([(10, 20, 6, 4, 0)]))
        # Bottom left first, then clockwise.
        assert corners.tolist() == [[[7, 22], [7, 18], [13, 18], [13, 22]]]

    @given(st.lists(RECTANGLES, min_size=1, max_size=8))
    def test_they_equal_opencv_bit_for_bit(self, rectangles: list[tuple[float, ...]]) -> None:
        array = rectangle_array(rectangles)
        expected = np.array([box_points(row) for row in array])
        assert geometry.rectangle_corners(array).tobytes() == expected.tobytes()

    def test_no_rectangles_have_no_corners(self) -> None:
        assert geometry.rectangle_corners(rectangle_array([])).shape == (0, 4, 2)


class TestOrderCorners:
    UPRIGHT = ((1, 2), (5, 2), (5, 4), (1, 4))

    @pytest.mark.parametrize("turn", range(4))
    @pytest.mark.parametrize("direction", [1, -1])
    def test_any_start_and_sense_becomes_clockwise_from_the_top_left(self, turn: int, direction: int) -> None:
        given_corners = np.roll(self.UPRIGHT, turn, axis=0)[::direction]
        ordered = geometry.order_corners(np.array([given_corners], np.float32))
        assert ordered.tolist() == [[[1, 2], [5, 2], [5, 4], [1, 4]]]

    def test_a_slanted_rectangle_starts_at_the_upper_of_its_two_left_corners(self) -> None:
        slanted = np.array([[[0, 3], [8, 0], [9, 3], [1, 6]]], np.float32)
        # The two leftmost are (0, 3) and (1, 6), the two rightmost (8, 0) and (9, 3).
        assert geometry.order_corners(slanted[:, ::-1]).tolist() == [[[0, 3], [8, 0], [9, 3], [1, 6]]]

    @given(st.lists(RECTANGLES, min_size=1, max_size=8))
    def test_it_follows_the_rule_of_differentiable_binarization(self, rectangles: list[tuple[float, ...]]) -> None:
        corners = geometry.rectangle_corners(rectangle_array(rectangles))
        for quad, ordered in zip(corners.tolist(), geometry.order_corners(corners).tolist(), strict=True):
            a, b, c, d = sorted(quad, key=lambda corner: corner[0])
            left = [a, b] if b[1] > a[1] else [b, a]
            right = [c, d] if d[1] > c[1] else [d, c]
            assert ordered == [left[0], right[0], right[1], left[1]]

    @given(CENTRES, CENTRES, st.floats(2, 50), st.floats(2, 50), ANGLES)
    def test_rectangles_run_clockwise(self, x: float, y: float, width: float, height: float, angle: float) -> None:
        (quad,) = quads_of([(x, y, width, height, angle)]).astype(np.float64)
        ahead = np.roll(quad, -1, axis=0)
        # Positive with y downwards.
        assert (quad[:, 0] * ahead[:, 1] - ahead[:, 0] * quad[:, 1]).sum() / 2 == pytest.approx(
            width * height, rel=1e-2, abs=1e-2
        )

    def test_no_quads_stay_none(self) -> None:
        assert geometry.order_corners(np.empty((0, 4, 2), np.float32)).shape == (0, 4, 2)


class TestAreasAndPerimeters:
    def test_literals(self) -> None:
        square = [[0, 0], [2, 0], [2, 2], [0, 2]]
        thin = [[0, 0], [3, 4], [3, 4], [0, 0]]
        areas, perimeters = geometry.areas_and_perimeters(np.array([square, square[::-1], thin], np.float32))
        assert areas.tolist() == [4, 4, 0]
        assert perimeters.tolist() == [8, 8, 10]

    @given(st.lists(RECTANGLES, min_size=1, max_size=8))
    def test_they_equal_shapely(self, rectangles: list[tuple[float, ...]]) -> None:
        quads = quads_of(rectangles)
        areas, perimeters = geometry.areas_and_perimeters(quads)
        polygons = [shapely.Polygon(quad) for quad in quads]
        np.testing.assert_allclose(areas, [polygon.area for polygon in polygons], rtol=1e-9, atol=1e-8)
        np.testing.assert_allclose(perimeters, [polygon.length for polygon in polygons], rtol=1e-12)

    def test_noise_in_the_last_digit_does_not_grow_with_the_distance_from_the_origin(self) -> None:
        # As OpenCV returns it; a growth of 0.5 pixels rounds up, one of 0.4999999999999991 does not.
        quad = np.array([[[-6.123234262925839e-17, 60], [1, 60], [1, 62], [0, 62]]], np.float32)
        areas, perimeters = geometry.areas_and_perimeters(quad)
        assert areas[0] * 1.5 / perimeters[0] == 0.5

    def test_more_than_four_corners_are_measured_too(self) -> None:
        hexagon = np.array([[(math.cos(k * math.pi / 3), math.sin(k * math.pi / 3)) for k in range(6)]], np.float32)
        (area,), (perimeter,) = geometry.areas_and_perimeters(hexagon)
        assert area == pytest.approx(3 * math.sqrt(3) / 2, abs=1e-6)
        assert perimeter == pytest.approx(6, abs=1e-6)


class TestOffsetPolygon:
    def test_a_square_grows_by_the_distance_on_each_side(self) -> None:
        (piece,) = geometry.offset_polygon(np.array([[10, 10], [20, 10], [20, 20], [10, 20]]), 5.0)
        assert piece.dtype == np.int32
        assert (piece.min(axis=0).tolist(), piece.max(axis=0).tolist()) == ([5, 5], [25, 25])

    @given(CENTRES, CENTRES, st.floats(10, 60), st.floats(10, 60), ANGLES, st.floats(3, 20))
    def test_the_area_is_that_of_shapely_s_round_buffer(
        self, x: float, y: float, width: float, height: float, angle: float, distance: float
    ) -> None:
        (quad,) = quads_of([(x, y, width, height, angle)])
        pieces = geometry.offset_polygon(quad, distance)
        expected = shapely.Polygon(np.trunc(quad)).buffer(distance, quad_segs=32)
        # Whole pixels: the outline may lie half a pixel, and the arc's chord a quarter, off.
        assert len(pieces) == 1
        assert abs(shapely.Polygon(pieces[0]).area - expected.area) < expected.length * 0.75 + 2

    def test_fractions_are_cut_off_towards_zero(self) -> None:
        fractions = np.array([[-10.9, -10.9], [10.9, -10.9], [10.9, 10.9], [-10.9, 10.9]], np.float32)
        whole = np.array([[-10, -10], [10, -10], [10, 10], [-10, 10]])
        (of_fractions,), (of_whole,) = geometry.offset_polygon(fractions, 3.0), geometry.offset_polygon(whole, 3.0)
        assert of_fractions.tolist() == of_whole.tolist()

    def test_a_concave_outline_that_grows_into_itself_stays_one_piece_with_its_hole(self) -> None:
        letter_c = np.array(
            [[0, 0], [40, 0], [40, 10], [10, 10], [10, 50], [40, 50], [40, 40], [50, 40], [50, 60], [0, 60]]
        )
        assert len(geometry.offset_polygon(letter_c, 1.0)) == 1
        closed = np.array(
            [
                [0, 0],
                [40, 0],
                [40, 29],
                [36, 29],
                [36, 4],
                [4, 4],
                [4, 56],
                [36, 56],
                [36, 31],
                [40, 31],
                [40, 60],
                [0, 60],
            ]
        )
        assert len(geometry.offset_polygon(closed, 2.0)) == 2

    @pytest.mark.parametrize("points", [[[5, 5]] * 4, [[5, 5], [5.2, 5.2], [5.4, 5.9], [5, 5.9]]])
    def test_a_polygon_within_one_pixel_has_no_pieces(self, points: list[list[float]]) -> None:
        assert geometry.offset_polygon(np.array(points), 3.0) == []


class TestOffsetQuads:
    @given(st.lists(st.tuples(RECTANGLES, DISTANCES), min_size=1, max_size=8))
    @example([((97.5, 51.0, 71.0, 52.5, 56.0), 0.6558782906623107)])  # below Clipper's minimum of arc steps
    @example([((51.3, 119.6, 0.82, 15.2, 8.7), 7.153981355726205)])  # an edge of one pixel
    @example([((10, 10, 5, 5, 0), 0.0)])
    def test_the_hull_is_that_of_clipper_s_points(self, cases: list[tuple[tuple[float, ...], float]]) -> None:
        quads = quads_of([rectangle for rectangle, _ in cases])
        grown = geometry.offset_quads(quads, np.array([distance for _, distance in cases]))
        for quad, (_, distance), points in zip(quads, cases, grown, strict=True):
            expected = clipper_points(np.trunc(quad).astype(int), distance)
            assert points.dtype == np.int32
            assert len(points) == 0 if not len(expected) else hull(points) == hull(expected)

    @given(st.lists(st.tuples(RECTANGLES, DISTANCES), min_size=1, max_size=8))
    def test_the_smallest_rectangle_is_that_around_clipper_s_points(
        self, cases: list[tuple[tuple[float, ...], float]]
    ) -> None:
        quads = quads_of([rectangle for rectangle, _ in cases])
        grown = geometry.offset_quads(quads, np.array([distance for _, distance in cases]))
        for quad, (_, distance), points in zip(quads, cases, grown, strict=True):
            expected = clipper_points(np.trunc(quad).astype(int), distance)
            if len(expected):
                ours, theirs = (cv2.boxPoints(cv2.minAreaRect(each)) for each in (points, expected))
                np.testing.assert_allclose(
                    geometry.order_corners(ours[None]), geometry.order_corners(theirs[None]), atol=0.01
                )

    def test_the_answer_does_not_depend_on_the_neighbours(self) -> None:
        rectangles = [(20, 20, 30, 8, 10), (40, 40, 1, 1, 0), (30, 30, 50, 20, 45), (5, 5, 0, 0, 0)]
        quads, distances = quads_of(rectangles), np.array([3.0, 0.2, 6.5, 1.0])
        together = geometry.offset_quads(quads, distances)
        alone = [geometry.offset_quads(quads[i : i + 1], distances[i : i + 1])[0] for i in range(4)]
        assert [points.tolist() for points in together] == [points.tolist() for points in alone]

    def test_only_quads_that_clipper_itself_must_grow(self) -> None:
        quads = quads_of([(20, 20, 30, 8, 10), (40, 40, 10, 10, 0)])
        grown = geometry.offset_quads(quads, np.zeros(2))
        assert [hull(points) for points in grown] == [hull(np.trunc(quad).astype(np.int32)) for quad in quads]

    def test_no_quads_have_no_points(self) -> None:
        assert geometry.offset_quads(np.empty((0, 4, 2), np.float32), np.empty(0)) == []


class TestFilledMeans:
    NOISE = np.random.default_rng(7).integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)

    @given(st.lists(RECTANGLES, min_size=1, max_size=8), st.sampled_from([np.uint8, np.float32]))
    def test_they_equal_a_mask_filled_by_opencv(self, rectangles: list[tuple[float, ...]], dtype: Any) -> None:
        quads = np.trunc(quads_of(rectangles)).astype(np.int64)
        values = (self.NOISE / 255).astype(np.float32) if dtype is np.float32 else self.NOISE
        means = geometry.filled_means(values, quads)
        expected = [filled_mean(values, quad) for quad in quads]
        np.testing.assert_allclose(means, expected, rtol=1e-9, atol=1e-9)

    @given(
        st.lists(
            st.tuples(*[st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1)] * 2).map(
                lambda ends: [[ends[0], ends[1]], [ends[2], ends[3]], [ends[2], ends[3]], [ends[0], ends[1]]]
            ),
            min_size=1,
            max_size=6,
        )
    )
    def test_a_quad_without_width_is_the_line_that_opencv_draws(self, lines: list[list[list[int]]]) -> None:
        means = geometry.filled_means(self.NOISE, np.array(lines))
        np.testing.assert_allclose(means, [filled_mean(self.NOISE, np.array(line)) for line in lines], rtol=1e-12)

    def test_the_outline_counts(self) -> None:
        values = np.zeros((5, 5), np.uint8)
        values[1:4, 1:4] = 90
        quads = np.array([[[1, 1], [3, 1], [3, 3], [1, 3]], [[0, 0], [4, 0], [4, 4], [0, 4]], [[2, 2]] * 4])
        assert geometry.filled_means(values, quads).tolist() == [90.0, 9 * 90 / 25, 90.0]

    def test_outside_of_the_image_there_is_nothing_to_count(self) -> None:
        values = np.full((5, 5), 50, np.uint8)
        far = [[[9, 9], [12, 9], [12, 12], [9, 12]], [[-9, -9], [-6, -9], [-6, -6], [-9, -6]]]
        half = [[[-3, 0], [2, 0], [2, 4], [-3, 4]]]
        assert geometry.filled_means(values, np.array(far + half)).tolist() == [0.0, 0.0, 50.0]

    def test_a_sum_beyond_32_bits_is_exact(self) -> None:
        height, width = 4096, 4096
        values = np.full((height, width), 255, np.uint8)
        values[0, 0] = 0
        corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
        (mean,) = geometry.filled_means(values, np.array([corners]))
        assert mean == 255 * (height * width - 1) / (height * width)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
    def test_images_of_one_row_or_column_are_images(self, shape: tuple[int, int]) -> None:
        values = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
        bottom, right = shape[0] - 1, shape[1] - 1
        (mean,) = geometry.filled_means(values, np.array([[[0, 0], [right, 0], [right, bottom], [0, bottom]]]))
        assert mean == values.mean()

    def test_no_quads_have_no_means(self) -> None:
        assert geometry.filled_means(self.NOISE, np.empty((0, 4, 2), np.int64)).shape == (0,)


class TestPolygonMean:
    def test_a_concave_outline_counts_only_its_inside(self) -> None:
        values = np.zeros((20, 20), np.float32)
        values[2:18, 2:6] = 1
        values[14:18, 2:18] = 1
        letter_l = np.array([[2, 2], [5, 2], [5, 14], [17, 14], [17, 17], [2, 17]])
        assert geometry.polygon_mean(values, letter_l) == pytest.approx(1.0)

    @given(st.lists(st.tuples(st.integers(-5, WIDTH + 5), st.integers(-5, HEIGHT + 5)), min_size=3, max_size=9))
    def test_any_outline_has_the_mean_of_opencv_s_filling(self, outline: list[tuple[int, int]]) -> None:
        values = TestFilledMeans.NOISE
        ours = geometry.polygon_mean(values, np.array(outline))
        x, y = np.array(outline).T
        if min(x.min(), y.min()) >= 0 and x.max() < WIDTH and y.max() < HEIGHT:
            assert ours == pytest.approx(filled_mean(values, np.array(outline)), rel=1e-9)
        else:
            # Lines that leave the image are clipped before they are drawn, and may differ in a few pixels.
            assert 0 <= ours <= 255

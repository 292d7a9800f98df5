# SPDX-License-Identifier: Apache-2.0
"""Post-processing against literals and against `ocdserve.perf.subjects.baseline`, one library call after the other."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocdserve.backend import Detector
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages import postprocess as stage
from ocdserve.contract import InvalidInputError, RequestParameters
from ocdserve.perf.subjects.baseline import baseline_postprocess
from ocdserve.results.detections import Detections

Map = NDArray[Any]

# By NumPy and OpenCV; tests/python_backend/native compares compiled code with it.
postprocess = partial(stage.postprocess, compiled=False)


def frame_of(height: int, width: int, factor: float = 1.0) -> Frame:
    return Frame((round(height * factor), round(width * factor)), (height, width), (height, width))


def one_word(value: float = 0.75) -> Map:
    """A text region of 40 x 10 pixels at (20, 10) in a map of 100 x 40."""
    probability = np.zeros((40, 100), np.float32)
    probability[10:20, 20:60] = value
    return probability


def as_uint8(probability: Map) -> Map:
    return np.round(probability * 255).astype(np.uint8)


def assert_same(found: Detections, expected: Detections, frame: Frame, ordered: bool) -> None:
    """Equal counts, scores within 1e-4, corners within a hundredth of a network pixel."""
    assert (found.width, found.height) == (expected.width, expected.height)
    assert len(found) == len(expected)
    ours, theirs = (
        range(len(each)) if ordered else np.lexsort((*each.quads.reshape(-1, 8).T.round(1), each.scores.round(4)))
        for each in (found, expected)
    )
    ours, theirs = list(ours), list(theirs)
    np.testing.assert_allclose(found.scores[ours], expected.scores[theirs], atol=1e-4)
    tolerance = 0.01 * max(1.0, *frame.scale)
    np.testing.assert_allclose(found.quads[ours], expected.quads[theirs], atol=tolerance)
    assert (found.polygons is None) == (expected.polygons is None)
    if found.polygons is not None and expected.polygons is not None:
        assert len(found.polygons) == len(expected.polygons) == len(found)
        for i, j in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(found.polygons[i], expected.polygons[j], atol=tolerance)


class TestOneWord:
    """Contour 39 x 9 between pixel centres; it grows by 39 * 9 * 1.5 / 96 = 5.48 pixels."""

    @pytest.mark.parametrize("convert", [np.asarray, as_uint8])
    def test_the_quad_is_the_grown_rectangle_clockwise_from_the_top_left(self, convert: Callable[[Map], Map]) -> None:
        found = postprocess(convert(one_word()), frame_of(40, 100), PostprocessParams())
        np.testing.assert_allclose(found.quads, [[[15, 5], [64, 5], [64, 24], [15, 24]]], atol=1e-4)
        np.testing.assert_allclose(found.scores, [0.75], atol=1 / 510)
        assert (found.width, found.height, found.polygons) == (100, 40, None)
        assert (found.quads.dtype, found.scores.dtype) == (np.float32, np.float32)

    def test_corners_are_scaled_to_source_pixels_with_their_fractions(self) -> None:
        found = postprocess(one_word(), frame_of(40, 100, 1.5), PostprocessParams())
        np.testing.assert_allclose(found.quads, [[[22.5, 7.5], [96, 7.5], [96, 36], [22.5, 36]]], atol=1e-4)
        assert (found.width, found.height) == (150, 60)

    def test_mode_tao_cuts_the_fractions_off(self) -> None:
        found = postprocess(one_word(), frame_of(40, 100, 1.5), PostprocessParams(mode="tao"))
        assert found.quads.tolist() == [[[22, 7], [96, 7], [96, 36], [22, 36]]]

    def test_the_scale_follows_from_the_content_not_from_the_padding(self) -> None:
        frame = Frame(source=(80, 120), network=(40, 100), content=(40, 60))
        found = postprocess(one_word(), frame, PostprocessParams())
        np.testing.assert_allclose(found.quads, [[[30, 10], [120, 10], [120, 48], [30, 48]]], atol=1e-4)

    def test_quads_and_polygons_stay_inside_of_the_source(self) -> None:
        probability = np.zeros((40, 100), np.float32)
        probability[:12, :50] = 0.9
        found = postprocess(probability, frame_of(40, 100, 2), PostprocessParams(polygons=True))
        assert found.quads.min() == 0
        assert found.polygons is not None
        assert found.polygons[0].min() == 0

    def test_without_growth_it_is_the_contour_s_rectangle(self) -> None:
        found = postprocess(one_word(), frame_of(40, 100), PostprocessParams(unclip_ratio=0))
        np.testing.assert_allclose(found.quads, [[[20, 10], [59, 10], [59, 19], [20, 19]]], atol=1e-4)

    def test_analytic_growth_keeps_the_fractions(self) -> None:
        found = postprocess(one_word(), frame_of(40, 100), PostprocessParams(unclip="analytic"))
        grown = 39 * 9 * 1.5 / 96
        left, top, right, bottom = 20 - grown, 10 - grown, 59 + grown, 19 + grown
        np.testing.assert_allclose(
            found.quads, [[[left, top], [right, top], [right, bottom], [left, bottom]]], atol=1e-4
        )

    def test_analytic_growth_turns_with_the_rectangle(self) -> None:
        # A square on its tip with sides of 20 sqrt(2) grows by 20 sqrt(2) / 4, so its tips move by 10.
        probability = np.zeros((100, 100), np.float32)
        tips = np.array([[50, 30], [70, 50], [50, 70], [30, 50]])
        cv2.fillPoly(probability, [tips.astype(np.int32)], (0.9,))
        params = PostprocessParams(unclip="analytic", unclip_ratio=1.0)
        (quad,) = postprocess(probability, frame_of(100, 100), params).quads
        expected = {(50, 20), (80, 50), (50, 80), (20, 50)}
        assert {(round(float(x), 3), round(float(y), 3)) for x, y in quad} == expected

    def test_analytic_growth_drops_what_stays_too_small(self) -> None:
        frame = frame_of(40, 100)
        kept = PostprocessParams(unclip="analytic", unclip_ratio=0, min_size=7)
        assert len(postprocess(one_word(), frame, kept)) == 1
        dropped = PostprocessParams(unclip="analytic", unclip_ratio=0, min_size=7.5)
        assert len(postprocess(one_word(), frame, dropped)) == 0

    def test_the_polygon_of_a_rectangle_spans_its_quad(self) -> None:
        found = postprocess(one_word(), frame_of(40, 100), PostprocessParams(polygons=True))
        assert found.polygons is not None
        (polygon,) = found.polygons
        assert polygon.dtype == np.float32
        assert (polygon.min(axis=0).tolist(), polygon.max(axis=0).tolist()) == ([15, 5], [64, 24])

    @pytest.mark.parametrize("mode", ["default", "tao"])
    def test_below_the_box_threshold_it_is_dropped(self, mode: Any) -> None:
        assert len(postprocess(one_word(0.5), frame_of(40, 100), PostprocessParams(mode=mode, box_thresh=0.51))) == 0
        assert len(postprocess(one_word(0.5), frame_of(40, 100), PostprocessParams(mode=mode, box_thresh=0.5))) == 1

    def test_shorter_than_the_minimum_it_is_dropped_before_or_after_growing(self) -> None:
        # The contour is 9 high. Without growth it must also reach the minimum plus 2.
        frame = frame_of(40, 100)
        assert len(postprocess(one_word(), frame, PostprocessParams(min_size=9))) == 1
        assert len(postprocess(one_word(), frame, PostprocessParams(min_size=9.5))) == 0
        assert len(postprocess(one_word(), frame, PostprocessParams(min_size=7, unclip_ratio=0))) == 1
        assert len(postprocess(one_word(), frame, PostprocessParams(min_size=7.5, unclip_ratio=0))) == 0

    def test_the_map_is_not_changed(self) -> None:
        probability = one_word()
        before = probability.copy()
        postprocess(probability, frame_of(40, 100), PostprocessParams(dilation=True, polygons=True))
        np.testing.assert_array_equal(probability, before)

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_the_memory_layout_does_not_matter(self, order: Any) -> None:
        wide = np.asarray(np.repeat(one_word(), 2, axis=1), order=order)
        found = postprocess(wide[:, ::2], frame_of(40, 100), PostprocessParams(polygons=True))
        assert_same(
            found, postprocess(one_word(), frame_of(40, 100), PostprocessParams(polygons=True)), frame_of(40, 100), True
        )


class TestThreshold:
    @pytest.mark.parametrize(
        ("probability", "thresh", "count"),
        [
            (one_word(0.5), 0.5, 0),
            (one_word(0.5), 0.49, 1),
            (as_uint8(one_word(0.2)), 0.2, 0),
            (as_uint8(one_word(52 / 255)), 0.2, 1),
            (as_uint8(one_word(1.0)), 1.0, 0),
            (as_uint8(one_word(254 / 255)), 0.995, 1),
        ],
    )
    def test_a_pixel_is_text_only_above_it(self, probability: Map, thresh: float, count: int) -> None:
        assert len(postprocess(probability, frame_of(40, 100), PostprocessParams(thresh=thresh, box_thresh=0))) == count

    def test_dilation_joins_strokes_one_pixel_apart(self) -> None:
        probability = np.zeros((40, 100), np.float32)
        probability[10:20, 20:60:2] = 1
        params = PostprocessParams(box_thresh=0.3)
        assert len(postprocess(probability, frame_of(40, 100), params)) == 0
        joined = postprocess(probability, frame_of(40, 100), PostprocessParams(box_thresh=0.3, dilation=True))
        assert len(joined) == 1
        # Dilation reaches one row further down: 20 columns of 10 pixels in 40 x 11.
        assert joined.scores[0] == pytest.approx(200 / 440, abs=1e-6)


class TestOrderAndCap:
    SCORES = (0.6, 0.9, 0.7, 0.8)

    @pytest.fixture
    def column(self) -> Map:
        """Four words, one below the other."""
        probability = np.zeros((160, 100), np.float32)
        for row, score in enumerate(self.SCORES):
            probability[row * 40 + 10 : row * 40 + 20, 20:60] = score
        return probability

    def test_the_best_comes_first(self, column: Map) -> None:
        found = postprocess(column, frame_of(160, 100), PostprocessParams())
        np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7, 0.6], atol=1e-6)
        np.testing.assert_allclose(found.quads[:, 0, 1], [45, 125, 85, 5], atol=1e-4)

    def test_the_cap_keeps_the_best(self, column: Map) -> None:
        found = postprocess(column, frame_of(160, 100), PostprocessParams(max_candidates=2, polygons=True))
        np.testing.assert_allclose(found.scores, [0.9, 0.8], atol=1e-6)
        assert found.polygons is not None
        assert [polygon[:, 1].min() for polygon in found.polygons] == [45, 125]

    @pytest.mark.parametrize("polygons", [False, True])
    def test_mode_tao_takes_the_first_contours_from_the_bottom_up(self, column: Map, polygons: bool) -> None:
        params = PostprocessParams(mode="tao", max_candidates=2, polygons=polygons)
        found = postprocess(column, frame_of(160, 100), params)
        np.testing.assert_allclose(found.scores, [0.8, 0.7], atol=1e-6)
        assert found.quads[:, 0].tolist() == [[15, 125], [15, 85]]

    def test_mode_tao_counts_dropped_contours_against_the_cap(self, column: Map) -> None:
        params = PostprocessParams(mode="tao", max_candidates=2, box_thresh=0.75)
        assert len(postprocess(column, frame_of(160, 100), params)) == 1

    def test_a_region_dropped_after_growing_leaves_its_neighbours_their_own_quads_and_scores(self, column: Map) -> None:
        # Four pixels high: large enough before, too small after so little growth.
        column[90:100] = 0
        column[90:94, 20:60] = 0.95
        params = PostprocessParams(unclip_ratio=0.1, polygons=True)
        found = postprocess(column, frame_of(160, 100), params)
        np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.6], atol=1e-6)
        np.testing.assert_allclose(found.quads[:, 0, 1], [50, 130, 10], atol=1.01)
        assert found.polygons is not None
        np.testing.assert_allclose([polygon[:, 1].min() for polygon in found.polygons], [50, 130, 10], atol=1.01)


class TestScoreOfPolygons:
    """A frame of 80 x 40 pixels, 10 thick and open at the top: 1400 of 3200 pixels; closed it has 2000."""

    @pytest.fixture
    def bowl(self) -> Map:
        probability = np.zeros((60, 100), np.float32)
        probability[10:50, 10:90] = 0.8
        probability[10:40, 20:80] = 0
        return probability

    @pytest.mark.parametrize("convert", [np.asarray, as_uint8])
    def test_is_the_mean_inside_the_outline_not_in_the_rectangle(
        self, bowl: Map, convert: Callable[[Map], Map]
    ) -> None:
        frame = frame_of(60, 100)
        in_rectangle = postprocess(convert(bowl), frame, PostprocessParams(box_thresh=0))
        np.testing.assert_allclose(in_rectangle.scores, [0.8 * 1400 / 3200], atol=1e-6)
        in_outline = postprocess(convert(bowl), frame, PostprocessParams(box_thresh=0.79, polygons=True))
        np.testing.assert_allclose(in_outline.scores, [0.8], atol=1e-6)
        assert in_outline.quads.tolist() == in_rectangle.quads.tolist()

    def test_includes_holes(self, bowl: Map) -> None:
        bowl[10:20, 20:80] = 0.8
        for polygons in (False, True):
            params = PostprocessParams(box_thresh=0.3, polygons=polygons)
            found = postprocess(bowl, frame_of(60, 100), params)
            np.testing.assert_allclose(found.scores, [0.8 * 2000 / 3200], atol=1e-6)

    def test_decides_the_order_and_the_cap(self, bowl: Map) -> None:
        bowl[22:32, 30:70] = 0.7
        for polygons, scores in ((False, [0.7, 0.8 * 1400 / 3200 + 0.7 * 400 / 3200]), (True, [0.8, 0.7])):
            for cap in (1, 2):
                params = PostprocessParams(box_thresh=0, max_candidates=cap, polygons=polygons)
                found = postprocess(bowl, frame_of(60, 100), params)
                np.testing.assert_allclose(found.scores, scores[:cap], atol=1e-6)


class TestCornerOrder:
    @pytest.mark.parametrize(
        ("size", "angles"), [((120, 12), range(-45, 46, 3)), ((12, 120), range(-11, 12)), ((30, 30), range(-40, 41, 4))]
    )
    def test_lines_and_columns_begin_at_their_top_left_however_they_are_tilted(
        self, size: tuple[int, int], angles: range
    ) -> None:
        for angle in angles:
            corners = self._corners(*size, angle)
            assert self._order(corners, frame_of(160, 160)) == [0, 1, 2, 3], angle

    @pytest.mark.parametrize("squeeze", [0.5, 2.0])
    def test_the_angle_is_that_in_the_source(self, squeeze: float) -> None:
        # The map is the source squeezed or stretched sideways: 10 degrees from the vertical are 5 or 19 in it.
        network = 160, round(160 * squeeze)
        for angle in (-10, 10):
            corners = self._corners(12, 120, angle) * (squeeze, 1)
            assert self._order(corners, Frame((160, 160), network, network)) == [0, 1, 2, 3]

    @staticmethod
    def _corners(width: int, height: int, angle: float) -> NDArray[np.float64]:
        """From the top left before it is rotated clockwise around (80, 80), by complex numbers."""
        ends = np.array([-width - height * 1j, width - height * 1j, width + height * 1j, -width + height * 1j]) / 2
        rotated = ends * np.exp(1j * np.deg2rad(angle)) + (80 + 80j)
        return np.stack([rotated.real, rotated.imag], axis=1)

    @staticmethod
    def _order(corners: NDArray[np.float64], frame: Frame) -> list[int]:
        """Which drawn corner is closest to each corner of the quad found."""
        probability = np.zeros(frame.network, np.uint8)
        cv2.fillPoly(probability, [corners.round().astype(np.int32)], (255,))
        (quad,) = postprocess(probability, frame, PostprocessParams(unclip_ratio=0.5)).quads
        distances = np.linalg.norm(quad[:, None] - corners * np.array(frame.scale), axis=2)
        return [int(index) for index in distances.argmin(axis=1)]


class TestDegenerateMaps:
    @pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2), (3, 3), (33, 97)])
    @pytest.mark.parametrize("value", [0, 255])
    @pytest.mark.parametrize("mode", ["default", "tao"])
    @pytest.mark.parametrize("polygons", [False, True])
    def test_empty_and_full_maps_are_answered(
        self, shape: tuple[int, int], value: int, mode: Any, polygons: bool
    ) -> None:
        probability = np.full(shape, value, np.uint8)
        params = PostprocessParams(mode=mode, polygons=polygons, dilation=True)
        found = postprocess(probability, frame_of(*shape), params)
        assert len(found) == (1 if value and min(shape) > 3 else 0)
        assert found.quads.shape == (len(found), 4, 2)
        assert (found.polygons is not None) == polygons

    @pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1), (2, 2), (4, 4)])
    @pytest.mark.parametrize("min_size", [0.0, 1.0, 3.0])
    @pytest.mark.parametrize("unclip_ratio", [0.0, 0.1, 1.5])
    def test_specks_do_no_harm_whatever_is_asked(
        self, size: tuple[int, int], min_size: float, unclip_ratio: float
    ) -> None:
        probability = np.zeros((20, 20), np.uint8)
        probability[5 : 5 + size[0], 5 : 5 + size[1]] = 255
        params = PostprocessParams(min_size=min_size, unclip_ratio=unclip_ratio)
        found = postprocess(probability, frame_of(20, 20), params)
        assert_same(found, baseline_postprocess(probability, frame_of(20, 20), params), frame_of(20, 20), True)

    def test_no_probability_at_all_is_no_text(self) -> None:
        assert len(postprocess(np.full((20, 20), np.nan, np.float32), frame_of(20, 20), PostprocessParams())) == 0


class TestInvalidInput:
    @pytest.mark.parametrize(
        ("probability", "message"),
        [
            (np.zeros((20, 30), np.float32), r"network size \(20, 20\); got float32 \(20, 30\)"),
            (np.zeros((20, 20), np.float64), r"must be uint8 or float32 .*got float64 \(20, 20\)"),
            (np.zeros((20, 20), np.float16), r"got float16"),
            (np.zeros((20, 20), bool), r"got bool"),
            (np.zeros((1, 20, 20), np.uint8), r"got uint8 \(1, 20, 20\)"),
            (np.zeros((0, 20), np.uint8), r"got uint8 \(0, 20\)"),
        ],
    )
    def test_a_map_of_another_kind_is_refused(self, probability: Map, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            postprocess(probability, frame_of(20, 20), PostprocessParams())

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"mode": "TAO"}, r"postprocess\.mode must be one of default, tao; got 'TAO'"),
            ({"thresh": 1.5}, r"thresh.*from 0 to 1.*got 1\.5"),
            ({"box_thresh": -0.1}, r"box_thresh.*from 0 to 1.*got -0\.1"),
            ({"unclip_ratio": 11}, r"unclip_ratio.*from 0 to 10.*got 11"),
            ({"max_candidates": 0}, r"max_candidates.*from 1 to 100000.*got 0"),
            ({"max_candidates": 2.5}, r"max_candidates.*whole number.*got 2\.5"),
            ({"min_size": float("nan")}, r"min_size.*got nan"),
            ({"thresh": "0.3"}, r"thresh.*must be a number.*got '0\.3'"),
            ({"thresh": None}, r"thresh.*got None"),
            ({"dilation": 3}, r"dilation.*got 3"),
            ({"polygons": "yes"}, r"polygons.*got 'yes'"),
            ({"unclip": "fast"}, r"postprocess\.unclip must be one of exact, analytic; got 'fast'"),
            ({"unclip": "analytic", "mode": "tao"}, r"unclip must be exact in mode tao; got 'analytic'"),
        ],
    )
    def test_a_bad_parameter_is_refused_by_name(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            PostprocessParams(**values)


class TestOverridden:
    def test_a_request_changes_what_it_gives_and_nothing_else(self) -> None:
        params = PostprocessParams(mode="tao", thresh=0.2, dilation=True)
        assert params.overridden(RequestParameters()) == params
        changed = params.overridden(RequestParameters(0.4, 0.6, 2.0, 5, 1.0, True))
        assert changed == PostprocessParams("tao", 0.4, 0.6, 2.0, 5, 1.0, True, True)

    def test_zero_is_a_value(self) -> None:
        changed = PostprocessParams().overridden(RequestParameters(thresh=0, min_size=0))
        assert (changed.thresh, changed.min_size) == (0, 0)


VALUES = st.sampled_from([0.2, 0.35, 0.5, 0.6, 0.75, 0.9, 1.0])


def _draw_blob(canvas: Map, at: tuple[int, int], size: tuple[int, int], angle: int, value: float) -> None:
    cv2.ellipse(canvas, at, size, angle, 0, 360, value, -1)


def _draw_ring(canvas: Map, at: tuple[int, int], size: tuple[int, int], angle: int, value: float) -> None:
    cv2.ellipse(canvas, at, (size[0] + 3, size[1] + 3), angle, 0, 360, value, 2)


def _draw_nest(canvas: Map, at: tuple[int, int], size: tuple[int, int], angle: int, value: float) -> None:
    for radius in range(1, max(size), 5):
        cv2.circle(canvas, at, radius, value, 2)


def _draw_bar(canvas: Map, at: tuple[int, int], size: tuple[int, int], angle: int, value: float) -> None:
    corners = cv2.boxPoints((at, (2 * size[0], size[1]), angle))
    cv2.fillPoly(canvas, [corners.astype(np.int32)], value)


def _draw_block(canvas: Map, at: tuple[int, int], size: tuple[int, int], angle: int, value: float) -> None:
    cv2.rectangle(canvas, at, (at[0] + size[0], at[1] + size[1]), value, -1)


def _draw_diagonal(canvas: Map, at: tuple[int, int], size: tuple[int, int], angle: int, value: float) -> None:
    for step in range(0, size[0], 4):
        cv2.rectangle(canvas, (at[0] + step, at[1] + step), (at[0] + step + 3, at[1] + step + 3), value, -1)


def _draw_comb(canvas: Map, at: tuple[int, int], size: tuple[int, int], angle: int, value: float) -> None:
    cv2.line(canvas, at, (at[0] + 2 * size[0], at[1]), value, 2)
    for tooth in range(0, 2 * size[0], 3 + angle % 3):
        cv2.line(canvas, (at[0] + tooth, at[1]), (at[0] + tooth, at[1] + size[1]), value, 1)


SHAPES = [_draw_blob, _draw_ring, _draw_nest, _draw_bar, _draw_block, _draw_diagonal, _draw_comb]


@st.composite
def maps(draw: st.DrawFn) -> Map:
    """Maps of odd sizes with overlapping shapes that also cross the border, noise, or nothing."""
    height, width = draw(st.tuples(st.integers(1, 80), st.integers(1, 110)))
    kind = draw(st.sampled_from(["shapes", "shapes", "shapes", "noise", "clouds", "constant"]))
    seeded = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    probability = np.zeros((height, width), np.float32)
    if kind == "noise":
        probability = seeded.random((height, width), np.float32)
    elif kind == "clouds":
        probability = cv2.GaussianBlur(seeded.random((height, width), np.float32), (0, 0), 2.5).reshape(height, width)
        probability = (probability - probability.min()) / max(float(np.ptp(probability)), 1e-6)
    elif kind == "constant":
        probability[:] = draw(VALUES)
    else:
        for _ in range(draw(st.integers(0, 8))):
            shape = draw(st.sampled_from(SHAPES))
            at = draw(st.tuples(st.integers(-8, width + 8), st.integers(-8, height + 8)))
            shape(
                probability,
                at,
                draw(st.tuples(st.integers(1, 25), st.integers(0, 15))),
                draw(st.integers(0, 180)),
                draw(VALUES),
            )
        if draw(st.booleans()):
            probability *= seeded.uniform(0.7, 1, probability.shape).astype(np.float32)
    return as_uint8(probability) if draw(st.booleans()) else probability.astype(np.float32)


PARAMETERS: Any = {
    "thresh": st.sampled_from([0.3, 0.1, 0.45, 0.7]),
    "box_thresh": st.sampled_from([0.55, 0.0, 0.3, 0.7]),
    "unclip_ratio": st.sampled_from([1.5, 1.6, 2.0, 0.5, 0.1, 3.0]),
    "min_size": st.sampled_from([3.0, 5.0, 2.0, 1.0]),
    "dilation": st.booleans(),
    "polygons": st.booleans(),
}
FRAMES = st.tuples(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.1, 1), st.floats(0.1, 1))


def framed(probability: Map, values: tuple[int, int, float, float]) -> Frame:
    height, width = probability.shape
    content = max(1, round(height * values[2])), max(1, round(width * values[3]))
    return Frame((values[0], values[1]), (height, width), content)


class TestTheChoiceAmongEqualRectangles:
    """Strokes one pixel thick, whose contours pass pixels twice, against their filled convex hulls, which have none."""

    @pytest.mark.parametrize(
        "corners",
        [
            [[7, 11], [12, 9], [16, 13], [11, 13]],
            [[23, 20], [15, 16], [16, 20]],
            [[15, 15], [14, 6], [12, 18]],
            [[5, 8], [15, 13], [5, 23]],
            [[5, 6], [17, 10], [6, 14], [5, 9]],
            [[1, 16], [9, 16], [8, 9]],
        ],
    )
    def test_depends_on_the_convex_hull_alone(self, corners: list[list[int]]) -> None:
        # Found by search: `cv2.minAreaRect` gives the stroke's contour and the filled hull's other rectangles.
        stroke = np.zeros((24, 24), np.uint8)
        cv2.polylines(stroke, [np.array(corners, np.int32)], False, (255,))
        filled = np.zeros_like(stroke)
        cv2.fillConvexPoly(filled, cv2.convexHull(np.array(corners, np.int32)), (255,))
        assert self._hull(stroke) == self._hull(filled)
        frame, params = frame_of(24, 24), PostprocessParams(box_thresh=0.0)
        of_stroke, of_filled = (postprocess(probability, frame, params).quads for probability in (stroke, filled))
        assert of_filled.tolist() == of_stroke.tolist()

    @staticmethod
    def _hull(probability: Map) -> set[tuple[int, int]]:
        points = np.argwhere(probability)[:, ::-1].astype(np.int32)
        return {(int(x), int(y)) for ((x, y),) in cv2.convexHull(points)}


class TestAgainstTheBaseline:
    @given(maps(), FRAMES, st.builds(PostprocessParams, **PARAMETERS))
    def test_default_mode_finds_the_same(self, probability: Map, sizes: Any, params: PostprocessParams) -> None:
        frame = framed(probability, sizes)
        found = postprocess(probability, frame, params)
        # Sums of float32 differ in their last digits between the two, so that regions of one score may swap.
        ordered = probability.dtype == np.uint8
        assert_same(found, baseline_postprocess(probability, frame, params), frame, ordered)
        assert (np.diff(found.scores) <= 0).all()

    @given(maps(), st.integers(1, 4), st.builds(PostprocessParams, **PARAMETERS))
    def test_the_cap_keeps_the_same(self, probability: Map, cap: int, params: PostprocessParams) -> None:
        frame = frame_of(*probability.shape)
        all_scores = postprocess(probability, frame, params).scores
        capped = PostprocessParams(**{**vars(params), "max_candidates": cap})
        found = postprocess(probability, frame, capped)
        assert found.scores.tolist() == all_scores[:cap].tolist()
        if probability.dtype == np.uint8:
            assert_same(found, baseline_postprocess(probability, frame, capped), frame, True)

    @given(
        maps(),
        FRAMES,
        st.sampled_from([1000, 1, 3]),
        st.builds(PostprocessParams, mode=st.just("tao"), **PARAMETERS),
    )
    def test_mode_tao_gives_the_same_whole_pixels_in_the_same_order(
        self, probability: Map, sizes: Any, cap: int, params: PostprocessParams
    ) -> None:
        frame = framed(probability, sizes)
        params = PostprocessParams(**{**vars(params), "max_candidates": cap})
        found, expected = postprocess(probability, frame, params), baseline_postprocess(probability, frame, params)
        assert found.quads.tolist() == expected.quads.tolist()
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        assert (found.polygons is None) == (not params.polygons)
        if found.polygons is not None and expected.polygons is not None:
            assert [polygon.tolist() for polygon in found.polygons] == [p.tolist() for p in expected.polygons]

    @given(
        maps(), st.builds(PostprocessParams, unclip_ratio=st.just(0.0), min_size=st.just(0.0), box_thresh=st.just(0.0))
    )
    @example(np.pad(np.ones((1, 1), np.float32), 5), PostprocessParams(min_size=0))
    def test_the_lowest_of_all_parameters_are_served(self, probability: Map, params: PostprocessParams) -> None:
        frame = frame_of(*probability.shape)
        found, expected = postprocess(probability, frame, params), baseline_postprocess(probability, frame, params)
        assert_same(found, expected, frame, probability.dtype == np.uint8)

    @given(maps(), st.builds(PostprocessParams, **PARAMETERS))
    def test_a_map_of_uint8_gives_what_its_float32_gives(self, probability: Map, params: PostprocessParams) -> None:
        levels = probability if probability.dtype == np.uint8 else as_uint8(probability)
        frame = frame_of(*levels.shape)
        as_float = (levels / 255).astype(np.float32)
        assert_same(postprocess(levels, frame, params), postprocess(as_float, frame, params), frame, False)

    @pytest.mark.parametrize("name", ["scene/img", "receipts/img"])
    @pytest.mark.parametrize("mode", ["default", "tao"])
    def test_real_maps_give_the_same(self, shared_data: Path, default_detector: Detector, name: str, mode: Any) -> None:
        for path in sorted((shared_data / name).iterdir())[:2]:
            pixels, frame = default_detector.preprocess(path)
            (probability,) = default_detector.infer([pixels])
            for polygons in (False, True):
                params = PostprocessParams(
                    mode=mode, dilation=True, unclip_ratio=1.6, box_thresh=0.5, polygons=polygons
                )
                found = postprocess(probability, frame, params)
                expected = baseline_postprocess(probability, frame, params)
                assert len(found) > 0
                assert_same(found, expected, frame, True)
                if mode == "tao":
                    assert found.quads.tolist() == expected.quads.tolist()

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_a_dense_map_of_a_thousand_words_gives_the_same(self, rng: np.random.Generator, dtype: Any) -> None:
        probability = np.zeros((736, 1280), np.float32)
        for row in range(10, 720, 18):
            for column in range(10, 1240, 46):
                corners = cv2.boxPoints(((column + 18, row), (32, 9), float(rng.uniform(-8, 8))))
                cv2.fillPoly(probability, [corners.astype(np.int32)], float(rng.uniform(0.7, 1)))
        probability = as_uint8(probability) if dtype is np.uint8 else probability
        frame, params = frame_of(736, 1280), PostprocessParams(max_candidates=3000)
        found = postprocess(probability, frame, params)
        assert len(found) > 1000
        assert_same(found, baseline_postprocess(probability, frame, params), frame, dtype is np.uint8)

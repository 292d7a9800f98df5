# SPDX-License-Identifier: Apache-2.0
"""Rectification: literals, OpenCV as the reference, compiled and NumPy's alike, and quads of any kind."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocdserve.backend.kernels.cpu.library import load
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.rectify import LARGEST_WIDTH, LineImage, LinePlan, rectify
from ocdserve.contract import InvalidInputError

Pixels = NDArray[np.uint8]
Quads = NDArray[np.float32]


def rectangle(left: float, top: float, right: float, bottom: float) -> Quads:
    return np.array([[[left, top], [right, top], [right, bottom], [left, bottom]]], np.float32)


def random_quads(rng: np.random.Generator, count: int, size: tuple[int, int], noise: float) -> Quads:
    """Rotated rectangles of lines between 3 and 300 pixels long, their corners moved by `noise` of their height."""
    centres = rng.uniform(0, 1, (count, 1, 2)) * size[::-1]
    heights = np.exp(rng.uniform(np.log(3), np.log(60), count))
    sides = np.stack([heights * np.exp(rng.uniform(-1, 2, count)), heights], axis=1)[:, None]
    angles = rng.uniform(0, 2 * np.pi, count)
    along = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None]
    below = np.stack([-np.sin(angles), np.cos(angles)], axis=1)[:, None]
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 * sides
    corners = centres + signs[..., :1] * along + signs[..., 1:] * below
    corners += rng.uniform(-noise, noise, corners.shape) * heights[:, None, None]
    return corners.astype(np.float32)


def check_alike(pixels: Pixels, quads: Quads, height: int, most_width: int = LARGEST_WIDTH) -> list[LineImage]:
    """Compare the compiled form with NumPy's."""
    lines = rectify(pixels, quads, height, most_width)
    for line, plain in zip(lines, rectify(pixels, quads, height, most_width, compiled=False), strict=True):
        assert np.array_equal(line.pixels, plain.pixels)
        assert line.pixels.shape[0] == height
        assert line.turned == plain.turned
    return lines


@pytest.fixture
def gradient() -> Pixels:
    """(90, 120, 3): red is x, green is y, blue is 7."""
    y, x = np.mgrid[:90, :120]
    return np.stack([x, y, np.full_like(x, 7)], axis=2).astype(np.uint8)


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param and load() is None:
        pytest.skip("there is no compiled library")
    return bool(request.param)


class TestAnswers:
    def test_a_rectangle_of_whole_pixels_at_its_own_height_is_cut_out(self, gradient: Pixels, compiled: bool) -> None:
        (line,) = rectify(gradient, rectangle(20, 30, 70, 46), 16, compiled=compiled)
        assert np.array_equal(line.pixels, gradient[30:46, 20:70])
        assert not line.turned

    def test_it_is_enlarged_around_the_centres_of_pixels(self, compiled: bool) -> None:
        pixels = np.repeat(np.array([[[0], [100]]], np.uint8), 3, axis=2)
        (line,) = rectify(pixels, rectangle(0, 0, 2, 1), 4, compiled=compiled)
        # Centres at 1/8, 3/8, ... of the first pixel: beyond the first one's at 1/2 by 1/8, 3/8, 5/8, 7/8.
        expected = [0, 0, 13, 38, 63, 88, 100, 100]
        assert line.pixels[..., 0].tolist() == [expected] * 4

    def test_a_column_is_turned_counter_clockwise(self, gradient: Pixels, compiled: bool) -> None:
        (line,) = rectify(gradient, rectangle(20, 30, 30, 45), 10, compiled=compiled)
        assert line.turned
        assert np.array_equal(line.pixels, np.rot90(gradient[30:45, 20:30]))
        (square,) = rectify(gradient, rectangle(20, 30, 30, 44.9), 10, compiled=compiled)
        assert not square.turned

    def test_a_quarter_turn_of_the_corners_turns_the_line(self, gradient: Pixels, compiled: bool) -> None:
        quad = rectangle(20, 30, 40, 46)
        (line,) = rectify(gradient, np.roll(quad, -2, axis=1), 16, compiled=compiled)
        assert np.array_equal(line.pixels, gradient[30:46, 20:40][::-1, ::-1])

    def test_a_line_over_twice_the_height_is_the_mean_of_squares(self, gradient: Pixels, compiled: bool) -> None:
        (line,) = rectify(gradient, rectangle(0, 0, 90, 30), 10, compiled=compiled)
        assert line.pixels[0, :4].tolist() == [[1, 1, 7], [4, 1, 7], [7, 1, 7], [10, 1, 7]]
        assert line.pixels[9, 29].tolist() == [88, 28, 7]
        (twice,) = rectify(gradient, rectangle(0, 0, 60, 20), 10, compiled=compiled)
        # Not above twice: between two pixels, halves upwards.
        assert twice.pixels[0, :3].tolist() == [[1, 1, 7], [3, 1, 7], [5, 1, 7]]

    def test_large_squares_are_sampled(self, compiled: bool) -> None:
        pixels = np.zeros((40, 40, 3), np.uint8)
        pixels[::3, ::3] = 200
        (line,) = rectify(pixels, rectangle(0, 0, 40, 40), 2, compiled=compiled)
        # Squares of 20 pixels, every third of them.
        assert line.pixels[0, 0].tolist() == [200, 200, 200]

    def test_the_edge_is_repeated_outside_of_the_image(self, gradient: Pixels, compiled: bool) -> None:
        (line,) = rectify(gradient, rectangle(-10, -8, 10, 8), 16, compiled=compiled)
        assert np.array_equal(line.pixels[8:, 10:], gradient[:8, :10])
        assert (line.pixels[:9, :11] == gradient[0, 0]).all()
        (away,) = rectify(gradient, rectangle(500, 500, 540, 510), 10, compiled=compiled)
        assert (away.pixels == gradient[-1, -1]).all()

    @pytest.mark.parametrize(
        ("quad", "width"),
        [
            (rectangle(0, 0, 100, 20), 240),
            (rectangle(3.3, 9.1, 103.3, 29.1), 240),
            (rectangle(0, 0, 1000, 0), LARGEST_WIDTH),
            (rectangle(5, 5, 5, 5), 48),
            (rectangle(0, 0, 2000, 1000), 96),
        ],
    )
    def test_the_width_follows_from_the_quad_alone(self, gradient: Pixels, quad: Quads, width: int) -> None:
        for pixels in (gradient, gradient[:1, :1]):
            (line,) = rectify(pixels, quad, 48)
            assert line.pixels.shape == (48, width, 3)

    def test_a_line_that_is_too_wide_is_squeezed(self, gradient: Pixels, compiled: bool) -> None:
        (line,) = rectify(gradient, rectangle(0, 0, 120, 10), 10, 40, compiled=compiled)
        assert line.pixels[0, :3].tolist() == [[1, 0, 7], [4, 0, 7], [7, 0, 7]]
        assert line.to_source(np.array([[40, 10]])).tolist() == [[120, 10]]

    def test_no_quads_have_no_lines(self, gradient: Pixels) -> None:
        assert rectify(gradient, np.zeros((0, 4, 2), np.float32), 48) == []


class TestAgainstOpenCV:
    def test_receipts_are_cut_as_opencv_does(self, shared_data: Path, rng: np.random.Generator) -> None:
        for path in sorted((shared_data / "receipts" / "img").iterdir())[:2]:
            pixels = decode(path.read_bytes())
            quads = random_quads(rng, 150, pixels.shape[:2], 0.1)
            plan = LinePlan.of(quads, 48, pixels.shape[:2])
            alike = total = 0
            for line, how in zip(check_alike(pixels, quads, 48), plan.lines, strict=True):
                matrix = np.stack([how["across"], how["down"], how["depth"]])
                assert how["reduction"] == 1
                expected = cv2.warpPerspective(
                    pixels,
                    matrix,
                    (line.pixels.shape[1], 48),
                    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                    borderMode=cv2.BORDER_REPLICATE,
                )
                alike += int((np.abs(expected.astype(int) - line.pixels) <= 1).sum())
                total += expected.size
            assert alike >= 0.98 * total

    def test_the_transform_is_opencv_s(self, rng: np.random.Generator) -> None:
        quads = random_quads(rng, 200, (300, 300), 0.05)
        plan = LinePlan.of(quads, 48, (300, 300))
        for quad, place in zip(quads, plan.places, strict=True):
            height, width = place.size
            target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
            expected = cv2.getPerspectiveTransform(target, np.roll(quad, -1, axis=0) if place.turned else quad)
            np.testing.assert_allclose(place.transform, expected, rtol=1e-3, atol=1e-4)


class TestPointsBack:
    @given(st.integers(0, 2**32 - 1))
    def test_the_corners_of_a_line_are_those_of_its_quad(self, seed: int) -> None:
        quads = random_quads(np.random.default_rng(seed), 5, (90, 120), 0.05)
        for line in rectify(np.zeros((90, 120, 3), np.uint8), quads, 8):
            height, width = line.pixels.shape[:2]
            corners = line.to_source(np.array([[0, 0], [width, 0], [width, height], [0, height]]))
            np.testing.assert_allclose(corners, np.roll(line.quad, -1, axis=0) if line.turned else line.quad, atol=1e-3)

    def test_a_point_s_colour_is_found_where_it_came_from(self, gradient: Pixels, rng: np.random.Generator) -> None:
        quads = rng.uniform(20, 70, (40, 1, 2)) + np.array([[0, 0], [20, 3], [18, 12], [-2, 9]])
        for line in rectify(gradient, quads.astype(np.float32), 16):
            height, width = line.pixels.shape[:2]
            points = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2).reshape(-1, 2) + 0.5
            # Pixel x of the gradient, whose centre is at x + 0.5, has the value x.
            np.testing.assert_allclose(
                line.to_source(points) - 0.5, line.pixels[..., :2].reshape(-1, 2), atol=0.5 + 1 / 64 + 1e-3
            )

    def test_a_turned_column_s_points_run_upwards(self) -> None:
        (line,) = rectify(np.zeros((50, 50, 3), np.uint8), rectangle(10, 0, 20, 40), 10)
        np.testing.assert_allclose(line.to_source(np.array([[0, 0], [40, 10], [0, 10]])), [[20, 0], [10, 40], [10, 0]])


class TestQuadsOfAnyKind:
    @given(st.integers(0, 2**32 - 1))
    def test_both_forms_agree_wherever_the_corners_are(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        size = [(1, 1), (1, 40), (40, 1), (37, 53)][int(rng.integers(4))]
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        quads = rng.normal(0, 1, (6, 4, 2)) * 10.0 ** rng.integers(-3, 38, (6, 1, 1))
        quads[::2] = rng.uniform(-10, 60, (3, 4, 2)).round(int(rng.integers(3)))
        check_alike(pixels, quads.astype(np.float32), int(rng.integers(1, 7)), 300)

    @pytest.mark.parametrize(
        "quad",
        [
            [[5, 5], [5, 5], [5, 5], [5, 5]],
            [[0, 0], [10, 0], [20, 0], [30, 0]],
            [[0, 0], [30, 20], [30, 0], [0, 20]],
            [[0, 0], [30, 0], [5, 5], [0, 30]],
            [[0, 0], [3e38, 0], [3e38, 3e38], [0, 3e38]],
            [[0, 0], [1e-38, 0], [1e-38, 1e-38], [0, 1e-38]],
        ],
        ids=["a point", "on a line", "crossed", "concave", "huge", "tiny"],
    )
    def test_degenerate_quads_have_a_line(self, gradient: Pixels, quad: Any) -> None:
        (line,) = check_alike(gradient, np.array([quad], np.float32), 12)
        assert np.isfinite(line.transform).all()
        assert 1 <= line.pixels.shape[1] <= LARGEST_WIDTH

    @pytest.mark.parametrize(
        "view",
        [
            lambda pixels: pixels[5:-5, 9:-9],
            lambda pixels: pixels[::2, ::2],
            lambda pixels: pixels[::-1],
            lambda pixels: pixels[..., ::-1],
            lambda pixels: np.asfortranarray(pixels),
            lambda pixels: np.broadcast_to(pixels[3], pixels.shape),
        ],
        ids=["part", "every second", "upside down", "BGR", "column-major", "repeated"],
    )
    def test_any_memory_layout_gives_the_same(self, gradient: Pixels, view: Any) -> None:
        seen = view(gradient)
        seen.setflags(write=False)
        quads = rectangle(3.5, 4.25, 40, 18)
        (line,) = check_alike(seen, quads, 12)
        (copied,) = rectify(np.array(seen, order="C"), quads, 12)
        assert np.array_equal(line.pixels, copied.pixels)

    def test_what_is_not_finite_is_refused(self, gradient: Pixels) -> None:
        quads = np.repeat(rectangle(0, 0, 9, 9), 3, axis=0)
        for value in (np.nan, np.inf, -np.inf):
            quads[1, 2, 0] = value
            with pytest.raises(InvalidInputError, match=r"quads must be finite \(got .* at index 1\)"):
                rectify(gradient, quads, 48)

    def test_other_shapes_and_heights_are_refused(self, gradient: Pixels) -> None:
        with pytest.raises(InvalidInputError, match=r"quads must have the shape \(N, 4, 2\).*\(got \(4, 2\)\)"):
            rectify(gradient, rectangle(0, 0, 9, 9)[0], 48)
        with pytest.raises(InvalidInputError, match=r"^height must be at least 1 pixel; got 0$"):
            rectify(gradient, rectangle(0, 0, 9, 9), 0)
        with pytest.raises(InvalidInputError, match=r"^most_width must be at least 1 pixel; got 0$"):
            rectify(gradient, rectangle(0, 0, 9, 9), 48, 0)
        with pytest.raises(InvalidInputError):
            rectify(gradient[..., 0], rectangle(0, 0, 9, 9), 48)

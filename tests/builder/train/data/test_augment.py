# SPDX-License-Identifier: Apache-2.0
"""Crops by one affine warp, and views of composed steps against the same steps done one by one in OpenCV."""

import cv2
import numpy as np
import pytest

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.builder.train.data.augment import View, rotation, scaling, touching, transform, translation, warp

TEXT = np.array([[20, 30], [60, 30], [60, 42], [20, 42]], np.float64)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture whose interpolated pixels hardly depend on how often it is resampled."""
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 6)
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def difference(first: np.ndarray, second: np.ndarray) -> int:
    assert first.shape == second.shape
    return int(np.abs(first.astype(int) - second).max())


def test_a_crop_without_scaling_copies_pixels_and_moves_polygons() -> None:
    image = np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    matrix = translation(-10, -20)[:2]
    np.testing.assert_array_equal(warp(image, matrix, (32, 64)), image[20:52, 10:74])
    # The second, whose rows are 55 to 67 of the crop, lies outside.
    moved = [transform(polygon, matrix) for polygon in (TEXT, TEXT + np.array([0, 45]))]
    polygons, ignored = touching(moved, [False, True], (32, 64))
    np.testing.assert_array_equal(polygons, [[[10, 10], [50, 10], [50, 22], [10, 22]]])
    assert ignored == (False,)


@pytest.mark.parametrize("scale", [0.37, 1.6])
def test_scaling_is_that_of_serving(scale: float) -> None:
    image = smooth(100, 150)
    size = round(100 * scale), round(150 * scale)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    matrix = scaling(size[1] / 150, size[0] / 100)
    assert difference(warp(image, matrix, size), expected) <= 2


def test_outside_of_the_picture_is_black() -> None:
    piece = warp(np.full((20, 30, 3), 200, np.uint8), translation(5, 8), (40, 50))
    expected = np.zeros((40, 50, 3), np.uint8)
    expected[8:28, 5:35] = 200
    np.testing.assert_array_equal(piece, expected)


def test_polygons_follow_the_pixels() -> None:
    image = np.zeros((80, 100, 3), np.uint8)
    image[30:42, 20:60] = 255
    matrix = rotation(30, (50, 40)) @ scaling(1.5, 1.5)
    points = transform(TEXT, matrix)
    drawn = cv2.fillPoly(np.zeros((160, 200), np.uint8), [np.rint(points - 0.5).astype(np.int32)], 255)
    shown = warp(image, matrix, (160, 200))[..., 0] > 127
    assert (shown & (drawn > 0)).sum() / (shown | (drawn > 0)).sum() > 0.93


def test_composed_steps_equal_the_steps_one_by_one() -> None:
    image = smooth(120, 160)
    view = View.of(image, Truth((TEXT,), (False,)))
    view = view.moved(translation(160, 0) @ scaling(-1, 1), view.size)
    view = view.moved(rotation(20, (80, 60)), view.size).cut()
    view = view.moved(scaling(1.5, 1.5), (180, 240))
    view = view.moved(translation(-60, -40), (100, 110), (96, 100)).cut()

    step = image[:, ::-1]
    turn = translation(-0.5, -0.5) @ rotation(20, (80, 60)) @ translation(0.5, 0.5)
    step = cv2.warpAffine(step, turn[:2], (160, 120))
    step = cv2.resize(step, (240, 180), interpolation=cv2.INTER_LINEAR)
    expected = np.zeros((100, 110, 3), np.uint8)
    expected[:96, :100] = step[40:136, 60:160]

    assert difference(view.pixels(), expected) <= 4
    points = [rotation(20, (80, 60))[:2] @ [160 - x, y, 1] for x, y in TEXT]
    np.testing.assert_allclose(view.polygons[0], np.array(points) * 1.5 - [60, 40])


def test_a_blur_grows_with_the_picture() -> None:
    image = smooth(100, 100, seed=3)
    view = View.of(image, Truth((), ())).blurred(3).moved(scaling(2, 2), (200, 200)).blurred(4)
    assert view.blur == pytest.approx((6**2 + 4**2) ** 0.5)
    blurred = cv2.GaussianBlur(image, (0, 0), 3)
    expected = cv2.GaussianBlur(cv2.resize(blurred, (200, 200), interpolation=cv2.INTER_LINEAR), (0, 0), 4)
    assert difference(view.pixels()[20:-20, 20:-20], expected[20:-20, 20:-20]) <= 3


def test_what_was_cut_off_does_not_come_back() -> None:
    view = View.of(np.full((40, 60, 3), 255, np.uint8), Truth((), ()))
    cut = view.moved(translation(-30, 0), view.size, (40, 30)).cut()
    back = cut.flat().moved(translation(30, 0), (40, 60))
    assert back.pixels()[:, 30:60].min() == 255
    assert not back.pixels()[:, :29].any()
    # A view that is whole stays one warp.
    assert view.flat(is_cut_allowed=False) is view

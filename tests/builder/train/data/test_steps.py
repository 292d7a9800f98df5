# SPDX-License-Identifier: Apache-2.0
"""Random steps of training pictures, with chosen draws and with seeds."""

from typing import Any

import numpy as np
import pytest

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.builder.train.data.augment import View
from ocdserve.builder.train.data.steps import (
    Affine,
    EastRandomCropData,
    Fliplr,
    GaussianBlur,
    Resize,
    Resize2D,
    Sometimes,
    Step,
)
from ocdserve.contract import InvalidInputError

TEXT = np.array([[20, 30], [60, 30], [60, 42], [20, 42]], np.float64)


class Draws:
    """A generator of random numbers that are given."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def integers(self, high: int, size: int | None = None) -> Any:
        drawn = [self.values.pop(0) for _ in range(size or 1)]
        assert all(0 <= value < high for value in drawn)
        return np.array(drawn) if size else drawn[0]

    def random(self) -> float:
        return self.values.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return low + self.values.pop(0) * (high - low)


def picture(*polygons: np.ndarray, ignored: tuple[bool, ...] = (), size: tuple[int, int] = (100, 100)) -> View:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return View.of(image, Truth(polygons, ignored or (False,) * len(polygons)))


def run(step: Step, view: View, *draws: float) -> View:
    random: Any = Draws(*draws)
    result = step(view, random)
    assert not random.values
    return result


def test_a_flip_mirrors_picture_and_polygons() -> None:
    view = picture(TEXT)
    flipped = run(Fliplr(0.5), view, 0.49)
    np.testing.assert_array_equal(flipped.pixels(), view.image[:, ::-1])
    np.testing.assert_array_equal(flipped.polygons[0], [[80, 30], [40, 30], [40, 42], [80, 42]])
    assert run(Fliplr(0.5), view, 0.5) is view


def test_a_rotation_keeps_the_size_and_drops_what_leaves_it() -> None:
    corner = np.array([[0, 0], [8, 0], [8, 3], [0, 3]], np.float64)
    turned = run(Affine((-90, 90)), picture(TEXT, corner, size=(100, 200)), 1.0)
    assert turned.size == (100, 200)
    # By 90 degrees about (100, 50): (x, y) to (150 - y, x - 50); the corner's y would be -50 to -42.
    assert len(turned.polygons) == 1
    np.testing.assert_allclose(turned.polygons[0], [[120, -30], [120, 10], [108, 10], [108, -30]], atol=1e-9)
    assert not turned.pixels()[:, :49].any()


def test_a_second_rotation_does_not_bring_back_what_the_first_cut_off() -> None:
    view = View.of(np.full((40, 160, 3), 255, np.uint8), Truth((), ()))
    twice = run(Affine((0, 90)), run(Affine((0, 90)), view, 1.0), 1.0)
    shown = twice.pixels()[..., 0]
    assert not shown[:, :59].any() and not shown[:, 101:].any()
    assert shown[:, 61:99].min() == 255


def test_a_resize_draws_one_factor_for_both_sides() -> None:
    resized = run(Resize((0.5, 3)), picture(TEXT, size=(100, 80)), 0.4)
    assert resized.size == (150, 120)
    np.testing.assert_allclose(resized.polygons[0], TEXT * 1.5)


def test_sometimes_runs_its_steps_with_its_probability() -> None:
    step = Sometimes(0.2, (GaussianBlur((1.5, 2.5)),))
    assert run(step, picture(), 0.19, 0.5).blur == 2.0
    assert run(step, picture(), 0.2).blur == 0


def test_a_crop_has_its_sides_in_the_gaps_between_text() -> None:
    # Columns: gaps 0-19 and 60-99, rows: 0-29 and 42-99. Sides at 5 and 70, 25 and 50.
    step = EastRandomCropData((64, 64))
    view = run(step, picture(TEXT), *(0, 1, 5, 10), *(1, 0, 8, 25))
    assert view.size == (64, 64)
    # 65 x 25 pixels, scaled by 64 / 65.
    assert view.content == (24, 64)
    np.testing.assert_allclose(view.polygons[0], (TEXT - [5, 25]) * [64 / 65, 24 / 25])
    assert not view.pixels()[24:].any()


@pytest.mark.parametrize("seed", range(20))
def test_no_side_of_a_crop_runs_through_text(seed: int) -> None:
    random = np.random.default_rng(seed)
    corners = random.integers(0, (150, 180), (4, 2))
    boxes = [np.array([[x, y], [x + 40, y], [x + 40, y + 12], [x, y + 12]], np.float64) for x, y in corners]
    view = EastRandomCropData((64, 64))(picture(*boxes, size=(200, 200)), random)
    assert view.polygons
    height, width = view.content
    for polygon in view.polygons:
        # A text that ends where the crop begins touches it, and is kept.
        outside = np.clip(polygon, 0, (width, height)) - polygon
        area = np.ptp(polygon, axis=0).prod()
        shown = np.ptp(np.clip(polygon, 0, (width, height)), axis=0).prod()
        assert not outside.any() or shown < 0.03 * area


def test_without_its_ratio_a_crop_fills_the_size() -> None:
    step = EastRandomCropData((64, 32), keep_ratio=False)
    view = run(step, picture(TEXT), *(0, 1, 5, 10), *(1, 0, 8, 25))
    assert view.size == view.content == (32, 64)
    np.testing.assert_allclose(view.polygons[0], (TEXT - [5, 25]) * [64 / 65, 32 / 25])


def test_narrow_crops_and_those_without_text_are_drawn_again() -> None:
    narrow = (0, 0, 3, 12), (0, 1, 0, 57)
    without_text = (0, 0, 2, 19), (0, 1, 0, 57)
    good = (0, 1, 0, 39), (0, 1, 0, 57)
    draws = [value for pair in (*narrow, *without_text, *good) for value in pair]
    view = run(EastRandomCropData((64, 64)), picture(TEXT), *draws)
    assert view.content == (64, 64)
    np.testing.assert_allclose(view.polygons[0], TEXT * 64 / 99)


def test_after_the_last_try_the_crop_is_the_whole_picture() -> None:
    narrow = [0, 0, 3, 12, 0, 1, 0, 57]
    view = run(EastRandomCropData((32, 32), max_tries=3), picture(TEXT), *narrow * 3)
    np.testing.assert_allclose(view.polygons[0], TEXT * 0.32)


def test_text_in_all_columns_means_the_whole_picture() -> None:
    line = np.array([[-5, 30], [105, 30], [105, 42], [-5, 42]], np.float64)
    view = run(EastRandomCropData((32, 32)), picture(line))
    np.testing.assert_allclose(view.polygons[0], line * 0.32)


def test_ignored_text_neither_guides_the_crop_nor_satisfies_it() -> None:
    # Gaps of the other text: columns 0-49 and 90-99, rows 0-74 and 87-99. The first rectangle, 10-45 x 20-60, shows the
    # ignored text alone, the second, 3-95 x 10-92, both.
    other = TEXT + np.array([30, 45])
    first, second = (0, 0, 10, 45, 0, 0, 20, 60), (0, 1, 3, 5, 0, 1, 10, 5)
    view = run(EastRandomCropData((32, 32)), picture(TEXT, other, ignored=(True, False)), *first, *second)
    assert view.ignored == (True, False)
    np.testing.assert_allclose(view.polygons[1], (other - [3, 10]) * [32 / 92, 28 / 82])


@pytest.mark.parametrize("seed", range(5))
def test_pictures_without_text_are_cropped_at_random(seed: int) -> None:
    view = EastRandomCropData((32, 32))(picture(), np.random.default_rng(seed))
    assert view.content != (32, 32)
    assert view.pixels()[: view.content[0], : view.content[1]].any()


def test_resize2d_stretches_or_enlarges_the_short_side() -> None:
    view = run(Resize2D((128, 64)), picture(TEXT, size=(100, 200)))
    assert view.size == (64, 128)
    np.testing.assert_allclose(view.polygons[0], TEXT * [0.64, 0.64])
    # 200 x 300 of 100 x 150, of which 300 becomes 288: 9 x 32.
    assert run(Resize2D(200), picture(TEXT, size=(100, 150))).size == (192, 288)
    assert run(Resize2D(32), picture(TEXT, size=(96, 160))).size == (96, 160)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fliplr(1.5), r"Fliplr\.p must be between 0 and 1; got 1\.5"),
        (lambda: Resize((0, 3)), r"Resize\.size is a factor, .* got \[0, 3\]"),
        (lambda: Resize((640, 640)), r"Resize\.size is a factor"),
        (lambda: GaussianBlur((-1, 2)), r"GaussianBlur\.sigma must be 0 to 100"),
        (lambda: EastRandomCropData((640, 100)), r"multiples of 32 pixels; got \[640, 100\]"),
        (lambda: EastRandomCropData(max_tries=0), "max_tries must be at least 1; got 0"),
        (lambda: Resize2D((64, 65)), "multiples of 32"),
        (lambda: Resize2D(0), "short_size must be at least 1; got 0"),
        (lambda: Resize2D((64, 64), resize_text_polys=False), "resize_text_polys must be true"),
    ],
)
def test_arguments_out_of_range_are_named(make: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()

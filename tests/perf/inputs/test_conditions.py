# SPDX-License-Identifier: Apache-2.0
"""The pages of the section `robustness`: their number, their truth, and how their pixels are stored."""

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ocdserve.perf.inputs.conditions import LEAST_PAGES, LEAST_TEXTS, Condition, conditions

BY_NAME = {condition.name: condition for condition in conditions()}


def opened(condition: Condition, index: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(condition.draw(index).encoded))


def inside(condition: Condition) -> NDArray[np.bool_]:
    """The pixels in the quads of the first page, and one around them."""
    mask = np.zeros(condition.page[::-1], np.uint8)
    for quad in condition.draw(0).truth.polygons:
        cv2.fillConvexPoly(mask, np.rint(quad).astype(np.int32), (1,))
    return np.asarray(cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0)


def test_the_grid_varies_eight_axes_over_their_whole_range() -> None:
    values: dict[str, list[str]] = {}
    for condition in BY_NAME.values():
        values.setdefault(condition.axis, []).append(condition.value)
    assert list(values) == ["angle", "height", "contrast", "aspect", "blur", "script", "transparency", "depth"]
    assert (values["height"][0], values["height"][-1]) == ("6 px", "200 px")
    assert {"1:1, tall", "1:40, tall", "40:1, wide"} <= set(values["aspect"])
    assert values["script"] == ["Latin", "Cyrillic", "Greek", "CJK", "Arabic", "Devanagari"]
    assert values["depth"] == ["1 bit", "8 bits", "10 of 16 bits", "12 of 16 bits", "16 bits"]
    assert len(BY_NAME) == sum(map(len, values.values())) == 64


@pytest.mark.parametrize("name", [name for name, condition in BY_NAME.items() if condition.lacks() is None])
def test_a_condition_has_enough_texts_on_enough_pages(name: str) -> None:
    condition = BY_NAME[name]
    assert condition.pages() * len(condition.draw(0).truth.polygons) >= LEAST_TEXTS == 200
    assert condition.pages() >= LEAST_PAGES == 6


@pytest.mark.parametrize("name", ["angle 45°", "angle 270°", "height 6 px", "height 200 px", "script Arabic"])
def test_the_ink_of_a_page_is_in_its_quads(name: str) -> None:
    condition = BY_NAME[name]
    if reason := condition.lacks():
        pytest.skip(reason)
    ink = 245 - np.asarray(opened(condition).convert("L")).astype(float)
    assert ink.shape == condition.page[::-1]
    assert ink[inside(condition)].sum() > 0.995 * ink.sum() > 0


def test_a_page_is_the_same_whenever_it_is_drawn_and_unlike_the_next() -> None:
    plain = BY_NAME["angle 0°"]
    first, again, second = plain.draw(0), plain.draw(0), plain.draw(1)
    assert first.encoded == again.encoded != second.encoded
    assert len(first.truth.polygons) == len(second.truth.polygons) == 114
    assert (first.name, second.name) == ("page 0", "page 1")


@pytest.mark.parametrize(
    ("name", "mode", "darkest", "brightest"),
    [
        ("contrast 16 of 255", "L", 184, 200),
        ("contrast 64 of 255, light on dark", "L", 40, 104),
        ("depth 1 bit", "1", 0, 1),
        ("depth 10 of 16 bits", "I;16", 120, 983),
        ("depth 16 bits", "I;16", 7710, 62965),
    ],
)
def test_levels_are_those_of_the_condition(name: str, mode: str, darkest: int, brightest: int) -> None:
    page = opened(BY_NAME[name])
    levels = np.asarray(page)
    assert (page.mode, int(levels.min()), int(levels.max())) == (mode, darkest, brightest)


@pytest.mark.parametrize(
    ("name", "mode", "colour"),
    [
        ("transparency white text", "RGBA", (255, 255, 255)),
        ("transparency red text", "RGBA", (210, 20, 20)),
        ("transparency white text, grey with alpha", "LA", (255,)),
    ],
)
def test_only_the_alpha_of_transparent_pages_shows_text(name: str, mode: str, colour: tuple[int, ...]) -> None:
    page = opened(BY_NAME[name])
    pixels = np.asarray(page)
    assert page.mode == mode
    assert (pixels[..., :-1] == colour).all()
    alpha = pixels[..., -1]
    assert alpha[~inside(BY_NAME[name])].mean() < 0.1
    assert alpha.max() == 255


def test_a_script_without_its_font_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocdserve.perf.inputs.conditions.find_spec", lambda name: None if "font" in name else object())
    lacking = {name: reason for name, one in BY_NAME.items() if (reason := one.lacks())}
    assert lacking == {
        "script CJK": "CJK: its font is in the package matplotlib_fontja, not installed",
        "script Devanagari": "Devanagari: its font is in the package fontpkg_noto_sans_devanagari, not installed",
    }

# SPDX-License-Identifier: Apache-2.0
"""Text that the default network sees but rejects: a line on a large blank page, a huge thin word."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from ocdserve.backend import Detector
from ocdserve.results import second_look

SHARED = Path(__file__).parents[3] / "shared"
FONTS = Path(pytest.importorskip("matplotlib").get_data_path()) / "fonts/ttf"


@pytest.mark.parametrize(
    ("font", "size", "place", "page"),
    [
        ("DejaVuSerif.ttf", 28, (1130, 188), (1700, 2200)),
        ("DejaVuSans.ttf", 24, (244, 376), (1600, 1600)),
        ("DejaVuSansMono.ttf", 20, (251, 1263), (1600, 1600)),
    ],
)
def test_a_line_on_a_large_blank_page_is_found(
    default_detector: Detector, font: str, size: int, place: tuple[int, int], page: tuple[int, int]
) -> None:
    picture = Image.new("RGB", page, "white")
    drawn = ImageDraw.Draw(picture)
    letters = ImageFont.truetype(FONTS / font, size)
    drawn.text(place, "Invoice number 7731", "black", font=letters)
    pixels = np.asarray(picture)
    assert len(default_detector.detect(pixels)) == 0
    (quad,) = second_look(default_detector.detect, pixels).quads
    bounds = [*quad.min(axis=0), *quad.max(axis=0)]
    np.testing.assert_allclose(bounds, drawn.textbbox(place, "Invoice number 7731", font=letters), atol=size / 2)


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("cases/one_line_1600.png", (702, 700, 954, 718)),
        ("data/pictures/r_issue_170.png", (114, 198, 738, 385)),
    ],
)
def test_the_reported_pictures(default_detector: Detector, name: str, bounds: tuple[int, ...]) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"needs ../shared/{name}")
    (quad,) = second_look(default_detector.detect, SHARED / name).quads
    height = bounds[3] - bounds[1]
    np.testing.assert_allclose([*quad.min(axis=0), *quad.max(axis=0)], bounds, atol=height / 2)

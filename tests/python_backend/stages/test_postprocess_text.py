# SPDX-License-Identifier: Apache-2.0
"""Post-processing of the network's maps of drawn text: columns and arcs."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from ocdserve.backend import Detector


def inked(picture: Image.Image) -> Image.Image:
    """The part of a picture, dark on white, that text fills, grey."""
    grey = picture.convert("L")
    return grey.crop(grey.point(lambda level: 255 * (level < 128)).getbbox())


def likeness(crop: NDArray[np.uint8], drawn: Image.Image) -> float:
    """Correlation of the text in a crop with the text as it was drawn."""
    expected = inked(drawn)
    found = inked(Image.fromarray(crop)).resize(expected.size, Image.Resampling.BICUBIC)
    return float(np.corrcoef(np.asarray(found).ravel(), np.asarray(expected).ravel())[0, 1])


@pytest.mark.parametrize("tilt", [-10, -3, 0, 2, 10])
def test_a_line_that_runs_down_is_upright_in_its_crop(default_detector: "Detector", tilt: int) -> None:
    line = Image.new("RGB", (900, 900), "white")
    font = ImageFont.load_default(40)
    ImageDraw.Draw(line).text((450, 450), "Notes on tides and harbours, volume 7", "black", font, anchor="mm")
    page = np.asarray(line.rotate(-90 - tilt, Image.Resampling.BICUBIC, fillcolor="white"))
    found = default_detector.detect(page)
    (crop,) = found.crop(page)
    assert likeness(crop, line) > 0.8
    # A column begins at its top left, whichever way it leans.
    (quad,) = found.quads
    assert np.argsort(quad[:, 1])[:2].tolist() in ([0, 1], [1, 0])
    assert quad[0, 0] < quad[1, 0]


@pytest.mark.parametrize("tilt", [-4, 0, 4])
def test_a_column_of_a_book_is_upright_in_its_crop(shared_data: Path, default_detector: "Detector", tilt: int) -> None:
    path = shared_data.parent / "cases" / "vertical_tilt_4.png"
    if not path.exists():
        pytest.skip(f"no picture of a column: {path} does not exist")
    with Image.open(path) as picture:
        upright, tilted = (
            picture.convert("RGB").rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor="white")
            for angle in (4, 4 - tilt)
        )
    found = default_detector.detect(np.asarray(tilted))
    (crop,) = found.crop(tilted)
    assert likeness(crop, upright.transpose(Image.Transpose.ROTATE_90)) > 0.8

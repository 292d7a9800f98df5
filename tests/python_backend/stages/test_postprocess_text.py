# SPDX-License-Identifier: Apache-2.0
"""Post-processing of the network's maps of drawn text: columns and arcs."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ocdserve.results.detections import Detections

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


@pytest.mark.parametrize("tilt", [-10, 0, 3, 10])
def test_a_line_that_runs_down_is_upright_in_its_crop(default_detector: "Detector", tilt: int) -> None:
    line = Image.new("RGB", (900, 900), "white")
    ImageDraw.Draw(line).text(
        (450, 450), "Notes on tides and harbours, volume 7", "black", ImageFont.load_default(40), anchor="mm"
    )
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


def arc_of_text(radius: float, from_deg: float, to_deg: float) -> tuple[Image.Image, shapely.Polygon]:
    """Letters along an arc, angles clockwise from its top, with the band that they fill."""
    picture = Image.new("L", (800, 800), 255)
    font = ImageFont.load_default(24)
    length = int(radius * np.deg2rad(to_deg - from_deg) / 15.6)
    text = "ALONG THE HARBOUR WALL AND ROUND THE LIGHTHOUSE"[:length]
    directions = np.deg2rad(np.linspace(from_deg, to_deg, length))
    places = 400 + radius * np.stack([np.sin(directions), -np.cos(directions)], axis=1)
    for letter, direction, (x, y) in zip(text, directions, places, strict=True):
        tile = Image.new("L", (50, 50), 0)
        ImageDraw.Draw(tile).text((25, 25), letter, 255, font, anchor="mm")
        tile = tile.rotate(-float(np.rad2deg(direction)), Image.Resampling.BICUBIC)
        picture.paste(0, (round(x) - 25, round(y) - 25), tile)
    return picture.convert("RGB"), shapely.LineString(places).buffer(12)


def covered(found: Detections) -> shapely.Geometry:
    return shapely.union_all([shapely.Polygon(polygon).buffer(0) for polygon in found.polygons or ()])


@pytest.mark.parametrize(("radius", "from_deg", "to_deg"), [(260, -60, 60), (350, -45, 30), (220, 100, 250)])
def test_polygons_find_text_along_an_arc(
    default_detector: "Detector", radius: float, from_deg: float, to_deg: float
) -> None:
    picture, band = arc_of_text(radius, from_deg, to_deg)
    assert len(default_detector.detect(np.asarray(picture))) == 0
    area = covered(default_detector.detect(np.asarray(picture), polygons=True))
    assert area.intersection(band).area > 0.9 * band.area
    assert area.intersection(band.buffer(6)).area > 0.6 * area.area


def test_polygons_find_the_arc_that_rectangles_miss(shared_data: Path, default_detector: "Detector") -> None:
    path = shared_data.parent / "cases" / "curved_arc.png"
    if not path.exists():
        pytest.skip(f"no picture of an arc: {path} does not exist")
    assert len(default_detector.detect(path.read_bytes())) == 0
    area = covered(default_detector.detect(path.read_bytes(), polygons=True))
    with Image.open(path) as picture:
        ink = np.argwhere(np.asarray(picture.convert("L")) < 128)[:, ::-1] + 0.5
    assert shapely.contains_xy(area, ink).mean() > 0.99
    # The letters are 40 pixels high on an arc of 720.
    assert area.area < 720 * 80

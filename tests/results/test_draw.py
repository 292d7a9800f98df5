# SPDX-License-Identifier: Apache-2.0
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import POLYGON_COLOUR, QUAD_COLOUR, TEXT_COLOUR, draw
from ocdserve.results.reading import Reading

GREY = (90, 90, 90)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def found(width: int, height: int, *, polygon: bool = False) -> Detections:
    """One quad from (10, 20) to (50, 40), and a triangle below it."""
    return Detections(
        quads=np.array([[[10, 20], [50, 20], [50, 40], [10, 40]]], np.float32),
        scores=np.array([0.9], np.float32),
        width=width,
        height=height,
        polygons=(np.array([[10, 60], [50, 60], [30, 75]], np.float32),) if polygon else None,
    )


def test_quads_are_outlined_and_the_rest_stays() -> None:
    picture = draw(encoded(Image.new("RGB", (80, 80), GREY)), found(80, 80))
    assert (picture.mode, picture.size) == ("RGB", (80, 80))
    for on_the_line in ((30, 20), (50, 30), (30, 40), (10, 30), (10, 20), (50, 40)):
        assert picture.getpixel(on_the_line) == QUAD_COLOUR
    for elsewhere in ((30, 30), (5, 5), (70, 70), (30, 60)):
        assert picture.getpixel(elsewhere) == GREY


def test_polygons_are_outlined_in_their_own_colour() -> None:
    picture = draw(encoded(Image.new("RGB", (80, 80), GREY)), found(80, 80, polygon=True))
    assert picture.getpixel((30, 60)) == POLYGON_COLOUR
    assert picture.getpixel((30, 20)) == QUAD_COLOUR
    assert picture.getpixel((30, 66)) == GREY


def test_the_line_grows_with_the_image() -> None:
    picture = draw(encoded(Image.new("RGB", (4000, 4000), GREY)), found(4000, 4000))
    column = [picture.getpixel((30, y)) for y in range(10, 31)]
    assert column.count(QUAD_COLOUR) == 10


def test_exif_orientation_is_applied_before_drawing() -> None:
    lying = Image.new("RGB", (100, 60), GREY)
    lying.paste((200, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    picture = draw(encoded(lying, exif=exif.tobytes()), found(60, 100))
    assert picture.size == (60, 100)
    assert picture.getpixel((55, 5)) == (200, 0, 0)
    assert picture.getpixel((30, 20)) == QUAD_COLOUR


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.full((80, 80), 0x5A80, np.uint16))
    assert draw(encoded(deep), found(80, 80)).getpixel((70, 70)) == (0x5A, 0x5A, 0x5A)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_image_can_be_drawn_on(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    picture = draw(encoded(Image.new("RGB", (80, 80), (255, 255, 255)).convert(mode), kind), found(80, 80))
    assert picture.getpixel((30, 20)) == QUAD_COLOUR
    assert picture.getpixel((30, 30)) == (255, 255, 255)


def test_detections_of_another_image_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="belong to an image of 30x20 pixels; got one of 80x80"):
        draw(encoded(Image.new("RGB", (80, 80))), found(30, 20))


def test_what_pillow_cannot_read_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="cannot read the image: Pillow does not decode it"):
        draw(b"no image", found(80, 80))


def test_texts_are_written_on_white_above_their_quads(tmp_path: Path) -> None:
    quads = found(80, 80).quads
    reading = Reading(quads, np.ones(1, np.float32), 80, 80, texts=("Tea",), text_scores=np.ones(1, np.float32))
    image = Image.new("RGB", (80, 80), GREY)
    plain, written = reading.draw(image), reading.draw(image, texts=True)
    assert plain.tobytes() == found(80, 80).draw(image).tobytes()
    changed = ImageChops.difference(plain, written).getbbox()
    assert changed is not None
    left, upper, right, lower = changed
    assert left >= 10 and upper > 0 and right < 50 and lower <= 22
    colours = {colour for _, colour in written.crop(changed).getcolors() or ()}
    assert {(255, 255, 255), TEXT_COLOUR} <= colours
    high = replace(reading, quads=quads - np.float32([0, 20]))
    assert ImageChops.difference(high.draw(image), high.draw(image, texts=True)).getbbox() is not None
    (tmp_path / "a.ttf").write_text("no font")
    with pytest.raises(InvalidInputError, match=r"font must be a TrueType or OpenType file; got .*a\.ttf"):
        reading.draw(image, texts=True, font=tmp_path / "a.ttf")

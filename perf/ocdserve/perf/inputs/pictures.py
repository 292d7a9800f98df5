# SPDX-License-Identifier: Apache-2.0
"""Pictures with text and its ground truth, drawn for the demo and for tests.

Reproducible with one version of Pillow: its built-in font, fixed words, seeded noise.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_Colour = tuple[int, int, int]
_Box = tuple[float, float, float, float]

_INK: _Colour = (40, 38, 44)
# Annotators leave a margin around the ink; in font sizes.
_MARGIN = 0.1
# Signs are drawn large and scaled down into place.
_SIGN_SIZE = 96


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and the ground truth of its text.

    Attributes:
        name: Short name, usable as a file name.
        image: The picture, RGB.
        texts: Lines or words of text.
        quads: float32 (N, 4, 2), one per text: corners (x, y) in pixels, clockwise from the text's top left.
    """

    name: str
    image: Image.Image
    texts: tuple[str, ...]
    quads: NDArray[np.float32]

    def png(self) -> bytes:
        """The picture as a PNG file."""
        return encoded(self.image, "PNG")


def encoded(image: Image.Image, kind: Literal["JPEG", "PNG"] = "JPEG") -> bytes:
    """An image file; JPEG has quality 90."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=90)
    return buffer.getvalue()


def demo_pictures() -> tuple[Picture, ...]:
    """A till receipt, a street of slanted signs, and a page of small print."""
    return receipt(), street(), dense_page()


def receipt() -> Picture:
    """Draw a till receipt, 720 x 1080."""
    sheet = Sheet("receipt", paper(720, 1080, (246, 244, 238), strength=5, seed=1))
    y = 60
    for text, size in (("HARBOUR CORNER SHOP", 44), ("12 Lighthouse Road, Port Ellis", 26), ("Tel. 0555 013 847", 26)):
        sheet.write(text, (360, y), size, anchor="ma")
        y += size + 22
    sheet.rule(y, 60, 660)
    y += 28
    for item, price in (
        ("Rye bread", "3.20"),
        ("Green apples 1 kg", "2.75"),
        ("Ground coffee", "6.90"),
        ("Oat milk 2 x 1.80", "3.60"),
        ("Sea salt", "0.95"),
        ("Candles", "4.40"),
        ("Postage stamps", "5.10"),
        ("Notebook A5", "2.30"),
    ):
        sheet.write(item, (60, y), 30, anchor="la")
        sheet.write(price, (660, y), 30, anchor="ra")
        y += 58
    sheet.rule(y, 60, 660)
    y += 28
    for label, amount, size in (("TOTAL", "29.20", 46), ("Cash", "30.00", 30), ("Change", "0.80", 30)):
        sheet.write(label, (60, y), size, anchor="la")
        sheet.write(amount, (660, y), size, anchor="ra")
        y += size + 26
    sheet.write("Thank you, come again", (360, y + 24), 30, anchor="ma")
    return sheet.picture()


def street() -> Picture:
    """Draw signs on a wall, in perspective, 1280 x 720."""
    sheet = Sheet("street", wall(1280, 720))
    signs: tuple[tuple[str, _Colour, _Colour, tuple[tuple[int, int], ...]], ...] = (
        ("BAKERY", (178, 34, 34), (255, 250, 235), ((70, 90), (430, 40), (436, 150), (76, 200))),
        ("STATION", (20, 60, 140), (255, 255, 255), ((520, 60), (860, 100), (850, 200), (510, 165))),
        ("Open 24 hours", (30, 110, 60), (245, 245, 210), ((930, 60), (1230, 20), (1236, 80), (936, 126))),
        ("MARKET", (240, 190, 30), (30, 30, 30), ((90, 290), (380, 390), (346, 488), (56, 388))),
        ("Hotel Meridian", (60, 50, 80), (250, 220, 150), ((470, 270), (870, 262), (872, 330), (472, 346))),
        ("EXIT", (16, 130, 80), (255, 255, 255), ((960, 210), (1150, 250), (1130, 345), (940, 305))),
        ("No parking", (235, 235, 235), (170, 20, 20), ((130, 560), (480, 520), (488, 590), (138, 630))),
        ("Library", (110, 66, 30), (255, 240, 215), ((560, 470), (760, 400), (786, 474), (586, 544))),
        ("Fresh fish", (24, 92, 120), (240, 250, 250), ((850, 420), (1200, 480), (1188, 552), (838, 492))),
        ("Platform 7", (250, 250, 250), (20, 20, 20), ((620, 620), (910, 600), (914, 660), (624, 682))),
    )
    for text, plate, ink, corners in signs:
        sheet.sign(text, plate, ink, corners)
    return sheet.picture()


def dense_page() -> Picture:
    """Draw a page of small print in two columns, 1240 x 1000."""
    sheet = Sheet("page", paper(1240, 1000, (252, 251, 247), strength=3, seed=3))
    sheet.write("Notes on tides and harbours", (60, 36), 34, anchor="la")
    words = _endless_words()
    for left in (60, 640):
        for row in range(36):
            # The last line of a paragraph is short.
            width = 300 if row % 9 == 8 else 530
            sheet.write(_line(words, 17, width), (left, 110 + row * 24), 17, anchor="la")
    return sheet.picture()


class Sheet:
    """A picture being drawn, and the ground truth so far."""

    def __init__(self, name: str, background: Image.Image) -> None:
        self._name = name
        self._image = background
        self._texts: list[str] = []
        self._quads: list[NDArray[np.float32]] = []

    def write(self, text: str, position: tuple[int, int], size: int, *, anchor: str) -> None:
        """Write horizontal text; `anchor` is Pillow's."""
        canvas = ImageDraw.Draw(self._image)
        canvas.text(position, text, fill=_INK, font=_font(size), anchor=anchor)
        self._remember(text, _corners(canvas.textbbox(position, text, font=_font(size), anchor=anchor), _MARGIN * size))

    def rule(self, y: int, left: int, right: int) -> None:
        """Draw a horizontal line."""
        ImageDraw.Draw(self._image).line([(left, y), (right, y)], fill=_INK, width=2)

    def sign(self, text: str, plate: _Colour, ink: _Colour, corners: tuple[tuple[int, int], ...]) -> None:
        """Draw a plate with text, warped to the four corners given clockwise from the top left."""
        font = _font(_SIGN_SIZE)
        box = font.getbbox(text)
        width, height = int(box[2] - box[0]) + 80, int(box[3] - box[1]) + 70
        tile = Image.new("RGB", (width, height), plate)
        canvas = ImageDraw.Draw(tile)
        canvas.rectangle((8, 8, width - 9, height - 9), outline=ink, width=4)
        at = (40 - box[0], 35 - box[1])
        canvas.text(at, text, fill=ink, font=font)
        to_picture = _homography(_corners((0, 0, width, height)), np.array(corners, np.float64))
        back = np.linalg.inv(to_picture)
        coefficients = tuple((back / back[2, 2]).ravel()[:8])
        size = self._image.size
        warped = tile.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
        mask = Image.new("L", tile.size, 255)
        mask = mask.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
        self._image.paste(warped, (0, 0), mask)
        self._remember(text, _mapped(to_picture, _corners(canvas.textbbox(at, text, font=font), _MARGIN * _SIGN_SIZE)))

    def picture(self) -> Picture:
        """The finished picture."""
        return Picture(self._name, self._image, tuple(self._texts), np.stack(self._quads))

    def _remember(self, text: str, quad: NDArray[np.float64]) -> None:
        self._texts.append(text)
        self._quads.append(quad.astype(np.float32))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _corners(box: _Box, margin: float = 0.0) -> NDArray[np.float64]:
    left, top, right, bottom = box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)


def _homography(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The 3 x 3 homography that maps four points (4, 2) to four others."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    solution = np.linalg.solve(np.array(rows), target.ravel())
    return np.append(solution, 1.0).reshape(3, 3)


def _mapped(homography: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    projected = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return np.asarray(projected[:, :2] / projected[:, 2:], np.float64)


def paper(width: int, height: int, colour: _Colour, *, strength: float, seed: int) -> Image.Image:
    """Paper in one colour, unevenly lit and grainy."""
    random = np.random.default_rng(seed)
    grain = random.normal(0, strength, (height, width, 1))
    light = np.linspace(6, -6, height)[:, np.newaxis, np.newaxis]
    return Image.fromarray((np.array(colour) + grain + light).clip(0, 255).astype(np.uint8))


def wall(width: int, height: int) -> Image.Image:
    """A brick wall, unevenly lit and grainy."""
    image = Image.new("RGB", (width, height), (126, 108, 98))
    canvas = ImageDraw.Draw(image)
    random = np.random.default_rng(2)
    for row, y in enumerate(range(0, height, 24)):
        for x in range(-(row % 2) * 32, width, 64):
            red, green, blue = (int(level) for level in np.array((150, 96, 78)) + random.integers(-22, 23))
            canvas.rectangle((x + 1, y + 1, x + 61, y + 21), fill=(red, green, blue))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2))).astype(np.float64)
    pixels += random.normal(0, 9, (height, width, 1)) + np.linspace(24, -24, width)[np.newaxis, :, np.newaxis]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


_SENTENCE = (
    "the tide turns twice each day and every harbour learns its own hour for it while boats wait at anchor below "
    "a grey wall where gulls quarrel over nets that dry in wind from the west until evening lamps are lit along "
    "quiet streets of stone"
)


def _endless_words() -> Iterator[str]:
    """The words of the sentence, repeated forever, each time in a new order."""
    words = _SENTENCE.split()
    random = np.random.default_rng(4)
    while True:
        for index in random.permutation(len(words)):
            yield words[index]


def _line(words: Iterator[str], size: int, width: float) -> str:
    """As many words as fit into `width` pixels."""
    line = next(words)
    while _font(size).getlength(longer := f"{line} {next(words)}") <= width:
        line = longer
    return line

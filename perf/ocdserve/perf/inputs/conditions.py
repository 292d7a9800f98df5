# SPDX-License-Identifier: Apache-2.0
"""Pages of short texts, drawn under one difficult condition each: rotated, tiny, faint, blurred, transparent, ...

Reproducible with one version of Pillow and of the fonts: fixed words, seeded places. Latin is drawn in Pillow's
built-in font, other scripts in fonts that Python packages bring; nothing depends on the fonts of the machine.
"""

import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.perf.inputs.data_sets import LabelledImage

# At least so many texts and pages are drawn per condition.
LEAST_TEXTS = 200
LEAST_PAGES = 6

_LATIN = ("Bread", "Harbour", "12.40", "Coffee", "Platform", "Exit", "Salt", "No. 7", "Market", "Tide", "Hotel", "Open")
# Texts that fit a page in large print have at most so many characters.
_LARGE_FROM, _SHORT = 72, 5
_WORDS: Mapping[str, Sequence[str]] = {
    "Latin": _LATIN,
    "Cyrillic": ("Хлеб", "Гавань", "Кофе", "Рынок", "Выход", "Соль", "Вокзал", "Почта", "Маяк", "Гостиница"),
    "Greek": ("Ψωμί", "Λιμάνι", "Καφές", "Αγορά", "Έξοδος", "Αλάτι", "Σταθμός", "Φάρος", "Νερό", "Δρόμος"),
    "CJK": ("港口", "面包", "出口", "銀行", "時間", "コーヒー", "市場", "東京", "灯台", "ありがとう"),
    "Arabic": ("ميناء", "قهوة", "خبز", "مرحبا", "شارع", "سوق", "مخرج", "محطة", "فندق", "ملح"),
    "Devanagari": ("नमस्ते", "बंदरगाह", "रोटी", "कॉफी", "स्टेशन", "बाजार", "नमक", "होटल", "पानी", "सड़क"),
}
# Scripts of whole lines, which are not in the grid.
_LINES: Mapping[str, Sequence[str]] = {
    "Latin lines": (
        *("Open 24 hours a day", "Platform 7, to the harbour", "Ground coffee 6.90", "No parking", "Sea salt 0.95"),
        *("Total: 129.20", "12 Lighthouse Road", "Please keep your ticket", "Fresh fish, bread & eggs", "Exit only"),
        *("Departure 08:45", "Tel. 0555-013847", "Quiet please!", "2 x Oat milk (1.80)", "Room 316 - Hotel Meridian"),
    ),
    "Chinese lines": (
        *("白日依山盡", "黃河入海流", "更上一層樓", "山高月小水落石出", "明月松間照清泉石上流", "大江東去", "天地玄黃"),
        *("銀行営業時間", "第三出口左側", "歡迎光臨", "海上生明月天涯共此時", "請勿停車", "東京駅北口", "百年老店"),
    ),
}
# Package that brings the font of a script, and the font's place in it.
_FONTS = {
    "Cyrillic": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
    "Greek": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
    "Arabic": ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
    "CJK": ("matplotlib_fontja", "fonts/ipaexg.ttf"),
    "Chinese lines": ("matplotlib_fontja", "fonts/ipaexg.ttf"),
    "Devanagari": ("fontpkg_noto_sans_devanagari", "files/NotoSansDevanagari[wdth,wght].ttf"),
}
# Bits of a sample that are used, of those that are stored.
_USED_BITS = {"10 of 16 bits": 10, "12 of 16 bits": 12, "16 bits": 16}
# Sides on which neither detector scales the page; the second holds large print.
_PAGE, _LARGE_PAGE = (960, 768), (1600, 1216)
# Smallest distances in pixels between the centres of neighbouring texts.
_PITCH = 160, 38


@dataclass(frozen=True)
class Condition:
    """How the pages of a condition differ from plain ones.

    Attributes:
        axis: What is varied.
        value: Its value, as text.
        size: Font size in pixels (em).
        angle: Degrees by which each text is turned, counterclockwise.
        ink: Grey level of text, 0 to 255; of transparent pages red, green and blue.
        paper: Grey level of the paper.
        blur: Standard deviation of a Gaussian blur, in pixels.
        script: A key of the words or of the lines.
        page: Width and height in pixels.
        form: How pixels are stored: `1 bit`, `8 bits`, a key of `_USED_BITS`, `transparent` or `grey and alpha`.
    """

    axis: str
    value: str
    size: int = 24
    angle: float = 0.0
    ink: int | tuple[int, int, int] = 30
    paper: int = 245
    blur: float = 0.0
    script: str = "Latin"
    page: tuple[int, int] = _PAGE
    form: str = "8 bits"

    @property
    def name(self) -> str:
        """Axis and value."""
        return f"{self.axis} {self.value}"

    def lacks(self) -> str | None:
        """Why its pages cannot be drawn here; None where they can."""
        package = _FONTS.get(self.script, ("PIL", ""))[0]
        return None if find_spec(package) else f"{self.script}: its font is in the package {package}, not installed"

    def pages(self) -> int:
        """Number of pages with at least `LEAST_TEXTS` texts, at least `LEAST_PAGES`."""
        columns, rows = self._grid()
        return max(LEAST_PAGES, -(-LEAST_TEXTS // (columns * rows)))

    def draw(self, index: int) -> LabelledImage:
        """Draw a page as PNG; each page of a condition has the same number of texts, none touching another."""
        random = np.random.default_rng((zlib.crc32(self.name.encode()), index))
        (columns, rows), words = self._grid(), self._words()
        ink = Image.new("L", self.page)
        quads, texts = [], []
        for row, column in np.ndindex(rows, columns):
            texts.append(words[random.integers(len(words))])
            tile, corners = _turned(texts[-1], self.size, self.angle, self.script)
            centre = np.array([(column + 0.5) * self.page[0] / columns, (row + 0.5) * self.page[1] / rows])
            corner = np.rint(centre + random.uniform(-0.2, 0.2, 2) * self.size - np.array(tile.size) / 2).astype(int)
            ink.paste(255, (int(corner[0]), int(corner[1])), tile)
            quads.append(corners + corner)
        if self.blur:
            ink = ink.filter(ImageFilter.GaussianBlur(self.blur))
        buffer = io.BytesIO()
        _stored(self, np.asarray(ink)).save(buffer, "PNG")
        truth = Truth(tuple(quads), (False,) * len(quads), tuple(texts))
        return LabelledImage(f"page {index}", buffer.getvalue(), truth)

    def _words(self) -> Sequence[str]:
        words = {**_WORDS, **_LINES}[self.script]
        return [word for word in words if len(word) <= _SHORT] if self.size >= _LARGE_FROM else words

    def _grid(self) -> tuple[int, int]:
        """Columns and rows of texts: as many as leave most of a line between neighbours."""
        tiles = [_turned(word, self.size, self.angle, self.script)[0].size for word in self._words()]
        width = max(_PITCH[0], self.size + max(width for width, _ in tiles))
        height = max(_PITCH[1], round(0.8 * self.size) + max(height for _, height in tiles))
        return max(1, self.page[0] // width), max(1, self.page[1] // height)


def conditions() -> tuple[Condition, ...]:
    """The grid: each axis in turn, the others as on a plain page."""
    return tuple(
        Condition(axis, value, **settings) for axis, values in _axes().items() for value, settings in values.items()
    )


def _axes() -> dict[str, dict[str, dict[str, Any]]]:
    """What differs from a plain page, by axis and value."""
    short_and_long = {1: (768, 768), 2: (736, 1472), 5: (400, 2000), 10: (300, 3000), 20: (240, 4800), 40: (200, 8000)}
    colours = {"black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128), "red": (210, 20, 20)}
    return {
        "angle": {f"{turn}°": {"angle": turn} for turn in (0, 3, 8, 15, 30, 45, 60, 90, 120, 150, 180, 270)},
        "height": {
            f"{size} px": {"size": size, "page": _LARGE_PAGE if size >= _LARGE_FROM else _PAGE}
            for size in (6, 8, 10, 12, 16, 32, 48, 72, 100, 140, 200)
        },
        "contrast": {
            **{f"{level} of 255": {"ink": 200 - level, "paper": 200} for level in (8, 12, 16, 32, 64)},
            **{f"{level} of 255, light on dark": {"ink": 40 + level, "paper": 40} for level in (16, 64, 200)},
        },
        "aspect": {
            **{f"1:{ratio}, tall": {"page": sides} for ratio, sides in short_and_long.items()},
            **{f"{ratio}:1, wide": {"page": sides[::-1]} for ratio, sides in short_and_long.items() if ratio > 1},
        },
        "blur": {f"{blur} px": {"blur": blur} for blur in (0.7, 1.0, 1.5, 2.0, 3.0, 4.0)},
        "script": {script: {"script": script} for script in _WORDS},
        "transparency": {
            **{f"{colour} text": {"ink": ink, "form": "transparent"} for colour, ink in colours.items()},
            "white text, grey with alpha": {"ink": 255, "form": "grey and alpha"},
        },
        "depth": {form: {"form": form} for form in ("1 bit", "8 bits", *_USED_BITS)},
    }


@cache
def _turned(text: str, size: int, angle: float, script: str) -> tuple[Image.Image, NDArray[np.float64]]:
    """A mask of turned text, and the corners of its ink in the mask, float64 (4, 2), clockwise from the top left."""
    font = _font(script, size)
    left, top, right, bottom = font.getbbox(text)
    width, height = int(right - left), int(bottom - top)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((-left, -top), text, font=font, fill=255)
    turned = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    from_centre = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2, height / 2)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return turned, from_centre @ np.array([(cosine, -sine), (sine, cosine)]) + np.array(turned.size) / 2


@cache
def _font(script: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if script not in _FONTS:
        return ImageFont.load_default(size)
    package, path = _FONTS[script]
    # Not imported: a package of fonts may change the settings of matplotlib when it is.
    found = find_spec(package)
    assert found and found.submodule_search_locations
    return ImageFont.truetype(str(Path(found.submodule_search_locations[0], path)), size)


def _stored(condition: Condition, ink: NDArray[np.uint8]) -> Image.Image:
    """A page from the opacity of its ink, uint8 (H, W)."""
    colour, form = condition.ink, condition.form
    if isinstance(colour, tuple):
        page = Image.new("RGB", condition.page, colour)
        page.putalpha(Image.fromarray(ink))
        return page
    if form == "grey and alpha":
        return Image.merge("LA", (Image.new("L", condition.page, colour), Image.fromarray(ink)))
    levels = condition.paper + (colour - condition.paper) * (ink / 255)
    if form in _USED_BITS:
        return Image.fromarray(np.rint(levels / 255 * (2 ** _USED_BITS[form] - 1)).astype(np.uint16))
    grey = Image.fromarray(np.rint(levels).astype(np.uint8))
    return grey.convert("1", dither=Image.Dither.NONE) if form == "1 bit" else grey

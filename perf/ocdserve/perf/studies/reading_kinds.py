# SPDX-License-Identifier: Apache-2.0
"""How well text is read by its kind: print, handwriting, menus, signs, small labels, cluttered grounds, columns, arcs.

    python -m pip install fontpkg-caveat fontpkg-kalam fontpkg-indie-flower fontpkg-dancing-script
    python -m ocdserve.perf.studies.reading_kinds --data DIR --output FOLDER --pictures FOLDER

Pages are drawn, so that their truth is certain; fonts are more regular than pens, and drawn signs cleaner than those of
a street: what is read badly here is read worse in photographs. `--data` adds labelled folders (`img/`, `gt/`) of real
ones. `--pictures` writes a picture of each kind with its boxes.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ocdserve.backend import Reader
from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.formats import load_labels
from ocdserve.backend.evaluation.matching import assign, find_overlaps
from ocdserve.backend.evaluation.reading import folded, match_reading, total_reading
from ocdserve.perf.inputs.pictures import Sheet, paper, wall
from ocdserve.results.reading import Reading

_PAGES = 6
_SIZE = (960, 720)
_INK, _PAPER = (40, 38, 44), (250, 248, 242)
_BOARD, _CHALK = (38, 44, 42), (240, 238, 228)
_SIDE = 640  # of the pictures for a page, in pixels
_EXAMPLES = 4
_CELL = 16

_TEXT = (
    "harbour coffee bread market station library evening apples ground sea salt candles postage platform garden "
    "quiet street winter ticket open closed fresh morning river stone bridge yellow music paper window number"
)
_WORDS = _TEXT.split()
_SIGNS = (
    "BAKERY",
    "STATION",
    "Open 24 hours",
    "MARKET",
    "Hotel Meridian",
    "EXIT",
    "No parking",
    "Library",
    "Fresh fish",
)
_LABELS = ("Best before 12.05.2027", "Net 250 g", "Lot L4471-B", "Store below 8 C", "Batch 20931", "Made in Port Ellis")
_CJK = ("港口市場", "出口案内", "東京灯台", "銀行時間", "面包咖啡", "海岸通り")
_TIDY = (("fontpkg_kalam", "files/Kalam-Regular.ttf"), ("fontpkg_indie_flower", "files/IndieFlower-Regular.ttf"))
_JOINED = (("fontpkg_caveat", "files/Caveat[wght].ttf"), ("fontpkg_dancing_script", "files/DancingScript[wght].ttf"))
_FONT_OF_CJK = ("matplotlib_fontja", "fonts/ipaexg.ttf")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]


@dataclass
class Page:
    """A page being drawn.

    Attributes:
        image: RGB.
        texts: What is on it.
        outlines: float64 (M, 2) each, in pixels.
    """

    image: Image.Image
    texts: list[str] = field(default_factory=list)
    outlines: list[NDArray[np.float64]] = field(default_factory=list)

    def write(
        self,
        text: str,
        at: tuple[float, float],
        font: Font,
        ink: Colour = _INK,
        angle: float = 0.0,
        shaken: Callable[[Image.Image], Image.Image] = lambda mask: mask,
    ) -> None:
        """Write a text with its upper left corner there, turned by an angle in degrees, counterclockwise."""
        left, top, right, bottom = font.getbbox(text)
        width, height = math.ceil(right - left), math.ceil(bottom - top)
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).text((-left, -top), text, 255, font)
        mask = shaken(mask)
        turned = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2 + 3, height / 2 + 3)
        centre = np.array(at) + np.array(turned.size) / 2
        self.stamp(turned, at, ink)
        self.add(text, corners @ np.array([(cosine, -sine), (sine, cosine)]) + centre)

    def stamp(self, mask: Image.Image, at: tuple[float, float], ink: Colour) -> None:
        """Paint where a mask is."""
        self.image.paste(ink, (round(at[0]), round(at[1])), mask)

    def add(self, text: str, outline: NDArray[np.float64]) -> None:
        """Add to the truth."""
        self.texts.append(text)
        self.outlines.append(outline)

    def truth(self) -> Truth:
        """The truth so far."""
        return Truth(tuple(self.outlines), (False,) * len(self.outlines), tuple(self.texts))


def printed(random: np.random.Generator) -> Page:
    """Lines of print on paper."""
    page = Page(paper(*_SIZE, _PAPER, strength=4, seed=int(random.integers(1000))))
    for row in range(14):
        page.write(_phrase(random, 4), (60, 40 + row * 46), ImageFont.load_default(26))
    return page


def handwriting(random: np.random.Generator, fonts: Sequence[tuple[str, str]], haste: float = 0.0) -> Page:
    """Lines in fonts that imitate a hand, each a little slanted; with haste, letters are bent by so many pixels."""
    page = Page(paper(*_SIZE, _PAPER, strength=4, seed=int(random.integers(1000))))
    package, file = fonts[random.integers(len(fonts))]
    for row in range(9):
        size, ink = int(random.integers(36, 46)), (30, 40, 110)
        at = (50 + random.uniform(0, 40), 30 + row * 74)
        shaken = partial(_shaken, random=random, most=haste)
        page.write(_phrase(random, 4), at, _font(package, file, size), ink, random.uniform(-1.5, 1.5), shaken)
    return page


def menu(random: np.random.Generator) -> Page:
    """A chalkboard: a heading in a script, dishes with leaders to their prices, and small print."""
    page = Page(Image.new("RGB", _SIZE, _BOARD))
    page.write("Dinner menu", (330, 30), _font(*_JOINED[1], 64), (240, 200, 120))
    for row in range(8):
        dish, price, y = (
            _phrase(random, 2).capitalize(),
            f"{random.integers(4, 30)}.{random.integers(10)}0",
            150 + row * 68,
        )
        page.write(dish, (90, y), ImageFont.load_default(30), _CHALK)
        page.write(price, (800, y), ImageFont.load_default(30), _CHALK)
        dots = ImageFont.load_default(30).getlength(dish) + 110
        ImageDraw.Draw(page.image).text((dots, y), "." * int((780 - dots) / 8.4), _CHALK, ImageFont.load_default(30))
        page.write(_phrase(random, 4), (90, y + 36), ImageFont.load_default(15), (170, 168, 160))
    return page


def signs(random: np.random.Generator) -> Page:
    """Plates on a brick wall, in perspective."""
    sheet = Sheet("signs", wall(*_SIZE))
    for place, text in enumerate(random.permutation(_SIGNS)):
        left, top = 40 + place % 3 * 310, 50 + place // 3 * 220
        corners = np.array([(0, 0), (250, 0), (250, 100), (0, 100)]) + random.uniform(-28, 28, (4, 2)) + (left, top)
        red, green, blue = map(int, random.integers(0, 110, 3))
        plate, ink = sorted(((red, green, blue), (250, 245, 230)), reverse=bool(place % 2))
        sheet.sign(str(text), plate, ink, tuple((round(x), round(y)) for x, y in corners))
    picture = sheet.picture()
    return Page(picture.image, list(picture.texts), [quad.astype(np.float64) for quad in picture.quads])


def labels(random: np.random.Generator, smallest: int, largest: int) -> Page:
    """Print of these font sizes in pixels, as on packages and plates of devices."""
    page = Page(paper(*_SIZE, (226, 222, 210), strength=3, seed=int(random.integers(1000))))
    for column in range(4):
        for row in range(12):
            text, size = _LABELS[random.integers(len(_LABELS))], int(random.integers(smallest, largest + 1))
            page.write(text, (40 + column * 230, 40 + row * 54), ImageFont.load_default(size), (70, 66, 64))
    return page


def clutter(random: np.random.Generator) -> Page:
    """Print over a ground of many shapes and colours."""
    page = Page(Image.new("RGB", _SIZE, tuple(map(int, random.integers(60, 200, 3)))))
    canvas = ImageDraw.Draw(page.image)
    for _ in range(260):
        x, y, side = random.uniform(-60, _SIZE[0]), random.uniform(-60, _SIZE[1]), random.uniform(10, 120)
        shape = canvas.ellipse if random.random() < 0.5 else canvas.rectangle
        shape((x, y, x + side, y + side * random.uniform(0.3, 1.5)), tuple(map(int, random.integers(20, 236, 3))))
    for row in range(10):
        ink = (255, 255, 255) if row % 2 else (15, 15, 20)
        at = (60 + random.uniform(0, 260), 30 + row * 68)
        page.write(_phrase(random, 3), at, ImageFont.load_default(int(random.integers(26, 40))), ink)
    return page


def columns(random: np.random.Generator) -> Page:
    """Chinese and Japanese from top to bottom."""
    page = Page(paper(*_SIZE, _PAPER, strength=4, seed=int(random.integers(1000))))
    for column in range(8):
        _stack(page, _CJK[random.integers(len(_CJK))], (60 + column * 110, 60), _font(*_FONT_OF_CJK, 48))
    return page


def turned(random: np.random.Generator) -> Page:
    """Latin lines that run up or down, as on the backs of books."""
    page = Page(paper(*_SIZE, _PAPER, strength=4, seed=int(random.integers(1000))))
    for column in range(10):
        angle = 90 if column % 2 else -90
        page.write(_phrase(random, 3), (50 + column * 90, 50), ImageFont.load_default(32), angle=angle)
    return page


def stacked(random: np.random.Generator) -> Page:
    """Latin letters one below the other, as on a hotel's front."""
    page = Page(paper(*_SIZE, _PAPER, strength=4, seed=int(random.integers(1000))))
    for column in range(8):
        text = _WORDS[random.integers(len(_WORDS))].upper()
        _stack(page, text, (70 + column * 110, 40), ImageFont.load_default(44))
    return page


def arcs(random: np.random.Generator) -> Page:
    """Words along arcs of a third of a circle and less, as on seals and round signs."""
    page = Page(paper(*_SIZE, _PAPER, strength=4, seed=int(random.integers(1000))))
    for place in range(6):
        middle = np.array([170 + place % 3 * 310, 290 + place // 3 * 330])
        _bend(page, _phrase(random, 2).upper(), middle, radius=random.uniform(170, 240))
    return page


KINDS: dict[str, Callable[[np.random.Generator], Page]] = {
    "print": printed,
    "handwriting, separate letters": lambda random: handwriting(random, _TIDY),
    "handwriting, joined letters": lambda random: handwriting(random, _JOINED),
    "handwriting, in haste": lambda random: handwriting(random, _JOINED, haste=5.0),
    "menu": menu,
    "signs": signs,
    "small labels, 9 to 13 px": lambda random: labels(random, 9, 13),
    "tiny labels, 6 to 8 px": lambda random: labels(random, 6, 8),
    "cluttered ground": clutter,
    "vertical, Chinese and Japanese": columns,
    "vertical, turned lines": turned,
    "vertical, stacked letters": stacked,
    "curved": arcs,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read every kind, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="a labelled folder; may be repeated")
    parser.add_argument("--output", type=Path, help="folder for the table")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each kind")
    options = parser.parse_args(arguments)
    reader = Reader.load()
    rows = [_HEAD]
    for name, draw in KINDS.items():
        pages = [draw(np.random.default_rng((17, number))) for number in range(_PAGES)]
        readings = [reader.read(np.asarray(page.image)) for page in pages]
        rows.append(_row(name, zip(readings, (page.truth() for page in pages), strict=True)))
        sys.stdout.write(f"{rows[-1]}\n")
        if options.pictures:
            _save(
                pages[0].image,
                readings[0],
                options.pictures / f"reading-{name.partition(',')[0].replace(' ', '-')}.webp",
            )
    for folder in options.data:
        samples = load_labels(folder)
        rows.append(_row(folder.name, ((reader.read(sample.image), sample.truth) for sample in samples)))
        sys.stdout.write(f"{rows[-1]}\n")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "reading-kinds.md").write_text("\n".join(rows) + "\n", "utf-8")
    return 0


_HEAD = (
    "| kind | lines | found | read exactly | CER of those found | words | read instead |\n|---|---|---|---|---|---|---|"
)


def _row(name: str, read: Iterable[tuple[Reading, Truth]]) -> str:
    """A row of the table: shares of all lines that are found (a box with an IoU over 0.5) and read exactly."""
    pairs = list(read)
    counts = total_reading(match_reading(reading.quads, reading.texts, truth) for reading, truth in pairs)
    lines = counts.lines.truths
    wrong = list(dict.fromkeys(_errors(pairs)))
    examples = "; ".join(f"{truth} → {found}" for truth, found in wrong[:: max(1, len(wrong) // _EXAMPLES)][:_EXAMPLES])
    shares = (counts.paired / lines, counts.lines.recall, counts.cer, counts.words.recall)
    return f"| {name} | {lines} | {' | '.join(f'{share:.1%}' for share in shares)} | {examples} |"


def _errors(pairs: Iterable[tuple[Reading, Truth]]) -> Iterator[tuple[str, str]]:
    """Lines that are found and not read exactly: the truth, and what was read instead."""
    for reading, truth in pairs:
        for wanted, found in assign(find_overlaps(truth, reading.quads), "greedy"):
            text = truth.texts[wanted] or ""
            if folded(text) != folded(reading.texts[found]):
                yield text, reading.texts[found]


def _save(image: Image.Image, reading: Reading, file: Path) -> None:
    """Write the upper part of a page with its boxes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = reading.draw(np.asarray(image))
    picture = picture.crop((0, 0, picture.width, picture.height * 2 // 3))
    picture.resize((_SIDE, _SIDE * picture.height // picture.width), Image.Resampling.LANCZOS).save(file, quality=62)


def _shaken(mask: Image.Image, random: np.random.Generator, most: float) -> Image.Image:
    """A mask whose points, 16 pixels apart, are displaced by so many pixels at most."""
    columns, rows = math.ceil(mask.width / _CELL), math.ceil(mask.height / _CELL)
    places = np.stack(np.meshgrid(np.arange(columns + 1) * _CELL, np.arange(rows + 1) * _CELL), axis=-1)
    moved = places + random.uniform(-most, most, places.shape)
    cells = []
    for row, column in np.ndindex(rows, columns):
        corners = ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))
        box = (*map(int, places[row, column]), *map(int, places[row + 1, column + 1]))
        cells.append((box, tuple(float(side) for corner in corners for side in moved[corner])))
    return mask.transform(mask.size, Image.Transform.MESH, cells, Image.Resampling.BILINEAR)


def _phrase(random: np.random.Generator, words: int) -> str:
    return " ".join(_WORDS[index] for index in random.choice(len(_WORDS), words, replace=False))


def _stack(page: Page, text: str, at: tuple[float, float], font: Font) -> None:
    """Write characters one below the other, centred."""
    boxes = [font.getbbox(character, anchor="mt") for character in text]
    pitch = 1.12 * max(bottom for _, _, _, bottom in boxes)
    half = max(right for _, _, right, _ in boxes)
    canvas = ImageDraw.Draw(page.image)
    for place, character in enumerate(text):
        canvas.text((at[0] + half, at[1] + place * pitch), character, _INK, font, anchor="mt")
    right, bottom = at[0] + 2 * half + 3, at[1] + pitch * len(text)
    page.add(text, np.array([(at[0] - 3, at[1] - 3), (right, at[1] - 3), (right, bottom), (at[0] - 3, bottom)]))


def _bend(page: Page, text: str, middle: NDArray[np.float64], radius: float) -> None:
    """Write a text along the upper arc of a circle."""
    size = 34
    font = ImageFont.load_default(size)
    turn = -font.getlength(text) / radius / 2
    first = turn
    for character in text:
        step = font.getlength(character) / radius
        angle = turn + step / 2
        mask = Image.new("L", (2 * size, 2 * size))
        ImageDraw.Draw(mask).text((size, size), character, 255, font, anchor="mm")
        centre = middle + radius * np.array([math.sin(angle), -math.cos(angle)])
        page.stamp(mask.rotate(-math.degrees(angle), Image.Resampling.BICUBIC), tuple(centre - size), _INK)
        turn += step
    angles = np.linspace(first, turn, 12)
    directions = np.column_stack([np.sin(angles), -np.cos(angles)])
    page.add(
        text,
        np.concatenate(
            [middle + (radius + 0.5 * size) * directions, (middle + (radius - 0.5 * size) * directions)[::-1]]
        ),
    )


@cache
def _font(package: str, file: str, size: int) -> Font:
    """A font that a Python package brings, without importing the package."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"the study needs the package {package.replace('_', '-')}; install it with pip")
    return ImageFont.truetype(str(Path(found.submodule_search_locations[0], file)), size)


if __name__ == "__main__":
    raise SystemExit(main())

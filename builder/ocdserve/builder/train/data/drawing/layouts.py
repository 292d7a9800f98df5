# SPDX-License-Identifier: Apache-2.0
"""How text lies on sheets: receipts, documents, screens, signs, and words without a plate.

A quad holds a line of text. What a gap of more than one em separates, such as the columns of a table, are lines of
their own; gaps within a line are narrower. So are the labels of scanned receipts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ocdserve.builder.train.data.drawing import words
from ocdserve.builder.train.data.drawing.fonts import Face
from ocdserve.builder.train.data.drawing.sheet import Colour, Sheet

_SMALLEST, _LARGEST = 8, 120
# Between the columns of a table, in em; more than any gap within a line.
_COLUMN_GAP = 1.3
# Width of an average character in em.
_CHARACTER = {"CJK": 1.0}
# Standard deviation of a ground's grey levels from which bare text is outlined.
_ROUGH = 20
# Share of each script, where fonts have it.
_SCRIPTS = {"Latin": 0.5, "accented": 0.12, "Cyrillic": 0.12, "Greek": 0.08, "CJK": 0.18}


@dataclass(frozen=True)
class Hand:
    """How a text is written: font, script, size in pixels (em) and colour."""

    face: Face
    script: str
    em: int
    ink: Colour

    def text(self, random: np.random.Generator, width: float) -> str:
        """A line that is at most `width` pixels wide; empty where no word of it is."""
        length = max(1, int(width / (self.em * _CHARACTER.get(self.script, 0.5))))
        text = words.line(random, self.script, length)
        while text and self.width(text) > width:
            text = text[:-1] if self.script == "CJK" else text.rpartition(" ")[0]
        return text

    def width(self, text: str) -> float:
        """Width of a text in pixels."""
        return self.face.at(self.em).getlength(text)

    def sized(self, em: float) -> "Hand":
        """The same in another size."""
        return Hand(self.face, self.script, int(np.clip(em, _SMALLEST, _LARGEST)), self.ink)


def hand(random: np.random.Generator, faces: Sequence[Face], em: float, ink: Colour) -> Hand:
    """A random script of those that the fonts have, then a family that has it, then a font of that family."""
    present = [script for script in _SCRIPTS if any(script in face.scripts for face in faces)]
    shares = np.array([_SCRIPTS[script] for script in present])
    script = present[int(random.choice(len(present), p=shares / shares.sum()))]
    having = [face for face in faces if script in face.scripts]
    families = sorted({face.family for face in having})
    family = families[int(random.integers(len(families)))]
    members = [face for face in having if face.family == family]
    face = members[int(random.integers(len(members)))]
    return Hand(face, script, int(np.clip(em, _SMALLEST, _LARGEST)), ink)


def em_of(random: np.random.Generator, low: float = _SMALLEST, high: float = _LARGEST) -> float:
    """A font size, even on a logarithmic scale."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def ink_on(random: np.random.Generator, paper: Sequence[float], least: float = 70) -> Colour:
    """A colour that differs from the paper by at least so many levels of grey, 0 to 127."""
    grey = float(np.dot(paper, (0.299, 0.587, 0.114)))
    darker = grey >= 128 if random.random() < 0.85 else grey >= least + 20
    level = random.uniform(0, grey - least) if darker and grey >= least else random.uniform(min(grey + least, 250), 255)
    tint = random.uniform(-1, 1, 3) * (random.random() < 0.4) * min(level, 255 - level, 60)
    # Tints keep the grey level.
    tint -= np.dot(tint, (0.299, 0.587, 0.114))
    red, green, blue = np.clip(level + tint, 0, 255).astype(int).tolist()
    return red, green, blue


def receipt(random: np.random.Generator, faces: Sequence[Face], width: int, height: int) -> Sheet:
    """A till receipt: a heading, rows of item and price, a total, barcode and thanks."""
    paper = _paper(random)
    sheet = Sheet(width, height, paper)
    plain = hand(random, faces, width / random.uniform(15, 30), ink_on(random, paper, 90))
    big = plain.sized(plain.em * random.uniform(1.1, 2))
    margin, step = width * random.uniform(0.03, 0.1), plain.em * random.uniform(1.25, 1.8)
    y = plain.em * random.uniform(0.5, 2) + big.em
    for row in range(int(random.integers(2, 7))):
        y += _centred(random, sheet, big if row == 0 else plain, y, width - 2 * margin)
    left, right = margin, width - margin
    while y < height - plain.em:
        kind = random.random()
        if kind < 0.72:
            amount = words.price(random)
            sheet.write(amount, (right, y), plain.face, plain.em, plain.ink, "rs")
            room = right - plain.width(amount) - _COLUMN_GAP * plain.em - left
            if random.random() < 0.3 and room > 9 * plain.em:
                count = str(int(random.integers(1, 20)))
                sheet.write(count, (left, y), plain.face, plain.em, plain.ink)
                indent = plain.width(count) + _COLUMN_GAP * plain.em
                _line(random, sheet, plain, left + indent, y, (room - indent) * random.uniform(0.4, 1))
            else:
                _line(random, sheet, plain, left, y, room * random.uniform(0.4, 1))
            y += step
        elif kind < 0.8:
            _rule(random, sheet, left, right, y - plain.em * 0.4, plain.ink)
            y += step
        elif kind < 0.86:
            amount = words.price(random)
            sheet.write(amount, (right, y + big.em * 0.5), big.face, big.em, big.ink, "rs")
            _line(random, sheet, big, left, y + big.em * 0.5, right - left - big.width(amount) - _COLUMN_GAP * big.em)
            y += step + big.em * 0.7
        elif kind < 0.89:
            y += _barcode(random, sheet, left, right, y, plain) + step
        else:
            y += _centred(random, sheet, plain, y, width - 2 * margin)
    return sheet


def document(random: np.random.Generator, faces: Sequence[Face], width: int, height: int) -> Sheet:
    """A letter, an article in columns, or a table."""
    paper = _paper(random)
    sheet = Sheet(width, height, paper)
    plain = hand(random, faces, em_of(random, 9, 26), ink_on(random, paper, 90))
    title = hand(random, faces, plain.em * random.uniform(1.2, 2.8), plain.ink)
    margin = width * random.uniform(0.03, 0.12)
    y = margin * random.uniform(0.3, 1) + title.em
    _line(random, sheet, title, margin, y, (width - 2 * margin) * random.uniform(0.3, 1))
    y += title.em * 0.6 + plain.em * random.uniform(1.2, 2.5)
    if random.random() < 0.35:
        _table(random, sheet, plain, margin, y)
        return sheet
    columns = int(random.integers(1, 1 + max(1, min(3, int((width - 2 * margin) / (14 * plain.em))))))
    gap = max(1.6 * plain.em, 0.02 * width)
    across = (width - 2 * margin - gap * (columns - 1)) / columns
    step = plain.em * random.uniform(1.25, 1.8)
    for column in range(columns):
        left, below = margin + column * (across + gap), y
        while below < height - plain.em:
            last = random.random() < 0.15
            _line(random, sheet, plain, left, below, across * (random.uniform(0.2, 0.8) if last else 1))
            below += step * (1.6 if last else 1)
    return sheet


def screen(random: np.random.Generator, faces: Sequence[Face], width: int, height: int) -> Sheet:
    """A window of a program: bars, a list, cards, buttons and icons; light or dark."""
    dark = random.random() < 0.45
    level = random.uniform(12, 60) if dark else random.uniform(215, 255)
    back: Colour = (int(level), int(level), min(int(level) + 6, 255))
    sheet = Sheet(width, height, back)
    plain = hand(random, faces, em_of(random, 10, 22), ink_on(random, back, 100))
    accent = _any_colour(random, 20, 200)
    bar = int(plain.em * random.uniform(1.8, 3))
    sheet.rectangle((0, 0, width, bar), accent)
    over = ink_on(random, accent, 90)
    x = float(plain.em)
    while x < width - 6 * plain.em:
        box = _line(random, sheet, Hand(plain.face, plain.script, plain.em, over), x, bar * 0.68, 8 * plain.em)
        x = (box[2] if box else x) + random.uniform(1.5, 6) * plain.em
    split = int(width * random.uniform(0.2, 0.4)) if random.random() < 0.6 else 0
    if split:
        sheet.line([(split, bar), (split, height)], plain.ink)
        _rows(random, sheet, plain, (plain.em, split - plain.em), bar + 2 * plain.em)
    y = bar + 2.0 * plain.em
    while y < height - 3 * plain.em:
        part = plain.sized(plain.em * random.uniform(0.8, 1.8))
        lines = int(random.integers(1, 5))
        inside = (split + 2 * plain.em, width - 2 * plain.em)
        y = _card(random, sheet, part, inside, y, lines, back, accent)
    return sheet


def sign(random: np.random.Generator, faces: Sequence[Face], em: float) -> Sheet:
    """A plate with one to three lines, such as a shop's or a road's."""
    plate = _any_colour(random)
    written = hand(random, faces, em, ink_on(random, plate))
    texts = _texts(random, written)
    step = int(written.em * random.uniform(1.2, 1.6))
    inside = max(written.width(text) for text in texts)
    pad = written.em * random.uniform(0.3, 0.9)
    sheet = Sheet(int(inside + 2 * pad), int(step * (len(texts) - 1) + 1.3 * written.em + 2 * pad), plate)
    width, height = sheet.size
    if random.random() < 0.4:
        edge = max(1, written.em // 12)
        for inset in range(edge, 2 * edge):
            sheet.rectangle((inset, inset, width - 1 - inset, height - 1 - inset), None, written.ink)
    for row, text in enumerate(texts):
        sheet.write(text, (width / 2, pad + written.em + row * step), written.face, written.em, written.ink, "ms")
    return sheet


def bare(
    random: np.random.Generator, faces: Sequence[Face], em: float, ground: Sequence[float], roughness: float
) -> Sheet:
    """One or two lines without a plate, perhaps outlined; on a rough ground they are large enough to be legible.

    Args:
        random: Decides what and how.
        faces: Fonts to choose from.
        em: Wanted font size in pixels.
        ground: Mean colour of the ground, from which the ink stands out.
        roughness: Standard deviation of the ground's grey levels.
    """
    ink = ink_on(random, ground, 100)
    outlined = random.random() < 0.35 or roughness > _ROUGH
    written = hand(random, faces, max(em, roughness), ink)
    texts = _texts(random, written)[:2]
    step, pad = int(written.em * 1.4), written.em // 2 + 2
    width = int(max(written.width(text) for text in texts)) + 2 * pad
    around = ink_on(random, ink, 110) if outlined else ink
    sheet = Sheet(width, step * (len(texts) - 1) + int(1.3 * written.em) + 2 * pad, around, transparent=True)
    for row, text in enumerate(texts):
        at = (width / 2, pad + written.em + row * step)
        sheet.write(text, at, written.face, written.em, ink, "ms", max(1, written.em // 16) if outlined else 0)
    return sheet


def _texts(random: np.random.Generator, written: Hand) -> list[str]:
    length = int(np.clip(300 / written.em, 3, 22))
    count = int(random.choice(3, p=(0.65, 0.25, 0.1))) + 1
    return [words.line(random, written.script, int(random.integers(2, length + 1))) for _ in range(count)]


def _any_colour(random: np.random.Generator, low: int = 0, high: int = 256) -> Colour:
    red, green, blue = random.integers(low, high, 3).tolist()
    return red, green, blue


def _paper(random: np.random.Generator) -> Colour:
    if random.random() < 0.1:
        return _any_colour(random)
    level = random.uniform(190, 255)
    red, green, blue = np.clip(level + random.uniform(-14, 8, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _line(
    random: np.random.Generator, sheet: Sheet, written: Hand, x: float, y: float, width: float
) -> tuple[float, float, float, float] | None:
    """Write a line at its baseline; None where nothing fits."""
    text = written.text(random, width)
    return sheet.write(text, (x, y), written.face, written.em, written.ink) if text else None


def _centred(random: np.random.Generator, sheet: Sheet, written: Hand, y: float, width: float) -> float:
    """Write a line in the middle of the sheet, and return the height that it takes."""
    if text := written.text(random, width * random.uniform(0.3, 1)):
        sheet.write(text, (sheet.size[0] / 2, y), written.face, written.em, written.ink, "ms")
    return written.em * random.uniform(1.2, 1.7)


def _rule(random: np.random.Generator, sheet: Sheet, left: float, right: float, y: float, ink: Colour) -> None:
    dash = float(random.choice((0, 0, 3, 8)))
    if not dash:
        sheet.line([(left, y), (right, y)], ink, int(random.integers(1, 3)))
    for x in np.arange(left, right, 2 * dash) if dash else ():
        sheet.line([(x, y), (x + dash, y)], ink)


def _barcode(random: np.random.Generator, sheet: Sheet, left: float, right: float, y: float, written: Hand) -> float:
    """Bars, or a square of cells, which are no text; returns their height."""
    if random.random() < 0.3:
        cell = max(2, written.em // 5)
        side = int(random.integers(21, 30))
        start = (left + right - side * cell) / 2
        for row, column in np.argwhere(random.random((side, side)) < 0.5):
            x, top = start + column * cell, y + row * cell
            sheet.rectangle((x, top, x + cell - 1, top + cell - 1), written.ink)
        return float(side * cell)
    tall, x, end = written.em * random.uniform(2, 4), left + (right - left) * 0.15, right - (right - left) * 0.15
    unit = max(1, written.em // 12)
    while x < end:
        bar = unit * int(random.integers(1, 4))
        sheet.rectangle((x, y, x + (bar - 1), y + tall), written.ink)
        x += bar + unit * int(random.integers(1, 4))
    return float(tall)


def _table(random: np.random.Generator, sheet: Sheet, written: Hand, margin: float, y: float) -> None:
    width, height = sheet.size
    columns = int(random.integers(2, max(3, int((width - 2 * margin) / (6 * written.em)))))
    across, step = (width - 2 * margin) / columns, written.em * random.uniform(1.5, 2.6)
    ruled = random.random() < 0.7
    top = y - written.em - 0.25 * step
    while y < height - written.em:
        for column in range(columns):
            if random.random() < 0.9:
                room = (across - _COLUMN_GAP * written.em) * random.uniform(0.4, 1)
                _line(random, sheet, written, margin + column * across + 0.4 * written.em, y, room)
        if ruled:
            sheet.line([(margin, y + 0.4 * step), (width - margin, y + 0.4 * step)], written.ink)
        y += step
    for column in range(columns + 1) if ruled else ():
        x = margin + column * across
        sheet.line([(x, top), (x, y - 0.6 * step)], written.ink)


def _rows(random: np.random.Generator, sheet: Sheet, written: Hand, span: tuple[float, float], y: float) -> None:
    """A list with an icon in front of each row."""
    left, right = span
    icon, step = written.em * 0.8, written.em * random.uniform(1.5, 2.6)
    icons = random.random() < 0.6
    while y < sheet.size[1] - written.em:
        if icons:
            sheet.ellipse((left, y - icon, left + icon, y), _any_colour(random, 40, 220))
        start = left + (icon + 0.6 * written.em if icons else 0)
        _line(random, sheet, written, start, y, (right - start) * random.uniform(0.5, 1))
        y += step


def _card(
    random: np.random.Generator,
    sheet: Sheet,
    written: Hand,
    span: tuple[float, float],
    y: float,
    lines: int,
    back: Colour,
    accent: Colour,
) -> float:
    """A box with some lines, perhaps with a button; returns where the next begins."""
    left, right = span
    bottom = y + lines * written.em * 1.5 + written.em
    if random.random() < 0.5:
        edge: Colour = tuple(abs(level - 28) for level in back)  # type: ignore[assignment]
        sheet.rectangle((left - written.em, y - 0.8 * written.em, right + written.em, bottom), None, edge)
    for row in range(lines):
        _line(
            random, sheet, written, left, y + written.em * (1.5 * row + 0.7), (right - left) * random.uniform(0.3, 0.75)
        )
    if random.random() < 0.4 and right - left > 12 * written.em:
        wide = min(6 * written.em, (right - left) * 0.2)
        sheet.rectangle((right - wide, y - 0.4 * written.em, right, y + 1.2 * written.em), accent)
        label = Hand(written.face, written.script, written.em, ink_on(random, accent, 90))
        if text := label.text(random, wide - written.em):
            sheet.write(text, (right - wide / 2, y + 0.75 * written.em), label.face, label.em, label.ink, "ms")
    return bottom + written.em * random.uniform(1.2, 2.5)

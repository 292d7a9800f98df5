# SPDX-License-Identifier: Apache-2.0
"""The invisible text of a PDF page, as the operators of its content."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ocdserve.results.reading.characters import clusters, visual_order, width_of
from ocdserve.results.reading.invisible_font import CharacterCodes
from ocdserve.results.reading.layout import DESCENT, Layout, PlacedLine, PlacedWord

__all__ = ["text_operators"]

Float64 = NDArray[np.float64]

_INVISIBLE = 3
# Least width and height of a word or a space, in points.
_LEAST_SIDE = 0.01
# Poppler takes a word apart if its letters do not stand on one level. Where a line rises by no more than this (the sine
# of its angle), words that rise by no more than a share of their height fill the upright boxes around them instead.
_LEVEL_RISE, _LEVEL_SHARE = 0.2, 0.5


def text_operators(page: Layout, to_points: Float64, codes: CharacterCodes, font: str) -> bytes:
    """Show the words of a page invisibly, each stretched over its box and rotated with it, if by more than a little.

    Words are separated by spaces that fill the gaps between them. Right-to-left text is shown as it is seen, from left
    to right, from which PDF readers derive its order.

    Args:
        page: Its words, in source pixels.
        to_points: float64 (3, 2): (x, y, 1) in source pixels, y downwards, times this is (x, y) in the page's units.
        codes: Numbers of characters; new ones are added.
        font: Name of the font among the page's resources.
    """
    shown = [operator for line in page.lines for operator in _line(line, to_points, codes, font)]
    return "\n".join(["q", "BT", f"{_INVISIBLE} Tr", *shown, "ET", "Q", ""]).encode("ascii") if shown else b""


def _line(line: PlacedLine, to_points: Float64, codes: CharacterCodes, font: str) -> Iterator[str]:
    words = _as_seen(line)
    placed = [_Place(word, to_points) for word, _ in words]
    for index, (word, has_space) in enumerate(words):
        place, found = placed[index], clusters(word.text)
        text = codes.encoded(found[which] for which in visual_order(found))
        ems = sum(map(width_of, found)) / 2
        yield f"/{font} {_number(place.height)} Tf {_number(100 * place.width / (place.height * ems))} Tz"
        yield f"{_numbers(*place.along, -place.along[1], place.along[0], *place.start)} Tm <{text}> Tj"
        if has_space:
            gap = float((placed[index + 1].start - place.start) @ place.along) - place.width
            scale = 100 * max(gap, _LEAST_SIDE) / (place.height / 2)
            yield f"{_number(scale)} Tz <{codes.encoded(' ')}> Tj"


class _Place:
    """Where a word is shown, in the page's units: its size, direction, and where its baseline starts."""

    def __init__(self, word: PlacedWord, to_points: Float64) -> None:
        corners = np.column_stack([word.quad, np.ones(4)]) @ to_points
        along = (corners[1] - corners[0] + corners[2] - corners[3]) / 2
        up = (corners[0] - corners[3] + corners[1] - corners[2]) / 2
        length, height = float(np.linalg.norm(along)), float(np.linalg.norm(up))
        unit: Float64 = along / length if length else np.array([1.0, 0.0])
        axis = np.where(np.arange(2) == np.abs(unit).argmax(), np.sign(unit), 0.0)
        rise, run = abs(float(unit @ axis[::-1])), float(unit @ axis)
        if rise <= _LEVEL_RISE and length * rise <= _LEVEL_SHARE * height:
            unit, length, height = axis, length * run + height * rise, length * rise + height * run
        upwards = np.array([-unit[1], unit[0]])
        self.along = unit
        self.width, self.height = max(length, _LEAST_SIDE), max(height, _LEAST_SIDE)
        self.start: Float64 = corners.mean(axis=0) - unit * length / 2 - upwards * self.height * (0.5 - DESCENT)


def _as_seen(line: PlacedLine) -> list[tuple[PlacedWord, bool]]:
    """The words along the line's direction, and whether a space follows each."""
    along = line.quad[1] - line.quad[0]
    found = clusters(line.text)
    order = list(range(len(line.words)))
    if visual_order(found) != list(range(len(found))):
        order.sort(key=lambda index: float(line.words[index].quad.mean(axis=0) @ along))
    seen = []
    for index, after in zip(order, [*order[1:], None], strict=True):
        # Words that do not follow each other in the text are separate.
        has_space = after is not None and (abs(after - index) > 1 or line.words[min(index, after)].has_space)
        seen.append((line.words[index], has_space))
    return seen


def _numbers(*values: float) -> str:
    return " ".join(_number(value, 6) for value in values)


def _number(value: float, digits: int = 4) -> str:
    """A decimal number without exponent, which PDF lacks."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")

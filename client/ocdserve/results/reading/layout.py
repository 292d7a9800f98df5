# SPDX-License-Identifier: Apache-2.0
"""A reading as documents need it: paragraphs of lines of words, each word with a quad that begins where it is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.results import order
from ocdserve.results.quads import quad_sizes, rectangle_around
from ocdserve.results.reading.characters import clean, clusters, is_right_to_left, visual_order, width_of
from ocdserve.results.reading.lines import TALL
from ocdserve.results.reading.reading import Reading, Word

__all__ = ["DESCENT", "Box", "Layout", "PlacedLine", "PlacedWord", "layouts_of", "pages_of"]

Float64 = NDArray[np.float64]

# Height of the baseline above the lower edge of a line's box, as a share of its height.
DESCENT = 0.2


class Box(NamedTuple):
    """An upright rectangle in whole source pixels, within its page."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """In pixels."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bottom - self.top


class PlacedWord(NamedTuple):
    """One word and where it is.

    Attributes:
        text: Not empty; without control characters and outer white space.
        score: 0 to 1.
        quad: float64 (4, 2) in source pixels, clockwise from the text's own top left: the first edge runs along it.
        has_space: Whether a space separates it from the next word of its line.
    """

    text: str
    score: float
    quad: Float64
    has_space: bool


@dataclass(frozen=True, eq=False)
class PlacedLine:
    """Words next to each other, at least one, in the order of reading.

    Attributes:
        words: See `PlacedWord`.
        quad: float64 (4, 2) in source pixels, around all of them, from the text's own top left.
        is_right_to_left: Whether the words follow each other from right to left.
    """

    words: tuple[PlacedWord, ...]
    quad: Float64
    is_right_to_left: bool

    @property
    def text(self) -> str:
        """The words, with spaces where there are any."""
        return "".join(word.text + " " * word.has_space for word in self.words).rstrip()

    @property
    def angle_deg(self) -> float:
        """Direction of the text in degrees clockwise from the image's rows, above -180 and up to 180."""
        across, down = self.quad[1] - self.quad[0]
        return float(np.rad2deg(np.arctan2(down, across)))

    @property
    def baseline(self) -> Float64:
        """Where the line's letters stand: float64 (2, 2), from its first to its last point in source pixels."""
        lower = self.quad[[3, 2]]
        points: Float64 = lower + DESCENT * (self.quad[[0, 1]] - lower)
        return points


@dataclass(frozen=True, eq=False)
class Layout:
    """One page.

    Attributes:
        width: In pixels.
        height: In pixels.
        number: Page number, from 1.
        paragraphs: Lines of each paragraph, both in reading order; none is empty.
    """

    width: int
    height: int
    number: int
    paragraphs: tuple[tuple[PlacedLine, ...], ...]

    @property
    def lines(self) -> Iterator[PlacedLine]:
        """The lines of all paragraphs."""
        return (line for paragraph in self.paragraphs for line in paragraph)

    def box(self, *parts: PlacedWord | PlacedLine) -> Box:
        """The box around words or lines, at least one."""
        corners = np.concatenate([part.quad for part in parts])
        within = np.clip(np.rint([corners.min(axis=0), corners.max(axis=0)]), 0, (self.width, self.height))
        return Box(*map(int, within.ravel()))


def pages_of(readings: Reading | Sequence[Reading]) -> list[Reading]:
    """The pages of a document: one reading, or several.

    Raises:
        InvalidInputError: There is none, or something else.
    """
    pages: list[Any] = [readings] if isinstance(readings, Reading) else list(readings)
    strangers = [type(page).__name__ for page in pages if not isinstance(page, Reading)]
    if not pages or strangers:
        given = strangers[0] if strangers else "none"
        raise InvalidInputError(f"a document is made of one Reading or a sequence of them, at least one; got {given}")
    return pages


def layouts_of(readings: Reading | Sequence[Reading]) -> list[Layout]:
    """The layouts of the pages of a document.

    Words are those of the reading. Where it has none, the texts are split at their spaces, and a line's box is shared
    out by the numbers of its characters, East Asian wide ones counting twice.

    Args:
        readings: One page, or several; a page that does not state its number has that of its place.

    Raises:
        InvalidInputError: There is none, or something else.
    """
    return [_layout(page, number) for number, page in enumerate(pages_of(readings), 1)]


def _layout(reading: Reading, number: int) -> Layout:
    line_of = np.zeros(len(reading), np.intp)
    for index, members in enumerate(reading.lines()):
        line_of[members] = index
    paragraphs = []
    for members in reading.paragraphs():
        starts = np.flatnonzero(np.diff(line_of[members])) + 1
        lines = [line for part in np.split(members, starts) if (line := _line(reading, part))]
        if lines:
            paragraphs.append(tuple(lines))
    return Layout(reading.width, reading.height, reading.page or number, tuple(paragraphs))


def _line(reading: Reading, members: order.Indices) -> PlacedLine | None:
    """The line of these detections, which are in order from left to right; None if nothing was read in them."""
    parts = [(reading.quads[index], clean(reading.texts[index]), index) for index in members]
    parts = [part for part in parts if part[1]]
    if not parts:
        return None
    is_rtl = is_right_to_left(" ".join(text for _, text, _ in parts))
    words: list[PlacedWord] = []
    for quad, text, index in reversed(parts) if is_rtl else parts:
        read = () if reading.words is None else reading.words[index]
        read = tuple(word._replace(text=clean(word.text)) for word in read if clean(word.text))
        upright = _from_its_start(quad, read)
        score = float(reading.text_scores[index])
        placed = _placed(read, text, upright) if read else _shared_out(text, score, upright)
        words += [*placed[:-1], placed[-1]._replace(has_space=True)]
    words[-1] = words[-1]._replace(has_space=False)
    return PlacedLine(tuple(words), _around([word.quad for word in words]), is_rtl)


def _from_its_start(quad: NDArray[Any], words: Sequence[Word]) -> Float64:
    """A line's quad from the text's own top left: tall boxes are read downwards, upside-down lines to the left."""
    width, height = (float(sizes[0]) for sizes in quad_sizes(quad[None]))
    start = 1 if height >= TALL * width else 0
    along = _direction(np.roll(quad, -start, axis=0))
    if words:
        is_known = len(words) > 1 and not is_right_to_left(words[0].text)
        centre = [word.quad.mean(axis=0) for word in (words[0], words[-1])]
        seen = centre[1] - centre[0] if is_known else _direction(words[0].quad)
        start += 2 if seen @ along < -0.5 * float(np.linalg.norm(seen)) else 0
    return np.roll(quad.astype(np.float64), -start, axis=0)


def _placed(words: Sequence[Word], text: str, line: Float64) -> list[PlacedWord]:
    """Words with their own quads, of a line that reads `text` and has a quad from the text's own top left."""
    along, place, placed = _direction(line), 0, []
    for word in words:
        corners = word.quad.astype(np.float64)
        turns = [float(_direction(np.roll(corners, -turn, axis=0)) @ along) for turn in range(4)]
        start = text.find(word.text, place)
        place = start + len(word.text) if start >= 0 else place
        has_space = start < 0 or text[place : place + 1] == " "
        placed.append(PlacedWord(word.text, word.score, np.roll(corners, -int(np.argmax(turns)), axis=0), has_space))
    return placed


def _shared_out(text: str, score: float, line: Float64) -> list[PlacedWord]:
    """The words of a text, each with its part of the line's quad."""
    found = clusters(text)
    ends = np.zeros(len(found))
    in_view = visual_order(found)
    ends[in_view] = np.cumsum([width_of(found[index]) for index in in_view])
    starts = ends - [width_of(cluster) for cluster in found]
    placed, first = [], 0
    for word in text.split(" "):
        last = first + len(clusters(word))
        left, right = starts[first:last].min() / ends.max(), ends[first:last].max() / ends.max()
        top, bottom = line[1] - line[0], line[2] - line[3]
        corners = (line[0] + left * top, line[0] + right * top, line[3] + right * bottom, line[3] + left * bottom)
        placed.append(PlacedWord(word, score, np.stack(corners), has_space=True))
        first = last + 1
    return placed


def _direction(quad: NDArray[Any]) -> Float64:
    """The unit vector along the first edge and the third of a quad (4, 2)."""
    along = (quad[1] - quad[0] + quad[2] - quad[3]).astype(np.float64)
    unit: Float64 = along / max(float(np.linalg.norm(along)), 1e-9)
    return unit


def _around(quads: Sequence[Float64]) -> Float64:
    """The rectangle around quads in the direction of their sum."""
    if len(quads) == 1:
        return quads[0]
    across, down = sum(quad[1] - quad[0] + quad[2] - quad[3] for quad in quads)
    return rectangle_around(np.concatenate(quads), float(np.arctan2(down, across))).astype(np.float64)

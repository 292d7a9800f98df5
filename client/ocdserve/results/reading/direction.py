# SPDX-License-Identifier: Apache-2.0
"""Which lines of a page are upside down, by how well they read either way.

A recogniser reads a line with a low score if it is upside down, but also if it is hard to read. So lines that read
badly are read turned by 180 degrees too, and the lines of a page vote, by their widths: scanned pages are upside down
as a whole. Horizontal lines and columns, which are read from below upwards, vote apart. Narrow lines have no say: a
single character often reads well both ways.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ocdserve.results.reading.characters import clean, clusters, width_of
from ocdserve.results.reading.lines import LinePlace

# Width over height from which on a line has a say.
_WIDE = 2.0
# By how much one direction must score better than the other against which there is a presumption.
_MARGIN = 0.1


def from_their_text(
    quads: NDArray[np.float32], lines: Sequence[LinePlace], texts: Sequence[str], upside_down: Sequence[bool]
) -> NDArray[np.float32]:
    """Quads that begin at the top left of their text.

    A tall quad begins at its own top left, but was read turned. Where it reads wide characters (Chinese, Japanese,
    Korean), it is a column, and stays; else its text runs down, as on a page that is turned by 90 degrees.

    Args:
        quads: float32 (N, 4, 2), as detected.
        lines: Where the lines lie.
        texts: What they read.
        upside_down: Of each, whether its text is.
    """
    runs_down = [
        place.turned and place.size[1] >= _WIDE * place.size[0] and not _is_column(text)
        for place, text in zip(lines, texts, strict=True)
    ]
    down, turn = (np.array(which, bool).reshape(-1, 1, 1) for which in (runs_down, upside_down))
    quads = np.where(down, np.roll(quads, -1, axis=1), quads)
    return np.where(turn, np.roll(quads, 2, axis=1), quads)


def _is_column(text: str) -> bool:
    """Whether at least half of the characters are wide."""
    widths = [width_of(cluster) for cluster in clusters(clean(text)) if cluster != " "]
    return 2 * widths.count(2) >= len(widths)


class Direction:
    """The lines of one page while they are read.

    Args:
        scores: Score of each line as it is (N,), 0 to 1.
        lines: Where the lines lie.
        below: Lines that read with a lower score are in doubt.
    """

    def __init__(self, scores: Sequence[float], lines: Sequence[LinePlace], below: float) -> None:
        sizes = np.array([line.size for line in lines], np.int64).reshape(-1, 2)
        self._widths = sizes[:, 1]
        self._wide = sizes[:, 1] >= _WIDE * sizes[:, 0]
        self._columns = np.array([line.turned for line in lines], bool)
        # As the wire has them, so that a client decides as the server does.
        self._upright = np.array(scores, np.float32).astype(np.float64)
        self._turned = np.zeros(len(lines))
        self._tried = np.zeros(len(lines), bool)
        self._below = float(np.float32(below))

    def next_lines(self) -> list[int]:
        """Indices of the lines to be read turned by 180 degrees next; `add` takes their scores. None: all is known."""
        due = self._wide & (self._upright < self._below)
        due &= ~self._tried
        wanted = due if due.any() else self._outvoted() & ~self._tried
        return [int(index) for index in np.flatnonzero(wanted)]

    def add(self, indices: Sequence[int], scores: Sequence[float]) -> None:
        """Take the scores of lines that were read turned."""
        self._turned[list(indices)] = np.array(scores, np.float32)
        self._tried[list(indices)] = True

    def turned(self) -> list[bool]:
        """Of each line, whether it is upside down."""
        margin = np.where(self._outvoted(), -_MARGIN, _MARGIN)
        wide = self._tried & (self._turned > self._upright + margin)
        return list(map(bool, np.where(self._wide, wide, self._outvoted())))

    def _outvoted(self) -> NDArray[np.bool_]:
        """Of each line, whether those of its kind are upside down."""
        prefers = self._tried & (self._turned > self._upright + _MARGIN)
        outvoted = np.zeros(len(self._widths), bool)
        for kind in (self._columns, ~self._columns):
            voters = self._widths * (kind & self._wide)
            outvoted |= kind & (2 * voters[prefers].sum() > voters.sum())
        return outvoted

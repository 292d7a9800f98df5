# SPDX-License-Identifier: Apache-2.0
"""Shapes that are hard to label or to find the smallest rectangle of, as probability maps, uint8 (h, w)."""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.uint8]

TEXT = 200

_DIAMOND = ((-2, 0), (0, -2), (2, 0), (0, 2))
_OCTAGON = ((-2, -1), (-1, -2), (1, -2), (2, -1), (2, 1), (1, 2), (-1, 2), (-2, 1))


def _fill(target: Map, corners: Sequence[Sequence[float]] | NDArray[Any], value: int) -> None:
    cv2.fillPoly(target, [np.array(corners).astype(np.int32)], (value,))


def empty(height: int = 40, width: int = 70) -> Map:
    """No pixel above any threshold."""
    return np.zeros((height, width), np.uint8)


def full() -> Map:
    """All pixels are text: one region that touches all borders."""
    return np.full((37, 65), TEXT, np.uint8)


def one_pixel() -> Map:
    """A map of one pixel."""
    return np.full((1, 1), TEXT, np.uint8)


def one_row() -> Map:
    """A map one pixel high, with gaps at the borders of 32-bit words."""
    row = np.full((1, 130), TEXT, np.uint8)
    row[0, [31, 32, 64, 95]] = 0
    return row


def one_column() -> Map:
    """A map one pixel wide."""
    return one_row().T.copy()


def spiral() -> Map:
    """A spiral of lines and gaps one pixel thick: the longest path from a pixel to its root."""
    size = 61
    result = empty(size, size)
    x, y, length = 0, 0, size - 1
    for turn in range(2 * (size // 2)):
        dx, dy = ((1, 0), (0, 1), (-1, 0), (0, -1))[turn % 4]
        cv2.line(result, (x, y), (x + dx * length, y + dy * length), (TEXT,))
        x, y = x + dx * length, y + dy * length
        if turn >= 2 and turn % 2 == 0:
            length -= 2
        if length <= 0:
            break
    return result


def comb() -> Map:
    """Teeth that join only in the last row: separate regions until then."""
    result = empty(50, 99)
    result[:, ::2] = TEXT
    result[-1] = TEXT
    return result


def comb_upside_down() -> Map:
    """Teeth that separate below the first row."""
    return comb()[::-1].copy()


def nested() -> Map:
    """Nested rings with text inside the innermost: holes in holes."""
    result = empty(80, 120)
    for inset in range(0, 40, 8):
        cv2.rectangle(result, (inset, inset), (119 - inset, 79 - inset), (TEXT,), 3)
    result[38:42, 50:70] = TEXT
    return result


def diagonal_chain() -> Map:
    """Diagonals of pixels that touch only at corners, across the borders of 32-bit words, in both directions."""
    result = empty(70, 70)
    for i in range(70):
        result[i, i] = TEXT
        result[i, 69 - i] = TEXT
    return result


def checkerboard() -> Map:
    """One region connected at corners, with a hole for each inner pixel of the other colour."""
    result = empty(33, 66)
    result[::2, ::2] = TEXT
    result[1::2, 1::2] = TEXT
    return result


def holes_that_touch_diagonally() -> Map:
    """Two holes that touch at a corner stay two, because the background is 4-connected."""
    result = empty(30, 40)
    result[2:28, 2:38] = TEXT
    result[8:15, 8:20] = 0
    result[15:22, 20:32] = 0
    return result


def diamond_rings() -> Map:
    """Rings whose top row is a single pixel: outline and hole start in the same column."""
    result = empty(60, 120)
    for index, radius in enumerate((5, 8, 12, 20)):
        corners = np.array((20 + 28 * index, 30)) + radius * np.array(_DIAMOND) // 2
        cv2.polylines(result, [corners.astype(np.int32)], True, (TEXT,))
    return result


def at_the_borders() -> Map:
    """Rectangles, some rotated, that extend beyond each side and corner."""
    result = empty(90, 130)
    places = ((0, 0), (129, 0), (0, 89), (129, 89), (65, 0), (65, 89), (0, 45), (129, 45))
    for (x, y), angle in zip(places, (30, 45, 10, -20, 5, 85, 60, 0), strict=True):
        corners = cv2.boxPoints(((float(x), float(y)), (30.0, 14.0), float(angle)))
        _fill(result, corners, TEXT)
    return result


def tied_rectangles() -> Map:
    """Diamonds, octagons and plus signs: several smallest rectangles each."""
    result = empty(120, 160)
    for row, column in np.ndindex(3, 4):
        centre, half = np.array((20 + 40 * column, 20 + 40 * row)), 2 + column
        if row < 2:
            _fill(result, centre + half * np.array((_DIAMOND, _OCTAGON)[row]), TEXT)
        else:
            (x, y), size = centre, 2 * half
            result[y - size : y + size + 1, x - 1 : x + 2] = TEXT
            result[y - 1 : y + 2, x - size : x + size + 1] = TEXT
    return result


def equal_words() -> Map:
    """Rectangles of equal score, distinguished only by raster order."""
    result = empty(64, 128)
    for row, column in np.ndindex(5, 6):
        result[4 + 12 * row : 10 + 12 * row, 3 + 21 * column : 18 + 21 * column] = TEXT
    return result


def thin_strokes() -> Map:
    """Strokes one pixel thick, whose contours visit the corner pixels twice."""
    result = empty(80, 120)
    for x, y, dx, dy in ((5, 5, 30, 40), (60, 10, 25, 55), (40, 60, 60, 12), (100, 5, 12, 70)):
        cv2.line(result, (x, y), (x + dx // 2, y + dy), (TEXT,))
        cv2.line(result, (x + dx // 2, y + dy), (x + dx, y), (TEXT,))
    return result


def tilted_columns() -> Map:
    """Columns tilted to the left and to the right, around the angle at which they become lines as well."""
    result = empty(100, 400)
    for index, tilt in enumerate((-20, -11.4, -11.2, -4, -1, 0, 1, 4, 11.2, 11.4, 20)):
        _fill(result, cv2.boxPoints(((30.0 + 34 * index, 50.0), (8.0, 84.0), tilt)), TEXT)
    return result


SHAPES: tuple[Callable[[], Map], ...] = (
    empty,
    full,
    one_pixel,
    one_row,
    one_column,
    spiral,
    comb,
    comb_upside_down,
    nested,
    diagonal_chain,
    checkerboard,
    holes_that_touch_diagonally,
    diamond_rings,
    at_the_borders,
    tied_rectangles,
    equal_words,
    thin_strokes,
    tilted_columns,
)


def noise(rng: np.random.Generator, height: int, width: int) -> Map:
    """Blobs of random size, from specks to regions as large as the map."""
    values = rng.random((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(values, (0, 0), float(rng.choice([0.6, 1, 2, 4, 8])))
    spread = float(np.ptp(smooth)) or 1.0
    result: Map = ((smooth - smooth.min()) / spread * 255).astype(np.uint8)
    return result


def words(rng: np.random.Generator, height: int, width: int, pitch: int = 18) -> Map:
    """A page of words, each slightly rotated and with its own probability; `pitch` is the line spacing in pixels."""
    result = np.zeros((height, width), np.uint8)
    for y in range(pitch, height - pitch // 2, pitch):
        for x in range(2 * pitch, width - pitch, 3 * pitch):
            size = float(rng.uniform(pitch, 2.4 * pitch)), pitch * 0.5
            corners = cv2.boxPoints(((float(x), float(y)), size, float(rng.uniform(-8, 8))))
            _fill(result, corners, int(rng.integers(120, 256)))
    return result

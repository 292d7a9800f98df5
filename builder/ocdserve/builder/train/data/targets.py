# SPDX-License-Identifier: Apache-2.0
"""Targets of a DB network: the shrink map and the border (threshold) map with their masks.

Real-time Scene Text Detection with Differentiable Binarization (Liao et al., 2020), section 3.4, with the details of
NVIDIA TAO: Clipper on whole pixels, only the first of an offset's pieces, filling of truncated corners.

Polygons are (K, 2) with K >= 1, x and y in pixels of the picture of `size` (height, width); they may reach out of it.
The pixel in column x and row y is the point (x, y).
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.stages.geometry import areas_and_perimeters, offset_polygon
from ocdserve.contract import InvalidInputError

Polygons = Sequence[NDArray[Any]]
Float32 = NDArray[np.float32]

# Area of a text instance below which it is don't-care, in pixels.
_LEAST_AREA = 1.0


def shrink_map(
    polygons: Polygons,
    ignored: Sequence[bool],
    size: tuple[int, int],
    ratio: float = 0.4,
    min_text_size: float = 8,
    unclip: float | None = None,
) -> tuple[Float32, Float32]:
    """Draw the text instances, shrunk by area (1 - ratio^2) / perimeter, of which the network predicts the probability.

    With `unclip`, the ratio of post-processing, they are shrunk by what it grows them back by instead, exactly for
    rectangles, and `ratio` is not used.

    Coordinates are clipped to the picture first. Instances that are ignored, less than `min_text_size` pixels wide or
    high, smaller than a pixel, or that vanish when shrunk, are masked instead.

    Returns:
        The map, 1 inside of shrunk instances, else 0; and its mask, 0 inside of masked instances, else 1: float32
        (H, W) each.

    Raises:
        InvalidInputError: `ignored` has another length than `polygons`, or `ratio` is not between 0 and 1.
    """
    _check(polygons, ignored)
    check_targets(ratio)
    shrunk, mask = np.zeros(size, np.float32), np.ones(size, np.float32)
    farthest = np.array(size[::-1]) - 1
    clipped = [np.clip(np.asarray(polygon, np.float64), 0, farthest) for polygon in polygons]
    areas, perimeters = areas_and_perimeters(clipped)
    for polygon, is_ignored, area, perimeter in zip(clipped, ignored, areas, perimeters, strict=True):
        pieces = []
        if not is_ignored and area >= _LEAST_AREA and np.ptp(polygon, axis=0).min() >= min_text_size:
            distance = area * (1 - ratio**2) / perimeter if unclip is None else _regrown(area, perimeter, unclip)
            pieces = offset_polygon(polygon, -distance)
        if pieces:
            cv2.fillPoly(shrunk, [pieces[0]], (1.0,))
        else:
            cv2.fillPoly(mask, [polygon.astype(np.int32)], (0.0,))
    return shrunk, mask


def _regrown(area: float, perimeter: float, unclip: float) -> float:
    """The distance d by which a rectangle shrinks to one that post-processing grows by d, to its old size.

    Shrunk by d, area and perimeter are A - P d + 4 d^2 and P - 8 d; d is their quotient times `unclip`.
    """
    a, b, c = 4 * (unclip + 2), (1 + unclip) * perimeter, unclip * area
    return float(b - np.sqrt(max(0.0, b**2 - 4 * a * c))) / (2 * a)


def border_map(
    polygons: Polygons,
    ignored: Sequence[bool],
    size: tuple[int, int],
    ratio: float = 0.4,
    low: float = 0.3,
    high: float = 0.7,
) -> tuple[Float32, Float32]:
    """Draw the closeness of pixels to the outlines of text instances, which supervises the network's threshold.

    `high` on an outline, falling linearly to `low` at the distance D = area (1 - ratio^2) / perimeter from it, on both
    sides; where instances overlap, the larger value. Distances are to the nearest point of a side.

    Returns:
        The map, `low` to `high`; and its mask, 1 inside of instances grown by D, else 0: float32 (H, W) each. Ignored
        instances and those without area are not drawn.

    Raises:
        InvalidInputError: See `shrink_map`; or `low` and `high` are not in order between 0 and 1.
    """
    _check(polygons, ignored)
    check_targets(ratio, low, high)
    canvas, mask = np.zeros(size, np.float32), np.zeros(size, np.float32)
    areas, perimeters = areas_and_perimeters(polygons)
    for polygon, is_ignored, area, perimeter in zip(polygons, ignored, areas, perimeters, strict=True):
        if is_ignored or not area > 0:
            continue
        distance = area * (1 - ratio**2) / perimeter
        pieces = offset_polygon(polygon, distance)
        if pieces:
            cv2.fillPoly(mask, [pieces[0]], (1.0,))
            _draw_closeness(canvas, np.asarray(polygon, np.float64), pieces[0], distance)
    return canvas * np.float32(high - low) + np.float32(low), mask


def check_targets(ratio: float, low: float = 0.3, high: float = 0.7) -> None:
    """Raise InvalidInputError unless the arguments of `shrink_map` and `border_map` make sense."""
    if not 0 < ratio < 1:
        raise InvalidInputError(f"shrink_ratio must be between 0 and 1; got {ratio}")
    if not 0 <= low < high <= 1:
        raise InvalidInputError(f"the border map's values must be 0 <= low < high <= 1; got low {low}, high {high}")


def _draw_closeness(canvas: Float32, polygon: NDArray[np.float64], grown: NDArray[np.int32], distance: float) -> None:
    """Raise the canvas to 1 - d / distance inside of the bounding box of `grown`, d being the distance to a side."""
    left, top = np.maximum(grown.min(axis=0), 0)
    right, bottom = np.minimum(grown.max(axis=0) + 1, canvas.shape[::-1])
    if left >= right or top >= bottom:
        return
    sides = np.roll(polygon, -1, axis=0) - polygon
    lengths = np.hypot(*sides.T)
    polygon, sides, lengths = polygon[lengths > 0], sides[lengths > 0], lengths[lengths > 0]
    # In the coordinates of each side, in units of `distance`: along it from its middle, and across it.
    (ux, uy), half = (sides / lengths[:, None] / distance).T, lengths / distance / 2
    middles = polygon + sides / 2
    x = np.arange(left, right) - middles[:, :1]
    y = np.arange(top, bottom) - middles[:, 1:]
    along = _sums(x * ux[:, None], y * uy[:, None])
    across = _sums(-x * uy[:, None], y * ux[:, None])
    # What lies beyond an end of the side: the distance is to that end.
    np.abs(along, out=along)
    along -= half.astype(np.float32)[:, None, None]
    np.maximum(along, 0, out=along)
    along *= along
    across *= across
    across += along
    nearest = np.sqrt(across.min(axis=0))
    region = canvas[top:bottom, left:right]
    np.maximum(region, 1 - nearest, out=region)


def _sums(columns: NDArray[np.float64], rows: NDArray[np.float64]) -> Float32:
    """Return columns (K, w) and rows (K, h) added up: float32 (K, h, w)."""
    return columns.astype(np.float32)[:, None, :] + rows.astype(np.float32)[:, :, None]


def _check(polygons: Polygons, ignored: Sequence[bool]) -> None:
    if len(polygons) != len(ignored):
        raise InvalidInputError(f"each polygon needs its flag: {len(polygons)} polygons, {len(ignored)} flags")

# SPDX-License-Identifier: Apache-2.0
"""Vectorised geometry of quads: corners, order, area, offset and filled sums.

Coordinates are (x, y) in pixels, y downwards. Everything here works on N quads at once; the results equal
those of OpenCV 4.11 and Clipper 6 quad by quad, as the tests check.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pyclipper
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

# Clipper's default arc tolerance, also the largest share of the offset that it may be.
_ARC_TOLERANCE = 0.25


def rectangle_corners(rectangles: Float32) -> Float32:
    """Corners of rotated rectangles, bit-equal to `cv2.boxPoints`.

    Args:
        rectangles: float32 (N, 5): centre x, centre y, width, height, angle in degrees.

    Returns:
        float32 (N, 4, 2).
    """
    angle = rectangles[:, 4].astype(np.float64) * (np.pi / 180.0)
    half_cos = np.cos(angle).astype(np.float32) * np.float32(0.5)
    half_sin = np.sin(angle).astype(np.float32) * np.float32(0.5)
    x, y, width, height = (rectangles[:, column] for column in range(4))
    corners = np.empty((len(rectangles), 4, 2), np.float32)
    corners[:, 0, 0] = x - half_sin * height - half_cos * width
    corners[:, 0, 1] = y + half_cos * height - half_sin * width
    corners[:, 1, 0] = x + half_sin * height - half_cos * width
    corners[:, 1, 1] = y - half_cos * height - half_sin * width
    corners[:, 2] = np.float32(2) * rectangles[:, :2] - corners[:, 0]
    corners[:, 3] = np.float32(2) * rectangles[:, :2] - corners[:, 1]
    return corners


def order_corners(quads: Float32) -> Float32:
    """Order the corners of rectangles clockwise from the top left, the rule of Differentiable Binarization.

    The two leftmost corners are top left and bottom left by y, the two rightmost top right and bottom right. Mode
    `tao` returns this order; otherwise columns are turned once more, see `ocdserve.results.quads.upper_edge_first`.

    Args:
        quads: (N, 4, 2).

    Returns:
        (N, 4, 2): top left, top right, bottom right, bottom left.
    """
    by_x = np.take_along_axis(quads, np.argsort(quads[:, :, 0], axis=1, kind="stable")[:, :, None], axis=1)
    left, right = by_x[:, :2], by_x[:, 2:]
    left_swapped = ~(left[:, 1, 1] > left[:, 0, 1])
    right_swapped = ~(right[:, 1, 1] > right[:, 0, 1])
    left = np.where(left_swapped[:, None, None], left[:, ::-1], left)
    right = np.where(right_swapped[:, None, None], right[:, ::-1], right)
    return np.stack([left[:, 0], right[:, 0], right[:, 1], left[:, 1]], axis=1)


def areas_and_perimeters(polygons: Float32 | Sequence[NDArray[Any]]) -> tuple[Float64, Float64]:
    """Area (shoelace formula) and perimeter, float64 (N,) each, of N simple polygons (K, 2) with K >= 1."""
    if not len(polygons):
        return np.empty(0), np.empty(0)
    lengths = np.array([len(polygon) for polygon in polygons])
    points = np.concatenate(polygons).astype(np.float64)
    starts = np.cumsum(lengths) - lengths
    # Relative to the first corner: products of large coordinates would lose the digits that decide a rounding.
    points -= np.repeat(points[starts], lengths, axis=0)
    following = np.roll(points, -1, axis=0)
    following[starts + lengths - 1] = points[starts]
    steps = following - points
    areas = np.abs(np.add.reduceat(_cross(points, following), starts)) / 2.0
    return areas, np.add.reduceat(_lengths(steps), starts)


def offset_polygon(points: NDArray[Any], distance: float) -> list[NDArray[np.int32]]:
    """Grow one polygon by `distance` pixels with round joins, or shrink it, as Clipper 6 does.

    Args:
        points: (M, 2); Clipper works on whole pixels, fractions are truncated.
        distance: Offset in pixels; negative shrinks.

    Returns:
        The pieces, each int32 (K, 2); empty if the polygon collapses.
    """
    offset = pyclipper.PyclipperOffset()
    try:
        offset.AddPath(np.trunc(points).astype(np.int64).tolist(), pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    except pyclipper.ClipperException:
        return []
    return [np.asarray(piece, np.int32) for piece in offset.Execute(distance)]


def offset_quads(quads: Float32, distances: Float64) -> list[NDArray[np.int32]]:
    """Grow N quads at once; returns for each the points of `offset_polygon`'s single piece.

    Clipper's arithmetic for convex paths (truncate, orient, unit normals, arc steps, round half away from
    zero) over arrays. Quads that are not strictly convex after truncation, and those so small or skewed that
    Clipper takes its branch for nearly straight corners, go through Clipper itself. The points may hold
    duplicates and start elsewhere than Clipper's, at the topmost and there leftmost; their convex hull is the same.

    Args:
        quads: float32 (N, 4, 2).
        distances: float64 (N,), in pixels.

    Returns:
        N arrays int32 (K, 2); empty for quads that collapse.
    """
    corners = np.trunc(quads).astype(np.int64)
    edges = np.roll(corners, -1, axis=1) - corners
    reverse = _cross(edges[:, 0], edges[:, 1]) < 0
    corners = np.where(reverse[:, None, None], corners[:, ::-1], corners)
    edges = (np.roll(corners, -1, axis=1) - corners).astype(np.float64)
    lengths = _lengths(edges)
    normals = np.stack([edges[..., 1], -edges[..., 0]], axis=-1) / np.maximum(lengths, 1)[..., None]
    sines = _cross(np.roll(normals, 1, axis=1), normals)
    bent = (sines * distances[:, None] >= 1).all(axis=1)
    results: list[NDArray[np.int32]] = [np.empty((0, 2), np.int32)] * len(quads)
    if bent.any():
        grown = _offset_convex(corners[bent], normals[bent], sines[bent], distances[bent])
        for index, points in zip(np.flatnonzero(bent), grown, strict=True):
            results[index] = points
    for index in np.flatnonzero(~bent):
        pieces = offset_polygon(quads[index], float(distances[index]))
        if pieces:
            results[index] = np.concatenate(pieces)
    return results


def expand_rectangles(quads: Float32, distances: Float64) -> tuple[Float32, Float32]:
    """Move the sides of N rectangles outwards, without Clipper's whole pixels and round joins.

    Args:
        quads: float32 (N, 4, 2), clockwise from the top left.
        distances: float64 (N,), in pixels.

    Returns:
        The rectangles' quads, float32 (N, 4, 2), and their shorter sides, float32 (N,).
    """
    corners = quads.astype(np.float64)
    edges = corners[:, [1, 3]] - corners[:, :1]
    lengths = _lengths(edges)
    across, down = np.moveaxis(edges / np.where(lengths > 0, lengths, 1)[..., None], 1, 0)
    moves = np.stack([-across - down, across - down, across + down, -across + down], axis=1)
    moved = (corners + moves * distances[:, None, None]).astype(np.float32)
    return moved, (lengths.min(axis=1, initial=np.inf) + 2 * distances).astype(np.float32)


def filled_means(values: NDArray[Any], quads: Int64) -> Float64:
    """Mean of an image under each filled quad: the pixels that `cv2.fillPoly` would set, outline included.

    A row of a filled convex quad is the span between the extremes of its 8-connected outline, so that a
    summed-area table turns each row into four look-ups. Sums of integers are exact. Quads that reach outside
    of the image go through OpenCV itself, whose clipped outlines occasionally differ in a pixel.

    Args:
        values: (H, W) uint8 or float32.
        quads: int64 (N, 4, 2), convex, may reach outside of the image; the part inside counts.

    Returns:
        float64 (N,); 0 where no pixel is inside.
    """
    means = np.zeros(len(quads))
    height, width = values.shape
    inside = ((quads >= 0) & (quads < (width, height))).all(axis=(1, 2))
    if inside.any():
        index, rows, first, last = _row_spans(quads[inside].astype(np.int32))
        # OpenCV would sum uint8 in int32, which overflows from 8.4 megapixels of 255 on.
        exact_in_int32 = values.dtype == np.uint8 and values.size * 255 < 2**31
        table = cv2.integral(values, sdepth=cv2.CV_32S if exact_in_int32 else cv2.CV_64F)
        end = last + 1
        sums = table[rows + 1, end] - table[rows, end] - table[rows + 1, first] + table[rows, first]
        means[inside] = np.bincount(index, weights=sums) / np.bincount(index, weights=end - first)
    for outside in np.flatnonzero(~inside):
        means[outside] = polygon_mean(values, quads[outside])
    return means


def polygon_mean(values: NDArray[Any], polygon: NDArray[Any]) -> float:
    """Mean of an image (H, W) under one filled polygon, whole pixels (M, 2); 0 if no pixel is inside."""
    height, width = values.shape
    left, top, columns, rows = cv2.boundingRect(polygon.astype(np.int32))
    x, right = (min(max(end, 0), width - 1) for end in (left, left + columns - 1))
    y, bottom = (min(max(end, 0), height - 1) for end in (top, top + rows - 1))
    mask = np.zeros((bottom - y + 1, right - x + 1), np.uint8)
    cv2.fillPoly(mask, [polygon.astype(np.int32)], (1,), offset=(-x, -y))
    window = values[y : bottom + 1, x : right + 1]
    if values.dtype == np.uint8:
        # Not cv2.mean, which rounds differently from a sum divided by a count: equal means must be equal numbers.
        pixels = cv2.countNonZero(mask)
        return float(window[mask.view(np.bool_)].sum(dtype=np.int64)) / pixels if pixels else 0.0
    return cv2.mean(window, mask)[0]


def _cross(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    product: NDArray[Any] = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return product


def _lengths(steps: NDArray[Any]) -> Float64:
    """Lengths of vectors (..., 2), in arithmetic that every device rounds alike."""
    lengths: Float64 = np.sqrt(steps[..., 0] * steps[..., 0] + steps[..., 1] * steps[..., 1])
    return lengths


def _round_half_away(values: Float64) -> Float64:
    rounded: Float64 = np.trunc(values + np.copysign(0.5, values))
    return rounded


def _offset_convex(corners: Int64, after: Float64, sines: Float64, distances: Float64) -> list[NDArray[np.int32]]:
    """Clipper 6's offset of convex quads with clear corners (ClipperOffset::DoOffset, DoRound).

    `after` holds the unit normal of the edge that follows each corner, `sines` the sine of each turn.
    """
    before = np.roll(after, 1, axis=1)
    tolerance = np.minimum(_ARC_TOLERANCE, distances * _ARC_TOLERANCE)
    per_turn = np.minimum(np.pi / np.arccos(1.0 - tolerance / distances), distances * np.pi)
    step_sin, step_cos = np.sin(2 * np.pi / per_turn)[:, None], np.cos(2 * np.pi / per_turn)[:, None]
    turns = np.arctan2(np.minimum(sines, 1.0), (before * after).sum(axis=-1))
    steps = np.maximum(_round_half_away(per_turn[:, None] / (2 * np.pi) * turns), 1).astype(np.int64)

    most = int(steps.max())
    points = np.zeros((*steps.shape, most + 1, 2))
    x, y = before[..., 0], before[..., 1]
    scale = distances[:, None]
    for step in range(most):
        points[:, :, step, 0] = corners[..., 0] + x * scale
        points[:, :, step, 1] = corners[..., 1] + y * scale
        x, y = x * step_cos - step_sin * y, x * step_sin + y * step_cos
    ends = corners + after * distances[:, None, None]
    np.put_along_axis(points, steps[..., None, None].repeat(2, axis=-1), ends[:, :, None], axis=2)
    kept = np.arange(most + 1) <= steps[..., None]
    rounded = _round_half_away(points[kept]).astype(np.int32)
    counts = (steps + 1).sum(axis=1)
    return np.split(rounded[_from_the_top(rounded, counts)], np.cumsum(counts)[:-1])


def _from_the_top(points: Int32, counts: Int64) -> Int64:
    """Indices that rotate each polygon of the concatenated points to start at its topmost, leftmost point.

    OpenCV's choice among rectangles of equal area depends on where a polygon starts. Of equal points that follow each
    other the first is taken.
    """
    starts = np.cumsum(counts) - counts
    polygon = np.repeat(np.arange(len(counts)), counts)
    keys = points[:, 1].astype(np.int64) * 2**32 + points[:, 0]
    is_top = keys == np.minimum.reduceat(keys, starts)[polygon]
    place = np.arange(len(points)) - starts[polygon]
    before = starts[polygon] + (place - 1) % counts[polygon]
    begins = np.flatnonzero(is_top & ~is_top[before])
    first = place[begins[np.searchsorted(polygon[begins], np.arange(len(counts)))]]
    indices: Int64 = starts[polygon] + (place + first[polygon]) % counts[polygon]
    return indices


def _row_spans(quads: Int32) -> tuple[Int32, Int32, Int32, Int32]:
    """Rows of filled convex quads: (quad index, row, first x, last x), one entry per row of each quad.

    The outline is Bresenham's as OpenCV's LineIterator draws it from the left end to the right: after i steps
    along the longer axis the other coordinate has moved by ceil(i * minor / major - 1/2).
    """
    top = quads[:, :, 1].min(axis=1)
    heights = quads[:, :, 1].max(axis=1) - top + 1
    starts = (np.cumsum(heights) - heights).astype(np.int32)
    quad_index = np.repeat(np.arange(len(quads), dtype=np.int32), heights)
    rows = np.arange(len(quad_index), dtype=np.int32) + (top - starts)[quad_index]
    first = np.full(len(rows), np.iinfo(np.int32).max, np.int32)
    last = np.full(len(rows), np.iinfo(np.int32).min, np.int32)
    for corner in range(4):
        a, b = quads[:, corner], quads[:, (corner + 1) % 4]
        edge_top = np.minimum(a[:, 1], b[:, 1])
        lengths = np.abs(a[:, 1] - b[:, 1]) + 1
        edge = np.repeat(np.arange(len(quads), dtype=np.int32), lengths)
        edge_starts = (np.cumsum(lengths) - lengths).astype(np.int32)
        place = np.arange(len(edge), dtype=np.int32)
        row = place + (edge_top - edge_starts)[edge]
        entry = place + (starts + edge_top - top - edge_starts)[edge]
        low, high = _edge_spans(a, b, edge, row)
        first[entry] = np.minimum(first[entry], low)
        last[entry] = np.maximum(last[entry], high)
    return quad_index, rows, first, last


def _edge_spans(a: Int32, b: Int32, edge: Int32, row: Int32) -> tuple[Int32, Int32]:
    """First and last x of the edges a-b (N, 2) in the given rows; edge (R,) is the edge of each row (R,)."""
    swap = (a[:, 0] > b[:, 0])[:, None]
    left, right = np.where(swap, b, a), np.where(swap, a, b)
    dx = right[:, 0] - left[:, 0]
    dy = right[:, 1] - left[:, 1]
    down = np.abs(dy)
    step = np.where(dy < 0, -1, 1).astype(np.int32)[edge] * (row - left[edge, 1])
    # Steep: the pixel whose column rounds to x, one per row. Shallow: all pixels whose row rounds to this one.
    steep = (down > dx)[edge]
    divisor = np.maximum(2 * down, 1)[edge]
    rise, run = 2 * dx[edge], dx[edge]
    half = np.where(steep, down[edge], run)
    low = np.where(steep, -((half - rise * step) // divisor), (rise * step - half) // divisor + 1)
    high = np.where(steep, low, (rise * step + half) // divisor)
    low = np.maximum(low, 0)
    high = np.where((down == 0)[edge], run, np.minimum(high, run))
    low = np.where((down == 0)[edge], 0, low)
    x = left[edge, 0]
    return x + low, x + high

# SPDX-License-Identifier: Apache-2.0
"""Geometry of quads: order of corners, sizes, direction, enclosing rectangles, intersections.

Coordinates are (x, y) in pixels, y downwards; corners run clockwise from the top left, see `order_corners`. Pure NumPy.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "convex_hull",
    "intersection_area",
    "intersection_areas",
    "order_corners",
    "page_angle",
    "polygon_area",
    "quad_areas",
    "quad_sizes",
    "rectangle_around",
    "shortest",
    "smallest_rectangle",
    "turned",
    "upper_edge_first",
]

Float64 = NDArray[np.float64]

# An edge that goes down or up by more than this times its way to the right is not an upper one; so in window.cuh.
_STEEPEST = 5.0


def quad_sizes(quads: NDArray[Any]) -> tuple[Float64, Float64]:
    """Widths (mean of top and bottom edge) and heights (mean of left and right edge) of quads.

    Args:
        quads: (N, 4, 2).

    Returns:
        Two arrays float64 (N,).

    >>> quad_sizes(np.array([[[0, 0], [30, 40], [24, 48], [-6, 8]]]))
    (array([50.]), array([10.]))
    """
    edges = np.linalg.norm(np.roll(quads, -1, axis=1).astype(np.float64) - quads, axis=2)
    return (edges[:, 0] + edges[:, 2]) / 2, (edges[:, 1] + edges[:, 3]) / 2


def quad_areas(quads: NDArray[Any]) -> Float64:
    """Areas of quads (N, 4, 2), float64 (N,)."""
    diagonals = quads.astype(np.float64)[:, 2:] - quads[:, :2]
    areas: Float64 = np.abs(diagonals[:, 0, 0] * diagonals[:, 1, 1] - diagonals[:, 0, 1] * diagonals[:, 1, 0]) / 2
    return areas


def page_angle(quads: NDArray[Any]) -> float:
    """Direction of most of the text: the median of the quads' directions, weighted by width.

    Args:
        quads: (N, 4, 2).

    Returns:
        Radians, clockwise in the image; 0 without quads.
    """
    if not len(quads):
        return 0.0
    along = quads[:, 1].astype(np.float64) - quads[:, 0] + quads[:, 2] - quads[:, 3]
    total = along.sum(axis=0)
    mean = float(np.arctan2(total[1], total[0]))
    off = np.arctan2(along[:, 1], along[:, 0]) - mean
    off = (off + np.pi) % (2 * np.pi) - np.pi  # a median needs a line, not a circle: cut opposite to the mean
    order = np.argsort(off)
    weights = np.cumsum(np.linalg.norm(along, axis=1)[order])
    return mean + float(off[order[np.searchsorted(weights, weights[-1] / 2)]])


def turned(points: NDArray[Any], angle: float) -> Float64:
    """Points (..., 2) in a frame whose x axis points along `angle` (radians, clockwise in the image)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    rotated: Float64 = points.astype(np.float64) @ np.array([[cosine, -sine], [sine, cosine]])
    return rotated


def rectangle_around(points: NDArray[Any], angle: float) -> NDArray[np.float32]:
    """The smallest rectangle of that direction around points (M, 2), (4, 2), corners from the top left in its frame.

    >>> rectangle_around(np.array([[1, 5], [3, 2], [4, 4]]), 0.0).tolist()
    [[1.0, 2.0], [4.0, 2.0], [4.0, 5.0], [1.0, 5.0]]
    """
    frame = turned(points, angle)
    (left, top), (right, bottom) = frame.min(axis=0), frame.max(axis=0)
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return turned(corners, -angle).astype(np.float32)


def smallest_rectangle(points: NDArray[Any]) -> NDArray[np.float32]:
    """The rectangle of least area around points (M, 2), M of 1 or more, corners in the order of `order_corners`."""
    hull = convex_hull(points)
    edges = np.roll(hull, -1, axis=0) - hull
    # One of its sides lies on an edge of the hull (Freeman and Shapira, 1975).
    rectangles = [rectangle_around(hull, float(angle)) for angle in np.arctan2(edges[:, 1], edges[:, 0])]
    areas = quad_areas(np.stack(rectangles))
    return order_corners(rectangles[int(np.argmin(areas))])


def order_corners(quad: NDArray[Any]) -> NDArray[np.float32]:
    """The corners of a rectangle (4, 2) clockwise from the top left, by the detector's own rule.

    The two leftmost corners are top left and bottom left, the two rightmost top right and bottom right. Where the upper
    edge is then steeper than 5 to 1 (78.7 degrees), it is the long side of a column, and the short upper edge is first.
    """
    by_x = quad[np.argsort(quad[:, 0], kind="stable")]
    left, right = (pair[np.argsort(pair[:, 1], kind="stable")] for pair in (by_x[:2], by_x[2:]))
    ordered: NDArray[np.float32] = upper_edge_first(np.array([[left[0], right[0], right[1], left[1]]], np.float32))[0]
    return ordered


def upper_edge_first(quads: NDArray[Any]) -> NDArray[Any]:
    """Let quads begin at the left end of their upper edge, the last step of `order_corners`.

    Args:
        quads: (N, 4, 2), clockwise from the upper of the two leftmost corners to the upper of the two rightmost ones.

    Returns:
        (N, 4, 2), the same corners clockwise. Of two opposite corners with one x, which are left and right alike, the
        upper one counts as left.

    >>> upper_edge_first(np.array([[[0, 90], [5, 0], [14, 1], [9, 91]]])).tolist()
    [[[5, 0], [14, 1], [9, 91], [0, 90]]]
    """
    edges = np.diff(quads[:, :3], axis=1)
    limit, down = _STEEPEST * edges[..., 0], edges[..., 1]
    on_a_corner = (quads[:, 1, 0] == quads[:, 3, 0]) & (down[:, 0] < 0) & (down[:, 1] <= limit[:, 1])
    first = np.where((-down > limit)[:, 0] | on_a_corner, 1, np.where((down > limit)[:, 0], 3, 0))
    return np.take_along_axis(quads, ((first[:, None] + np.arange(4)) % 4)[:, :, None], axis=1)


def convex_hull(points: NDArray[Any]) -> Float64:
    """The convex hull of points (M, 2), clockwise in the image, float64 (K, 2); Andrew's monotone chain."""
    ordered = np.unique(points.astype(np.float64), axis=0)
    if len(ordered) < 3:
        return ordered

    def chain(sequence: Float64) -> list[Float64]:
        kept: list[Float64] = []
        for point in sequence:
            while len(kept) > 1 and _cross(kept[-1] - kept[-2], point - kept[-2]) <= 0:
                kept.pop()
            kept.append(point)
        return kept[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))


def polygon_area(points: NDArray[Any]) -> float:
    """Area of a simple polygon (M, 2), by the shoelace formula."""
    if len(points) < 3:
        return 0.0
    seen = points.astype(np.float64) - points[0]
    after = np.roll(seen, -1, axis=0)
    return abs(float((seen[:, 0] * after[:, 1] - seen[:, 1] * after[:, 0]).sum())) / 2


def intersection_area(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Intersection area of two convex polygons (M, 2), by Sutherland and Hodgman (1974).

    >>> intersection_area(np.array([[0, 0], [4, 0], [4, 4], [0, 4]]), np.array([[2, 3], [9, 3], [9, 9], [2, 9]]))
    2.0
    """
    region, clip = convex_hull(first), convex_hull(second)
    if len(clip) < 3:
        return 0.0
    for start, end in zip(clip, np.roll(clip, -1, axis=0), strict=True):
        if len(region) < 3:
            return 0.0
        edge = end - start
        side = edge[0] * (region[:, 1] - start[1]) - edge[1] * (region[:, 0] - start[0])
        kept: list[Float64] = []
        for here, there, here_side, there_side in zip(
            region, np.roll(region, -1, axis=0), side, np.roll(side, -1), strict=True
        ):
            if here_side >= 0:
                kept.append(here)
            if here_side * there_side < 0:
                kept.append(here + (there - here) * (here_side / (here_side - there_side)))
        region = np.array(kept)
    return polygon_area(region)


def intersection_areas(first: NDArray[Any], second: NDArray[Any]) -> Float64:
    """The `intersection_area` of each of the quads (N, 4, 2) with each of (M, 4, 2), float64 (N, M)."""
    low = np.maximum(first.min(axis=1)[:, None], second.min(axis=1))
    high = np.minimum(first.max(axis=1)[:, None], second.max(axis=1))
    areas = np.zeros((len(first), len(second)))
    for i, j in np.argwhere((low < high).all(axis=2)):
        areas[i, j] = intersection_area(first[i], second[j])
    return areas


def _cross(first: Float64, second: Float64) -> float:
    return float(first[0] * second[1] - first[1] * second[0])


def shortest(values: NDArray[Any]) -> Any:
    """Nested lists of the shortest decimal numbers that are these float32 values."""
    exact = np.asarray(values, np.float32)
    decimals = exact.astype("U").astype(np.float64) if exact.size else exact.astype(np.float64)
    # A decimal read as float64 and then rounded to float32 may, in principle, be its neighbour.
    return np.where(decimals.astype(np.float32) == exact, decimals, exact.astype(np.float64)).tolist()

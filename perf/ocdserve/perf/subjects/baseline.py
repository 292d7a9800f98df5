# SPDX-License-Identifier: Apache-2.0
"""Baseline post-processing: a straightforward loop over contours that calls OpenCV, shapely and Clipper.

The baseline for the speed of `ocdserve.backend.stages.postprocess`, and an independent reference for its results: it
follows the same rules but shares no code with it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import pyclipper
import shapely
from numpy.typing import NDArray

from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.results.detections import Detections

_Points = NDArray[Any]
# Corners and polygon in network pixels, and the score.
_Region = tuple[_Points, _Points | None, float]

# Tolerance of the approximation of a contour, as a fraction of the contour's length.
_TOLERANCE = {"default": 0.002, "tao": 0.0001}


def baseline_postprocess(probability: NDArray[Any], frame: Frame, params: PostprocessParams) -> Detections:
    """Find text regions in a probability map, contour by contour.

    Args:
        probability: (h, w), float32 from 0 to 1, or uint8 as 255 times the probability.
        frame: Where the source image lies in the map.
        params: Thresholds and mode.

    Returns:
        What `ocdserve.backend.stages.postprocess.postprocess` returns.
    """
    contours = _find(probability, params)
    if params.mode == "tao":
        of_contour = _polygon_region if params.polygons else _box_region
        regions = [*_regions(of_contour, probability, contours[: params.max_candidates], params)]
        to_source = _to_source_tao
    else:
        regions = [*_regions(_box_region, probability, contours, params)]
        regions = sorted(regions, key=lambda region: -region[2])[: params.max_candidates]
        regions = [_from_upper_edge(region, frame) for region in regions]
        to_source = _to_source
    height, width = frame.source
    return Detections(
        quads=np.array([to_source(quad, frame) for quad, _, _ in regions], np.float32).reshape(-1, 4, 2),
        scores=np.array([score for *_, score in regions], np.float32),
        width=width,
        height=height,
        polygons=tuple(to_source(polygon, frame) for _, polygon, _ in regions if polygon is not None)
        if params.polygons
        else None,
    )


def _find(probability: NDArray[Any], params: PostprocessParams) -> Sequence[_Points]:
    thresh = params.thresh * 255 if probability.dtype == np.uint8 else np.float32(params.thresh)
    text = (probability > thresh).astype(np.uint8)
    if params.dilation:
        text = cv2.dilate(text, np.ones((2, 2), np.uint8)).astype(np.uint8)
    return cv2.findContours(text, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]


def _regions(
    of_contour: Any, probability: NDArray[Any], contours: Sequence[_Points], params: PostprocessParams
) -> Iterator[_Region]:
    for contour in contours:
        region = of_contour(probability, contour, params)
        if region is not None:
            yield region


def _box_region(probability: NDArray[Any], contour: _Points, params: PostprocessParams) -> _Region | None:
    corners, short_side = _rectangle(contour if params.mode == "tao" else _untangled(contour))
    if short_side < params.min_size:
        return None
    score = _mean_inside(probability, contour[:, 0] if params.polygons and params.mode == "default" else corners)
    if score < params.box_thresh:
        return None
    pieces = _grow(corners, params.unclip_ratio)
    if not pieces:
        return None
    quad, short_side = _rectangle(np.concatenate(pieces))
    if short_side < params.min_size + 2:
        return None
    return quad, _outline(contour, quad, params) if params.polygons else None, score


def _polygon_region(probability: NDArray[Any], contour: _Points, params: PostprocessParams) -> _Region | None:
    """TAO's polygon mode: no size check before growing, scored over the contour itself, one piece only."""
    outline = _simplify(contour, params)
    if len(outline) < 4:
        return None
    score = _mean_inside(probability, contour[:, 0])
    if score < params.box_thresh:
        return None
    pieces = _grow(outline, params.unclip_ratio)
    if len(pieces) != 1:
        return None
    quad, short_side = _rectangle(pieces[0])
    return None if short_side < params.min_size + 2 else (quad, pieces[0], score)


def _untangled(contour: _Points) -> _Points:
    """The hull, starting after its topmost, then leftmost point, of an outer contour that visits a pixel twice.

    This makes the choice among equally small rectangles the same for all contours with one hull.
    """
    distinct = {(x, y) for x, y in contour[:, 0].tolist()}
    if len(distinct) == len(contour) or cv2.contourArea(contour, oriented=True) > 0:
        return contour
    hull = cv2.convexHull(contour)
    top = min(range(len(hull)), key=lambda index: (hull[index, 0, 1], hull[index, 0, 0]))
    return np.concatenate([hull[top + 1 :], hull[: top + 1]])


def _rectangle(points: _Points) -> tuple[_Points, float]:
    """Corners of the smallest rotated rectangle around points, clockwise from the top left, and its short side."""
    rectangle = cv2.minAreaRect(points)
    a, b, c, d = sorted(cv2.boxPoints(rectangle), key=lambda corner: float(corner[0]))
    top_left, bottom_left = (a, b) if b[1] > a[1] else (b, a)
    top_right, bottom_right = (c, d) if d[1] > c[1] else (d, c)
    return np.array([top_left, top_right, bottom_right, bottom_left], np.float32), min(rectangle[1])


def _mean_inside(probability: NDArray[Any], polygon: _Points) -> float:
    """Mean probability inside a polygon, filled in its bounding window with corners truncated to whole pixels."""
    height, width = probability.shape
    left, top = np.clip(np.floor(polygon.min(axis=0)), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(polygon.max(axis=0)), 0, (width - 1, height - 1)).astype(int)
    mask = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    shifted = polygon - np.array((left, top), polygon.dtype)
    cv2.fillPoly(mask, [shifted.astype(np.int32)], 1)  # type: ignore[call-overload]
    inside = probability[top : bottom + 1, left : right + 1][mask.view(np.bool_)]
    if not len(inside):
        return 0.0
    # Exact for uint8, so that boxes of equal mean keep their order.
    mean = float(inside.sum(dtype=np.float64)) / len(inside)
    return mean / 255 if probability.dtype == np.uint8 else mean


def _grow(points: _Points, ratio: float) -> list[_Points]:
    """The polygon offset outwards by area * ratio / perimeter; Clipper truncates its corners to whole pixels first."""
    polygon = shapely.Polygon(points)
    if not polygon.length:
        return []
    offset = pyclipper.PyclipperOffset()
    try:
        offset.AddPath(points, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    except pyclipper.ClipperException:
        return []
    return [np.array(piece, np.int32) for piece in offset.Execute(polygon.area * ratio / polygon.length)]


def _outline(contour: _Points, quad: _Points, params: PostprocessParams) -> _Points:
    """The largest piece of the grown outline of a region; the quad where there is none."""
    outline = _simplify(contour, params)
    pieces = _grow(outline, params.unclip_ratio) if len(outline) >= 4 else []
    return max(pieces, key=cv2.contourArea, default=quad)


def _simplify(contour: _Points, params: PostprocessParams) -> _Points:
    tolerance = _TOLERANCE[params.mode] * cv2.arcLength(contour, True)
    simplified: _Points = cv2.approxPolyDP(contour, tolerance, True)[:, 0]
    return simplified


def _from_upper_edge(region: _Region, frame: Frame) -> _Region:
    """Turn the quad of a region in mode `default` to the left end of its upper edge, as it is in source pixels."""
    quad, polygon, score = region
    if quad[1, 0] == quad[3, 0] and quad[1, 1] < quad[0, 1]:
        quad = np.roll(quad, -1, axis=0)  # it stands on a corner: begin at the opposite one
    across, down = (quad[1] - quad[0]) * np.array(frame.scale)
    if abs(down) > 5 * across:  # the side of a column
        quad = np.roll(quad, 1 if down > 0 else -1, axis=0)
    return quad, quad if polygon is region[0] else polygon, score


def _to_source(points: _Points, frame: Frame) -> _Points:
    x = np.clip(points[:, 0] * np.float64(frame.source[1] / frame.content[1]), 0, frame.source[1])
    y = np.clip(points[:, 1] * np.float64(frame.source[0] / frame.content[0]), 0, frame.source[0])
    inside: _Points = np.stack([x, y], axis=1).astype(np.float32)
    return inside


def _to_source_tao(points: _Points, frame: Frame) -> _Points:
    """Round to network pixels, then truncate to 16-bit source pixels."""
    x = np.clip(np.round(points[:, 0]).astype(np.float64), 0, frame.network[1]) * np.float64(
        frame.source[1] / frame.content[1]
    )
    y = np.clip(np.round(points[:, 1]).astype(np.float64), 0, frame.network[0]) * np.float64(
        frame.source[0] / frame.content[0]
    )
    cut: _Points = np.stack([x, y], axis=1).astype(np.int16).astype(np.float32)
    return cut

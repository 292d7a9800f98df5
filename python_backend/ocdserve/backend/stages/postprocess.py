# SPDX-License-Identifier: Apache-2.0
"""Post-processing of Differentiable Binarization: a probability map to quads, scores and polygons.

Liao et al., "Real-time Scene Text Detection with Differentiable Binarization", AAAI 2020: the network
predicts text regions shrunk by an offset of area * (1 - r^2) / perimeter; a region found in the thresholded
map is grown back by area * unclip_ratio / perimeter (Vatti clipping).
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.kernels.cpu import library
from ocdserve.backend.spec.params import Mode, PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.spec.rows import GROW_ON_HOST
from ocdserve.backend.stages import geometry
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.quads import upper_edge_first
from ocdserve.results.tiles import merge_tiles, with_overview

Contour = NDArray[np.int32]

# Polygon approximation, as a share of the contour's length: the paper's code, and NVIDIA's.
_APPROXIMATION = {"default": 0.002, "tao": 0.0001}


def postprocess(
    probability: NDArray[Any], frame: Frame, params: PostprocessParams, *, compiled: bool = True
) -> Detections:
    """Find text regions in a probability map.

    Args:
        probability: (h, w), the network's map: float32 from 0 to 1, or uint8 as 255 times that. Of an image in tiles
            (H, W), one below the other.
        frame: Position of the source image in the map.
        params: Thresholds and mode.
        compiled: Whether to use compiled code if it is installed, for maps of uint8 in mode `default`: faster, with the
            same results. Otherwise NumPy and OpenCV are used.

    Returns:
        Detections in source pixels, best score first (mode `tao`: in OpenCV's contour order).

    Raises:
        InvalidInputError: The map does not have the frame's network size, or is of another dtype.
    """
    if probability.dtype not in (np.uint8, np.float32) or probability.shape != frame.container:
        raise InvalidInputError(
            f"a probability map must be uint8 or float32 of the frame's network size {frame.container}; "
            f"got {probability.dtype} {probability.shape}"
        )
    if frame.tiles > 1:
        found = [
            postprocess(np.ascontiguousarray(each), part, params, compiled=compiled)
            for each, part in zip(frame.cut(probability), frame.parts, strict=True)
        ]
        return merged_parts(found, frame)
    if compiled and params.mode == "default" and probability.dtype == np.uint8:
        native = library.load()
        rows = None if native is None else native.rows(probability, frame, params)
        if rows is not None:
            return detections_of_rows(rows, probability.shape[1], frame, params, lambda: probability)
    contours = _contours(probability, params)
    if params.mode == "tao" and params.polygons:
        return _tao_polygons(probability, contours, frame, params)
    candidates, quads, scores = _candidates(probability, contours, params)
    quads, grown = grow_quads(quads, params)
    candidates, scores = candidates[grown], scores[grown]
    if params.mode == "tao":
        return _detections(_tao_source_pixels(quads, frame), scores, frame)
    best = np.argsort(-scores, kind="stable")[: params.max_candidates]
    quads = _source_quads(quads[best], frame)
    polygons = (
        source_polygons([contours[i] for i in candidates[best]], quads, frame, params) if params.polygons else None
    )
    return _detections(quads, scores[best], frame, polygons)


def merged_parts(found: Sequence[Detections], frame: Frame) -> Detections:
    """The detections of an image in source pixels from those of its `parts`, each found with the part's frame."""
    height, width = frame.content
    merged = merge_tiles(frame.boxes, found[: frame.tiles], width, height)
    if frame.overview is not None:
        rows, columns = frame.overview.content
        reduced = merge_tiles(frame.overview.boxes, found[frame.tiles :], columns, rows)
        merged = with_overview(merged, reduced)
    polygons = None if merged.polygons is None else _each(merged.polygons, lambda points: to_source(points, frame))
    return Detections(to_source(merged.quads, frame), merged.scores, frame.source[1], frame.source[0], polygons)


def detections_of_rows(
    rows: NDArray[Any], width: int, frame: Frame, params: PostprocessParams, probability: Callable[[], NDArray[Any]]
) -> Detections:
    """Detections from the rows of compiled code: grows what it left to NumPy, takes the best, adds polygons.

    Args:
        rows: `ocdserve.backend.spec.rows.ROW` (N,), best first; for polygons, whatever their scores.
        width: Row length in pixels of the raster in which roots are numbered.
        frame: Position of the source image in the map.
        params: Of mode `default`.
        probability: Returns the map, (h, w); called only for polygons, which are scored here.

    Returns:
        Detections in source pixels, best score first.
    """
    contours: dict[int, Contour] = {}
    if params.polygons:
        levels = probability()
        contours = _by_root(_contours(levels, params), width)
        rows = _scored_by_contour(rows, contours, levels, params.box_thresh)
    quads = rows["quad"].copy()
    on_host = np.flatnonzero(rows["state"] == GROW_ON_HOST)
    if len(on_host):
        grown, kept = grow_quads(quads[on_host], params)
        quads[on_host[kept]] = _source_quads(grown, frame)
        stays = np.ones(len(rows), np.bool_)
        stays[np.delete(on_host, kept)] = False
        rows, quads = rows[stays], quads[stays]
    rows, quads = rows[: params.max_candidates], quads[: params.max_candidates]
    polygons = None
    if params.polygons:
        polygons = source_polygons([contours[root] for root in rows["root"].tolist()], quads, frame, params)
    return Detections(quads, rows["score"].copy(), frame.source[1], frame.source[0], polygons)


def _scored_by_contour(
    rows: NDArray[Any], contours: dict[int, Contour], probability: NDArray[Any], box_thresh: float
) -> NDArray[Any]:
    """The rows whose contours are probable enough, with those scores, best first and else in OpenCV's order."""
    scores = _contour_scores(probability, [contours[root] for root in rows["root"].tolist()])
    best = np.lexsort((-rows["root"], -scores))
    best = best[scores[best] >= box_thresh]
    rows = rows[best]
    rows["score"] = scores[best]
    return rows


def _by_root(contours: Sequence[Contour], width: int) -> dict[int, Contour]:
    """Contours by their region's first pixel in raster order, plus one; a hole's is below the contour's topmost."""
    if not contours:
        return {}
    starts = np.cumsum([0, *(len(contour) for contour in contours[:-1])])
    points = np.concatenate(contours).astype(np.int64)
    first = np.minimum.reduceat(points[:, 1] * width + points[:, 0], starts)
    holes = np.array([cv2.contourArea(contour, oriented=True) > 0 for contour in contours])
    return dict(zip((first + np.where(holes, width, 0) + 1).tolist(), contours, strict=True))


def _contours(probability: NDArray[Any], params: PostprocessParams) -> Sequence[Contour]:
    """Borders of the 8-connected regions above the threshold and of their holes, each (M, 2)."""
    # Integers above t are those above floor(t); compared as bytes, a megapixel map takes 0.1 ms instead of 1 ms.
    is_bytes = probability.dtype == np.uint8
    threshold = np.uint8(params.thresh * 255) if is_bytes else np.float32(params.thresh)
    mask: NDArray[Any] = (probability > threshold).view(np.uint8)
    if params.dilation:
        mask = cv2.dilate(mask, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    if params.mode == "tao":
        contours = contours[: params.max_candidates]
    return [contour[:, 0] for contour in contours]  # type: ignore[misc]


def _candidates(
    probability: NDArray[Any], contours: Sequence[Contour], params: PostprocessParams
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
    """Contours whose rectangle is large and probable enough: index (N,), quad (N, 4, 2), score (N,)."""
    large = _large_enough(contours, params.min_size)
    outlines = [contours[i] for i in large]
    if params.mode == "default":
        outlines = _with_one_start(outlines)
    rectangles = _minimum_rectangles(outlines)
    kept = rectangles[:, 2:4].min(axis=1, initial=np.inf) >= params.min_size
    large, quads = large[kept], geometry.order_corners(geometry.rectangle_corners(rectangles[kept]))
    if params.polygons:
        scores = _contour_scores(probability, [contours[i] for i in large])
    else:
        scores = _box_scores(probability, quads)
    kept = scores >= params.box_thresh
    return large[kept], quads[kept], scores[kept]


def _large_enough(contours: Sequence[Contour], min_size: float) -> NDArray[np.int64]:
    """Indices (N,) of contours whose smallest rectangle may have sides of `min_size`.

    A rectangle around whole-pixel points whose bounding box is at most 2 wide cannot have two sides of 3 or
    more, so most specks of a noisy map never reach `minAreaRect`.
    """
    if not contours:
        return np.empty(0, np.int64)
    if min_size < 3:
        return np.arange(len(contours))
    starts = np.cumsum([0, *(len(contour) for contour in contours[:-1])])
    points = np.concatenate(contours)
    extents = np.maximum.reduceat(points, starts) - np.minimum.reduceat(points, starts)
    return np.flatnonzero(extents.min(axis=1) > 2)


def _minimum_rectangles(point_sets: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
    """`cv2.minAreaRect` of each point set: (N, 5) centre x, centre y, width, height, angle."""
    rectangles = [(*centre, *size, angle) for centre, size, angle in map(cv2.minAreaRect, point_sets)]
    return np.array(rectangles, np.float32).reshape(-1, 5)


def _with_one_start(contours: list[Contour]) -> list[Contour]:
    """Contours whose smallest rectangle depends on their convex hull alone; not used in mode `tao`.

    Where several rectangles are smallest, OpenCV's choice depends on the hull vertex that it starts from: the one that
    the contour reaches last (outer contours) or first (holes). Where a contour passes a pixel twice, it can be any;
    such outer contours are replaced by their hull, started where a contour that passes each pixel once would be.
    """
    if not contours:
        return []
    lengths = np.array([len(contour) for contour in contours])
    points = np.concatenate(contours).astype(np.int64)
    keys = np.sort((np.repeat(np.arange(len(contours)), lengths) << 40) + (points[:, 1] << 20) + points[:, 0])
    result = list(contours)
    for index in np.unique(keys[1:][keys[1:] == keys[:-1]] >> 40):
        is_hole = cv2.contourArea(contours[index], oriented=True) > 0
        if not is_hole:
            hull = cv2.convexHull(contours[index])[:, 0]
            top = np.lexsort((hull[:, 0], hull[:, 1]))[0]
            result[index] = np.roll(hull, -top - 1, axis=0)
    return result


def _contour_scores(probability: NDArray[Any], contours: Sequence[Contour]) -> NDArray[np.float64]:
    """Mean probability (N,) inside each contour, itself included, and its holes."""
    means = np.array([geometry.polygon_mean(probability, contour) for contour in contours])
    return means / 255 if probability.dtype == np.uint8 else means


def _box_scores(probability: NDArray[Any], quads: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean probability (N,) under each quad (N, 4, 2), its corners truncated to pixels of its window in the map."""
    height, width = probability.shape
    corner = np.clip(np.floor(quads.min(axis=1)), 0, (width - 1, height - 1)).astype(np.int64)[:, None]
    means = geometry.filled_means(probability, np.trunc(quads - corner.astype(np.float32)).astype(np.int64) + corner)
    return means / 255 if probability.dtype == np.uint8 else means


def grow_quads(quads: NDArray[np.float32], params: PostprocessParams) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Grow quads, float32 (N, 4, 2) in network pixels.

    Returns:
        The grown rectangles' quads, (M, 4, 2), and the indices (M,) of their originals; quads that collapse or stay too
        small are left out.
    """
    distances = _unclip_distances(quads, params.unclip_ratio)
    if params.unclip == "analytic":
        moved, sides = geometry.expand_rectangles(quads, distances)
        large = np.flatnonzero(sides >= params.min_size + 2)
        return moved[large], large
    if params.mode == "tao":
        # Corners are rounded in the end, so differences of 1e-4 px by another order of the points do not matter.
        pieces = [geometry.offset_polygon(quad, distance) for quad, distance in zip(quads, distances, strict=True)]
        point_sets = [found[0] if found else np.empty((0, 2), np.int32) for found in pieces]
    else:
        point_sets = geometry.offset_quads(quads, distances)
    grown = np.array([i for i, points in enumerate(point_sets) if len(points)], np.int64)
    rectangles = _minimum_rectangles([point_sets[i] for i in grown])
    kept = rectangles[:, 2:4].min(axis=1, initial=np.inf) >= params.min_size + 2
    return geometry.order_corners(geometry.rectangle_corners(rectangles[kept])), grown[kept]


def source_polygons(
    contours: Sequence[Contour], quads: NDArray[np.float32], frame: Frame, params: PostprocessParams
) -> tuple[NDArray[np.float32], ...]:
    """The grown outlines of detections, in source pixels.

    Args:
        contours: Each detection's contour, (M, 2) whole network pixels.
        quads: (N, 4, 2) in source pixels; used as polygons where an outline is too simple or collapses.
        frame: Position of the source image in the map.
        params: With the unclip ratio and the mode.
    """
    outlines = [_approximated(contour, params.mode) for contour in contours]
    distances = _unclip_distances(outlines, params.unclip_ratio)
    grown = [
        geometry.offset_polygon(outline, distance) if len(outline) >= 4 else []
        for outline, distance in zip(outlines, distances, strict=True)
    ]
    largest = [max(pieces, key=cv2.contourArea, default=np.empty((0, 2), np.int32)) for pieces in grown]
    converted = _each(largest, lambda points: to_source(points, frame))
    return tuple(points if len(points) else quad for points, quad in zip(converted, quads, strict=True))


def _approximated(contour: Contour, mode: Mode) -> Contour:
    length = cv2.arcLength(contour, True)
    return cv2.approxPolyDP(contour, _APPROXIMATION[mode] * length, True)[:, 0]  # type: ignore[return-value]


def _unclip_distances(polygons: NDArray[np.float32] | Sequence[NDArray[Any]], ratio: float) -> NDArray[np.float64]:
    """Offsets (N,) by which polygons (K, 2) grow, in pixels; 0 for a single point."""
    areas, perimeters = geometry.areas_and_perimeters(polygons)
    return np.divide(areas * ratio, perimeters, out=np.zeros_like(areas), where=perimeters > 0)


def _tao_polygons(
    probability: NDArray[Any], contours: Sequence[Contour], frame: Frame, params: PostprocessParams
) -> Detections:
    """TAO's polygon mode; the quad of a detection is the smallest rectangle around its polygon."""
    scale = 255 if probability.dtype == np.uint8 else 1
    outlines, outline_scores = [], []
    for contour in contours:
        outline = _approximated(contour, params.mode)
        if len(outline) < 4:
            continue
        score = geometry.polygon_mean(probability, contour) / scale
        if score >= params.box_thresh:
            outlines.append(outline)
            outline_scores.append(score)
    distances = _unclip_distances(outlines, params.unclip_ratio)
    grown = [geometry.offset_polygon(*outline) for outline in zip(outlines, distances, strict=True)]
    single = [index for index, pieces in enumerate(grown) if len(pieces) == 1]
    polygons = [grown[index][0] for index in single]
    rectangles = _minimum_rectangles(polygons)
    kept = np.flatnonzero(rectangles[:, 2:4].min(axis=1, initial=np.inf) >= params.min_size + 2)
    quads = geometry.order_corners(geometry.rectangle_corners(rectangles[kept]))
    scores = np.array(outline_scores)[np.array(single, np.int64)[kept]]
    source = _each([polygons[index] for index in kept], lambda points: _tao_source_pixels(points, frame))
    return _detections(_tao_source_pixels(quads, frame), scores, frame, source)


def _each(
    polygons: Sequence[NDArray[Any]], convert: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> tuple[NDArray[np.float32], ...]:
    """Apply a pointwise conversion to all polygons in one call."""
    if not polygons:
        return ()
    points = convert(np.concatenate(polygons).astype(np.float32))
    return tuple(np.split(points, np.cumsum([len(polygon) for polygon in polygons])[:-1]))


def _source_quads(quads: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """Quads (N, 4, 2), ordered by `geometry.order_corners`, to source pixels, beginning with their upper edge."""
    return _inside(upper_edge_first(quads * np.array(frame.scale)), frame)


def to_source(points: NDArray[Any], frame: Frame) -> NDArray[np.float32]:
    """Network to source pixels (..., 2), kept inside the source image."""
    return _inside(points * np.array(frame.scale), frame)


def _inside(points: NDArray[np.float64], frame: Frame) -> NDArray[np.float32]:
    inside: NDArray[np.float32] = np.clip(points, 0, frame.source[::-1]).astype(np.float32)
    return inside


def _tao_source_pixels(points: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """As TAO does: round to whole network pixels, scale, truncate to int16."""
    rounded = np.clip(np.round(points), 0, frame.network[::-1])
    cut: NDArray[np.float32] = (rounded * np.array(frame.scale)).astype(np.int16).astype(np.float32)
    return cut


def _detections(
    quads: NDArray[np.float32],
    scores: NDArray[np.float64],
    frame: Frame,
    polygons: tuple[NDArray[np.float32], ...] | None = None,
) -> Detections:
    height, width = frame.source
    return Detections(quads, scores.astype(np.float32), width, height, polygons)

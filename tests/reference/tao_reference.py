# SPDX-License-Identifier: Apache-2.0
"""NVIDIA TAO Deploy's OCDNet evaluation once more, written from a description of its rules; shares no code with ours.

Everything is done one contour, one label and one pair at a time, by OpenCV, Clipper and shapely.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pyclipper
from shapely.geometry import Polygon

MEANS = np.array([122.67891434, 116.66876762, 104.00698793])
SMALLEST_SIDE = 3


def network_input(path: Path, width: int, height: int, mode: str = "BGR") -> Any:
    """float32 (1, 3, height, width): decoded by OpenCV, stretched as float32, mean by channel index, over 255."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR).astype(np.float32)
    if mode == "RGB":
        pixels = pixels[:, :, ::-1]
    stretched = cv2.resize(pixels, (width, height))
    return ((stretched - MEANS) / 255).transpose(2, 0, 1)[None].astype(np.float32)


def probability(onnx_file: Path, batch: Any) -> Any:
    """float32 (height, width): the network's answer to one image, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0][0, 0]


def boxes_of(p: Any, thresh: float, box_thresh: float, most: int, ratio: float) -> tuple[Any, Any]:
    """int16 (n, 4, 2) and float32 (n,), a row for each contour that is looked at, zeros for rejected ones."""
    height, width = p.shape
    contours = _contours(p, thresh)[:most]
    boxes, scores = np.zeros((len(contours), 4, 2), np.int16), np.zeros(len(contours), np.float32)
    for row, contour in enumerate(contours):
        corners, side = _rectangle(contour[:, 0, :])
        if side < SMALLEST_SIDE:
            continue
        score = _mean_under(p, corners)
        if score < box_thresh:
            continue
        pieces = _unclipped(corners, ratio)
        if not pieces:
            continue
        outer, side = _rectangle(np.array(pieces[0]))
        if side < SMALLEST_SIDE + 2:
            continue
        boxes[row] = _rounded_inside(outer, width, height).astype(np.int16)
        scores[row] = score
    return boxes, scores


def polygons_of(p: Any, thresh: float, box_thresh: float, most: int, ratio: float) -> tuple[list[Any], list[float]]:
    """Polygons with any number of points, and their scores."""
    height, width = p.shape
    polygons, scores = [], []
    for contour in _contours(p, thresh)[:most]:
        outline = cv2.approxPolyDP(contour, 0.0001 * cv2.arcLength(contour, True), True)[:, 0, :]
        if len(outline) < 4:
            continue
        score = _mean_under(p, contour[:, 0, :])
        if score < box_thresh:
            continue
        pieces = _unclipped(outline, ratio)
        if len(pieces) != 1:
            continue
        grown = np.array(pieces[0])
        if _rectangle(grown)[1] < SMALLEST_SIDE + 2:
            continue
        polygons.append(_rounded_inside(grown, width, height).astype(np.int64))
        scores.append(score)
    return polygons, scores


def kept_boxes(boxes: Any, scores: Any) -> tuple[Any, Any]:
    """Without the rows whose coordinates sum to zero."""
    found = np.array([box.sum() > 0 for box in boxes], bool)
    return boxes[found], scores[found]


def in_source_pixels(boxes: Any, source: tuple[int, int], network: tuple[int, int]) -> Any:
    """Boxes times source over network size, (height, width) each, cut off into int16."""
    scaled = np.zeros_like(boxes)
    scaled[:, :, 0] = boxes[:, :, 0] * (source[1] / float(network[1]))
    scaled[:, :, 1] = boxes[:, :, 1] * (source[0] / float(network[0]))
    return scaled


def labels_of(path: Path, ignore_tags: tuple[str, ...] = ("*", "###")) -> list[tuple[Any, bool]]:
    """Quads float32 (4, 2) and whether each is don't-care; the text is the ninth field and nothing more."""
    labels = []
    for line in path.read_text("utf-8").splitlines():
        fields = line.strip().lstrip("\ufeff").split(",")
        quad = _by_sums([(float(fields[i]), float(fields[i + 1])) for i in range(0, 8, 2)])
        if cv2.contourArea(quad) > 0:
            labels.append((quad, fields[8] in ignore_tags))
    return labels


def counts_of(labels: list[tuple[Any, bool]], detections: list[Any]) -> tuple[int, int, int]:
    """Matches, detections that count, labels that count; all in the same pixels, fractions cut off."""
    truths = [(Polygon(points.astype(np.int64)), ignored) for points, ignored in labels]
    truths = [(polygon, ignored) for polygon, ignored in truths if polygon.is_valid]
    found = [polygon for polygon in (Polygon(points.astype(np.int64)) for points in detections) if polygon.is_valid]
    regions = [polygon for polygon, ignored in truths if ignored]
    is_ignored = [any(region.intersection(d).area / d.area > 0.5 for region in regions) for d in found]
    taken: set[int] = set()
    for truth, ignored in truths:
        if ignored:
            continue
        for index, detection in enumerate(found):
            if index in taken or is_ignored[index]:
                continue
            if truth.intersection(detection).area / truth.union(detection).area > 0.5:
                taken.add(index)
                break
    return len(taken), is_ignored.count(False), len(truths) - len(regions)


def figures_of(counts: list[tuple[int, int, int]]) -> tuple[float, float, float]:
    """Precision, recall and their harmonic mean over a set."""
    matched, detections, truths = (sum(column) for column in zip(*counts, strict=True))
    precision = matched / detections if detections else 0.0
    recall = matched / truths if truths else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall + 1e-8)


def evaluate(
    onnx_file: Path,
    folder: Path,
    size: tuple[int, int],
    *,
    thresh: float = 0.3,
    box_thresh: float = 0.55,
    most: int = 1000,
    ratio: float = 1.5,
    polygons: bool = False,
    mode: str = "BGR",
) -> tuple[float, float, float]:
    """Precision, recall and F-measure of a network on a folder with img/ and gt/; size is (width, height)."""
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    counts = []
    for image in sorted((folder / "img").iterdir()):
        labels = labels_of(folder / "gt" / f"gt_{image.name.split('.')[0]}.txt")
        if not labels:
            continue
        source = cv2.imread(str(image)).shape
        factors = np.array([size[0] / source[1], size[1] / source[0]]).astype(np.float32)
        scaled = [(quad * factors, ignored) for quad, ignored in labels]
        batch = network_input(image, *size, mode)
        p = session.run(None, {session.get_inputs()[0].name: batch})[0][0, 0]
        if polygons:
            found = polygons_of(p, thresh, box_thresh, most, ratio)[0]
        else:
            boxes, scores = boxes_of(p, thresh, box_thresh, most, ratio)
            found = [box for box, score in zip(boxes, scores, strict=True) if score >= box_thresh]
        counts.append(counts_of(scaled, found))
    return figures_of(counts)


def _contours(p: Any, thresh: float) -> Any:
    bitmap = np.where(p > thresh, 255, 0).astype(np.uint8)
    return cv2.findContours(bitmap, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]


def _rectangle(points: Any) -> tuple[Any, float]:
    """Corners of the smallest rectangle, top left, top right, bottom right, bottom left, and its short side."""
    rectangle = cv2.minAreaRect(points)
    by_x = sorted(cv2.boxPoints(rectangle).tolist(), key=lambda corner: corner[0])
    left, right = by_x[:2], by_x[2:]
    top_left, bottom_left = left if left[1][1] > left[0][1] else left[::-1]
    top_right, bottom_right = right if right[1][1] > right[0][1] else right[::-1]
    return np.array([top_left, top_right, bottom_right, bottom_left], np.float32), min(rectangle[1])


def _mean_under(p: Any, outline: Any) -> float:
    height, width = p.shape
    left, top = (
        int(np.clip(np.floor(outline[:, axis].min()), 0, size - 1)) for axis, size in ((0, width), (1, height))
    )
    right, bottom = (
        int(np.clip(np.ceil(outline[:, axis].max()), 0, size - 1)) for axis, size in ((0, width), (1, height))
    )
    mask = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    shifted = np.stack([outline[:, 0] - left, outline[:, 1] - top], axis=1)
    cv2.fillPoly(mask, [shifted.astype(np.int32)], 1)
    return cv2.mean(p[top : bottom + 1, left : right + 1], mask)[0]


def _unclipped(points: Any, ratio: float) -> Any:
    polygon = Polygon(points)
    offset = pyclipper.PyclipperOffset()
    offset.AddPath(points, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    return offset.Execute(polygon.area * ratio / polygon.length)


def _rounded_inside(points: Any, width: int, height: int) -> Any:
    # The destination is the network's size, so that only rounding and the border are left of the scaling.
    return np.stack([np.clip(np.round(points[:, 0]), 0, width), np.clip(np.round(points[:, 1]), 0, height)], axis=1)


def _by_sums(corners: list[tuple[float, float]]) -> Any:
    sums = [x + y for x, y in corners]
    differences = [y - x for x, y in corners]
    picked = [
        corners[sums.index(min(sums))],
        corners[differences.index(min(differences))],
        corners[sums.index(max(sums))],
        corners[differences.index(max(differences))],
    ]
    return np.array(picked, np.float32)

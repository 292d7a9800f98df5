# SPDX-License-Identifier: Apache-2.0
"""Matching of detections with ground truth."""

from collections.abc import Sequence
from typing import Any

import shapely
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.figures import ImageResult

_IOU = 0.5
_DONT_CARE_SHARE = 0.5


def match(quads: NDArray[Any], truth: Truth) -> ImageResult:
    """Match the detections of one image with its truth.

    Greedy in the order given, truths outside, as the competition's own script does. Polygons that are not
    simple or have no area are left out on either side.

    Args:
        quads: (N, 4, 2) in source pixels.
        truth: Truth of the image.
    """
    found = [polygon for polygon in map(_polygon, quads) if polygon is not None]
    known = [(_polygon(points), ignored) for points, ignored in zip(truth.polygons, truth.ignored, strict=True)]
    dont_care = [polygon for polygon, ignored in known if polygon is not None and ignored]
    cared = [polygon for polygon, ignored in known if polygon is not None and not ignored]
    counted = [
        polygon
        for polygon in found
        if not any(polygon.intersection(region).area / polygon.area > _DONT_CARE_SHARE for region in dont_care)
    ]
    free = set(range(len(counted)))
    matched = 0
    for polygon in cared:
        partner = next((index for index in sorted(free) if _iou(polygon, counted[index]) > _IOU), None)
        if partner is not None:
            free.remove(partner)
            matched += 1
    return ImageResult(matched, len(counted), len(cared))


def _polygon(points: Sequence[Any] | NDArray[Any]) -> shapely.Polygon | None:
    polygon = shapely.Polygon(points)
    return polygon if polygon.is_valid and polygon.area > 0 else None


def _iou(a: shapely.Polygon, b: shapely.Polygon) -> float:
    if not a.intersects(b):
        return 0.0
    intersection: float = a.intersection(b).area
    union: float = a.area + b.area - intersection
    return intersection / union

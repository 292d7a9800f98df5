# SPDX-License-Identifier: Apache-2.0
"""One-to-one matching of detections with ground truth by the protocol of ICDAR 2015.

Karatzas et al., "ICDAR 2015 Competition on Robust Reading" (challenge 4): a detection matches a truth when their
intersection over union exceeds 0.5; a detection of which more than half lies in one don't-care region does not count.

`covered` is more lenient: detectors that split or join texts differently are compared with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.figures import Counts

Assignment = Literal["greedy", "most"]

_MIN_IOU = 0.5
_DONT_CARE_SHARE = 0.5
# Of `covered`: least share of a box that is text, and of a text that is in such boxes.
_MIN_TEXT_SHARE, _MIN_COVERED_SHARE = 0.5, 0.5
# Far above the rounding error of an area, far below any difference that a figure shows.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Overlaps:
    """Overlaps of the D detections of an image with its T truths.

    Attributes:
        truth_counts: bool (T,): neither don't-care nor invalid (without area, or self-intersecting).
        truth_ignored: bool (T,): don't-care and valid.
        detection_counts: bool (D,): valid, and outside of don't-care regions.
        detection_ignored: bool (D,): valid, but more than half of it in one don't-care region.
        scores: float64 (D,).
        pairs: int64 (P, 2): truth and detection that both count and have an IoU above 0.5, sorted.
        ious: float64 (P,).
    """

    truth_counts: NDArray[np.bool_]
    truth_ignored: NDArray[np.bool_]
    detection_counts: NDArray[np.bool_]
    detection_ignored: NDArray[np.bool_]
    scores: NDArray[np.float64]
    pairs: NDArray[np.int64]
    ious: NDArray[np.float64]


def match(detections: Sequence[NDArray[Any]] | NDArray[Any], truth: Truth) -> Counts:
    """Count the matches of one image in the greedy order of the competition's own script.

    Args:
        detections: Polygons (K, 2) in source pixels, or quads (D, 4, 2).
        truth: Truth of the image.
    """
    return count(find_overlaps(truth, detections), "greedy")


def find_overlaps(
    truth: Truth, detections: Sequence[NDArray[Any]] | NDArray[Any], scores: NDArray[Any] | None = None
) -> Overlaps:
    """Compute which detections overlap which truths.

    Args:
        truth: Truth of the image.
        detections: Polygons (K, 2) in the same pixels, or quads (D, 4, 2).
        scores: (D,) of the detections; None: 1 for each.
    """
    known, found = _shapes(truth.polygons), _shapes(detections)
    ignored = np.array(truth.ignored, bool)
    t, d = shapely.STRtree(found.polygons).query(known.polygons)
    usable = known.valid[t] & found.valid[d]
    t, d = t[usable], d[usable]
    shared = shapely.area(shapely.intersection(known.polygons[t], found.polygons[d]))
    in_dont_care = np.zeros(len(detections), bool)
    in_dont_care[d[ignored[t] & (shared / found.areas[d] > _DONT_CARE_SHARE)]] = True
    truth_counts, detection_counts = known.valid & ~ignored, found.valid & ~in_dont_care
    ious = shared / (known.areas[t] + found.areas[d] - shared)
    # At the limit the union is computed by shapely, as in TAO.
    close = np.flatnonzero(np.abs(ious - _MIN_IOU) < _ROUNDING)
    ious[close] = shared[close] / shapely.area(shapely.union(known.polygons[t[close]], found.polygons[d[close]]))
    kept = np.flatnonzero((ious > _MIN_IOU) & truth_counts[t] & detection_counts[d])
    kept = kept[np.lexsort((d[kept], t[kept]))]
    return Overlaps(
        truth_counts,
        known.valid & ignored,
        detection_counts,
        found.valid & in_dont_care,
        np.ones(len(detections)) if scores is None else np.asarray(scores, np.float64),
        np.stack([t[kept], d[kept]], axis=1).astype(np.int64),
        ious[kept],
    )


def assign(overlaps: Overlaps, assignment: Assignment, min_score: float = 0.0) -> list[tuple[int, int]]:
    """Assign detections to truths, one to one.

    Args:
        overlaps: Of one image.
        assignment: `greedy`: each truth in turn takes the first detection that is left, as in the competition's script
            and in TAO. `most`: a maximum matching, whatever the order of truths and detections.
        min_score: Detections with a lower score are left out.

    Returns:
        (truth, detection), sorted.
    """
    allowed = overlaps.scores[overlaps.pairs[:, 1]] >= min_score
    options: dict[int, list[tuple[float, int]]] = {}
    for (truth, detection), iou in zip(overlaps.pairs[allowed].tolist(), overlaps.ious[allowed].tolist(), strict=True):
        options.setdefault(truth, []).append((-iou, detection))
    partner: dict[int, int] = {}
    for truth, candidates in options.items():
        if assignment == "most":
            candidates.sort()
            _augment(truth, options, partner, set())
        else:
            free = [detection for _, detection in candidates if detection not in partner]
            if free:
                partner[free[0]] = truth
    return sorted((truth, detection) for detection, truth in partner.items())


def count(overlaps: Overlaps, assignment: Assignment, min_score: float = 0.0) -> Counts:
    """Count matches, detections and truths; arguments as of `assign`."""
    return Counts(
        len(assign(overlaps, assignment, min_score)),
        int((overlaps.detection_counts & (overlaps.scores >= min_score)).sum()),
        int(overlaps.truth_counts.sum()),
    )


def _augment(truth: int, options: dict[int, list[tuple[float, int]]], partner: dict[int, int], tried: set[int]) -> bool:
    """Give a truth a detection, moving other truths to their next best (augmenting paths of bipartite matching)."""
    for _, detection in options[truth]:
        if detection in tried:
            continue
        tried.add(detection)
        if detection not in partner or _augment(partner[detection], options, partner, tried):
            partner[detection] = truth
            return True
    return False


def covered(
    texts: Sequence[NDArray[Any]], boxes: Sequence[NDArray[Any]] | NDArray[Any], margin: float = 0.0
) -> NDArray[np.bool_]:
    """Compute which texts boxes cover, whether a box holds several texts or a text lies in several boxes.

    A box counts if at least half of its area is text; a text is covered if at least half of its area lies in boxes that
    count. Outlines are replaced by their convex hulls.

    Args:
        texts: T polygons (K, 2).
        boxes: D polygons (K, 2) in the same pixels, or quads (D, 4, 2).
        margin: Pixels around a text that a box may hold without loss: outlines of ink are much smaller than boxes where
            the text is small.

    Returns:
        bool (T,).
    """
    known, found = (shapely.convex_hull(_shapes(outlines).polygons) for outlines in (texts, boxes))
    areas = shapely.area(found)
    on_text = shapely.area(shapely.intersection(found, shapely.union_all(shapely.buffer(known, margin))))
    counts = found[(areas > 0) & (on_text >= _MIN_TEXT_SHARE * areas)]
    inside = shapely.area(shapely.intersection(known, shapely.union_all(counts)))
    return np.asarray(inside >= _MIN_COVERED_SHARE * np.maximum(shapely.area(known), _ROUNDING), bool)


class _Shapes(NamedTuple):
    """N polygons of shapely (empty for fewer than three points), their areas, and which are valid with an area."""

    polygons: NDArray[Any]
    areas: NDArray[np.float64]
    valid: NDArray[np.bool_]


def _shapes(outlines: Sequence[NDArray[Any]] | NDArray[Any]) -> _Shapes:
    polygons = np.full(len(outlines), shapely.Polygon(), object)
    whole = [index for index, points in enumerate(outlines) if len(points) > 2]
    if whole:
        rings = shapely.linearrings(
            np.concatenate([outlines[index] for index in whole]),
            indices=np.repeat(np.arange(len(whole)), [len(outlines[index]) for index in whole]),
        )
        polygons[whole] = shapely.polygons(rings)
    areas = shapely.area(polygons)
    return _Shapes(polygons, areas, np.asarray(shapely.is_valid(polygons) & (areas > 0), bool))

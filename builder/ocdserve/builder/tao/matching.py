# SPDX-License-Identifier: Apache-2.0
"""ICDAR 2015's protocol: which detections match which text instances, and the figures that follow.

Karatzas et al., "ICDAR 2015 Competition on Robust Reading": a match needs an intersection over union above 0.5; a
detection of which more than half lies in one don't-care region does not count.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

Assignment = Literal["most", "greedy"]

_LEAST_IOU = 0.5
_DONT_CARE_SHARE = 0.5
# Far above what arithmetic loses, far below what any figure shows.
_ROUNDING = 1e-6
# TAO's, so that no division is by zero.
_TAO_EPSILON = 1e-8


@dataclass(frozen=True)
class Overlaps:
    """How the detections of one image lie over its text instances; T instances, D detections.

    Attributes:
        truth_counts: bool (T,): neither don't-care nor without area.
        truth_ignored: bool (T,): don't-care.
        detection_counts: bool (D,): has an area, and no don't-care instance holds more than half of it.
        detection_ignored: bool (D,): has an area, but lies in a don't-care instance.
        scores: float64 (D,).
        pairs: int64 (P, 2): instance and detection that count both, with an IoU above 0.5; in this order.
        ious: float64 (P,).
    """

    truth_counts: NDArray[np.bool_]
    truth_ignored: NDArray[np.bool_]
    detection_counts: NDArray[np.bool_]
    detection_ignored: NDArray[np.bool_]
    scores: NDArray[np.float64]
    pairs: NDArray[np.int64]
    ious: NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """What precision and recall follow from."""

    matched: int = 0
    detections: int = 0
    truths: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.matched + other.matched, self.detections + other.detections, self.truths + other.truths)

    @property
    def precision(self) -> float:
        """Share of the detections that match; 0 without detections."""
        return self.matched / self.detections if self.detections else 0.0

    @property
    def recall(self) -> float:
        """Share of the text instances that are matched; 0 without any."""
        return self.matched / self.truths if self.truths else 0.0

    def hmean(self, tao: bool = False) -> float:
        """Harmonic mean of precision and recall, 0 where both are; `tao`: with TAO's 1e-8 below the line."""
        total = self.precision + self.recall
        if tao:
            return 2 * self.precision * self.recall / (total + _TAO_EPSILON)
        return 2 * self.precision * self.recall / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Figures and counts, ready for JSON."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "hmean": self.hmean(),
            "matched": self.matched,
            "detections": self.detections,
            "truths": self.truths,
        }


def total(counts: Iterable[Counts]) -> Counts:
    """The counts of a set of images."""
    return sum(counts, Counts())


@dataclass(frozen=True)
class Truths:
    """Text instances of one image, prepared once for any number of comparisons; T instances.

    Attributes:
        polygons: Shapely's, object (T,).
        areas: float64 (T,).
        counts: bool (T,): neither don't-care nor without area.
        ignored: bool (T,): don't-care.
    """

    polygons: NDArray[Any]
    areas: NDArray[np.float64]
    counts: NDArray[np.bool_]
    ignored: NDArray[np.bool_]

    @classmethod
    def of(cls, outlines: Sequence[NDArray[Any]], ignored: Sequence[bool]) -> "Truths":
        """Prepare outlines (M, 2), and whether each is don't-care."""
        polygons, areas, valid = _polygons(outlines)
        flags = np.array(ignored, bool)
        return cls(polygons, areas, valid & ~flags, valid & flags)


def overlaps(truths: Truths, detections: Sequence[NDArray[Any]], scores: NDArray[Any]) -> Overlaps:
    """Lay the detections of an image over its text instances.

    Args:
        truths: The text instances.
        detections: Polygons (K, 2) in the same pixels.
        scores: (D,), the detections'.
    """
    found, areas, valid = _polygons(detections)
    truth, detection = _near(truths, found, areas, valid)
    shared = shapely.area(shapely.intersection(truths.polygons[truth], found[detection]))
    covered = truths.ignored[truth] & (shared / areas[detection] > _DONT_CARE_SHARE)
    in_dont_care = np.zeros(len(found), bool)
    in_dont_care[detection[covered]] = True
    detection_counts = valid & ~in_dont_care
    ious = _ious(truths, truth, found, detection, areas, shared)
    kept = (ious > _LEAST_IOU) & truths.counts[truth] & detection_counts[detection]
    pairs = np.stack([truth, detection], axis=1)[kept].astype(np.int64)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Overlaps(
        truths.counts,
        truths.ignored,
        detection_counts,
        valid & in_dont_care,
        np.asarray(scores, np.float64),
        pairs[order],
        ious[kept][order],
    )


def _near(
    truths: Truths, found: NDArray[Any], areas: NDArray[np.float64], valid: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of instance and detection whose areas and bounding boxes do not rule out all that counts."""
    truth, detection = shapely.STRtree(found).query(truths.polygons)
    usable = (truths.counts | truths.ignored)[truth] & valid[detection]
    truth, detection = truth[usable], detection[usable]
    a, b = shapely.bounds(truths.polygons)[truth], shapely.bounds(found)[detection]
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    truth_areas, detection_areas = truths.areas[truth], areas[detection]
    most = np.minimum(sides.prod(axis=1), np.minimum(truth_areas, detection_areas)) + _ROUNDING
    may_match = most > _LEAST_IOU * (truth_areas + detection_areas - most)
    may_cover = truths.ignored[truth] & (most > _DONT_CARE_SHARE * detection_areas)
    near = may_match | may_cover
    return truth[near], detection[near]


def _ious(
    truths: Truths,
    truth: NDArray[np.intp],
    found: NDArray[Any],
    detection: NDArray[np.intp],
    areas: NDArray[np.float64],
    shared: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Intersection over union of pairs; where the last digits decide, the union is TAO's, of shapely."""
    ious: NDArray[np.float64] = shared / (truths.areas[truth] + areas[detection] - shared)
    close = np.flatnonzero(np.abs(ious - _LEAST_IOU) < _ROUNDING)
    ious[close] = shared[close] / shapely.area(shapely.union(truths.polygons[truth[close]], found[detection[close]]))
    return ious


def match(overlaps: Overlaps, assignment: Assignment, least_score: float = 0.0) -> list[tuple[int, int]]:
    """Which instance is matched by which detection, one to one.

    Args:
        overlaps: What lies over what.
        assignment: `most`: as many matches as there can be, whatever the order of instances and detections. `greedy`:
            each instance in turn takes the first detection that is left, as TAO does.
        least_score: Detections below do not take part.

    Returns:
        (instance, detection), by instance.
    """
    allowed = overlaps.scores[overlaps.pairs[:, 1]] >= least_score
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


def count(overlaps: Overlaps, assignment: Assignment, least_score: float = 0.0) -> Counts:
    """Matches, detections and instances of an image that count; arguments as of `match`."""
    return Counts(
        len(match(overlaps, assignment, least_score)),
        int((overlaps.detection_counts & (overlaps.scores >= least_score)).sum()),
        int(overlaps.truth_counts.sum()),
    )


def _augment(truth: int, options: dict[int, list[tuple[float, int]]], partner: dict[int, int], tried: set[int]) -> bool:
    """Give an instance a detection, moving others to their next best (augmenting paths of bipartite matching)."""
    for _, detection in options[truth]:
        if detection in tried:
            continue
        tried.add(detection)
        if detection not in partner or _augment(partner[detection], options, partner, tried):
            partner[detection] = truth
            return True
    return False


def _polygons(outlines: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_]]:
    """Shapely's polygons (empty for less than a triangle), their areas, and whether each is simple and has an area."""
    made = np.full(len(outlines), shapely.Polygon(), object)
    whole = [index for index, points in enumerate(outlines) if len(points) > 2]
    if whole:
        rings = shapely.linearrings(
            np.concatenate([outlines[index] for index in whole]),
            indices=np.repeat(np.arange(len(whole)), [len(outlines[index]) for index in whole]),
        )
        made[whole] = shapely.polygons(rings)
    areas = shapely.area(made)
    return made, areas, np.asarray(shapely.is_valid(made) & (areas > 0), bool)

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


def overlaps(
    truths: Sequence[NDArray[Any]],
    ignored: Sequence[bool],
    detections: Sequence[NDArray[Any]],
    scores: NDArray[Any],
) -> Overlaps:
    """Lay the detections of an image over its text instances.

    Args:
        truths: Polygons (M, 2) of the text instances.
        ignored: Whether each is don't-care.
        detections: Polygons (K, 2) in the same pixels.
        scores: (D,), the detections'.
    """
    known, truth_is_valid = _polygons(truths)
    found, detection_is_valid = _polygons(detections)
    is_ignored = np.array(ignored, bool)
    truth, detection = shapely.STRtree(found).query(known, predicate="intersects")
    valid = truth_is_valid[truth] & detection_is_valid[detection]
    truth, detection = truth[valid], detection[valid]
    shared = shapely.area(shapely.intersection(known[truth], found[detection]))
    covered = is_ignored[truth] & (shared / shapely.area(found[detection]) > _DONT_CARE_SHARE)
    in_dont_care = np.zeros(len(found), bool)
    in_dont_care[detection[covered]] = True
    truth_counts = truth_is_valid & ~is_ignored
    detection_counts = detection_is_valid & ~in_dont_care
    ious = shared / shapely.area(shapely.union(known[truth], found[detection]))
    kept = (ious > _LEAST_IOU) & truth_counts[truth] & detection_counts[detection]
    pairs = np.stack([truth, detection], axis=1)[kept].astype(np.int64)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Overlaps(
        truth_counts,
        truth_is_valid & is_ignored,
        detection_counts,
        detection_is_valid & in_dont_care,
        np.asarray(scores, np.float64),
        pairs[order],
        ious[kept][order],
    )


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


def _polygons(polygons: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Shapely's polygons, and whether each is simple and has an area."""
    made = np.empty(len(polygons), object)
    for index, points in enumerate(polygons):
        made[index] = shapely.Polygon(points if len(points) > 2 else None)
    return made, np.asarray(shapely.is_valid(made) & (shapely.area(made) > 0), bool)

# SPDX-License-Identifier: Apache-2.0
"""Precision, recall and hmean from the counts of matches, detections and truths."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_TAO_EPSILON = 1e-8


@dataclass(frozen=True)
class Counts:
    """Counts of one image, or summed over several; every figure is computed from the sums.

    Attributes:
        matched: Matches, one detection to one truth.
        detections: Detections outside of don't-care regions.
        truths: Truths that are not don't-care.
    """

    matched: int = 0
    detections: int = 0
    truths: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.matched + other.matched, self.detections + other.detections, self.truths + other.truths)

    @property
    def precision(self) -> float:
        """Share of the detections that are matched; 0 without detections."""
        return self.matched / self.detections if self.detections else 0.0

    @property
    def recall(self) -> float:
        """Share of the truths that are matched; 0 without truths."""
        return self.matched / self.truths if self.truths else 0.0

    @property
    def hmean(self) -> float:
        """Harmonic mean of precision and recall; 0 where both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    @property
    def tao_hmean(self) -> float:
        """The hmean as TAO computes it, with 1e-8 in the denominator."""
        return 2 * self.precision * self.recall / (self.precision + self.recall + _TAO_EPSILON)

    def to_dict(self) -> dict[str, Any]:
        """Figures and counts, ready for JSON."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "hmean": self.hmean,
            "matched": self.matched,
            "detections": self.detections,
            "truths": self.truths,
        }


def total(counts: Iterable[Counts]) -> Counts:
    """Sum over a set of images."""
    return sum(counts, Counts())

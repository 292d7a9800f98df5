# SPDX-License-Identifier: Apache-2.0
"""Precision, recall and hmean by the protocol of ICDAR 2015 (challenge 4, task 4.1), and its data format.

Karatzas et al., "ICDAR 2015 competition on robust reading": a detection matches a truth one to one when their
intersection over union exceeds 0.5; detections that lie by more than half in a don't-care region do not count.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImageResult:
    """Counts of one image: matches, detections and truths that count."""

    matched: int
    detections: int
    truths: int


@dataclass(frozen=True)
class Evaluation:
    """Counts over a data set; the figures follow from their sums."""

    images: tuple[ImageResult, ...]

    @property
    def matched(self) -> int:
        """Matches between detections and truths."""
        return sum(image.matched for image in self.images)

    @property
    def detections(self) -> int:
        """Detections outside of don't-care regions."""
        return sum(image.detections for image in self.images)

    @property
    def truths(self) -> int:
        """Truths that are not don't-care."""
        return sum(image.truths for image in self.images)

    @property
    def precision(self) -> float:
        """Share of the detections that match; 0 without detections."""
        return self.matched / self.detections if self.detections else 0.0

    @property
    def recall(self) -> float:
        """Share of the truths that are matched; 0 without truths."""
        return self.matched / self.truths if self.truths else 0.0

    @property
    def hmean(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Figures and counts, ready for JSON."""
        return {
            "images": len(self.images),
            "precision": self.precision,
            "recall": self.recall,
            "hmean": self.hmean,
            "matched": self.matched,
            "detections": self.detections,
            "truths": self.truths,
        }

# SPDX-License-Identifier: Apache-2.0
"""A network judged on held-aside pictures, by the detector that will serve it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ocdserve.backend import Bundle, Detector, DetectorSpec
from ocdserve.backend.evaluation.dataset import Sample, Truth
from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.matching import count, find_overlaps, match
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.network.rewrite.fold import fold
from ocdserve.builder.accuracy.gate import counts_and_matched
from ocdserve.builder.accuracy.interval import Interval, hmean_loss_interval
from ocdserve.builder.graph.execute import GraphNetwork
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections

# Thresholds that are tried around the detector's own, and what one must gain to replace it, in points of hmean.
_STEPS, _LOWEST, _HIGHEST = (-0.05, 0.05), 0.3, 0.9
_LEAST_GAIN = 0.5
# What a detector must gain to be better, in matches, of which each is worth 2 / (detections + truths) of hmean.
_LEAST_MATCHES = 1.5


@dataclass(frozen=True)
class Page:
    """A picture to judge on.

    Attributes:
        name: For the report.
        source: Encoded file, or uint8 RGB (H, W, 3).
        truth: What is to be found.
    """

    name: str
    source: Path | NDArray[np.uint8]
    truth: Truth

    @classmethod
    def of(cls, sample: Sample) -> "Page":
        """A labelled picture under the name of its file."""
        return cls(sample.image.name, sample.image, sample.truth)


@dataclass(frozen=True)
class Change:
    """Two networks compared on the same pictures.

    Attributes:
        before: Counts of the first, by picture.
        after: Counts of the second.
        lost: Truths that only the first finds.
        won: Truths that only the second finds.
    """

    before: tuple[Counts, ...]
    after: tuple[Counts, ...]
    lost: int
    won: int

    @property
    def gain(self) -> float:
        """Points of hmean."""
        return 100 * (total(self.after).hmean - total(self.before).hmean)

    @property
    def interval(self) -> Interval:
        """95 % interval of the gain on pictures like these, points."""
        low, high = hmean_loss_interval(self.before, self.after, self.lost, self.won)
        return -high, -low

    def to_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "pictures": len(self.before),
            "before": total(self.before).to_dict(),
            "after": total(self.after).to_dict(),
            "gain": self.gain,
            "gain_interval": list(self.interval),
            "matches_lost": self.lost,
            "matches_won": self.won,
        }


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned network and what is known of it.

    Attributes:
        model: Its ONNX, in normal form.
        box_thresh: The threshold of its scores.
        share: How far its weights are on the way from the old to the new ones, 0 to 1.
        change: On the held-aside pictures.
        forgetting: On other held-aside pictures, by their kind.
        before: What the old detector finds in the held-aside pictures.
        after: What the new one finds there.
        overlap: Of the old and the new network's maps with the teacher's there, the mean of
            `ocdserve.builder.train.distil.overlap`; None with labels.
    """

    model: onnx.ModelProto
    box_thresh: float
    share: float
    change: Change
    forgetting: dict[str, Change]
    before: tuple[Detections, ...]
    after: tuple[Detections, ...]
    overlap: tuple[float, float] | None = None

    def is_better(self) -> bool:
        """Whether it gains more on the held-aside pictures than a match, which any change of weights may win.

        Without labels the teacher's boxes are too much alike to tell: its maps must be nearer, and no more may be lost
        than chance explains.
        """
        if self.overlap is not None:
            before, after = self.overlap
            return after > before and self.change.interval[1] >= 0
        counts = total(self.change.before)
        return self.change.gain > _LEAST_MATCHES * 200 / max(1, counts.detections + counts.truths)

    def forgets(self, most_lost: float) -> bool:
        """Whether it loses more points than that on other pictures."""
        return any(change.gain < -most_lost for change in self.forgetting.values())


def detected(
    bundle: Bundle, network: Network, pages: Sequence[Page], box_thresh: float | None = None
) -> list[Detections]:
    """What a network finds in pages, as served; `box_thresh` None is the bundle's."""
    detector = Detector(bundle, network)
    score = bundle.spec.postprocess.box_thresh if box_thresh is None else box_thresh
    found = []
    for page in pages:
        try:
            found.append(detector.detect(page.source, box_thresh=score))
        except InvalidInputError as error:
            raise InvalidInputError(f"{page.source}: {error}") from error
    return found


def network_of(model: onnx.ModelProto, spec: DetectorSpec, threads: int | None) -> Network:
    """A network in ONNX Runtime."""
    return GraphNetwork(fold(model, spec.network), threads)


def counts_of(found: Sequence[Detections], pages: Sequence[Page]) -> list[Counts]:
    """Matches, detections and truths of each page, as `ocdserve evaluate` counts them."""
    return [match(each.quads, page.truth) for page, each in zip(pages, found, strict=True)]


def compared(before: Sequence[Detections], after: Sequence[Detections], pages: Sequence[Page]) -> Change:
    """Two networks' detections compared by the truth of the pages."""
    old, new = (
        [counts_and_matched(each.quads, page.truth) for page, each in zip(pages, found, strict=True)]
        for found in (before, after)
    )
    matched = [(first, second) for (_, first), (_, second) in zip(old, new, strict=True)]
    return Change(
        tuple(counts for counts, _ in old),
        tuple(counts for counts, _ in new),
        sum(len(first - second) for first, second in matched),
        sum(len(second - first) for first, second in matched),
    )


def above(found: Sequence[Detections], score: float) -> list[Detections]:
    """The detections with at least a score."""
    return [each.filter(min_score=score) for each in found]


def least_score(own: float) -> float:
    """The lowest threshold of scores that is tried next to the detector's own."""
    return min(_thresholds(own))


def _thresholds(own: float) -> list[float]:
    return [own, *(value for step in _STEPS if _LOWEST <= (value := round(own + step, 2)) <= _HIGHEST)]


def best_threshold(found: Sequence[Detections], pages: Sequence[Page], own: float) -> float:
    """The threshold of the score with the best hmean; the detector's own unless another gains enough."""
    overlaps = [find_overlaps(page.truth, each.quads, each.scores) for page, each in zip(pages, found, strict=True)]
    hmeans = {value: total(count(each, "greedy", value) for each in overlaps).hmean for value in _thresholds(own)}
    best = max(hmeans, key=lambda value: (hmeans[value], -abs(value - own)))
    return best if 100 * (hmeans[best] - hmeans[own]) >= _LEAST_GAIN else own

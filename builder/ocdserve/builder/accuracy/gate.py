# SPDX-License-Identifier: Apache-2.0
"""The accuracy gate: a network of lower precision is compared with its FP32 original on real images."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Bundle, Detector
from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.matching import assign, count, find_overlaps, match
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.spec.resize import Frame
from ocdserve.builder.accuracy.interval import Interval, agreement_interval, hmean_loss_interval
from ocdserve.builder.progress import Progress
from ocdserve.contract import InvalidInputError, RequestParameters
from ocdserve.results.detections import Detections

_LEVELS = 65535.0
# Layers listed in a refusal.
_LISTED = 5
# With fewer images a warning says that they are few.
FEW_IMAGES = 40


@dataclass(frozen=True)
class GateLimits:
    """What a build may lose against FP32.

    Attributes:
        hmean_loss: Points (hundredths) of hmean; applies where the images have ground truth and FP32 finds any of it.
        agreement: Smallest box agreement, from 0 to 1; applies otherwise. The agreement is the hmean of the boxes
            with FP32's boxes as the ground truth.

    Raises:
        InvalidInputError: A limit is out of its range.
    """

    hmean_loss: float
    agreement: float

    def __post_init__(self) -> None:
        if not 0 <= self.hmean_loss <= 100:
            raise InvalidInputError(f"the limit of the hmean loss must be from 0 to 100 points; got {self.hmean_loss}")
        if not 0 <= self.agreement <= 1:
            raise InvalidInputError(f"the limit of the box agreement must be from 0 to 1; got {self.agreement}")


@dataclass(frozen=True)
class ReferenceImage:
    """FP32's output for one image.

    Attributes:
        pixels: Network input, uint8 (h, w, 3).
        frame: Position of the image in it.
        levels: Probability times 65535, uint16 (h, w): half the memory of float32, exact to 8e-6.
        found: Detections in source pixels.
        truth: Ground truth, if known.
    """

    pixels: NDArray[np.uint8]
    frame: Frame
    levels: NDArray[np.uint16]
    found: Detections
    truth: Truth | None


@dataclass(frozen=True)
class Reference:
    """FP32's output, for comparison with any number of candidates."""

    bundle: Bundle
    images: tuple[ReferenceImage, ...]

    @property
    def has_truth(self) -> bool:
        """Whether all images have ground truth, so that hmean can be computed."""
        return all(image.truth is not None for image in self.images)

    def first(self, count: int) -> "Reference":
        """The reference on the first `count` images only."""
        return Reference(self.bundle, self.images[:count])


@dataclass(frozen=True)
class Comparison:
    """A candidate compared with FP32 on the same images.

    Attributes:
        images: Number of images.
        agreement: hmean of the candidate's boxes with FP32's as the ground truth (IoU > 0.5), 0 to 1.
        map_error: Mean absolute difference of the probabilities.
        map_error_max: Largest absolute difference.
        boxes_fp32: Number of boxes that FP32 finds.
        boxes: Number of boxes that the candidate finds.
        hmean: Candidate's hmean, 0 to 1; None without ground truth, like the following.
        hmean_fp32: FP32's hmean.
        precision: Candidate's precision.
        recall: Candidate's recall.
        matches_lost: Truths that FP32 finds and the candidate does not; without ground truth, FP32's boxes that the
            candidate lacks. Equal numbers lost and won cancel in the hmean.
        matches_won: Truths that only the candidate finds; without ground truth, its boxes that FP32 lacks.
        agreement_interval: 95 % interval of the agreement on images like these.
        hmean_loss_interval: The same of `hmean_loss`, points; None without ground truth.
    """

    images: int
    agreement: float
    map_error: float
    map_error_max: float
    boxes_fp32: int
    boxes: int
    hmean: float | None = None
    hmean_fp32: float | None = None
    precision: float | None = None
    recall: float | None = None
    matches_lost: int = 0
    matches_won: int = 0
    agreement_interval: Interval = (0.0, 1.0)
    hmean_loss_interval: Interval | None = None

    @property
    def hmean_loss(self) -> float | None:
        """Points of hmean lost; negative if the candidate is better."""
        if self.hmean is None or self.hmean_fp32 is None:
            return None
        return 100 * (self.hmean_fp32 - self.hmean)

    @property
    def is_judged_by_hmean(self) -> bool:
        """An FP32 network without a single match has no hmean to lose: then the agreement decides."""
        return self.hmean_loss is not None and bool(self.hmean_fp32)

    def passes(self, limits: GateLimits) -> bool:
        """Whether the candidate stays within the limits on these images."""
        if not np.isfinite(self.map_error):
            return False
        if self.hmean_loss is not None and self.is_judged_by_hmean:
            # Tolerates the last digits of a loss that equals the limit.
            return self.hmean_loss <= limits.hmean_loss + 1e-9
        return self.agreement >= limits.agreement

    def is_certain(self, limits: GateLimits) -> bool:
        """Whether the whole 95 % interval is on the same side of the limit as the figure itself."""
        if not np.isfinite(self.map_error):
            return True
        if self.is_judged_by_hmean:
            low, high = self.hmean_loss_interval or (-100.0, 100.0)
            return high <= limits.hmean_loss + 1e-9 or low > limits.hmean_loss + 1e-9
        low, high = self.agreement_interval
        return low >= limits.agreement or high < limits.agreement

    def warnings(self, limits: GateLimits) -> list[str]:
        """What the images cannot tell, one sentence each."""
        found = []
        if not self.is_certain(limits):
            if self.is_judged_by_hmean:
                low, high = self.hmean_loss_interval or (-100.0, 100.0)
                what = f"the loss may be {low:.2f} to {high:.2f} points of hmean (95 %), the limit is "
                what += f"{limits.hmean_loss:g}"
            else:
                low, high = self.agreement_interval
                what = f"the box agreement may be {low:.4f} to {high:.4f} (95 %), the limit is {limits.agreement:g}"
            found.append(f"the gate cannot tell with these images whether the limit holds: {what}")
        if not self.boxes_fp32:
            found.append("FP32 finds no text on the judged images, which therefore say nothing; judge with others")
        if self.images < FEW_IMAGES:
            found.append(f"only {self.images} images were judged; fewer than {FEW_IMAGES} say little about others")
        return found

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-serialisable."""
        return {**asdict(self), "hmean_loss": self.hmean_loss}

    def table(self) -> str:
        """The figures as text, one per line."""
        rows = [("images", str(self.images))]
        if self.hmean is not None and self.hmean_fp32 is not None:
            rows += [("hmean FP32", f"{self.hmean_fp32:.4f}"), ("hmean", f"{self.hmean:.4f}")]
            rows += [("loss", f"{self.hmean_loss:.2f} points")]
        if self.hmean_loss_interval is not None:
            rows += [("loss, 95 %", "{:.2f} to {:.2f}".format(*self.hmean_loss_interval))]
        rows += [
            ("matches lost / won", f"{self.matches_lost} / {self.matches_won}"),
            ("box agreement", f"{self.agreement:.4f}"),
            ("agreement, 95 %", "{:.4f} to {:.4f}".format(*self.agreement_interval)),
            ("boxes FP32 / here", f"{self.boxes_fp32} / {self.boxes}"),
            ("map error, mean", f"{self.map_error:.6f}"),
            ("map error, largest", f"{self.map_error_max:.3f}"),
        ]
        return "\n".join(f"  {label:<20}{value:>16}" for label, value in rows)


def make_reference(
    bundle: Bundle, network: Network, images: Mapping[Path, Truth | None], progress: Progress
) -> Reference:
    """Run FP32 over the evaluation images.

    Args:
        bundle: The detector.
        network: FP32 network with float32 maps.
        images: Image files and their ground truth.
        progress: Reports each image.

    Raises:
        InvalidInputError: There are no images, or one cannot be decoded.
    """
    if not images:
        raise InvalidInputError("the gate needs at least one image; name images that calibration does not use")
    detector = Detector(bundle, network)
    answers = []
    with progress.task("FP32 on the evaluation images", len(images)) as task:
        for path, truth in images.items():
            pixels, frame = detector.preprocess(path)
            (probability,) = detector.infer([pixels], [frame])
            levels = np.rint(probability.clip(0, 1) * _LEVELS).astype(np.uint16)
            answers.append(ReferenceImage(pixels, frame, levels, _detections(detector, probability, frame), truth))
            task.advance()
    return Reference(bundle, tuple(answers))


def compare(reference: Reference, network: Network, progress: Progress, label: str = "accuracy gate") -> Comparison:
    """Run a candidate over the reference's images.

    Args:
        reference: From `make_reference`.
        network: The candidate, with maps of float32 probabilities or of uint8 levels.
        progress: Reports each image.
        label: Name of the task.
    """
    detector = Detector(reference.bundle, network)
    errors, largest, boxes = [], 0.0, 0
    agreeing, ours, theirs = [], [], []
    lost = won = 0
    with progress.task(label, len(reference.images)) as task:
        for image in reference.images:
            (found,) = detector.infer([image.pixels], [image.frame])
            probability = found.astype(np.float32) / 255 if found.dtype == np.uint8 else found
            difference = np.abs(probability - image.levels.astype(np.float32) / _LEVELS)
            errors.append(float(difference.mean()))
            largest = max(largest, float(difference.max()))
            quads = _detections(detector, probability, image.frame).quads
            boxes += len(quads)
            agreeing.append(match(quads, as_truth(image.found)))
            if image.truth is not None:
                counts, matched = counts_and_matched(quads, image.truth)
                counts_fp32, matched_fp32 = counts_and_matched(image.found.quads, image.truth)
                ours.append(counts)
                theirs.append(counts_fp32)
                lost, won = lost + len(matched_fp32 - matched), won + len(matched - matched_fp32)
            task.advance()
    agreed, known = total(agreeing), sum(len(image.found.quads) for image in reference.images)
    figures = Comparison(
        len(errors),
        agreed.hmean if known or boxes else 1.0,
        float(np.mean(errors)),
        largest,
        known,
        boxes,
        matches_lost=agreed.truths - agreed.matched,
        matches_won=agreed.detections - agreed.matched,
        agreement_interval=agreement_interval(agreeing),
    )
    return _with_truth(figures, ours, theirs, lost, won) if reference.has_truth else figures


def most_sensitive(sensitivity: Mapping[str, float], figure: str) -> str:
    """Lines with the layers of the largest errors, for the message of a refusal; empty if none was measured."""
    worst = sorted(sensitivity.items(), key=lambda item: -item[1])[:_LISTED]
    rows = "".join(f"\n  {name:<40}{error:.6f}" for name, error in worst)
    return f"\nMost sensitive layers ({figure} with only this one quantised):{rows}" if worst else ""


def refusal(precision: str, comparison: Comparison, limits: GateLimits, sensitivity: Mapping[str, float]) -> str:
    """Message of a network that fails the gate: rule, figures, most sensitive layers and remedies.

    Args:
        precision: The network's precision.
        comparison: Its figures.
        limits: The limits that it exceeds.
        sensitivity: Map error of single layers by name, if measured.
    """
    warnings = "".join(f"\n{warning[0].upper()}{warning[1:]}." for warning in comparison.warnings(limits))
    return (
        f"the accuracy gate refuses this {precision} network: {_rule(comparison, limits)}.\n{comparison.table()}"
        f"{most_sensitive(sensitivity, 'map error')}{warnings}{_doubt(comparison, limits)}\n"
        "Nothing was written. Calibrate with more typical images, exclude layers (--keep), or relax the limits "
        "(--max-hmean-loss, --min-agreement)."
    )


def accepted_failure(comparison: Comparison, limits: GateLimits) -> str:
    """A note on a network that fails the gate but is written all the same."""
    found = (
        f"loses {comparison.hmean_loss:.2f}"
        if comparison.is_judged_by_hmean
        else f"has {comparison.agreement:.4f}, {comparison.matches_lost} boxes lost, {comparison.matches_won} won"
    )
    return (
        f"the network loses too much accuracy: {_rule(comparison, limits)}, and it {found} on {comparison.images} "
        "images. Calibrate with more typical images, or exclude layers"
    )


def _rule(comparison: Comparison, limits: GateLimits) -> str:
    if comparison.is_judged_by_hmean:
        return f"it may lose {limits.hmean_loss:g} points of hmean"
    return f"its box agreement must be at least {limits.agreement:g}"


def _doubt(comparison: Comparison, limits: GateLimits) -> str:
    """A warning if the images hold so few texts that a single one decides."""
    worth = 100 / max(1, comparison.boxes_fp32)
    allowed = limits.hmean_loss if comparison.hmean_fp32 else 100 * (1 - limits.agreement)
    if not worth > allowed > 0:
        return ""
    return (
        f"\nFP32 finds {comparison.boxes_fp32} texts here: one of them is worth about {worth:.1f} points, more than "
        "the limit. Judge with more images."
    )


def counts_and_matched(quads: NDArray[Any], truth: Truth) -> tuple[Counts, set[int]]:
    """The counts of one image, and which truths are matched."""
    overlaps = find_overlaps(truth, quads)
    return count(overlaps, "greedy"), {index for index, _ in assign(overlaps, "greedy")}


def _with_truth(figures: Comparison, ours: list[Counts], theirs: list[Counts], lost: int, won: int) -> Comparison:
    candidate, original = total(ours), total(theirs)
    return replace(
        figures,
        hmean=candidate.hmean,
        hmean_fp32=original.hmean,
        precision=candidate.precision,
        recall=candidate.recall,
        matches_lost=lost,
        matches_won=won,
        hmean_loss_interval=hmean_loss_interval(theirs, ours, lost, won),
    )


def _detections(detector: Detector, probability: NDArray[np.float32], frame: Frame) -> Detections:
    """As served, from the map in 256 levels; values that are not finite count as background."""
    levels = np.rint(np.nan_to_num(probability, nan=0.0, posinf=0.0, neginf=0.0) * 255).clip(0, 255).astype(np.uint8)
    return detector.postprocess(levels, frame, RequestParameters())


def as_truth(found: Detections) -> Truth:
    """A detector's boxes, as what another is to find."""
    return Truth(tuple(np.asarray(quad, np.float64) for quad in found.quads), (False,) * len(found.quads))

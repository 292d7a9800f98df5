# SPDX-License-Identifier: Apache-2.0
"""The accuracy gate: a network of lower precision is held against its FP32 original on real images."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Bundle, Detector
from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.matching import match
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.spec.resize import Frame
from ocdserve.builder.progress import Progress
from ocdserve.contract import InvalidInputError, RequestParameters
from ocdserve.results.detections import Detections

_LEVELS = 65535.0
# Layers that a refusal names.
_BLAMED = 5


@dataclass(frozen=True)
class GateLimits:
    """What a build may lose against FP32.

    Attributes:
        hmean_loss: Points (hundredths) of hmean; judged where the images have ground truth of which FP32 finds any.
        agreement: Least box agreement; judged elsewhere. The agreement is the hmean of the boxes with
            FP32's boxes as the truth, from 0 to 1.

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
    """FP32's answer to one image.

    Attributes:
        pixels: Network input, uint8 (h, w, 3).
        frame: Where the image lies in it.
        levels: Probability times 65535, uint16 (h, w): half of the memory of float32, exact to 8e-6.
        found: Detections in source pixels.
        truth: Ground truth; None where there is none.
    """

    pixels: NDArray[np.uint8]
    frame: Frame
    levels: NDArray[np.uint16]
    found: Detections
    truth: Truth | None


@dataclass(frozen=True)
class Reference:
    """FP32's answers, against which any number of candidates is held."""

    bundle: Bundle
    images: tuple[ReferenceImage, ...]

    @property
    def has_truth(self) -> bool:
        """Whether all images have ground truth, so that hmean can be told."""
        return all(image.truth is not None for image in self.images)

    def first(self, count: int) -> "Reference":
        """The first `count` images only."""
        return Reference(self.bundle, self.images[:count])


@dataclass(frozen=True)
class Comparison:
    """A candidate against FP32 on the same images.

    Attributes:
        images: How many.
        agreement: hmean of the candidate's boxes with FP32's as the truth (IoU > 0.5), 0 to 1.
        map_error: Mean absolute difference of the probabilities.
        map_error_max: The largest difference.
        boxes_fp32: Number of boxes that FP32 finds.
        boxes: Number of boxes that the candidate finds.
        hmean: The candidate's, 0 to 1; None without ground truth.
        hmean_fp32: FP32's on the same images.
        precision: The candidate's.
        recall: The candidate's.
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

    @property
    def hmean_loss(self) -> float | None:
        """Points of hmean lost; negative where the candidate is better."""
        if self.hmean is None or self.hmean_fp32 is None:
            return None
        return 100 * (self.hmean_fp32 - self.hmean)

    def passes(self, limits: GateLimits) -> bool:
        """Whether the candidate keeps within the limits."""
        if not np.isfinite(self.map_error):
            return False
        # A network that finds nothing of the truth cannot lose: then the agreement decides.
        if self.hmean_loss is not None and self.hmean_fp32:
            # Tolerates the last digits of a loss that equals the limit.
            return self.hmean_loss <= limits.hmean_loss + 1e-9
        return self.agreement >= limits.agreement

    def to_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return {**asdict(self), "hmean_loss": self.hmean_loss}

    def table(self) -> str:
        """The figures for people, one a line."""
        rows = [("images", str(self.images))]
        if self.hmean is not None and self.hmean_fp32 is not None:
            rows += [("hmean FP32", f"{self.hmean_fp32:.4f}"), ("hmean", f"{self.hmean:.4f}")]
            rows += [("loss", f"{self.hmean_loss:.2f} points")]
        rows += [
            ("box agreement", f"{self.agreement:.4f}"),
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
        bundle: The detector's contract.
        network: FP32, giving float32 maps.
        images: Image files and their ground truth.
        progress: Where to show it.

    Raises:
        InvalidInputError: There are no images, or one cannot be read.
    """
    if not images:
        raise InvalidInputError("the gate needs at least one image; name images that calibration does not use")
    detector = Detector(bundle, network)
    answers = []
    with progress.task("FP32 on the evaluation images", len(images)) as task:
        for path, truth in images.items():
            pixels, frame = detector.preprocess(path)
            (probability,) = network.infer([pixels])
            levels = np.rint(probability.clip(0, 1) * _LEVELS).astype(np.uint16)
            answers.append(ReferenceImage(pixels, frame, levels, _detections(detector, probability, frame), truth))
            task.advance()
    return Reference(bundle, tuple(answers))


def compare(reference: Reference, network: Network, progress: Progress, label: str = "accuracy gate") -> Comparison:
    """Run a candidate over the reference's images.

    Args:
        reference: From `make_reference`.
        network: The candidate, with maps of float32 probabilities or of uint8 levels.
        progress: Where to show it.
        label: What to call it there.
    """
    detector = Detector(reference.bundle, network)
    errors, largest, boxes = [], 0.0, 0
    agreeing, ours, theirs = [], [], []
    with progress.task(label, len(reference.images)) as task:
        for image in reference.images:
            (found,) = network.infer([image.pixels])
            probability = found.astype(np.float32) / 255 if found.dtype == np.uint8 else found
            difference = np.abs(probability - image.levels.astype(np.float32) / _LEVELS)
            errors.append(float(difference.mean()))
            largest = max(largest, float(difference.max()))
            quads = _detections(detector, probability, image.frame).quads
            boxes += len(quads)
            agreeing.append(match(quads, _as_truth(image.found)))
            if image.truth is not None:
                ours.append(match(quads, image.truth))
                theirs.append(match(image.found.quads, image.truth))
            task.advance()
    known = sum(len(image.found.quads) for image in reference.images)
    agreement = total(agreeing).hmean if known or boxes else 1.0
    figures = Comparison(len(errors), agreement, float(np.mean(errors)), largest, known, boxes)
    return _with_truth(figures, ours, theirs) if reference.has_truth else figures


def refusal(precision: str, comparison: Comparison, limits: GateLimits, damage: Mapping[str, float]) -> str:
    """Why the gate refuses a network, for people: the rule, the figures, the layers to blame, the remedies.

    Args:
        precision: The network's.
        comparison: Its figures.
        limits: Which it does not keep.
        damage: Map error of single layers by name, as far as it was measured.
    """
    judged = (
        f"it may lose {limits.hmean_loss:g} points of hmean"
        if comparison.hmean_fp32
        else f"its box agreement must be at least {limits.agreement:g}"
    )
    worst = sorted(damage.items(), key=lambda item: -item[1])[:_BLAMED]
    blame = "".join(f"\n  {name:<40}{error:.6f}" for name, error in worst)
    layers_to_blame = f"\nLayers that do the most damage (map error alone):{blame}" if worst else ""
    return (
        f"the accuracy gate refuses this {precision} network: {judged}.\n{comparison.table()}"
        f"{layers_to_blame}{_doubt(comparison, limits)}\n"
        "Nothing was written. Calibrate with more typical images, keep layers (--keep), or widen the limits "
        "(--max-hmean-loss, --min-agreement)."
    )


def _doubt(comparison: Comparison, limits: GateLimits) -> str:
    """A remark where the images hold so few texts that a single one decides."""
    worth = 100 / max(1, comparison.boxes_fp32)
    allowed = limits.hmean_loss if comparison.hmean_fp32 else 100 * (1 - limits.agreement)
    if not worth > allowed > 0:
        return ""
    return (
        f"\nFP32 finds {comparison.boxes_fp32} texts here: one of them is worth about {worth:.1f} points, more than "
        "the limit. Judge with more images."
    )


def _with_truth(figures: Comparison, ours: list[Counts], theirs: list[Counts]) -> Comparison:
    candidate, original = total(ours), total(theirs)
    return replace(
        figures,
        hmean=candidate.hmean,
        hmean_fp32=original.hmean,
        precision=candidate.precision,
        recall=candidate.recall,
    )


def _detections(detector: Detector, probability: NDArray[np.float32], frame: Frame) -> Detections:
    """As served: from the map in 256 levels. A map that is not finite finds nothing there, it is not refused here."""
    levels = np.rint(np.nan_to_num(probability, nan=0.0, posinf=0.0, neginf=0.0) * 255).clip(0, 255).astype(np.uint8)
    return detector.postprocess(levels, frame, RequestParameters())


def _as_truth(found: Detections) -> Truth:
    return Truth(tuple(np.asarray(quad, np.float64) for quad in found.quads), (False,) * len(found.quads))

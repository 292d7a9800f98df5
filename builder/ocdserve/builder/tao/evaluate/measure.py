# SPDX-License-Identifier: Apache-2.0
"""Evaluate one image: compare the detections of its map with its labels, at the spec's thresholds and at others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.figures import Counts
from ocdserve.backend.evaluation.matching import Assignment, assign, count, find_overlaps
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.builder.tao.inputs.labels import Label

State = Literal["matched", "missed", "false", "ignored", "invalid"]

# Thresholds of the bitmap that TAO's training image tries.
BITMAP_THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(1, 10))
SCORE_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(20))


@dataclass(frozen=True)
class MeasureOptions:
    """How detections and labels are compared.

    Attributes:
        params: Post-processing; its mode selects the rules. `tao`: whole network pixels on both sides, greedy matches.
            `default`: source pixels with fractions, a maximum matching.
        resizes_labels: In mode `tao`, whether labels are scaled to the network's size.
        has_sweep: Whether the figures at other bitmap thresholds are computed too.
    """

    params: PostprocessParams
    resizes_labels: bool = True
    has_sweep: bool = True

    @property
    def assignment(self) -> Assignment:
        """How detections are assigned to labels."""
        return "greedy" if self.params.mode == "tao" else "most"


@dataclass(frozen=True)
class Region:
    """A text instance or a detection in the result of an image.

    Attributes:
        polygon: float64 (M, 2), source pixels.
        state: Instances: matched, missed, ignored (don't-care), invalid (without area in whole pixels). Detections:
            matched, false, ignored (in a don't-care instance), invalid.
        text: Of an instance; None where it has none.
        score: Of a detection.
        partner: Index of the detection or instance that it is matched with.
    """

    polygon: NDArray[np.float64]
    state: State
    text: str | None = None
    score: float | None = None
    partner: int | None = None


@dataclass(frozen=True)
class ImageResult:
    """One evaluated image.

    Attributes:
        path: The file.
        width: In pixels.
        height: In pixels.
        counts: At the spec's thresholds.
        truths: Text instances, in the order of the label file.
        detections: In the order of the post-processing.
        by_bitmap_threshold: Counts at each of `BITMAP_THRESHOLDS`; empty without a sweep.
        by_score_threshold: Counts of the detections with a score of at least each of `SCORE_THRESHOLDS`; below the
            spec's box_thresh they equal `counts`.
    """

    path: Path
    width: int
    height: int
    counts: Counts
    truths: tuple[Region, ...]
    detections: tuple[Region, ...]
    by_bitmap_threshold: tuple[Counts, ...]
    by_score_threshold: tuple[Counts, ...]


def measure(
    path: Path, labels: Sequence[Label], probability: NDArray[Any], frame: Frame, options: MeasureOptions
) -> ImageResult:
    """Evaluate one image.

    Args:
        path: The image file, for the result.
        labels: Its text instances.
        probability: (h, w) map, uint8 or float32.
        frame: Position of the image in it.
        options: How to compare.
    """
    tao = options.params.mode == "tao"
    # TAO compares in network pixels: post-processing gets the frame of an image that has the network's size.
    compared = Frame(frame.network, frame.network, frame.network) if tao else frame
    outlines = tuple(_compared_outline(label, frame, options) for label in labels)
    truth = Truth(outlines, tuple(label.ignored for label in labels))
    polygons, scores = _detect(probability, compared, options.params)
    overlaps = find_overlaps(truth, polygons, scores)
    counts = count(overlaps, options.assignment)
    by_bitmap = tuple(
        counts
        if thresh == options.params.thresh
        else count(
            find_overlaps(truth, *_detect(probability, compared, replace(options.params, thresh=thresh))),
            options.assignment,
        )
        for thresh in (BITMAP_THRESHOLDS if options.has_sweep else ())
    )
    by_score = tuple(count(overlaps, options.assignment, thresh) for thresh in SCORE_THRESHOLDS)
    scale = np.array(frame.scale if tao else (1.0, 1.0))
    pairs = assign(overlaps, options.assignment)
    instances = _regions(
        (label.polygon for label in labels), overlaps.truth_counts, overlaps.truth_ignored, dict(pairs), "missed"
    )
    found = _regions(
        (polygon * scale for polygon in polygons),
        overlaps.detection_counts,
        overlaps.detection_ignored,
        {detection: truth for truth, detection in pairs},
        "false",
    )
    height, width = frame.source
    return ImageResult(
        path,
        width,
        height,
        counts,
        tuple(replace(region, text=label.text) for region, label in zip(instances, labels, strict=True)),
        tuple(replace(region, score=score) for region, score in zip(found, scores.tolist(), strict=True)),
        by_bitmap,
        by_score,
    )


def _compared_outline(label: Label, frame: Frame, options: MeasureOptions) -> NDArray[Any]:
    if options.params.mode != "tao":
        return label.polygon
    points = label.polygon.astype(np.float32)
    if options.resizes_labels:
        # One factor per side in single precision: truncation turns a difference in the last digit into a pixel.
        points[:, 0] *= frame.content[1] / frame.source[1]
        points[:, 1] *= frame.content[0] / frame.source[0]
    return points.astype(np.int64)


def _detect(
    probability: NDArray[Any], frame: Frame, params: PostprocessParams
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    found = postprocess(probability, frame, params)
    scores = found.scores.astype(np.float64)
    outlines = found.quads if found.polygons is None else found.polygons
    polygons = [np.asarray(outline, np.float64) for outline in outlines]
    if params.mode == "tao" and not params.polygons:
        # TAO's metric compares again, with the score in single precision.
        kept = scores >= params.box_thresh
        return [polygon for polygon, keep in zip(polygons, kept, strict=True) if keep], scores[kept]
    return polygons, scores


def _regions(
    polygons: Iterable[NDArray[np.float64]],
    counts: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
    partner: Mapping[int, int],
    unmatched: State,
) -> list[Region]:
    def state(index: int) -> State:
        if index in partner:
            return "matched"
        if counts[index]:
            return unmatched
        return "ignored" if ignored[index] else "invalid"

    return [Region(polygon, state(index), partner=partner.get(index)) for index, polygon in enumerate(polygons)]

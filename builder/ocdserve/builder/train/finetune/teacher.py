# SPDX-License-Identifier: Apache-2.0
"""The detector that teaches: its maps, corrected by labels where there are any, are what is learnt."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Bundle, Detector, DetectorSpec, ResizePolicy
from ocdserve.backend.evaluation.dataset import Sample, Truth
from ocdserve.backend.evaluation.matching import assign, find_overlaps
from ocdserve.backend.spec.resize import Frame
from ocdserve.builder.train.data.targets import shrink_map
from ocdserve.builder.train.distil import TeacherMaps
from ocdserve.builder.train.finetune.options import FineTuneOptions
from ocdserve.contract import InvalidInputError, RequestParameters
from ocdserve.results.detections import Detections

# Texts lower than this in a map are neither drawn nor erased, in pixels.
_LEAST_TEXT = 5.0
# As its own teacher, the detector sees pictures so many times as large.
_LARGER, _LARGEST_SIDE = 1.6, 4096


class Teacher:
    """What is to be learnt of pictures; maps are kept on disk.

    Args:
        bundle: The detector that teaches.
        name: As it was given: a folder, or the name of a built-in detector.
        policy: How it sees pictures, in one piece.
        spec: The detector that learns.
        labelled: Whether labels correct the maps.
        folder: For maps; it is made.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: Path | str | None,
        policy: ResizePolicy,
        spec: DetectorSpec,
        labelled: bool,
        folder: Path,
    ) -> None:
        self.bundle, self.name, self.labelled = bundle, name, labelled
        self._maps, self._detector = TeacherMaps.of(bundle, folder, policy), Detector(bundle, None)
        self._unclip, self._folder = spec.postprocess.unclip_ratio, folder
        self._targets: dict[Path, Path] = {}

    @classmethod
    def of(cls, options: FineTuneOptions, bundle: Bundle, folder: Path) -> "Teacher":
        """The teacher that the options name, or the usual one of a detector.

        Raises:
            InvalidInputError: There is no such bundle, or none can teach a detector that sees all pictures at one size.
        """
        # These have learnt from the default detector, and are worse at larger sizes.
        learnt = str(options.bundle) in Bundle.built_in and not str(options.bundle).startswith("default")
        if options.teacher is None and not learnt:
            own = bundle.spec.resize
            policy = own if own.has_one_size and not options.self_distil else larger(own)
            return cls(bundle, options.bundle, policy, bundle.spec, not options.self_distil, folder)
        try:
            teacher = Bundle.load(options.teacher)
        except InvalidInputError as error:
            raise InvalidInputError(f"teacher: {error}") from error
        return cls(teacher, options.teacher, teacher.spec.resize, bundle.spec, not options.self_distil, folder)

    def map(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Its map of a picture, uint8 (h, w), 255 times the probability."""
        return self._maps.map(pixels)

    def boxes(self, pixels: NDArray[np.uint8]) -> Detections:
        """What it finds in a picture."""
        return self._boxes(self.map(pixels), pixels)

    def _boxes(self, found: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> Detections:
        rows, columns = found.shape
        frame = Frame((pixels.shape[0], pixels.shape[1]), (rows, columns), (rows, columns))
        return self._detector.postprocess(np.array(found), frame, RequestParameters())

    def target(self, sample: Sample, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The map that a picture is to have, as `map`; computed at the first use, then known by the picture's path."""
        if sample.image not in self._targets:
            target = self.map(pixels)
            if self.labelled:
                quads = self._boxes(target, pixels).quads
                target = corrected(target, pixels.shape[:2], quads, sample.truth, self._unclip)
            np.save(file := self._folder / f"target-{len(self._targets)}.npy", target)
            self._targets[sample.image] = file
        found: NDArray[np.uint8] = np.load(self._targets[sample.image], mmap_mode="r")
        return found


def larger(policy: ResizePolicy) -> ResizePolicy:
    """How a detector sees pictures as its own teacher.

    Raises:
        InvalidInputError: It sees all pictures at one size.
    """
    if policy.has_one_size:
        raise InvalidInputError(
            f"the detector sees all pictures at {policy.width} x {policy.height} pixels, so that it cannot teach "
            "itself at a larger size; give labels, name another teacher (--teacher), or take a bundle with the resize "
            "policy short_side"
        )

    def enlarged(side: int) -> int:
        return min(_LARGEST_SIDE, round(_LARGER * side / policy.bucket) * policy.bucket)

    return replace(policy, side=enlarged(policy.side), largest_side=enlarged(policy.largest_side), tiles=False)


def corrected(
    found: NDArray[np.uint8], size: tuple[int, ...], quads: NDArray[np.float32], truth: Truth, unclip: float
) -> NDArray[np.uint8]:
    """A map of a picture in which labels have the last word.

    Where a box matches a label the map stays: its shape is what the network knows best, and labels are never exact.
    What the labels do not have vanishes, and what only they have is drawn, shrunk by what post-processing grows it by.
    Where labels say nothing the map stays too: in ignored regions, at labels that cross themselves, and at those that
    are too low to be drawn.

    Args:
        found: uint8 (h, w), 255 times the probability.
        size: Height and width of the picture in pixels.
        quads: The boxes of the map, (D, 4, 2) in pixels of the picture.
        truth: The labels.
        unclip: The ratio by which post-processing grows boxes.
    """
    rows, columns = found.shape
    scale = np.array((columns, rows)) / size[1::-1]
    overlaps = find_overlaps(truth, quads)
    pairs = assign(overlaps, "most")
    known, right = ({pair[side] for pair in pairs} for side in (0, 1))
    labels, boxes = ([polygon * scale for polygon in polygons] for polygons in (truth.polygons, quads))
    missed = [labels[index] for index in np.flatnonzero(overlaps.truth_counts) if index not in known]
    wrong = [boxes[index] for index in np.flatnonzero(overlaps.detection_counts) if index not in right]
    unusable = np.flatnonzero(~overlaps.truth_counts & ~overlaps.truth_ignored)
    drawn, mask = shrink_map(missed, [False] * len(missed), (rows, columns), min_text_size=_LEAST_TEXT, unclip=unclip)
    cleared = np.zeros(found.shape, np.uint8)
    for polygons, value in (
        (missed + wrong, 1),
        ([boxes[index] for index in right], 0),
        ([cv2.convexHull(labels[index].astype(np.float32))[:, 0] for index in unusable], 0),
    ):
        for polygon in polygons:
            cv2.fillPoly(cleared, [np.rint(polygon).astype(np.int32)], (value,))
    cleared[mask == 0] = 0
    return np.where(drawn > 0, np.uint8(255), np.where(cleared > 0, np.uint8(0), found))

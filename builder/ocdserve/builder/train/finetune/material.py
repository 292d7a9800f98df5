# SPDX-License-Identifier: Apache-2.0
"""What is trained and judged on: the user's pictures, and others on which the detector is to stay as it is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Bundle, Detector, ResizePolicy
from ocdserve.backend.evaluation.dataset import Sample, Truth
from ocdserve.backend.evaluation.formats import is_labelled, load_labels
from ocdserve.backend.evaluation.matching import assign, find_overlaps
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.spec.bundle import BUILT_IN
from ocdserve.backend.spec.resize import Frame
from ocdserve.builder.accuracy.gate import as_truth
from ocdserve.builder.calibration.images import photographs
from ocdserve.builder.progress import Progress
from ocdserve.builder.train.data.drawn import drawn_pages
from ocdserve.builder.train.data.targets import shrink_map
from ocdserve.builder.train.distil import TeacherMaps
from ocdserve.builder.train.finetune.crops import read_picture
from ocdserve.builder.train.finetune.judge import Page, detected
from ocdserve.builder.train.finetune.options import FineTuneOptions
from ocdserve.contract import InvalidInputError, RequestParameters
from ocdserve.results.detections import Detections

# Texts lower than this in a map are not drawn, in pixels.
_LEAST_TEXT = 5.0
# Held aside: one picture in so many, and at least so many.
_HELD_PART, LEAST_HELD = 5, 3
# Drawn pages to train and to judge on, and their height and width in pixels.
_DRAWN, _DRAWN_HELD, _DRAWN_SIZE = 80, 40, (640, 640)
# Far from the seed of the pages that are trained on.
_HELD_SEED = 1_000_003
# As its own teacher, the detector sees pictures so many times as large.
_TEACHER = 1.6
_LARGEST_SIDE = 4096


@dataclass(frozen=True)
class Material:
    """Pictures of a fine-tuning.

    Attributes:
        train: The user's pictures to train on.
        targets: The map that each of them is to have, uint8 (h, w), 255 times the probability.
        held: Those held aside.
        taught: The teacher's maps of those, as `targets`; None with labels.
        others: Other pictures to train on, files or pixels.
        kept: Other pictures to judge on, by their kind: `drawn` pages, and those of the user's folder, `keep-data`.
    """

    train: tuple[Sample, ...]
    targets: tuple[NDArray[np.uint8], ...]
    held: tuple[Page, ...]
    taught: tuple[NDArray[np.uint8], ...] | None
    others: tuple[Path | NDArray[np.uint8], ...]
    kept: dict[str, tuple[Page, ...]]

    def record(self) -> dict[str, Any]:
        """Numbers and hashes of the pictures, ready for JSON."""
        digest = hashlib.sha256()
        for path in sorted([sample.image for sample in self.train] + [Path(str(page.source)) for page in self.held]):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        truths = [*(sample.truth for sample in self.train), *(page.truth for page in self.held)]
        for polygon in (polygon for truth in truths for polygon in truth.polygons):
            digest.update(polygon.tobytes())
        return {
            "trained_on": len(self.train),
            "held_aside": [page.name for page in self.held],
            "texts": sum(len(truth.polygons) for truth in truths),
            "others_trained_on": len(self.others),
            "others_held_aside": {kind: len(pages) for kind, pages in self.kept.items()},
            "sha256": digest.hexdigest(),
        }


def listed(options: FineTuneOptions) -> list[Sample]:
    """The user's pictures with their labels; without any where the detector teaches itself.

    Raises:
        InvalidInputError: Pictures or labels are missing, malformed or too few; the message says which.
    """
    if options.self_distil:
        samples = [Sample(path, Truth((), ())) for path in photographs(options.data)]
    elif is_labelled(options.data):
        samples = load_labels(options.data)
    else:
        raise InvalidInputError(
            f"{options.data} holds no labels: give img/ and gt/, COCO, Label Studio's or labelme's JSON, or teach the "
            "detector without labels (--self-distil)"
        )
    if len(samples) <= LEAST_HELD:
        raise InvalidInputError(
            f"{options.data} has {len(samples)} pictures, of which {LEAST_HELD} or more are held aside; at least "
            f"{LEAST_HELD + 1} are needed, and 30 are better"
        )
    return samples


def gathered(
    options: FineTuneOptions,
    samples: Sequence[Sample],
    bundle: Bundle,
    network: Network,
    folder: Path,
    progress: Progress,
) -> Material:
    """Split the pictures, and add others.

    Args:
        options: Where other pictures are.
        samples: The user's pictures.
        bundle: The detector as it is.
        network: Its network.
        folder: For the teacher's maps.
        progress: Reports what takes long.

    Raises:
        InvalidInputError: There is no text, or a picture cannot be read; the message names the file.
    """
    teacher, policy = teaching(options, bundle)
    maps = TeacherMaps.of(teacher, folder, policy)
    if options.self_distil:
        samples = _taught(samples, teacher, maps, progress)
    train, held = (tuple(samples[index] for index in part) for part in split(len(samples), options.seed))
    for part, use in ((train, "train on"), (held, "judge on")):
        if not any(not ignored for sample in part for ignored in sample.truth.ignored):
            raise InvalidInputError(f"there is no text in the {len(part)} pictures of {options.data} to {use}")
    drawn = tuple(page for page, _ in drawn_pages(_DRAWN, _DRAWN_SIZE, options.seed))
    kept = {
        "drawn": tuple(
            Page(f"drawn {index}", page, truth)
            for index, (page, truth) in enumerate(drawn_pages(_DRAWN_HELD, _DRAWN_SIZE, options.seed + _HELD_SEED))
        )
    }
    others: tuple[Path | NDArray[np.uint8], ...] = drawn
    if options.keep_data is not None:
        more, kept["keep-data"] = _kept(options.keep_data, bundle, network, options.seed)
        # As many of these as of the drawn ones.
        others = (*drawn, *(more[index % len(more)] for index in range(max(len(drawn), len(more)))))
    targets = _targets(train, teacher, maps, not options.self_distil, folder, progress)
    taught = tuple(maps.map(read_picture(sample.image)) for sample in held) if options.self_distil else None
    return Material(train, targets, tuple(map(Page.of, held)), taught, others, kept)


def split(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the pictures to train on and of those held aside, by chance."""
    held = max(LEAST_HELD, round(count / _HELD_PART))
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[held:]), sorted(order[:held])


def teacher_policy(policy: ResizePolicy) -> ResizePolicy:
    """How a detector sees pictures as its own teacher.

    Raises:
        InvalidInputError: It sees all pictures at one size.
    """
    if policy.has_one_size:
        raise InvalidInputError(
            f"the detector sees all pictures at {policy.width} x {policy.height} pixels, so that it cannot teach "
            "itself at a larger size; give labels, or a bundle with the resize policy short_side"
        )

    def larger(side: int) -> int:
        return min(_LARGEST_SIDE, round(_TEACHER * side / policy.bucket) * policy.bucket)

    return replace(policy, side=larger(policy.side), largest_side=larger(policy.largest_side), tiles=False)


def teaching(options: FineTuneOptions, bundle: Bundle) -> tuple[Bundle, ResizePolicy]:
    """The detector that teaches, and how it sees pictures."""
    # These have learnt from the default detector, and are worse at larger sizes.
    learnt = str(options.bundle) in BUILT_IN and str(options.bundle) != "default"
    if options.teacher is None and not learnt:
        own = bundle.spec.resize
        return bundle, own if own.has_one_size and not options.self_distil else teacher_policy(own)
    teacher = Bundle.load(options.teacher)
    return teacher, teacher.spec.resize


def _boxes(teacher: Bundle, maps: TeacherMaps, path: Path) -> tuple[NDArray[np.uint8], tuple[int, int], Detections]:
    """The teacher's map of a picture, the picture's height and width, and the teacher's boxes."""
    pixels = read_picture(path)
    found, size = maps.map(pixels), (pixels.shape[0], pixels.shape[1])
    rows, columns = found.shape
    frame = Frame(size, (rows, columns), (rows, columns))
    return found, size, Detector(teacher, None).postprocess(np.array(found), frame, RequestParameters())


def _taught(samples: Sequence[Sample], teacher: Bundle, maps: TeacherMaps, progress: Progress) -> list[Sample]:
    """The pictures with the teacher's boxes as their truth."""
    taught = []
    with progress.task("the teacher's boxes", len(samples)) as task:
        for sample in samples:
            taught.append(Sample(sample.image, as_truth(_boxes(teacher, maps, sample.image)[2])))
            task.advance()
    return taught


def _targets(
    samples: Sequence[Sample], teacher: Bundle, maps: TeacherMaps, labelled: bool, folder: Path, progress: Progress
) -> tuple[NDArray[np.uint8], ...]:
    """The teacher's maps, corrected by labels, mapped from files."""
    targets = []
    unclip = teacher.spec.postprocess.unclip_ratio
    with progress.task("what is to be learnt", len(samples)) as task:
        for number, sample in enumerate(samples):
            found, size, boxes = _boxes(teacher, maps, sample.image)
            if labelled:
                np.save(file := folder / f"{number}.npy", corrected(found, size, boxes.quads, sample.truth, unclip))
                found = np.load(file, mmap_mode="r")
            targets.append(found)
            task.advance()
    return tuple(targets)


def corrected(
    found: NDArray[np.uint8], size: tuple[int, int], quads: NDArray[np.float32], truth: Truth, unclip: float
) -> NDArray[np.uint8]:
    """A map of a picture in which labels have the last word.

    Where a box matches a label the map stays: its shape is what the network knows best, and labels are never exact.
    What the labels do not have vanishes, and what only they have is drawn, shrunk by what post-processing grows it by.
    Regions that the labels ignore stay.

    Args:
        found: uint8 (h, w), 255 times the probability.
        size: Height and width of the picture in pixels.
        quads: The boxes of the map, (D, 4, 2) in pixels of the picture.
        truth: The labels.
        unclip: The ratio by which post-processing grows boxes.
    """
    rows, columns = found.shape
    scale = np.array((columns, rows)) / size[::-1]
    overlaps = find_overlaps(truth, quads)
    pairs = assign(overlaps, "most")
    known, right = ({pair[side] for pair in pairs} for side in (0, 1))
    missed = [
        polygon * scale
        for index, polygon in enumerate(truth.polygons)
        if overlaps.truth_counts[index] and index not in known
    ]
    wrong = [index for index in np.flatnonzero(overlaps.detection_counts) if index not in right]
    cleared = np.zeros(found.shape, np.uint8)
    for polygon in (*missed, *(quads[index] * scale for index in wrong)):
        cv2.fillPoly(cleared, [np.rint(polygon).astype(np.int32)], (1,))
    for index in right:
        cv2.fillPoly(cleared, [np.rint(quads[index] * scale).astype(np.int32)], (0,))
    drawn, _ = shrink_map(missed, [False] * len(missed), (rows, columns), min_text_size=_LEAST_TEXT, unclip=unclip)
    return np.where(drawn > 0, np.uint8(255), np.where(cleared > 0, np.uint8(0), found))


def _kept(
    folder: Path, bundle: Bundle, network: Network, seed: int
) -> tuple[list[Path | NDArray[np.uint8]], tuple[Page, ...]]:
    """The user's other pictures to train on, and those held aside: with their labels, else the detector's boxes."""
    labelled = is_labelled(folder)
    empty = Truth((), ())
    samples = load_labels(folder) if labelled else [Sample(path, empty) for path in photographs(folder)]
    train, held = split(len(samples), seed)
    if not train:
        raise InvalidInputError(
            f"keep-data: {folder} has {len(samples)} pictures; at least {LEAST_HELD + 1} are needed"
        )
    pages = tuple(Page.of(samples[index]) for index in held)
    if not labelled:
        found: list[Detections] = detected(bundle, network, pages)
        pages = tuple(replace(page, truth=as_truth(each)) for page, each in zip(pages, found, strict=True))
    return [samples[index].image for index in train], pages

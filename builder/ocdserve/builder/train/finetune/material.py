# SPDX-License-Identifier: Apache-2.0
"""What is trained and judged on: the user's pictures, and others on which the detector is to stay as it is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Bundle
from ocdserve.backend.evaluation.dataset import Sample, Truth
from ocdserve.backend.evaluation.formats import is_labelled, load_labels
from ocdserve.backend.network.protocols import Network
from ocdserve.builder.accuracy.gate import as_truth
from ocdserve.builder.calibration.images import photographs
from ocdserve.builder.progress import Progress
from ocdserve.builder.train.data.drawn import drawn_pages
from ocdserve.builder.train.finetune.crops import read_picture
from ocdserve.builder.train.finetune.judge import Page, detected
from ocdserve.builder.train.finetune.options import FineTuneOptions
from ocdserve.builder.train.finetune.teacher import Teacher
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections

# Held aside: one picture in so many, and at least so many.
_HELD_PART, LEAST_HELD = 5, 3
# Drawn pages to train and to judge on, and their height and width in pixels.
_DRAWN, _DRAWN_HELD, _DRAWN_SIZE = 80, 40, (640, 640)
# Far from the seed of the pages that are trained on.
_HELD_SEED = 1_000_003


@dataclass(frozen=True)
class Material:
    """Pictures of a fine-tuning.

    Attributes:
        train: The user's pictures to train on.
        held: Those held aside.
        others: Other pictures to train on, files or pixels.
        kept: Other pictures to judge on, by their kind: `drawn` pages, and those of the user's folder, `keep-data`.
        teacher: What is to be learnt of the user's pictures.
    """

    train: tuple[Sample, ...]
    held: tuple[Page, ...]
    others: tuple[Path | NDArray[np.uint8], ...]
    kept: dict[str, tuple[Page, ...]]
    teacher: Teacher

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
    """The user's pictures with their labels; without any where these are not used.

    Raises:
        InvalidInputError: Pictures or labels are missing, malformed or too few; the message says which.
    """
    if options.self_distil:
        samples = [Sample(path, Truth((), ())) for path in photographs(options.data)]
    elif is_labelled(options.data):
        samples = load_labels(options.data)
    else:
        raise InvalidInputError(
            f"{options.data} holds no labels: give img/ and gt/, COCO, Label Studio's or labelme's JSON, or learn "
            "without labels (--self-distil)"
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
        folder: For maps.
        progress: Reports what takes long.

    Raises:
        InvalidInputError: There is no text, or a picture cannot be read; the message names the file.
    """
    teacher = Teacher.of(options, bundle, folder)
    if options.self_distil:
        samples = _taught(samples, teacher, progress)
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
    return Material(train, tuple(map(Page.of, held)), others, kept, teacher)


def split(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the pictures to train on and of those held aside, by chance."""
    held = max(LEAST_HELD, round(count / _HELD_PART))
    order = np.random.default_rng(seed).permutation(count).tolist()
    return sorted(order[held:]), sorted(order[:held])


def _taught(samples: Sequence[Sample], teacher: Teacher, progress: Progress) -> list[Sample]:
    """The pictures with the teacher's boxes as their truth."""
    taught = []
    with progress.task("the teacher's boxes", len(samples)) as task:
        for sample in samples:
            taught.append(Sample(sample.image, as_truth(teacher.boxes(read_picture(sample.image)))))
            task.advance()
    return taught


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

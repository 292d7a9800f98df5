# SPDX-License-Identifier: Apache-2.0
"""Measure precision, recall and hmean on labelled images by the protocol of ICDAR 2015.

The data are a folder with img/<stem>.jpg (or .png, ...) and gt/gt_<stem>.txt with lines of x1,y1,...,x4,y4,text,
where the text ### means don't-care; or a COCO file, Label Studio's JSON export, a folder of labelme's files, or a list
of image<tab>label file. Detects in this process, or through a running server with --url.

With --read or --recogniser also what is read, where labels have texts: end to end, boxes with an IoU above 0.5 and an
equal text, case folded; of lines whose boxes match, the character error rate and the share of equal texts; and words.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from ocdserve.cli.detect.detector import (
    add_detector_arguments,
    check_detector_choice,
    chosen_detector,
    chosen_reader,
)
from ocdserve.cli.tuning import add_recogniser_argument
from ocdserve.contract import InvalidInputError, UnavailableError, install_command

if TYPE_CHECKING:
    from ocdserve.backend.evaluation.dataset import Sample

_Found = TypeVar("_Found")

# Columns of the tables: a figure and its heading.
_OF_BOXES = {
    "images": "images",
    "precision": "precision",
    "recall": "recall",
    "hmean": "hmean",
    "detections": "detections",
    "truths": "truths",
    "images_per_second": "images/s",
}
_OF_TEXTS = {
    "reading_hmean": "hmean with texts",
    "words_hmean": "hmean of words",
    "cer": "character error rate",
    "exact_lines": "equal texts",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--data", metavar="PATH", type=Path, required=True, help="labelled images, see above")
    add_detector_arguments(parser)
    parser.add_argument("--read", action="store_true", help="also evaluate what is read")
    add_recogniser_argument(parser, "recogniser to load; implies --read")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - for stdout, instead of the table")


def run(args: argparse.Namespace) -> int:
    """Evaluate; an unreadable image ends the run.

    Raises:
        InvalidInputError: An image or a label is not valid, or no label has a text to compare with.
        UnavailableError: A package, the server or a network is missing.
    """
    from ocdserve.backend.evaluation.formats import load_labels
    from ocdserve.backend.files import write_atomically

    check_detector_choice(args)
    try:
        from ocdserve.backend.evaluation.figures import total
        from ocdserve.backend.evaluation.matching import match
        from ocdserve.backend.evaluation.reading import match_reading, total_reading
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"matching needs the package {error.name}: {install_command('ocdserve[evaluate]')}; to detect in this "
            "process, 'ocdserve[server]'"
        ) from error
    samples = load_labels(args.data)
    truths = [sample.truth for sample in samples]
    reads = args.read or args.recogniser is not None
    if reads and not any(truth.texts for truth in truths):
        given = [name for name in ("--read", "--recogniser") if getattr(args, name[2:])]
        raise InvalidInputError(f"no label of {args.data} has a text to compare with; leave {' and '.join(given)} out")
    of_texts: dict[str, Any] = {}
    with ExitStack() as stack:
        if reads:
            read, seconds = _timed(chosen_reader(args, stack).read, samples)
            of_texts = total_reading(
                match_reading(each.quads, each.texts, truth) for each, truth in zip(read, truths, strict=True)
            ).to_dict()
            boxes = [each.quads for each in read]
        else:
            found, seconds = _timed(chosen_detector(args, stack).detect, samples)
            boxes = [each.quads for each in found]
    figures = {
        "images": len(samples),
        **total(map(match, boxes, truths)).to_dict(),
        **of_texts,
        "images_per_second": round(len(samples) / seconds, 3),
        "data": str(args.data),
    }
    if args.json == "-":
        print(json.dumps(figures))
        return 0
    if args.json:
        write_atomically(Path(args.json), f"{json.dumps(figures)}\n".encode())
    _print_row(_OF_BOXES, figures)
    if of_texts:
        _print_row(_OF_TEXTS, figures)
    return 0


def _print_row(columns: Mapping[str, str], figures: Mapping[str, Any]) -> None:
    """A table of one row."""
    cells = [f"{value:.4f}" if isinstance(value := figures[name], float) else str(value) for name in columns]
    widths = [max(map(len, pair)) for pair in zip(columns.values(), cells, strict=True)]
    for row in (columns.values(), cells):
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))


def _timed(find: Callable[[bytes], _Found], samples: "Sequence[Sample]") -> tuple[list[_Found], float]:
    """What is found in each image, and the seconds that it took."""
    found = []
    start = perf_counter()
    for index, sample in enumerate(samples, 1):
        try:
            found.append(find(sample.image.read_bytes()))
        except InvalidInputError as error:
            raise InvalidInputError(f"{sample.image}: {error}") from error
        if sys.stderr.isatty():
            left = (perf_counter() - start) / index * (len(samples) - index)
            print(f"\r{index}/{len(samples)} images, {left:.0f} s left ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return found, perf_counter() - start

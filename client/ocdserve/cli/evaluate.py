# SPDX-License-Identifier: Apache-2.0
"""Measure precision, recall and hmean on labelled images by the protocol of ICDAR 2015.

The data are a folder with img/<stem>.jpg (or .png, ...) and gt/gt_<stem>.txt with lines of x1,y1,...,x4,y4,text,
where the text ### means don't-care; or a COCO file, Label Studio's JSON export, a folder of labelme's files, or a list
of image<tab>label file. Detects in this process, or through a running server with --url.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ocdserve.cli.detect.detector import SingleDetector, add_detector_arguments, check_detector_choice, chosen_detector
from ocdserve.contract import InvalidInputError, UnavailableError, install_command

if TYPE_CHECKING:
    from ocdserve.backend.evaluation.dataset import Sample
    from ocdserve.backend.evaluation.figures import Counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--data", metavar="PATH", type=Path, required=True, help="labelled images, see above")
    add_detector_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - for stdout, instead of the table")


def run(args: argparse.Namespace) -> int:
    """Evaluate; an unreadable image ends the run."""
    from ocdserve.backend.evaluation.formats import load_labels
    from ocdserve.backend.files import write_atomically

    check_detector_choice(args)
    try:
        from ocdserve.backend.evaluation.matching import match
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"matching needs the package {error.name}: {install_command('ocdserve[evaluate]')}; to detect in this "
            "process, 'ocdserve[server]'"
        ) from error
    samples = load_labels(args.data)
    with ExitStack() as stack:
        detector = chosen_detector(args, stack)
        start = perf_counter()
        counts = _evaluate(detector, samples, match)
        seconds = perf_counter() - start
    figures = {
        "images": len(samples),
        **counts.to_dict(),
        "images_per_second": round(len(samples) / seconds, 3),
        "data": str(args.data),
    }
    if args.json == "-":
        print(json.dumps(figures))
        return 0
    if args.json:
        write_atomically(Path(args.json), f"{json.dumps(figures)}\n".encode())
    print(f"{'images':>6}  {'precision':>9}  {'recall':>7}  {'hmean':>7}  {'detections':>10}  {'truths':>6}  images/s")
    print(
        f"{len(samples):>6}  {counts.precision:>9.4f}  {counts.recall:>7.4f}  {counts.hmean:>7.4f}  "
        f"{counts.detections:>10}  {counts.truths:>6}  {figures['images_per_second']:>8}"
    )
    return 0


def _evaluate(detector: SingleDetector, samples: "list[Sample]", match: "Callable[..., Counts]") -> "Counts":
    from ocdserve.backend.evaluation.figures import total

    counts = []
    start = perf_counter()
    for index, sample in enumerate(samples, 1):
        try:
            found = detector.detect(sample.image.read_bytes())
        except InvalidInputError as error:
            raise InvalidInputError(f"{sample.image}: {error}") from error
        counts.append(match(found.quads, sample.truth))
        if sys.stderr.isatty():
            left = (perf_counter() - start) / index * (len(samples) - index)
            print(f"\r{index}/{len(samples)} images, {left:.0f} s left ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return total(counts)

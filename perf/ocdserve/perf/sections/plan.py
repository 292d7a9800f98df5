# SPDX-License-Identifier: Apache-2.0
"""What every section and command of `ocdserve bench` shares: the plan, progress, and the file of results.

Imports images and results late, so that a command that needs neither starts without their packages.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ocdserve.contract import InvalidInputError

if TYPE_CHECKING:
    from ocdserve.perf.inputs.data_sets import DataSet
    from ocdserve.perf.series.results import Results


@dataclass(frozen=True)
class Plan:
    """What to measure with.

    Attributes:
        data_sets: Labelled images.
        rounds: Factor on the default number of repetitions; at least 1.
        options: The whole command line, for the section's own options.
    """

    data_sets: "Sequence[DataSet]"
    rounds: int
    options: argparse.Namespace


class ProgressLine:
    """Reports on stderr how far a section is, and how long the rest will take."""

    _SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, section: str) -> None:
        self._section = section
        self._start = self._reported = perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` steps are done."""
        now = perf_counter()
        line = f"{self._section}: {done}/{total}, {(now - self._start) / done * (total - done):.0f} s left"
        if sys.stderr.isatty():
            print(f"\r{line:<60}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif now - self._reported > self._SECONDS_BETWEEN_LINES or done == total:
            self._reported = now
            say(line)


def say(message: str) -> None:
    """Write one line to stderr."""
    print(message, file=sys.stderr, flush=True)


def load_data_sets(folders: Sequence[Path] | None) -> "tuple[DataSet, ...]":
    """The data sets in folders; drawn pictures if there is no folder.

    Raises:
        InvalidInputError: A folder holds no data set.
    """
    from ocdserve.backend.evaluation.dataset import Truth
    from ocdserve.perf.inputs import data_sets
    from ocdserve.perf.inputs.data_sets import DataSet, LabelledImage
    from ocdserve.perf.inputs.pictures import demo_pictures

    if folders:
        return data_sets.load_data_sets(folders)
    pictures = (
        LabelledImage(
            picture.name,
            picture.png(),
            Truth(tuple(quad.astype(float) for quad in picture.quads), (False,) * len(picture.quads), picture.texts),
        )
        for picture in demo_pictures()
    )
    return (DataSet("drawn pictures", tuple(pictures)),)


def street_jpeg() -> bytes:
    """A drawn picture of 1280 x 720 pixels, as JPEG."""
    from ocdserve.perf.inputs.pictures import encoded, street

    return encoded(street().image)


def check_target(target: str | None) -> None:
    """Check before measuring that the file of results can be written; None for no file.

    Raises:
        InvalidInputError: It exists, or its folder does not.
    """
    if target is None:
        return
    if not Path(target).absolute().parent.is_dir():
        raise InvalidInputError(f"--json {target}: its folder does not exist; make it, or name another file")
    if Path(target).exists():
        raise InvalidInputError(f"--json {target} exists, and results are never overwritten; name another file")


def write(target: str | None, results: "Results") -> None:
    """Write results to the file; None for no file."""
    from ocdserve.perf.series.results import save_results

    if target is not None:
        save_results(results, Path(target))
        say(f"raw samples are in {target}; `ocdserve bench report {target} --html PAGE` draws them")

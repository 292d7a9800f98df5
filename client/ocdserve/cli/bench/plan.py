# SPDX-License-Identifier: Apache-2.0
"""What every section of `ocdserve bench` is given, and how it tells how far it is."""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocdserve.perf.inputs.data_sets import DataSet

__all__ = ["Plan", "Progress", "load_data_sets", "say", "street_jpeg"]


@dataclass(frozen=True)
class Plan:
    """What to measure with.

    Attributes:
        data_sets: Images, with truth.
        rounds: How many times as much as by default is measured; at least 1.
        options: The whole command line, for the options of one section.
    """

    data_sets: "Sequence[DataSet]"
    rounds: int
    options: argparse.Namespace


class Progress:
    """Tells on stderr how far one section is, and how long the rest will take."""

    _SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, section: str) -> None:
        self._section = section
        self._start = perf_counter()
        self._told = self._start

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` steps are done."""
        now = perf_counter()
        line = f"{self._section}: {done}/{total}, {(now - self._start) / done * (total - done):.0f} s left"
        if sys.stderr.isatty():
            print(f"\r{line:<60}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif now - self._told > self._SECONDS_BETWEEN_LINES or done == total:
            self._told = now
            print(line, file=sys.stderr, flush=True)


def say(message: str) -> None:
    """One line on stderr."""
    print(message, file=sys.stderr, flush=True)


def load_data_sets(folders: Sequence[Path] | None) -> "tuple[DataSet, ...]":
    """The data sets in folders, or pictures that are drawn where there is no folder."""
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
            Truth(tuple(quad.astype(float) for quad in picture.quads), (False,) * len(picture.quads)),
        )
        for picture in demo_pictures()
    )
    return (DataSet("drawn pictures", tuple(pictures)),)


def street_jpeg() -> bytes:
    """A drawn picture of 1280 x 720 pixels."""
    from ocdserve.perf.inputs.pictures import street

    buffer = io.BytesIO()
    street().image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()

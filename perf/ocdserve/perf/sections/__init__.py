# SPDX-License-Identifier: Apache-2.0
"""Sections of `ocdserve bench`. A new section is a module here with `measure(plan)`, and a row in `SECTIONS`.

A row holds all that the command line and the reports need, so that both work without the packages that a section
measures: only the modules of the sections to measure are imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Section:
    """One row of the registry.

    Attributes:
        name: What the user types, and the name of its module.
        help: What it measures, one line.
        title: Heading of its results.
        by_default: Whether it is measured if no section is named.
        options: Its own command-line options: keyword arguments of `add_argument` by flag.
        shows_added: Whether its tables also show the milliseconds added to the baseline.
        percentages: Facts that its tables show in percent.
    """

    name: str
    help: str
    title: str
    by_default: bool = True
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shows_added: bool = False
    percentages: tuple[str, ...] = ()

    def module(self) -> ModuleType:
        """The module that has `measure`.

        Raises:
            ModuleNotFoundError: A package that it measures is not installed.
        """
        return import_module(f"{__name__}.{self.name}")


# In the order in which they are measured.
SECTIONS = (
    Section(
        "pipeline",
        "encoded image to boxes, compared with other detectors on the same threads",
        "Encoded image to boxes",
        options={
            "--threads": dict(metavar="N", type=int, default=1, help="threads of each detector (default: %(default)s)"),
            "--peers": dict(
                metavar="NAME,...", help="only these other detectors; an unknown name lists all (default: all)"
            ),
            "--blanked": dict(
                action="store_true",
                help="time all on the pictures without their texts, where also those that always read only detect",
            ),
            "--pictures": dict(
                metavar="NAME=SLICE,...",
                help="of these data sets only part of the pictures, such as receipts=1::2 (default: all)",
            ),
        },
    ),
    Section(
        "reading",
        "encoded image to texts, compared with other readers on one thread each; also of drawn pages",
        "Encoded image to texts",
        by_default=False,
        options={
            "--readers": dict(
                metavar="NAME,...", help="only these other readers; an unknown name lists all (default: all)"
            ),
            "--quick": dict(action="store_true", help="only every fourth image"),
        },
        percentages=("exact lines", "hmean of words", "CER", "CER end to end"),
    ),
    Section(
        "postprocess",
        "post-processing, compared with that of others: pages of words, and real maps",
        "Post-processing",
        percentages=("of ours",),
    ),
    Section(
        "stages",
        "where the time of one image goes: in process, on the GPU, in a server",
        "Stages in process",
        by_default=False,
        options={
            "--hops": dict(
                metavar="URL", help="also the steps in this server, grpc://HOST:PORT, which must have no other clients"
            ),
            "--gpu": dict(action="store_true", help="also the stages on the GPU"),
            "--instructions": dict(
                action="store_true", help="also count instructions of the hot loops (perf or valgrind)"
            ),
        },
        percentages=("share",),
    ),
    Section(
        "networks",
        "the networks alone on a blank page and one thread, in each runtime of the CPU and in plain ONNX Runtime",
        "Networks alone",
        by_default=False,
    ),
    Section(
        "serving",
        "a server started for it, compared with the detector in this process; one client and several",
        "What serving costs",
        shows_added=True,
    ),
    Section(
        "client",
        "the SDK, compared with bare tritonclient and NVIDIA's perf_analyzer",
        "The client's cost",
        by_default=False,
        shows_added=True,
    ),
    Section(
        "robustness",
        "texts found on drawn pages (angle, size, contrast, aspect, blur, script, ...), compared with RapidOCR",
        "Robustness",
        by_default=False,
        options={
            "--axes": dict(
                metavar="NAME,...",
                help="only these axes of the grid; `bench report` shows several files together (default: all)",
            ),
        },
    ),
)

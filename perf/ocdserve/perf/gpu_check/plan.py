# SPDX-License-Identifier: Apache-2.0
"""The plan of the check: its parts in order, their time limits, and the groups of carried files that they need.

Imports nothing but Python's own library: `folders` prints the plan before anything is installed.
"""

from dataclasses import dataclass

# Of one folder, in MiB: with the checkout it fits into a transfer of 64.
FOLDER_MIB = 48
TRANSFER_MIB = 64
# Unpacking and installing what is carried.
INSTALLATION_S = 40.0
# Of a whole run, installation included.
TOTAL_S = 360.0

BASE, HOST, TRITON = "base", "host", "triton"


@dataclass(frozen=True)
class PlannedPart:
    """One part.

    Attributes:
        name: Name on the command line.
        max_s: Its time limit in seconds.
        content: What it measures.
        groups: Groups of files that it cannot run without.
        by_default: Whether it runs without being named.
    """

    name: str
    max_s: float
    content: str
    groups: tuple[str, ...] = (BASE,)
    by_default: bool = True


# The most important first: the last ones are left out if there is no time.
PARTS = (
    PlannedPart("facts", 20, "driver, libraries, peak rates of copies and matrix products"),
    PlannedPart("exactness", 50, "boxes of each map, bytes of each resize and line, compared with the CPU's"),
    PlannedPart("stages", 55, "times of preprocessing, post-processing and its steps"),
    PlannedPart("end-to-end", 85, "JPEG to quads with a ResNet-18 in PyTorch; 1, 2 and 4 processes"),
    PlannedPart("networks", 30, "ONNX Runtime, TensorRT, TensorRT-RTX; JPEG to quads with the fastest"),
    PlannedPart("reading", 30, "texts compared with the CPU's; pixels to texts, with and without a recogniser"),
    PlannedPart("served", 50, "JPEG to quads through Triton", (BASE, TRITON)),
    PlannedPart("sanitizer", 60, "memcheck, racecheck and initcheck of compute-sanitizer", by_default=False),
)

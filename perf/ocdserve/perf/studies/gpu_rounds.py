# SPDX-License-Identifier: Apache-2.0
"""Counts what the labelling kernels wait for, by executing them in lockstep on the CPU.

    PYTHONPATH=tests/emulator python -m ocdserve.perf.studies.gpu_rounds DIR...

In a round, every thread of a launch makes one access that it waits for: an atomic, or a read past the L1 cache. The
rounds of a kernel are thus its longest chain of accesses, each of which needs the one before it. `binarise` waits for
shared memory, the other kernels for the L2 cache.

DIR are data sets as `ocdserve bench` takes them; the maps are those of the default network, and three drawn ones. The
exit code is 1 if `join_segments` needs more than 70 rounds for an image of a data set.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from statistics import median

import numpy as np
from cuda_emulator import EmulatedDevice, Schedule, package_sources

from ocdserve.backend import Detector
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.perf.inputs.data_sets import load_data_sets
from ocdserve.perf.inputs.maps import Case, dense_map, empty_map, noise_map, real_maps

KERNELS = ("binarise_uint8", "join_segments", "list_regions", "pick_candidates")
JOIN = KERNELS.index("join_segments")
MOST_ROUNDS = 70

# In segments.cuh: g++ compiles a read of shared memory to an instruction that the emulator does not see.
_SHARED_READ, _COUNTED_READ = "return *static_cast<volatile int*>(place(node));", "return __ldcg(place(node));"


def device_in_lockstep() -> EmulatedDevice:
    """A device that counts rounds, reads of shared memory among them."""
    text = package_sources()["segments.cuh"]
    if text.count(_SHARED_READ) != 1:
        raise ValueError(
            f"segments.cuh: the read of shared memory that is to be counted, {_SHARED_READ!r}, must occur once"
        )
    return EmulatedDevice(Schedule(lockstep=True), sources={"segments.cuh": text.replace(_SHARED_READ, _COUNTED_READ)})


def rounds(device: EmulatedDevice, case: Case) -> tuple[int, ...]:
    """The rounds of `KERNELS` for one map, uint8, alone in its batch."""
    labels = device.module("labels.cu")
    with (
        closing(device.stream()) as stream,
        closing(device.allocate(case.probability.nbytes)) as maps,
        closing(GpuPostprocess(device, 1, *case.frame.network)) as postprocess,
    ):
        stream.to_device(maps, np.ascontiguousarray(case.probability))
        postprocess.set([(case.frame, case.params)])
        postprocess.enqueue(stream, maps)
        stream.synchronize()
    return tuple(labels.kernel(name).rounds for name in KERNELS)


def report(device: EmulatedDevice, cases: Iterable[Case]) -> Iterator[tuple[str, int]]:
    """A row of Markdown for each group of cases, with the most rounds of `join_segments` in it."""
    for group, members in groupby(cases, lambda case: case.group):
        counts = [(rounds(device, case), case.name) for case in members]
        columns = list(zip(*(found for found, _ in counts), strict=True))
        most, where = max((found[JOIN], name) for found, name in counts)
        cells = " | ".join(f"{median(column):.0f}, {max(column)}" for column in columns)
        yield f"| {group} | {len(counts)} | {cells} | {where} |", most


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 1 if an image needs too many rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DIR", type=Path, nargs="+", help="data set, or folder of data sets")
    options = parser.parse_args(arguments)
    detector = Detector.load()
    device = device_in_lockstep()
    names = " | ".join(name.removesuffix("_uint8") for name in KERNELS)
    sys.stdout.write(
        f"| median and most rounds | maps | {names} | most in join_segments |\n{'|---' * (3 + len(KERNELS))}|\n"
    )
    exceeded = False
    for line, most in report(device, real_maps(detector, load_data_sets(options.data), lambda done, total: None)):
        sys.stdout.write(f"{line}\n")
        exceeded |= most > MOST_ROUNDS
    for line, _ in report(device, (empty_map(), dense_map(), noise_map())):
        sys.stdout.write(f"{line}\n")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())

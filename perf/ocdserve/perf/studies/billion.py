# SPDX-License-Identifier: Apache-2.0
"""A model of what a number of pictures a day takes: machines, network and storage; docs/capacity.md shows it.

    python -m ocdserve.perf.studies.billion
    python -m ocdserve.perf.studies.billion --pictures 1e6 --kilobytes 80 --boxes 10

Inputs are measured (perf/results), taken from the model of the GPU's throughput, or assumptions; the output says which.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_DAY_S = 86_400
# Share of the bare network's throughput that eight clients get from `ocdnet` (perf/results/cpu-2026-11-24.md).
SERVED_SHARE = 0.94
# A box in QUADS and SCORES: eight coordinates and a score, in float32.
BOX_BYTES = 36


@dataclass(frozen=True)
class Workload:
    """What has to be done.

    Attributes:
        pictures: Pictures a day.
        picture_bytes: Encoded size; the mean of the 40 receipts.
        boxes: Text regions of a picture; the mean of the same.
        peak: The highest rate over the mean one; 1 for batch jobs, which can wait.
        utilisation: Share of the capacity that is planned to be used.
    """

    pictures: float = 1e9
    picture_bytes: float = 302e3
    boxes: float = 54
    peak: float = 1.0
    utilisation: float = 0.7

    @property
    def rate(self) -> float:
        """Pictures per second at the peak."""
        return self.pictures / _DAY_S * self.peak


@dataclass(frozen=True)
class Machine:
    """A machine, and what it serves.

    Attributes:
        name: Machine and network.
        capacity: Pictures per second, from the slower to the faster assumption; equal where it is measured.
        cores: Cores that are busy at full load.
        source: Where the capacity comes from.
    """

    name: str
    capacity: tuple[float, float]
    cores: float
    source: str

    def needed(self, load: Workload) -> tuple[int, int]:
        """How many of them, from the faster to the slower assumption, without a spare one."""
        slower, faster = (math.ceil(load.rate / (rate * load.utilisation)) for rate in self.capacity)
        return faster, slower


def cpu_machine(name: str, cores: int, core_seconds: float) -> Machine:
    """A machine without a GPU that takes `core_seconds` of one core for a picture."""
    rate = cores / core_seconds * SERVED_SHARE
    return Machine(name, (rate, rate), cores, "measured for one core")


# Seconds of one core from perf/results/cpu-2026-11-24.md, receipts and scenes; rates, and CPU time of a picture (2.1 to
# 2.6 ms), from perf/results/gpu-model-2026-11-29.md, PP-OCRv6 small in FP16.
MACHINES = (
    cpu_machine("64 cores, `default`", 64, 0.417),
    cpu_machine("64 cores, `fast`", 64, 0.168),
    Machine("L4, PP-OCRv6 small", (406, 576), 576 * 2.6e-3, "model"),
    Machine("L40S, PP-OCRv6 small", (1_162, 1_651), 1_651 * 2.6e-3, "model"),
    Machine("H200, 4 processes, PP-OCRv6 small", (5_915, 7_619), 7_619 * 2.1e-3, "model"),
)


def flows(load: Workload) -> Iterator[tuple[str, str]]:
    """What flows and what is stored, whoever computes."""
    result = load.boxes * BOX_BYTES
    yield "pictures per second, mean", f"{load.pictures / _DAY_S:,.0f}"
    yield "pictures per second, planned", f"{load.rate:,.0f}"
    yield "network, in", f"{load.rate * load.picture_bytes * 8 / 1e9:,.1f} Gbit/s"
    yield "network, out", f"{load.rate * result * 8 / 1e9:,.2f} Gbit/s"
    yield "pictures, a day", f"{load.pictures * load.picture_bytes / 1e12:,.1f} TB"
    yield "results, a day, uncompressed", f"{load.pictures * result / 1e12:,.2f} TB"
    yield "reads of an object store", f"{load.rate:,.0f} per second"
    yield "shards of 10,000 pictures, a day", f"{load.pictures / 1e4:,.0f}"
    yield "pictures that fail, at one in a million", f"{load.pictures / 1e6:,.0f} a day"


def compute(load: Workload) -> Iterator[tuple[str, ...]]:
    """Machines, and hours for a million pictures, which times a price is what they cost."""
    for machine in MACHINES:
        fewest, most = machine.needed(load)
        hours = [1e6 / (rate * load.utilisation) / 3600 for rate in reversed(machine.capacity)]
        slower, faster = machine.capacity
        yield (
            machine.name,
            _span(f"{slower:,.0f}", f"{faster:,.0f}"),
            machine.source,
            _span(f"{fewest:,}", f"{most:,}"),
            _span(f"{hours[0]:.2f}", f"{hours[1]:.2f}"),
            f"{machine.cores:.0f}",
            f"{faster * load.utilisation * load.picture_bytes * 8 / 1e9:.2f}",
        )


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low}-{high}"


def tables(load: Workload) -> str:
    """Both tables in Markdown."""
    lines = ["| what flows | |", "|---|---|", *(f"| {name} | {value} |" for name, value in flows(load)), ""]
    heads = (
        "machine",
        "pictures/s",
        "source",
        "machines",
        "machine hours for a million",
        "busy cores of one",
        "Gbit/s into one",
    )
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(row)} |" for row in compute(load)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; returns 0."""
    default = Workload()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=float, default=default.pictures, help="a day")
    parser.add_argument("--kilobytes", type=float, default=default.picture_bytes / 1e3, help="of an encoded picture")
    parser.add_argument("--boxes", type=float, default=default.boxes, help="text regions of a picture")
    parser.add_argument("--peak", type=float, default=default.peak, help="highest rate over the mean one")
    parser.add_argument("--utilisation", type=float, default=default.utilisation, help="share of the capacity to use")
    args = parser.parse_args(argv)
    load = Workload(args.pictures, args.kilobytes * 1e3, args.boxes, args.peak, args.utilisation)
    sys.stdout.write(f"{tables(load)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

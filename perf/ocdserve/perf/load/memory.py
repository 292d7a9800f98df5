# SPDX-License-Identifier: Apache-2.0
"""Memory of a process tree over time.

PSS (proportional set size) divides each page among the processes that map it, so that the sum over processes is what
they use together. RSS counts shared pages once per process. Both are read from /proc/PID/smaps_rollup.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from ocdserve.backend.serve.process.processes import PROC, ProcessStat, parse_stub_arguments
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.series.measurement import Measurement

_MIB = 1024.0


@dataclass(frozen=True)
class ProcessMemory:
    """One process at one moment.

    Attributes:
        pid: Process id.
        name: Name of the served model for Triton's Python processes, else of the program.
        rss_mib: Resident set size in MiB.
        pss_mib: Proportional set size in MiB.
    """

    pid: int
    name: str
    rss_mib: float
    pss_mib: float


@dataclass(frozen=True)
class MemorySample:
    """A process tree at one moment, `at_s` seconds after the start of the watch."""

    at_s: float
    processes: tuple[ProcessMemory, ...]

    @property
    def rss_mib(self) -> float:
        """Sum of resident set sizes; counts shared pages once per process."""
        return sum(process.rss_mib for process in self.processes)

    @property
    def pss_mib(self) -> float:
        """Memory that the processes use together."""
        return sum(process.pss_mib for process in self.processes)


class MemoryWatcher:
    """Samples a process and all its descendants in a thread of its own, within a `with` block.

    >>> with MemoryWatcher(pid) as watcher: ...
    >>> watcher.peak().pss_mib
    """

    def __init__(self, pid: int, interval_s: float = 0.5) -> None:
        """Check the arguments; the `with` block starts the watch.

        Args:
            pid: The process at the root of the tree.
            interval_s: Pause between samples, in seconds; a sample stops the processes for some milliseconds.

        Raises:
            InvalidInputError: There is no such process, or the pause is not above 0.
        """
        if interval_s <= 0:
            raise InvalidInputError(f"interval_s must be above 0; got {interval_s}")
        if not read(process_tree(pid)):
            raise InvalidInputError(f"no process {pid} of this user runs here, so its memory cannot be watched")
        self._pid = pid
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory watcher", daemon=True)
        self.samples: list[MemorySample] = []

    def __enter__(self) -> "MemoryWatcher":
        self._start = perf_counter()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def peak(self) -> MemorySample:
        """The sample with the most memory.

        Raises:
            UnavailableError: There is none.
        """
        if not self.samples:
            raise UnavailableError(f"the memory of process {self._pid} was never read; it had ended before")
        return max(self.samples, key=lambda sample: sample.pss_mib)

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        processes = read(process_tree(self._pid))
        if processes:
            self.samples.append(MemorySample(perf_counter() - self._start, processes))


def process_tree(pid: int, proc: Path = PROC) -> tuple[int, ...]:
    """Pids of a process and all its living descendants, ascending; empty if it does not run."""
    stats = (ProcessStat.read(int(entry.name), proc) for entry in proc.iterdir() if entry.name.isdigit())
    parents = {stat.pid: stat.parent for stat in stats if stat is not None and stat.alive}
    found = {pid} & parents.keys()
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return tuple(sorted(found))


def read(pids: Sequence[int], proc: Path = PROC) -> tuple[ProcessMemory, ...]:
    """Memory of processes, without those that have ended meanwhile."""
    found = []
    for pid in pids:
        try:
            lines = (proc / str(pid) / "smaps_rollup").read_text().splitlines()
            arguments = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        sizes = {line.partition(":")[0]: line.split()[1] for line in lines[1:]}
        if "Pss" in sizes:
            name = _name(pid, arguments, proc)
            found.append(ProcessMemory(pid, name, int(sizes["Rss"]) / _MIB, int(sizes["Pss"]) / _MIB))
    return tuple(found)


def growth_mib(samples: Sequence[MemorySample]) -> float:
    """Growth of PSS in MiB: median of the last fifth of the samples less that of the second fifth.

    The first fifth is warm-up: caches fill, and networks are compiled for the image sizes. With less than ten samples
    it is the last less the first.
    """
    sizes = [sample.pss_mib for sample in samples]
    fifth = len(sizes) // 5
    if fifth < 2:
        return sizes[-1] - sizes[0]
    return median(sizes[-fifth:]) - median(sizes[fifth : 2 * fifth])


def memory_measurements(watcher: MemoryWatcher, subject: str, group: str) -> tuple[Measurement, ...]:
    """Series of PSS and RSS of the whole tree, with the peak's processes as facts."""
    peak = watcher.peak()
    facts: dict[str, str | int | float] = {
        "peak PSS": round(peak.pss_mib, 1),
        "peak RSS": round(max(sample.rss_mib for sample in watcher.samples), 1),
        "growth": round(growth_mib(watcher.samples), 1),
        "seconds": round(watcher.samples[-1].at_s, 1),
        **{f"{process.name} ({process.pid})": round(process.pss_mib, 1) for process in peak.processes},
    }
    series = {
        "PSS": [sample.pss_mib for sample in watcher.samples],
        "RSS": [sample.rss_mib for sample in watcher.samples],
    }
    return tuple(
        Measurement("memory", subject, group, "MiB", tuple(sizes), (), {"counted as": name}, facts)
        for name, sizes in series.items()
    )


def memory_text(watcher: MemoryWatcher, requests: int) -> str:
    """Peak and growth over a number of requests, then the peak's processes, largest first."""
    peak = watcher.peak()
    processes = sorted(peak.processes, key=lambda process: -process.pss_mib)
    lines = [
        f"memory of the server: peak {peak.pss_mib:.0f} MiB (PSS; RSS {peak.rss_mib:.0f}) after {peak.at_s:.0f} s; "
        f"growth after the first fifth {growth_mib(watcher.samples):+.1f} MiB over {requests} requests",
        *(f"  {process.pss_mib:7.0f} MiB  {process.name}" for process in processes),
    ]
    return "\n".join(lines)


def _name(pid: int, arguments: Sequence[str], proc: Path) -> str:
    stub = parse_stub_arguments(arguments)
    if stub is not None:
        return stub[0]
    stat = ProcessStat.read(pid, proc)
    return Path(arguments[0]).name or (stat.name if stat else str(pid))

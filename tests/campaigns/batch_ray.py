# SPDX-License-Identifier: Apache-2.0
"""`ocdserve batch --engine ray` on this machine: what Ray costs in CPU time, and deaths of a worker and of the driver.

CPU times are those of all processes of the driver's tree, from when the first worker detects; the loop that they are
compared with runs before and after, on a half of the pictures each. Needs the extra ray (`make extra NAME=ray`).
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ocdserve.perf.inputs.pictures import demo_pictures
from tests.campaigns.report import Report

_MOST_RATIO = 1.15
_OPTIONS = ("--engine", "ray", "--bundle", "fast", "--threads", "1", "--workers", "2")
# What a worker's process is called while it detects, and at any time.
_DETECTS, _WORKER = b"_Worker.do", b"_Worker"
_LOOP = """
import sys, time
from pathlib import Path
from ocdserve.backend import Detector
detector = Detector.load("fast", threads=1)
names = Path(sys.argv[1]).read_text().splitlines()
detector.detect(names[0])
began = time.process_time()
for name in names:
    detector.detect(name)
print(time.process_time() - began)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--count", type=int, metavar="N", help="pictures (default: 600, with --short 48)")


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the campaign."""
    count = args.count or (48 if args.short else 600)
    shard = max(2, count // 30)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = _write(folder / "pictures", count)
        loop_s = _loop(folder, names[: count // 2])
        report.say("half of the loop is done")
        whole = _Batch(folder, "whole", shard)
        by_role = whole.cpu_seconds()
        ray_s = sum(by_role.values())
        report.say("Ray's undisturbed run is done")
        loop_s += _loop(folder, names[count // 2 :])
        rows = [("loop in one process", loop_s, loop_s / count), ("all processes of Ray", ray_s, ray_s / count)]
        rows += [(f"of these {role}", spent, spent / count) for role, spent in sorted(by_role.items())]
        report.table(f"CPU seconds for {count} pictures, start excluded", ("", "s", "s per picture"), rows)
        report.most("CPU seconds per picture, Ray's to the loop's", ray_s / loop_s, _MOST_RATIO)
        undisturbed = _rows(whole.output)
        report.equal(
            "pictures missing from the undisturbed run, or there twice", _unequal(_images(undisturbed), names), 0
        )

        died = _Batch(folder, "died", shard)
        died.start()
        died.until_shards(count // shard // 2)
        died.kill_worker()
        report.say(f"killed a worker after {died.shards()} shards")
        died.until_shards(3 * count // shard // 4)
        died.kill_driver()
        report.say(f"killed the driver after {died.shards()} shards")
        left = died.shards()
        died.start()
        report.equal("exit code of the run after both deaths", died.wait(), 0)
        report.rule("shards that the deaths left to the rerun: some", count // shard - left, left < count // shard)
        found = _rows(died.output)
        report.equal("pictures missing after both deaths, or there twice", _unequal(_images(found), names), 0)
        report.equal("rows that differ from those of the undisturbed run", _unequal(found, undisturbed), 0)


class _Batch:
    """A run of the command on the pictures of a folder."""

    def __init__(self, folder: Path, name: str, shard: int) -> None:
        self.output = folder / name
        self._command = [sys.executable, "-m", "ocdserve.cli", "batch", str(folder / "pictures"), *_OPTIONS]
        self._command += ["--output", str(self.output), "--shard-size", str(shard)]

    def start(self) -> None:
        self._driver = subprocess.Popen(self._command, env=os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"})

    def wait(self) -> int:
        return self._driver.wait()

    def shards(self) -> int:
        return len(list(self.output.glob("part-*.parquet")))

    def until_shards(self, count: int) -> None:
        self._until(lambda: self.shards() >= count)

    def cpu_seconds(self) -> dict[str, float]:
        """Run it; CPU seconds by role of all processes: of a worker since it detects, of others since any does."""
        self.start()
        self._until(lambda: any(_DETECTS in _title(pid) for pid in _tree(self._driver.pid)))
        start = {pid: _cpu_s(pid) for pid in _tree(self._driver.pid)}
        spent: dict[int, float] = {}
        detecting = set[int]()
        while self._driver.poll() is None:
            for pid in _tree(self._driver.pid):
                spent[pid] = max(spent.get(pid, 0.0), _cpu_s(pid))
                title = _title(pid)
                if _WORKER in title and pid not in detecting:
                    start[pid] = spent[pid]
                    detecting |= {pid} if _DETECTS in title else set()
            time.sleep(0.1)
        if self._driver.returncode:
            raise RuntimeError(f"the run ended with {self._driver.returncode}")
        roles: dict[str, float] = {}
        for pid, seconds in spent.items():
            role = "workers" if pid in detecting else "driver" if pid == self._driver.pid else "Ray's own"
            roles[role] = roles.get(role, 0.0) + seconds - start.get(pid, 0.0)
        return roles

    def kill_worker(self) -> None:
        [worker, *_] = [pid for pid in _tree(self._driver.pid) if _WORKER in _title(pid)]
        os.kill(worker, signal.SIGKILL)

    def kill_driver(self) -> None:
        tree = list(_tree(self._driver.pid))
        self._driver.kill()
        self._driver.wait()
        deadline = time.monotonic() + 30
        while any(_title(pid) for pid in tree):  # Ray's own processes end when they miss it, some after a minute
            if time.monotonic() > deadline:
                for pid in filter(_title, tree):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            if self._driver.poll() is not None:
                raise RuntimeError(f"the run ended with {self._driver.returncode}, too early")
            time.sleep(0.1)


def _write(folder: Path, count: int) -> list[str]:
    """Pictures of different content: the demo's, less a margin that grows; returns their names in order."""
    folder.mkdir()
    originals = [picture.image for picture in demo_pictures()]
    names = []
    for index in range(count):
        original, margin = originals[index % len(originals)], index // len(originals)
        path = folder / f"{index:04}.jpg"
        original.crop((margin, margin, original.width - margin, original.height - margin)).save(path)
        names.append(str(path))
    return names


def _loop(folder: Path, names: list[str]) -> float:
    listing = folder / "names"
    listing.write_text("\n".join(names), "utf-8")
    command = [sys.executable, "-c", _LOOP, str(listing)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(file) for file in sorted(folder.glob("part-*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def _images(rows: list[dict[str, Any]]) -> list[str]:
    return [str(row["image"]) for row in rows]


def _unequal(first: list[Any], second: list[Any]) -> int:
    return sum(a != b for a, b in zip_longest(first, second))


def _tree(root: int) -> Iterator[int]:
    """A process and its descendants."""
    try:
        tasks = [Path(f"/proc/{root}/task/{name}/children") for name in os.listdir(f"/proc/{root}/task")]
    except OSError:
        return
    yield root
    for children in tasks:
        try:
            found = children.read_text().split()
        except OSError:
            continue
        for child in found:
            yield from _tree(int(child))


def _title(pid: int) -> bytes:
    """The command line of a process; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

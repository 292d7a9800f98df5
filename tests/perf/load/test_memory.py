# SPDX-License-Identifier: Apache-2.0
"""The memory of a tree of processes, watched while it changes."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.load.memory import (
    MemorySample,
    MemoryWatcher,
    ProcessMemory,
    growth_mib,
    memory_measurements,
    process_tree,
    read,
)
from ocdserve.perf.series.measurement import find

# A process with a child that takes 40 MiB on command, and keeps it until its input ends.
_CHILD = """import sys
print("up", flush=True)
sys.stdin.readline()
kept = b"x" * (40 << 20)
print("full", flush=True)
sys.stdin.read()
"""
_PARENT = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {_CHILD!r}]).returncode)"


@contextmanager
def family() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        yield process


def samples(*sizes: float) -> list[MemorySample]:
    return [
        MemorySample(float(at), (ProcessMemory(1, "a", 2 * size, size / 2), ProcessMemory(2, "b", size, size / 2)))
        for at, size in enumerate(sizes)
    ]


def test_the_peak_is_that_of_all_processes_together() -> None:
    with family() as process:
        assert process.stdin and process.stdout
        before = sum(one.pss_mib for one in read(process_tree(process.pid)))
        with MemoryWatcher(process.pid, interval_s=0.02) as watcher:
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == "full\n"
            time.sleep(0.1)
        peak = watcher.peak()
        process.stdin.close()
    assert len(peak.processes) == 2 and process.pid in [one.pid for one in peak.processes]
    assert 38 < peak.pss_mib - before < 60
    assert peak.rss_mib >= peak.pss_mib
    assert len(watcher.samples) >= 3


def test_the_watcher_survives_the_end_of_its_processes() -> None:
    with family() as process, MemoryWatcher(process.pid, interval_s=0.02) as watcher:
        process.kill()
        process.wait()
        time.sleep(0.1)
    assert watcher.samples and process_tree(process.pid) == ()


def test_growth_excludes_the_warm_up() -> None:
    assert growth_mib(samples(10, 50, 60, 60, 61, 61, 62, 62, 63, 63)) == pytest.approx(3.0)
    assert growth_mib(samples(10, 30)) == pytest.approx(20.0)


def test_series_hold_pss_and_rss_and_the_processes_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    with family() as process:
        watcher = MemoryWatcher(process.pid)
        with pytest.raises(UnavailableError, match="never read"):
            watcher.peak()
        assert process.stdin
        process.stdin.close()
    watcher.samples = samples(10, 30, 20)
    series = memory_measurements(watcher, "ocdnet", "endurance")
    (pss,) = find(series, unit="MiB", **{"counted as": "PSS"})
    (rss,) = find(series, unit="MiB", **{"counted as": "RSS"})
    assert pss.samples == (10, 30, 20) and rss.samples == (30, 90, 60)
    assert pss.facts["peak PSS"] == 30 and pss.facts["peak RSS"] == 90 and pss.facts["a (1)"] == 15


def test_a_process_that_does_not_run_is_refused(tmp_path: Path) -> None:
    with family() as process:
        process.kill()
    with pytest.raises(InvalidInputError, match=str(process.pid)):
        MemoryWatcher(process.pid)
    with pytest.raises(InvalidInputError, match="interval_s"):
        MemoryWatcher(1, 0)

# SPDX-License-Identifier: Apache-2.0
"""Running the parts: none affects another, and what one has written counts however it ends."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import pytest

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.gpu_check import running
from ocdserve.perf.gpu_check.check_context import CheckContext, Deadline, OutOfTimeError
from ocdserve.perf.gpu_check.running import (
    Check,
    python_with,
    result_path,
    run_apart,
    run_here,
    run_parts,
    write_results,
)
from ocdserve.perf.series.environment import Environment, Gpu
from ocdserve.perf.series.measurement import Measurement
from ocdserve.perf.series.results import Part, Results, load_results, to_json

MakeContext = Callable[..., CheckContext]

GPU = Gpu("NVIDIA L4 (24 GB)", "sm_89", "580.1, CUDA 12.8", {"pycuda": "1"}, {"clocks.sm": "2040 MHz"})
CASES = Measurement("gpu-first", "post-processing", "generated maps", "cases", (7,), facts={"cases outside": 0})


def _nothing(context: CheckContext) -> None:
    pass


CHECKS = tuple(Check(name, _nothing, 90) for name in ("first", "second", "third"))


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _results(part: Part, *measurements: Measurement) -> Results:
    return Results("", Environment.current(), measurements, parts=(part,))


def test_parts_share_the_time_and_all_results_are_kept_after_each(tmp_path: Path) -> None:
    clock = Clock()
    given: list[tuple[str, float]] = []
    kept: list[list[str]] = []

    def run(check: Check, seconds: float, path: Path) -> Results:
        given.append((check.name, seconds))
        clock.now += 70
        return _results(Part(check.section, "complete"))

    def keep(found: Sequence[Results]) -> None:
        kept.append([results.parts[0].section for results in found])

    found = run_parts(CHECKS, Deadline(160, clock), tmp_path, run, keep)

    # Twenty seconds are reserved for a part that must be killed.
    assert given == [("first", 90), ("second", 70)]
    assert [results.parts[0].state for results in found] == ["complete", "complete", "stopped"]
    assert found[2].parts[0].reason == "no time was left for it"
    assert kept == [["gpu-first"], ["gpu-first", "gpu-second"], ["gpu-first", "gpu-second", "gpu-third"]]


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (OutOfTimeError("the last size"), "stopped", "its 200 s were over before: the last size"),
        (UnavailableError("there is no Triton"), "not available", "there is no Triton"),
        (InvalidInputError("a wrong map"), "failed", "a wrong map"),
        (ZeroDivisionError("division"), "failed", "ZeroDivisionError: division (test_running.py:"),
        (None, "complete", ""),
    ],
)
def test_the_end_of_a_part_is_in_its_results(
    make_context: MakeContext, error: Exception | None, state: str, reason: str
) -> None:
    kept: list[str] = []

    def run(context: CheckContext) -> None:
        context.add("so far", "maps", "cases", [1])
        if error is not None:
            raise error

    context = make_context("part")
    context.save = lambda: kept.append(context.part.state)
    run_here(Check("part", run, 1), context)

    assert context.part.state == state
    assert context.part.reason.startswith(reason)
    assert [one.samples for one in context.measurements.values()] == [(1,)]
    assert kept == [state]


SCRIPT = """
import os, sys, time
path = sys.argv[sys.argv.index("--record") + 1]
open(path, "w").write({results!r})
print("first line"); print("the GPU fell off the bus", flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "its process was ended by signal 9; first line / the GPU fell off the bus"),
        ("sys.exit(3)", "its process ended with exit code 3; first line / the GPU fell off the bus"),
        ("time.sleep(60)", "killed: it hung for 1 s after its time; first line / the GPU fell off the bus"),
    ],
)
def test_a_process_that_dies_or_hangs_leaves_what_it_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, reason: str
) -> None:
    written = json.dumps(to_json(_results(Part("gpu-first"), CASES)))
    script = tmp_path / "interpreter"
    script.write_text(f"#!/usr/bin/env python3\n{SCRIPT.format(results=written, end=end)}")
    script.chmod(0o755)
    monkeypatch.setattr(running.sys, "executable", str(script))
    monkeypatch.setattr(running, "_GRACE_S", 1.0)

    found = run_apart(CHECKS[0], 0.5, tmp_path / "first.json", ["--work", "here"])

    (part,) = found.parts
    assert (part.state, part.reason) == ("failed", reason)
    assert part.log == "first line\nthe GPU fell off the bus\n"
    assert found.measurements == (CASES,)
    assert load_results(tmp_path / "first.json") == found


def test_children_of_a_part_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "interpreter"
    number = tmp_path / "process"
    script.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {number}\n")
    script.chmod(0o755)
    monkeypatch.setattr(running.sys, "executable", str(script))

    run_apart(CHECKS[0], 5, tmp_path / "first.json", [])

    status = Path(f"/proc/{number.read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    # Gone, or a zombie that was not waited for.
    while status.exists() and status.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_a_series_that_is_measured_again_replaces_the_first(make_context: MakeContext) -> None:
    context = make_context("stages")
    context.add("kernel", "maps", "µs", [8.0, 16.0], {"batch": 8}, {"note": "first"})
    again = context.add("kernel", "maps", "µs", [24.0], {"batch": 8})
    context.add_facts(again, {"boxes": 3})
    context.absent("the rest", ValueError("two\nlines"))

    (found,) = context.measurements.values()
    assert found == Measurement("gpu-stages", "kernel", "maps", "µs", (24.0,), (), {"batch": 8}, {"boxes": 3})
    assert context.part.absences == {"the rest": "two lines"}


def test_both_files_have_everything(tmp_path: Path) -> None:
    environment = Environment.current(GPU)
    exactness = Part("gpu-exactness", "complete", "", 60, findings=[f"case {number} | odd" for number in range(60)])
    outside = Measurement(
        "gpu-exactness", "post-processing", "generated maps", "cases", (600,), (), {}, {"cases outside": 1}
    )
    stages = Part("gpu-stages", "stopped", "its 90 s were over before: batch 32", 90)
    stages.absences["PyTorch"] = "it is not installed"
    stages.log = "\n".join(f"line {number}" for number in range(30))
    factors = {"batch": 1, "executed": "in a row"}
    times = Measurement("gpu-stages", "preprocessing", "photographs", "µs", (8.0, 9.0, 10.5), (), factors)
    others = [
        Part("gpu-served", "stopped", "the run was cut off before"),
        Part("gpu-installation", "complete", findings=["tensorrt: its wheel is not in the folder"]),
    ]

    path = result_path(tmp_path / "results", GPU)
    write_results(path, environment, [_results(exactness, outside), _results(stages, times)], others)

    results = load_results(path)
    assert path.name == f"gpu-check-{date.today().isoformat()}-nvidia-l4-24-gb.json"
    assert results.measurements == (outside, times)
    assert results.parts == (exactness, stages, *others)
    text = path.with_suffix(".md").read_text("utf-8")
    assert "| GPU | NVIDIA L4 (24 GB) (sm_89), driver 580.1, CUDA 12.8 |" in text
    assert "| GPU before | clocks.sm 2040 MHz |" in text
    assert "pycuda 1" in text
    assert "| found | tensorrt: its wheel is not in the folder |" in text
    assert "| cases outside, generated maps | at most 0 | 1 |  | missed |" in text
    assert "| preprocessing, batch 1, photographs | at most 10 µs | 9 µs |  | met: the answers were not" in text
    assert "| photographs | preprocessing | 1 | in a row | 3 | 9 | 8 – 10.50 |" in text
    assert "| found | case 49 \\| odd |" in text and "case 50" not in text
    assert "| found | 10 more, see the JSON |" in text
    assert "| log | line 10 |" in text and "| log | line 29 |" in text and "line 9 |" not in text
    assert "| PyTorch: not measured | it is not installed |" in text
    assert "| state | stopped early after 90 s: its 90 s were over before: batch 32 |" in text
    assert "| state | stopped early after 0 s: the run was cut off before |" in text


def test_a_python_has_packages_without_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, modules in ((first, ("numpy", "ours")), (second, ("numpy", "ours", "theirs"))):
        folder.mkdir()
        for module in modules:
            (folder / f"{module}.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(second))

    python = python_with(tmp_path / "python", [first])

    # As Triton's Python backend does: isolated, and found by its place on PATH.
    code = "import numpy, ours, theirs, pytest; print(*(each.__file__ for each in (numpy, ours, theirs, pytest)))"
    ended = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    expected = (first / "numpy.py", first / "ours.py", second / "theirs.py", pytest.__file__)
    assert ended.stdout.split() == list(map(str, expected))

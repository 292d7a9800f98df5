# SPDX-License-Identifier: Apache-2.0
"""Parts one after the other: none hides another, and what one has written counts however it ends."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.gpu_check import running
from ocdserve.perf.gpu_check.check_context import Deadline, OutOfTimeError, Setting
from ocdserve.perf.gpu_check.record import Record, write_json
from ocdserve.perf.gpu_check.running import Part, run_apart, run_here, run_parts

MakeSetting = Callable[..., Setting]


def _nothing(setting: Setting) -> None:
    pass


PARTS = tuple(Part(name, name.title(), _nothing, 90) for name in ("first", "second", "third"))


class Clock:
    """Tells the time that it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_parts_share_the_time_and_all_records_are_kept_after_each(tmp_path: Path) -> None:
    clock = Clock()
    given: list[tuple[str, float]] = []
    kept: list[list[str]] = []

    def run(part: Part, seconds: float, path: Path) -> Record:
        given.append((part.name, seconds))
        clock.now += 70
        return Record(part.name, "complete")

    def keep(records: Sequence[Record]) -> None:
        kept.append([record.part for record in records])

    records = run_parts(PARTS, Deadline(160, clock), tmp_path, run, keep)

    # Twenty seconds are held back for a part that must be killed.
    assert given == [("first", 90), ("second", 70)]
    assert [record.state for record in records] == ["complete", "complete", "stopped"]
    assert records[2].reason == "no time was left for it"
    assert kept == [["first"], ["first", "second"], ["first", "second", "third"]]


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
def test_how_a_part_ended_is_in_its_record(
    make_setting: MakeSetting, error: Exception | None, state: str, reason: str
) -> None:
    kept: list[str] = []

    def part(setting: Setting) -> None:
        setting.record.count("so far", "", 1, "")
        if error is not None:
            raise error

    setting = make_setting("part")
    setting.keep = lambda: kept.append(setting.record.state)
    record = run_here(Part("part", "", part, 1), setting)

    assert record.state == state
    assert record.reason.startswith(reason)
    assert record.value("so far", "") == 1
    assert kept == [state]


SCRIPT = """
import json, os, sys, time
path = sys.argv[sys.argv.index("--record") + 1]
record = {record!r}
open(path, "w").write(json.dumps(record))
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
    written = Record("first")
    written.count("cases compared", "generated maps", 7, "")
    script = tmp_path / "interpreter"
    script.write_text(f"#!/usr/bin/env python3\n{SCRIPT.format(record=written.to_json(), end=end)}")
    script.chmod(0o755)
    monkeypatch.setattr(running.sys, "executable", str(script))
    monkeypatch.setattr(running, "_GRACE_S", 1.0)

    record = run_apart(PARTS[0], 0.5, tmp_path / "first.json", ["--work", "here"])

    assert (record.state, record.reason) == ("failed", reason)
    assert record.value("cases compared", "generated maps") == 7
    assert json.loads((tmp_path / "first.json").read_text())["state"] == "failed"
    assert record.log == "first line\nthe GPU fell off the bus\n"


def test_what_a_part_leaves_running_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "interpreter"
    number = tmp_path / "process"
    script.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {number}\n")
    script.chmod(0o755)
    monkeypatch.setattr(running.sys, "executable", str(script))

    run_apart(PARTS[0], 5, tmp_path / "first.json", [])

    status = Path(f"/proc/{number.read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    # Gone, or a zombie that nobody has asked for.
    while status.exists() and status.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    record = Record("stages", "stopped", "its time was up", 12.5, deviations=["one"])
    median = record.time("kernel", "batch 8", [8.0, 16.0, 24.0], "a note", per=8)
    record.absent("the rest", ValueError("two\nlines"))
    write_json(tmp_path / "stages.json", record.to_json())

    found = Record.load(tmp_path / "stages.json", "stages")

    assert found == record
    assert median == 2.0
    figure: Any = found.figures[0]
    assert (figure.unit, figure.low, figure.high) == ("µs an image", 1.0, 3.0)
    assert [sample.ms for sample in found.samples] == [0.008, 0.016, 0.024]
    assert found.absences[0].reason == "two lines"
    assert Record.load(tmp_path / "absent.json", "absent") == Record("absent")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stages.json"]

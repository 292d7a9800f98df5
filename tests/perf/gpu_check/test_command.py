# SPDX-License-Identifier: Apache-2.0
"""The command itself, and what it does on a machine without what it needs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ocdserve.backend.device.probe import gpu_count
from ocdserve.contract import UnavailableError
from ocdserve.perf.gpu_check import sanitizer
from ocdserve.perf.gpu_check.__main__ import EXACTNESS, PARTS, main
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.machine import read_state
from ocdserve.perf.gpu_check.sanitizer import check_sanitizer

MakeSetting = Callable[..., Setting]

without_gpu = pytest.mark.skipif(gpu_count() > 0, reason="this machine has a GPU")


@without_gpu
def test_a_machine_without_a_gpu_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "results")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("gpu_check: ") and ("NVIDIA driver" in told or "NVIDIA GPU" in told)
    assert not (tmp_path / "results").exists()


@without_gpu
def test_a_part_without_a_gpu_writes_that_down(tmp_path: Path) -> None:
    record = tmp_path / "exactness.json"
    options = ["--work", str(tmp_path), "--part", "exactness", "--seconds", "5", "--record", str(record)]
    ended = subprocess.run([sys.executable, "-m", "ocdserve.perf.gpu_check", *options], check=False, timeout=120)
    assert ended.returncode == 0
    found = json.loads(record.read_text())
    assert found["state"] == "not available"
    assert "NVIDIA" in found["reason"]


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--parts", "exactness", "speed"])
    assert stopped.value.code == 2
    assert "no such part: speed" in capsys.readouterr().err


def test_all_parts_end_within_eight_minutes() -> None:
    assert [part.name for part in PARTS][:2] == ["exactness", "stages"]
    assert sum(part.most_s for part in PARTS) <= 480


def test_a_missing_sanitizer_is_told(make_setting: MakeSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = make_setting("sanitizer")
    monkeypatch.setattr(sanitizer, "_USUAL_PLACE", "")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match="compute-sanitizer is neither on the PATH nor in"):
        check_sanitizer(setting, EXACTNESS, [])


SANITIZER = """#!/usr/bin/env python3
import json, sys
arguments = sys.argv[1:]
tool, log = arguments[arguments.index("--tool") + 1], arguments[arguments.index("--log-file") + 1]
record = arguments[arguments.index("--record") + 1]
assert "--short" in arguments and "ocdserve.perf.gpu_check" in arguments
figure = {"subject": "cases compared", "case": "generated maps", "value": 90, "unit": ""}
empty = {name: [] for name in ("steps", "deviations", "absences", "samples")}
json.dump({"part": "exactness", "state": "complete", "figures": [figure], **empty}, open(record, "w"))
if tool != "initcheck":
    summary = "RACECHECK SUMMARY: 2 hazards" if tool == "racecheck" else "ERROR SUMMARY: 0 errors"
    open(log, "w").write(f"========= A hazard at boxes.cu:12\\n========= {summary}\\n")
"""


def test_what_the_sanitizer_finds_is_taken_over(
    make_setting: MakeSetting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    setting = make_setting("sanitizer")

    check_sanitizer(setting, EXACTNESS, ["--short"])

    value = setting.record.value
    assert (value("errors found", "memcheck"), value("errors found", "racecheck")) == (0, 2)
    assert value("cases under the tool", "memcheck") == 90
    assert setting.record.deviations[0] == "racecheck: A hazard at boxes.cu:12"
    assert [absence.what for absence in setting.record.absences] == ["initcheck"]


def test_without_nvidia_smi_the_clocks_are_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert read_state() == {}
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '580.1, 81559 MiB, 1980 MHz'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_state() == {"driver_version": "580.1", "memory.total": "81559 MiB", "clocks.sm": "1980 MHz"}

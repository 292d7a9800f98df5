# SPDX-License-Identifier: Apache-2.0
"""The command, also on a machine without a GPU or without compute-sanitizer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ocdserve.backend.device.probe import gpu_count
from ocdserve.contract import UnavailableError
from ocdserve.perf.gpu_check import running
from ocdserve.perf.gpu_check.__main__ import CHECKS, EXACTNESS, main
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.plan import INSTALLATION_S, PARTS, TOTAL_S
from ocdserve.perf.gpu_check.running import check_sanitizer
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.measurement import Measurement, find
from ocdserve.perf.series.results import Part, Results, load_results, to_json

MakeContext = Callable[..., CheckContext]

without_gpu = pytest.mark.skipif(gpu_count() > 0, reason="this machine has a GPU")


@without_gpu
def test_without_a_gpu_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu_check: ") and ("NVIDIA driver" in error or "NVIDIA GPU" in error)
    assert not (tmp_path / "results").exists()


@without_gpu
def test_without_a_gpu_a_part_is_not_available(tmp_path: Path) -> None:
    record = tmp_path / "exactness.json"
    options = ["--work", str(tmp_path), "--part", "exactness", "--seconds", "5", "--record", str(record)]
    ended = subprocess.run([sys.executable, "-m", "ocdserve.perf.gpu_check", *options], check=False, timeout=120)
    assert ended.returncode == 0
    (part,) = load_results(record).parts
    assert part.state == "not available"
    assert "NVIDIA" in part.reason


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--parts", "exactness", "speed"])
    assert stopped.value.code == 2
    assert "no such part: speed" in capsys.readouterr().err


def test_a_run_is_planned_for_six_minutes() -> None:
    assert [part.name for part in PARTS if part.by_default] == [
        "facts",
        "exactness",
        "stages",
        "end-to-end",
        "networks",
        "reading",
        "served",
    ]
    assert INSTALLATION_S + sum(part.max_s for part in PARTS if part.by_default) == TOTAL_S == 360
    assert [check.name for check in CHECKS] == [part.name for part in PARTS]


def test_a_missing_sanitizer_is_reported(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context("sanitizer")
    monkeypatch.setattr(running, "_SANITIZER_FOLDER", "")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match="compute-sanitizer is neither on the PATH nor in"):
        check_sanitizer(context, EXACTNESS, [])


SANITIZER = """#!/usr/bin/env python3
import sys
arguments = sys.argv[1:]
tool, log = arguments[arguments.index("--tool") + 1], arguments[arguments.index("--log-file") + 1]
record = arguments[arguments.index("--record") + 1]
assert "--short" in arguments and "ocdserve.perf.gpu_check" in arguments
open(record, "w").write({results!r})
if tool != "initcheck":
    summary = "RACECHECK SUMMARY: 2 hazards" if tool == "racecheck" else "ERROR SUMMARY: 0 errors"
    open(log, "w").write(f"========= A hazard at boxes.cu:12\\n========= {{summary}}\\n")
"""


def test_errors_found_by_the_sanitizer_are_in_the_results(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "compute-sanitizer"
    cases = Measurement("gpu-exactness", "post-processing", "generated maps", "cases", (90,))
    results = Results("", Environment.current(), (cases,), parts=(Part("gpu-exactness", "complete"),))
    program.write_text(SANITIZER.format(results=json.dumps(to_json(results))))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    context = make_context("sanitizer")

    check_sanitizer(context, EXACTNESS, ["--short"])

    memcheck, racecheck = (find(context.measurements.values(), subject=tool)[0] for tool in ("memcheck", "racecheck"))
    assert (memcheck.facts["errors found"], racecheck.facts["errors found"]) == (0, 2)
    assert (memcheck.unit, memcheck.samples) == ("cases", (90,))
    assert context.part.findings[0] == "racecheck: A hazard at boxes.cu:12"
    assert list(context.part.absences) == ["initcheck"]

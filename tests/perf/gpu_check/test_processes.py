# SPDX-License-Identifier: Apache-2.0
"""Several processes: all are warm before the first load; one that fails is reported with what it said."""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ocdserve.contract import UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.load import processes
from ocdserve.perf.gpu_check.load.processes import answer, measure_processes
from ocdserve.perf.gpu_check.network.stand_ins import stand_in_bundle
from ocdserve.perf.inputs.maps import page
from ocdserve.perf.series.measurement import find

MakeContext = Callable[..., CheckContext]

WORKER = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    print(100 if float(line) > 0 else -1, flush=True)
"""


@pytest.fixture
def context(make_context: MakeContext) -> CheckContext:
    made = make_context("end-to-end")
    made.effort = replace(made.effort, processes=(1, 2, 4))
    return made


def test_rates_of_processes_are_added(context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    bundle = stand_in_bundle(context.files.work / "bundle", [page("sparse", (96, 160))])

    measure_processes(context, bundle, [sys.executable, "-c", WORKER])

    series = find(context.measurements.values(), section="gpu-end-to-end", unit="images/s")
    assert [(one.factors["processes"], one.samples) for one in series] == [(1, (100,)), (2, (200,)), (4, (400,))]
    assert {one.factors["GPU"] for one in series} == {"taking turns"}
    (absence,) = context.part.absences.items()
    assert absence[0] == "no network, several processes by MPS"
    assert "nvidia-cuda-mps-control" in absence[1]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no GPU is left')", "a process ended with status 1 or was too slow: no GPU is left"),
        ("print('ready', flush=True)", "a process ended with status 0 or was too slow: it wrote nothing"),
    ],
)
def test_a_process_that_fails_is_reported(
    context: CheckContext, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setenv("PATH", "")
    bundle = stand_in_bundle(context.files.work / "bundle", [page("sparse", (96, 160))])

    measure_processes(context, bundle, [sys.executable, "-c", code])

    assert context.part.absences["no network, several processes taking turns"] == message
    assert not context.measurements


def test_a_process_answers_each_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_CALLERS", 1)
    output = io.StringIO()
    answer(lambda number: None, iter(["0.01\n", "0.02\n"]), output)
    assert all(float(line) > 0 for line in output.getvalue().splitlines())
    assert len(output.getvalue().splitlines()) == 2

    def fails(number: int) -> None:
        raise UnavailableError("the GPU has failed")

    with pytest.raises(UnavailableError, match="the GPU has failed"):
        answer(fails, iter(["0.01\n"]), output)


def test_a_process_without_a_gpu_says_so(context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    from ocdserve.backend.device import cuda

    def without(index: int = 0) -> None:
        raise UnavailableError("this machine has no NVIDIA driver.")

    monkeypatch.setattr(cuda, "open_device", without)
    bundle = stand_in_bundle(context.files.work / "bundle", [page("sparse", (96, 160))])
    with pytest.raises(UnavailableError, match="no NVIDIA driver"):
        processes.main([str(Path(bundle.model_path).parent)])

# SPDX-License-Identifier: Apache-2.0
"""Where the time goes: stages in process, and shares that add up."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ocdserve.backend import Detector
from ocdserve.backend.device.probe import present_gpu
from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.cli import main
from ocdserve.contract import UnavailableError
from ocdserve.perf.counting.hot_loops import hot_loops
from ocdserve.perf.counting.instructions import InstructionCounts
from ocdserve.perf.inputs.data_sets import DataSet, LabelledImage
from ocdserve.perf.inputs.pictures import street
from ocdserve.perf.sections.stages import GpuStages, Subject, cpu_stages, instruction_series, measure_stages, share_of
from ocdserve.perf.series.measurement import Measurement, find

NO_TEXT = Truth((), ())
DATA = DataSet("set", tuple(LabelledImage(name, name.encode(), NO_TEXT) for name in "xy"))


def measured(rounds: int = 1) -> tuple[list[tuple[str, bytes]], tuple[Measurement, ...]]:
    """Calls in their order, and the series of two subjects on two images."""
    calls: list[tuple[str, bytes]] = []

    def takes(name: str, stages: Mapping[str, float]) -> Callable[[bytes], Mapping[str, float]]:
        def timed(encoded: bytes) -> Mapping[str, float]:
            calls.append((name, encoded))
            return stages

        return timed

    subjects = {
        "cpu": Subject(takes("cpu", {"decode": 1.0, "preprocess": 2.0, "network": 6.0, "postprocess": 1.0}), {"n": 1}),
        "gpu": Subject(takes("gpu", {"decode": 3.0, "gpu": 1.0})),
    }
    return calls, measure_stages(subjects, [DATA], rounds, lambda done, total: None)


def test_subjects_take_turns_after_each_has_seen_the_image() -> None:
    calls, _ = measured()
    assert [(name, encoded.decode()) for name, encoded in calls] == [
        *[("cpu", "x"), ("gpu", "x"), ("cpu", "x"), ("gpu", "x")],
        *[("cpu", "y"), ("gpu", "y"), ("gpu", "y"), ("cpu", "y")],
    ]


def test_there_is_a_series_per_stage_in_order_with_its_share() -> None:
    series = measured(rounds=2)[1]
    assert [(one.subject, one.factors["stage"], one.facts["share"]) for one in series if one.subject == "cpu"] == [
        ("cpu", "decode", 0.1),
        ("cpu", "preprocess", 0.2),
        ("cpu", "network", 0.6),
        ("cpu", "postprocess", 0.1),
    ]
    (network,) = find(series, stage="network")
    assert network.samples == (6.0,) * 4
    assert network.cases == ("x#0", "x#1", "y#0", "y#1")
    assert network.factors["n"] == 1
    assert share_of(series, "cpu", "set", ("preprocess", "postprocess")) == pytest.approx(0.3)
    assert share_of(series, "gpu", "set", ("preprocess",)) == 0


def test_the_stages_of_the_real_detector_add_up_to_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr("ocdserve.perf.sections.stages.perf_counter", lambda: float(next(ticks)))
    stages = cpu_stages(Detector.load(threads=1))(street().png())
    # One second between any two readings of the clock.
    assert stages == {"decode": 1000.0, "preprocess": 1000.0, "network": 1000.0, "postprocess": 1000.0}


def test_what_a_gpu_detector_reports_becomes_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reporting:
        def __init__(self, observer: Callable[[str, float, int], None]) -> None:
            self.observer = observer

        def detect(self, encoded: bytes) -> None:
            self.observer("decode", 0.002, 1)
            self.observer("gpu", 0.003, 1)

        def close(self) -> None:
            """Nothing to release."""

    def load(**options: Any) -> Reporting:
        return Reporting(options["observer"])

    monkeypatch.setattr(GpuDetector, "load", load)
    ticks = iter([0.0, 0.0075, 1.0, 1.004])
    monkeypatch.setattr("ocdserve.perf.sections.stages.perf_counter", lambda: next(ticks))
    stages = GpuStages()
    assert stages(b"") == pytest.approx({"decode": 2.0, "gpu": 3.0, "hand over": 2.5})
    # The second image has times of its own; the rest is never below 0.
    assert stages(b"") == pytest.approx({"decode": 2.0, "gpu": 3.0, "hand over": 0.0})
    stages.close()


def test_without_a_gpu_its_stages_are_refused_and_nothing_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(UnavailableError):
        pytest.skip(f"there is a GPU: {present_gpu()}")
    assert main(["bench", "stages", "--gpu"]) == 1
    assert "needs a GPU, but this machine has no NVIDIA driver" in capsys.readouterr().err


def test_the_statistics_need_a_grpc_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "stages", "--hops", "http://127.0.0.1:8000"]) == 2
    assert "--hops must be grpc://HOST:PORT" in capsys.readouterr().err


def test_counted_instructions_become_series_with_ours_as_baseline() -> None:
    (loop, *_) = hot_loops(words=50)
    counts = InstructionCounts("callgrind", {loop.ours.name: 1000.0, loop.baseline.name: 5000.0})
    ours, baseline = instruction_series([loop], counts)
    assert (ours.subject, ours.samples, ours.unit) == ("ocdserve", (1000.0,), "instructions")
    assert (baseline.subject, baseline.samples, baseline.baseline) == ("plain", (5000.0,), "ocdserve")
    assert baseline.key_of("ocdserve") == ours.key
    assert ours.factors == {"counted by": "callgrind"}

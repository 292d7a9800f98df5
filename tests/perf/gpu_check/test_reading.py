# SPDX-License-Identifier: Apache-2.0
"""The part reading on the emulated device: agreement, times, and what is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bars_recogniser
import numpy as np
import onnx
import pytest
from cuda_emulator import EmulatedDevice

from ocdserve.backend.network.onnxruntime_cuda import OnnxRuntimeCudaRecogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.backend.stages.ctc import Steps
from ocdserve.contract import UnavailableError
from ocdserve.perf.gpu_check import reading, resizes
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.network.engines import NETWORKS, RECOGNISER
from ocdserve.perf.gpu_check.reading import KnownSteps, check_reading
from ocdserve.perf.gpu_check.resizes import check_lines
from ocdserve.perf.series.measurement import Measurement, find

MakeContext = Callable[..., CheckContext]


class OnTheCpu(OnnxRuntimeCudaRecogniser):
    _memory = "cpu"

    def _check_provider(self) -> None:
        pass

    def unrecordable(self) -> str:
        return "the CPU cannot be recorded"

    def _providers(self, handle: int | None) -> list[tuple[str, dict[str, str]]]:
        return [("CPUExecutionProvider", {})]


@pytest.fixture
def context(make_context: MakeContext, tmp_path: Path) -> CheckContext:
    """Of the part, with a small recogniser that is carried along."""
    onnx.save(bars_recogniser.network(), tmp_path / "model.onnx")
    bundle = RecogniserBundle(RecogniserSpec(name="bars", characters=tuple("rgb")), tmp_path / "model.onnx")
    bundle.save(tmp_path / NETWORKS / RECOGNISER)
    made = make_context("reading", carried=tmp_path)
    # It executes at once, since the network does.
    made.open_device = lambda: EmulatedDevice(deferred=False)
    return made


def only(context: CheckContext, **fields: Any) -> Measurement:
    (found,) = find(context.measurements.values(), section="gpu-reading", **fields)
    return found


def test_texts_are_compared_and_pages_timed_with_and_without_a_network(context: CheckContext) -> None:
    check_reading(context, lambda bundle, options, device: OnTheCpu(bundle, options))

    for name in ("no network", "bars"):
        texts = only(context, subject=f"texts, {name}")
        assert texts.samples[0] >= 3
        assert texts.facts["lines that differ"] == texts.facts["lines that differ from run to run"] == 0
        assert float(texts.facts["largest difference of a score"]) < 1e-5
        for callers in (1, 2):
            speed = only(context, subject=f"pixels to texts, {name}", unit="images/s", concurrency=callers)
            assert speed.facts["errors"] == 0
    for count in (1, 2, 32):
        times = only(context, subject="rectification", batch=count, executed="in the cache")
        assert times.facts["µs per line"] == pytest.approx(sum(times.samples) / 2 / count)
    assert context.part.findings == []
    assert "the recogniser" not in context.part.absences


def test_lines_that_differ_are_counted(context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: KnownSteps, lines: Any) -> list[Steps]:
        return [
            Steps(np.ones(line.shape[1] // 8, np.int32), np.full(line.shape[1] // 8, 0.7, np.float32)) for line in lines
        ]

    def unavailable(*arguments: Any) -> Any:
        raise UnavailableError("there is no CUDA provider")

    monkeypatch.setattr(KnownSteps, "infer", other)
    check_reading(context, unavailable)

    texts = only(context, subject="texts, no network")
    assert texts.facts["lines that differ"] == texts.samples[0] >= 3
    assert float(texts.facts["largest difference of a score"]) == pytest.approx(0.2)
    count = int(texts.samples[0])
    assert context.part.findings == [f"no network: {count} of {count} lines that differ"]
    assert context.part.absences["the recogniser"] == "there is no CUDA provider"


def test_bytes_of_lines_that_differ_are_counted(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def darker(*arguments: Any) -> Any:
        lines = rectify(*arguments)
        lines[3].pixels[0, 0, 0] ^= 1
        return lines

    rectify = resizes.rectify
    monkeypatch.setattr(resizes, "rectify", darker)
    context = make_context("exactness")

    with context.device() as device:
        check_lines(context, device, device.stream())

    (found,) = find(context.measurements.values(), section="gpu-exactness", group="text lines")
    assert found.facts["differing bytes"] == 1
    (finding,) = context.part.findings
    assert finding.startswith("line of [[") and "1 of" in finding


def test_the_recogniser_is_the_installed_one_where_none_is_carried(make_context: MakeContext) -> None:
    assert reading._carried(make_context("reading")).spec.height == 48

# SPDX-License-Identifier: Apache-2.0
"""Times of the stages on the emulated device: all series are there; their values mean nothing here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cuda_emulator import EmulatedDevice, require_compiler

from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.contract import InvalidInputError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.maps import FIXED_MAPS, save_maps
from ocdserve.perf.gpu_check.stages import check_stages
from ocdserve.perf.gpu_check.timing import Effort, GraphTimer
from ocdserve.perf.inputs.maps import Case, page
from ocdserve.perf.series.measurement import Measurement, find

MakeContext = Callable[..., CheckContext]

SIZE = (96, 160)


def test_every_stage_is_timed_with_all_batches_and_maps(make_context: MakeContext, tmp_path: Path) -> None:
    real = Case("photograph", page("dense", SIZE), Frame((192, 320), SIZE, SIZE), PostprocessParams())
    save_maps(tmp_path / FIXED_MAPS, [real])
    context = make_context("stages", carried=tmp_path)

    check_stages(context)

    def only(section: str = "gpu-stages", **fields: Any) -> Measurement:
        (found,) = find(context.measurements.values(), section=section, unit="µs", **fields)
        return found

    for batch in (1, 2):
        assert min(only(subject="preprocessing", batch=batch, executed="in a row").samples) > 0
        for kind in ("sparse", "real", "dense"):
            for executed in ("in a row", "in the cache", "alone"):
                times = only(subject="post-processing", group=kind, batch=batch, executed=executed)
                assert len(times.samples) == 2
                assert times.facts["µs per image"] == pytest.approx(sum(times.samples) / 2 / batch)
            rotated = only(subject="post-processing", group=kind, batch=batch, executed="in a row")
            assert float(rotated.facts["times faster than the CPU"]) > 0
            assert float(rotated.facts["share of the memory bandwidth"]) > 0
            up_to = find(context.measurements.values(), section="gpu-steps", group=kind, batch=batch)
            steps = [str(one.factors["stage"]) for one in up_to]
            assert steps[:3] == ["1. copy from the host", "2. fill", "3. binarise_uint8"]
            assert steps[-1] == f"{len(steps)}. copy to the host"
    boxes = only(subject="post-processing", group="real", batch=1, executed="in a row").facts["boxes per image"]
    assert float(boxes) >= 3
    assert float(only(subject="copy on the GPU").facts["GB/s"]) > 0
    assert min(only(subject="plain loop on the CPU", group="real").samples) > 0
    absent = context.part.absences
    assert "PyTorch" in absent and "CuPy's label" in absent


def test_times_are_per_execution() -> None:
    require_compiler()
    device = EmulatedDevice()
    timer = GraphTimer(device, Effort(repeats=3, row=5, copy_bytes=1 << 10))
    buffer = device.allocate(1 << 22)
    calls: list[int] = []

    def work(number: int) -> Callable[..., None]:
        def queue(stream: object) -> None:
            calls.append(number)
            timer.stream.fill(buffer, number, buffer.size)

        return queue

    times = timer.times_us([work(1), work(2)])

    assert len(times) == 3 and min(times) > 0
    # Once each, then five in turn to record the graph, whose launches do not call them.
    assert calls == [1, 2, 1, 2, 1, 2, 1]
    buffer.close()
    timer.close()
    assert device.allocated == 0


def test_an_empty_effort_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"Effort.batches must be positive; got \(\)"):
        Effort(batches=())
    with pytest.raises(InvalidInputError, match=r"Effort.row must be positive; got 0"):
        Effort(row=0)

# SPDX-License-Identifier: Apache-2.0
"""Times of the stages on the emulated device: every figure of the result is there; the numbers mean nothing here."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_emulator import EmulatedDevice, require_compiler

from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.contract import InvalidInputError
from ocdserve.perf.gpu_check.cases import Case, page, save_maps
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.real_maps import FIXED_MAPS
from ocdserve.perf.gpu_check.stages import check_stages
from ocdserve.perf.gpu_check.timing import Effort, GraphTimer

MakeSetting = Callable[..., Setting]

SIZE = (96, 160)


def test_every_stage_is_timed_with_all_batches_and_maps(make_setting: MakeSetting, tmp_path: Path) -> None:
    real = Case("photograph", page("dense", SIZE), Frame((192, 320), SIZE, SIZE), PostprocessParams())
    save_maps(tmp_path / FIXED_MAPS, [real])
    setting = make_setting("stages", carried=tmp_path, baseline_python=sys.executable)

    check_stages(setting)

    found = {(figure.subject, figure.case): figure for figure in setting.record.figures}
    for batch in (1, 2):
        assert found["preprocessing", f"batch {batch}"].value > 0
        for kind in ("sparse", "real", "dense"):
            case = f"batch {batch}, {kind}"
            for subject in ("post-processing", "post-processing, in the cache", "post-processing, alone"):
                assert found[subject, case].unit == ("µs" if batch == 1 else "µs an image")
            assert found["times faster than the CPU", case].unit == "x"
            steps = [step.subject for step in setting.record.steps if step.case == case]
            assert steps[:3] == ["1. copy from the host", "2. fill", "3. binarise_uint8"]
            assert steps[-1] == f"{len(steps)}. copy to the host"
    assert found["boxes an image", "batch 1, real"].value >= 3
    assert found["memory's speed", "copy, read and written"].value > 0
    assert found["plain loop on the CPU", "one thread, real"].value > 0
    timed = [sample for sample in setting.record.samples if sample.subject == "post-processing"]
    assert len(timed) == 2 * 3 * 2
    absent = {absence.what: absence.reason for absence in setting.record.absences}
    assert "PyTorch" in absent and "CuPy's label" in absent


def test_a_time_is_of_one_execution() -> None:
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
    # Once each before, then five in turns for the graph, which is launched without them.
    assert calls == [1, 2, 1, 2, 1, 2, 1]
    buffer.close()
    timer.close()
    assert device.allocated == 0


def test_an_effort_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"Effort.batches must be positive; got \(\)"):
        Effort(batches=())
    with pytest.raises(InvalidInputError, match=r"Effort.row must be positive; got 0"):
        Effort(row=0)

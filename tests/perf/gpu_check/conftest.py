# SPDX-License-Identifier: Apache-2.0
"""Parts of the GPU check on the emulated device, with as little effort as shows that they work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cuda_emulator import EmulatedDevice, require_compiler

from ocdserve.perf.gpu_check.check_context import Deadline, Files, Setting
from ocdserve.perf.gpu_check.record import Record
from ocdserve.perf.gpu_check.timing import Effort

MakeSetting = Callable[..., Setting]


@pytest.fixture
def make_setting(tmp_path: Path) -> MakeSetting:
    """Makes what a part gets; the device is emulated."""

    def make(part: str, seconds: float = 200, **files: Any) -> Setting:
        require_compiler()
        effort = Effort(
            repeats=2,
            row=2,
            batches=(1, 2),
            size=(96, 160),
            rotation=2,
            copy_bytes=1 << 12,
            cases=80,
            resizes=20,
            load_s=0.05,
            concurrencies=(1, 2),
        )
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        places = Files(**{"carried": None, "data": None, "work": work, **files})
        return Setting(EmulatedDevice, places, Deadline(seconds), effort, Record(part))

    return make

# SPDX-License-Identifier: Apache-2.0
"""Parts of the GPU check on the emulated device, with the least effort that shows that they work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cuda_emulator import EmulatedDevice, require_compiler

from ocdserve.perf.gpu_check.check_context import CheckContext, Deadline, Files
from ocdserve.perf.gpu_check.timing import Effort
from ocdserve.perf.series.results import Part

MakeContext = Callable[..., CheckContext]


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    """Makes the context of a part, with the emulated device."""

    def make(part: str, seconds: float = 200, **files: Any) -> CheckContext:
        require_compiler()
        effort = Effort(
            repeats=2,
            row=2,
            batches=(1, 2),
            size=(96, 160),
            rotation=2,
            copy_bytes=1 << 12,
            cases=81,
            resizes=20,
            load_s=0.05,
            concurrencies=(1, 2),
        )
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        places = Files(**{"carried": None, "data": None, "work": work, **files})
        return CheckContext(EmulatedDevice, places, Deadline(seconds), effort, Part(f"gpu-{part}"))

    return make

# SPDX-License-Identifier: Apache-2.0
"""Control of the simulated driver: a pytest plugin that `test_cuda.py` loads in its own process.

The real pycuda and the real cuda.bindings are in between, so that their calls and their clean-up are tried as well.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve.backend.device.cuda import CudaDevice, open_device

GRID, BLOCK = (4, 1, 1), (256, 1, 1)

_driver = ctypes.CDLL("libcuda.so.1")
_driver.fake_left.restype = ctypes.c_char_p
_driver.fake_launches.restype = ctypes.c_char_p


def left() -> str:
    """Resources that were not released."""
    text: bytes = _driver.fake_left()
    return text.decode()


def fail(call: str, code: int, skip: int = 0) -> None:
    """Let a call of the driver fail, after `skip` successful ones."""
    _driver.fake_inject(call.encode(), code, skip)


def heal() -> None:
    """Reset the driver to its initial state, which no real driver can do."""
    _driver.fake_heal()


def waiting_pools() -> int:
    """Number of memory pools whose allocations may wait for the work of other streams."""
    return int(_driver.fake_waiting_pools())


def launches() -> bytes:
    """The kernels that were executed, a line for each."""
    text: bytes = _driver.fake_launches()
    return text


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    """A device on a working driver; afterwards everything must be released."""
    heal()
    opened = open_device()
    yield opened
    opened.close()
    if not opened.failed:
        assert left() == ""


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Kernels whose names the simulated driver knows, as a file that `module` takes."""
    path: Path = tmp_path_factory.mktemp("kernels") / "simulated.cu"
    path.write_text(
        'extern "C" __global__ void add(unsigned char* values, int count, unsigned char amount) {\n'
        "    const int index = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "    if (index < count) values[index] += amount;\n"
        "}\n"
        'extern "C" __global__ void fault(unsigned char* values) { values[1ll << 50] = 1; }\n',
        encoding="utf-8",
    )
    return str(path)


def add(device: CudaDevice, stream: Any, source: str, buffer: Any, amount: int) -> None:
    kernel = device.module(source).kernel("add")
    stream.launch(kernel, GRID, BLOCK, [buffer, np.int32(buffer.size), np.uint8(amount)])

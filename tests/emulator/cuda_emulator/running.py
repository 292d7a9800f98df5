# SPDX-License-Identifier: Apache-2.0
"""One kernel on NumPy arrays, for the tests of kernels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Dim3, KernelArgument

from .device import EmulatedDevice
from .schedule import Schedule


def run_kernel(
    source: str,
    kernel: str,
    grid: Dim3 | int,
    block: Dim3 | int,
    *arguments: NDArray[Any] | np.generic,
    shared: int = 0,
    schedule: Schedule | None = None,
    sources: Mapping[str, str] | None = None,
    check_races: bool = False,
) -> None:
    """Run a kernel once; what it writes is in the arrays afterwards.

    Args:
        source: A `.cu` file of the package or of `sources`; or CUDA source itself, which then has a line break.
        kernel: Its name.
        grid: Blocks; a number stands for (number, 1, 1).
        block: Threads of a block.
        *arguments: Arrays, which become buffers of exactly their size (C-contiguous; empty ones become null), and
            NumPy scalars.
        shared: Dynamic shared memory in bytes.
        schedule: The order of threads.
        sources: Texts that stand in for files of the package.
        check_races: See `EmulatedDevice`.

    Raises:
        KernelFault: A thread did what is not allowed.
        MisuseError: The arguments do not fit the kernel.
    """
    texts = dict(sources or {})
    if "\n" in source:
        texts["kernel.cu"] = source
        source = "kernel.cu"
    device = EmulatedDevice(schedule, deferred=False, sources=texts, check_races=check_races)
    stream = device.stream()
    converted: list[KernelArgument] = []
    results = []
    for argument in arguments:
        if isinstance(argument, np.generic):
            converted.append(argument)
        elif argument.nbytes == 0:
            converted.append(np.uint64(0))
        else:
            buffer = device.allocate(argument.nbytes)
            stream.to_device(buffer, argument)
            converted.append(buffer)
            results += [(argument, buffer)] if argument.flags.writeable else []
    function = device.module(source).kernel(kernel)
    stream.launch(function, _dim3(grid), _dim3(block), converted, shared)
    for array, buffer in results:
        stream.to_host(array, buffer)
    device.close()


def _dim3(size: Dim3 | int) -> Dim3:
    return (size, 1, 1) if isinstance(size, int) else size

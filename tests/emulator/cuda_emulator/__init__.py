# SPDX-License-Identifier: Apache-2.0
"""Executes the project's `.cu` files on the CPU: a device for the tests of what runs on a GPU.

`EmulatedDevice` implements `ocdserve.backend.device.protocol.Device`; `run_kernel` runs one kernel on NumPy arrays.
"""

from .building import require_compiler
from .device import EmulatedDevice
from .errors import KernelFault, MisuseError
from .running import run_kernel
from .schedule import Schedule
from .sources import package_sources, without_barrier

__all__ = [
    "EmulatedDevice",
    "KernelFault",
    "MisuseError",
    "Schedule",
    "package_sources",
    "require_compiler",
    "run_kernel",
    "without_barrier",
]

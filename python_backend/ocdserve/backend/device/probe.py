# SPDX-License-Identifier: Apache-2.0
"""Whether this machine has what the GPU path needs; asks the driver without making a CUDA context."""

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ocdserve.contract import UnavailableError

# Modules that the stages need.
_MODULES = ("pycuda", "cuda.bindings")

_KERNEL_MODULE_VERSION = Path("/sys/module/nvidia/version")

# CUdevice_attribute of the CUDA driver API.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


def gpu_count() -> int:
    """GPUs that this process may use; 0 also where there is no driver."""
    cuda = _driver()
    count = ctypes.c_int()
    if cuda is None or cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def present_gpu(index: int = 0) -> tuple[str, str]:
    """Architecture and model of one of this machine's GPUs, for example (`sm_89`, `NVIDIA L4`).

    Raises:
        UnavailableError: There is none of that index, or its driver is not installed.
    """
    cuda = _driver()
    if cuda is None:
        raise UnavailableError("this machine has no NVIDIA driver.")
    count = gpu_count()
    if not count:
        raise UnavailableError("this machine has no usable NVIDIA GPU; see what `nvidia-smi` says.")
    device = ctypes.c_int()
    if not 0 <= index < count or cuda.cuDeviceGet(ctypes.byref(device), index):
        raise UnavailableError(f"this machine has no GPU {index}; it has {count}, counted from 0.")
    model = ctypes.create_string_buffer(100)
    cuda.cuDeviceGetName(model, len(model), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return f"sm_{major.value}{minor.value}", model.value.decode(errors="replace")


def cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver is for, for example (12, 9); None without a driver."""
    cuda = _driver()
    number = ctypes.c_int()
    if cuda is None or cuda.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return number.value // 1000, number.value % 1000 // 10


def driver_version() -> str:
    """Version of the driver, if the kernel module reports it, and of its CUDA; empty without a driver."""
    cuda = cuda_version()
    if cuda is None:
        return ""
    text = f"CUDA {cuda[0]}.{cuda[1]}"
    try:
        return f"{_KERNEL_MODULE_VERSION.read_text('ascii').strip()}, {text}"
    except OSError:
        return text


def missing(index: int = 0, modules: Sequence[str] = ()) -> list[str]:
    """Missing prerequisites of the GPU path, as message fragments; empty where nothing is missing.

    Args:
        index: Index of the GPU.
        modules: Python modules that are needed in addition to the GPU path's own.
    """
    lacks = []
    try:
        present_gpu(index)
    except UnavailableError as error:
        lacks.append(str(error).rstrip("."))
    lacks += [f"the module {name} is not installed" for name in (*_MODULES, *modules) if not _importable(name)]
    return lacks


def _driver() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        # The parent package is absent, or the module is None in `sys.modules`.
        return False

# SPDX-License-Identifier: Apache-2.0
"""What this machine can run, and what to install for the rest."""

import ctypes
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from ocdserve.backend.bundle import Bundle
from ocdserve.backend.serve import preflight
from ocdserve.contract import OcdserveError, UnavailableError

_SHM = "/dev/shm"
# Regions of the four Python models, with room for large images; Docker's default of 64 MB is too small.
_SHM_NEEDED_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Finding:
    """One fact about this machine.

    Attributes:
        name: What was looked at.
        ok: Whether it serves its purpose.
        found: What was found.
        remedy: What to do where it does not serve.
        essential: Whether nothing works without it.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""
    essential: bool = False


def examine() -> list[Finding]:
    """Look at this machine; takes well under a second and changes nothing."""
    return [
        Finding("machine", True, f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.platform()}"),
        _default_network(),
        _package("runtime openvino", "openvino", "pip install 'ocdserve[server]'"),
        _package("runtime onnxruntime", "onnxruntime", "pip install 'ocdserve[server]'"),
        _check("Python for the server", preflight.check_python, f"Python {platform.python_version()}"),
        _check("numpy for the server", preflight.check_numpy, "older than 2"),
        _check("C library", preflight.check_glibc, " ".join(platform.libc_ver())),
        _triton(),
        _shared_memory(),
        _gpu(),
        _package("TensorRT", "tensorrt", "needs a GPU: pip install 'ocdserve[gpu]'"),
        _package("pycuda", "pycuda", "needs a GPU and a C++ compiler: pip install 'ocdserve[gpu]'"),
    ]


def _default_network() -> Finding:
    try:
        bundle = Bundle.load()
    except UnavailableError as error:
        return Finding("default network", False, "not installed", str(error), essential=True)
    return Finding("default network", True, f"{bundle.model_path.name}, sha256 {bundle.sha256()[:12]}", essential=True)


def _package(name: str, package: str, remedy: str) -> Finding:
    try:
        return Finding(name, True, f"{package} {importlib.metadata.version(package)}")
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", remedy)


def _check(name: str, check: Callable[[], None], found: str) -> Finding:
    try:
        check()
    except OcdserveError as error:
        return Finding(name, False, "does not fit", str(error))
    return Finding(name, True, found)


def _triton() -> Finding:
    try:
        preflight.pytriton_directory()
    except UnavailableError as error:
        return Finding("Triton", False, "not installed", str(error))
    return Finding("Triton", True, f"2.51, from nvidia-pytriton {importlib.metadata.version('nvidia-pytriton')}")


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage(_SHM).free
    except OSError:
        return Finding("shared memory", False, f"no {_SHM}", f"mount a tmpfs of 1 GB at {_SHM}")
    text = f"{free / 2**20:.0f} MB free in {_SHM}"
    return Finding("shared memory", free >= _SHM_NEEDED_BYTES, text, "give it 1 GB: docker run --shm-size=1g")


def _gpu() -> Finding:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding("GPU", False, "no NVIDIA driver", "the CPU path is complete; for a GPU install NVIDIA's driver")
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Finding("GPU", False, "NVIDIA driver without a usable GPU", "see what `nvidia-smi` says")
    name = ctypes.create_string_buffer(100)
    cuda.cuDeviceGetName(name, len(name), 0)
    return Finding("GPU", True, f"{count.value} x {name.value.decode(errors='replace')}")

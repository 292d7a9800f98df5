# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: loading either of the two modules, their messages, and the GPUs to build for.

Both have one Python API, so that everything above this module is written once.
"""

import ctypes
import functools
import importlib
import threading
from dataclasses import dataclass, field
from typing import Any

from ocdserve.builder.engine_options import CURRENT, EngineOptions, EngineRuntime
from ocdserve.contract import InvalidInputError, UnavailableError

TITLES: dict[EngineRuntime, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

_MODULES: dict[EngineRuntime, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx-cu13"),
}

# CUdevice_attribute of the CUDA driver API.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Library:
    """One of the two modules, loaded.

    Attributes:
        trt: The module.
        logger: The logger for all of its objects: its plugins keep a pointer to it for as long as the process lives.
        warnings: What the library warned of; the caller clears it.
        errors: What the library could not do; the caller clears it.
        lock: Held by who uses the library, so that its messages have one cause.
    """

    runtime: EngineRuntime
    trt: Any
    logger: Any
    warnings: list[str]
    errors: list[str]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    def forget_messages(self) -> None:
        self.warnings.clear()
        self.errors.clear()

    def reason(self) -> str:
        """Why the last call failed, from the library's own messages."""
        return "; ".join(self.errors[-3:]) or "it gave no reason"


@functools.cache
def load(runtime: EngineRuntime) -> Library:
    """Import the module of a runtime.

    Raises:
        UnavailableError: It is not installed, or does not load.
    """
    module, package = _MODULES[runtime]
    try:
        trt: Any = importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise UnavailableError(
            f"{TITLES[runtime]} cannot be loaded: {error}. Install the package {package}."
        ) from error
    warnings: list[str] = []
    errors: list[str] = []
    logger = _logger(trt, warnings, errors)
    trt.init_libnvinfer_plugins(logger, "")
    return Library(runtime, trt, logger, warnings, errors)


def runtime_version(runtime: EngineRuntime) -> str:
    """Version of the installed runtime, for example `1.7.1.116`.

    Raises:
        UnavailableError: It is not installed.
    """
    return load(runtime).version


def architectures(options: EngineOptions) -> tuple[str, ...]:
    """Architectures that an engine of these options is built for, `current` replaced, in ascending order.

    Raises:
        InvalidInputError: The runtime does not build for one of them.
        UnavailableError: A GPU is needed and there is none, or the runtime is not installed.
    """
    trt = load(options.runtime).trt
    if options.runtime == "tensorrt":
        present, _ = present_gpu()
        if options.architectures not in ((CURRENT,), (present,)):
            raise InvalidInputError(
                f"TensorRT builds for the GPU of this machine, {present}, only; got {options.architectures[0]}. "
                "Build on a machine with that GPU, or with TensorRT-RTX."
            )
        return (present,)
    offered = sorted((f"sm_{name[2:]}" for name in trt.ComputeCapability.__members__ if name[:2] == "SM"), key=_number)
    choice = f"TensorRT-RTX {trt.__version__} builds for {', '.join(offered)}"
    wanted = options.architectures
    if wanted == (CURRENT,):
        try:
            wanted = (present_gpu()[0],)
        except UnavailableError as error:
            raise UnavailableError(f"architecture 'current': {error} {choice}: name one or several.") from error
    for name in wanted:
        if name not in offered:
            raise InvalidInputError(f"{choice}; got {name}")
    return tuple(sorted(wanted, key=_number))


def targets(options: EngineOptions) -> tuple[str, ...]:
    """What an engine of these options is bound to: architectures and, unless it is compatible, the model of the GPU.

    Raises:
        InvalidInputError: As `architectures`.
        UnavailableError: As `architectures`.
    """
    built_for = architectures(options)
    if options.runtime == "tensorrt-rtx" or options.hardware_compatibility == "same_compute_capability":
        return built_for
    if options.hardware_compatibility == "ampere_plus":
        return ("ampere_plus",)
    return (*built_for, present_gpu()[1])


def present_gpu() -> tuple[str, str]:
    """Architecture and model of this machine's first GPU, for example (`sm_89`, `NVIDIA L4`).

    Raises:
        UnavailableError: There is none, or its driver is not installed.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise UnavailableError("this machine has no NVIDIA driver.") from error
    device = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        raise UnavailableError("this machine has no usable NVIDIA GPU; see what `nvidia-smi` says.")
    model = ctypes.create_string_buffer(100)
    cuda.cuDeviceGetName(model, len(model), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return f"sm_{major.value}{minor.value}", model.value.decode(errors="replace")


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))


def _logger(trt: Any, warnings: list[str], errors: list[str]) -> Any:
    base: Any = trt.ILogger

    class Collector(base):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            text = " ".join(message.split())
            if severity == base.WARNING and text not in warnings:
                warnings.append(text)
            elif severity in (base.ERROR, base.INTERNAL_ERROR):
                errors.append(text)

    return Collector()

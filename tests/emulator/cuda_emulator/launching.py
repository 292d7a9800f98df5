# SPDX-License-Identifier: Apache-2.0
"""Compiled modules: their kernels, checked against the arguments of a launch, and the call."""

import ctypes
import math
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ocdserve.backend.device.protocol import Dim3
from ocdserve.contract import UnavailableError

from .building import library_of, thread_local_symbols
from .errors import KernelFault, MisuseError
from .memory import Memory
from .schedule import Schedule

_SHARED_LIMIT = 48 * 1024
_BLOCK_LIMIT = (1024, 1024, 64)
_GRID_LIMIT = (2**31 - 1, 65535, 65535)
_KINDS = {"b": "bool", "i": "signed", "u": "unsigned", "f": "floating-point", "P": "pointer", "V": "structure"}

_PLACE = re.compile("@(0x[0-9a-f]+)")

# A library's scheduler has one state.
_lock = threading.Lock()


class _Parameter(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_char))


class _Kernel(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("call", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(_Parameter)),
        ("parameter_count", ctypes.c_uint),
        ("largest_block", ctypes.c_uint),
    )


class _Range(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Request(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.POINTER(_Kernel)),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_uint),
        ("resident_blocks", ctypes.c_uint),
        ("preemption", ctypes.c_uint),
        ("time_limit_s", ctypes.c_uint),
        ("check_races", ctypes.c_uint),
        ("lockstep", ctypes.c_uint),
        ("buffer_count", ctypes.c_uint),
        ("buffers", ctypes.POINTER(_Range)),
        ("seed", ctypes.c_uint64),
    )


class _Result(ctypes.Structure):
    _fields_ = (("message", ctypes.c_char * 4000), ("rounds", ctypes.c_uint))


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel, as the compiler sees it."""

    size: int
    kind: str


class EmulatedKernel:
    """One `__global__` function of a module.

    Attributes:
        rounds: Of its last launch in lockstep (see `Schedule`).
    """

    def __init__(self, module: "EmulatedModule", entry: _Kernel, static_shared: int) -> None:
        self._module = module
        self._entry = entry
        self._name: str = entry.name.decode()
        self.static_shared = static_shared
        self.rounds = 0
        self.parameters = tuple(
            Parameter(entry.parameters[i].size, entry.parameters[i].kind.decode()) for i in range(entry.parameter_count)
        )

    @property
    def name(self) -> str:
        """Its name in the source."""
        return self._name

    def check_shape(self, grid: Dim3, block: Dim3, shared: int) -> None:
        """Refuse what no GPU launches.

        Raises:
            MisuseError: A limit of CUDA's is exceeded.
        """
        for what, shape, limits in (("grid", grid, _GRID_LIMIT), ("block", block, _BLOCK_LIMIT)):
            if not all(1 <= size <= limit for size, limit in zip(shape, limits, strict=True)):
                raise MisuseError(f"{self.name}: {what} must be within 1 and {limits} (got {shape})")
        threads = math.prod(block)
        largest = self._entry.largest_block or 1024
        if threads > largest:
            raise MisuseError(f"{self.name}: a block must have at most {largest} threads (got {block}: {threads})")
        if shared < 0 or shared + self.static_shared > _SHARED_LIMIT:
            raise MisuseError(
                f"{self.name}: shared memory must be at most {_SHARED_LIMIT} bytes "
                f"(got {shared} dynamic and {self.static_shared} static)"
            )

    def check_scalar(self, index: int, value: np.generic) -> None:
        """Refuse a scalar that is not what the parameter is.

        Raises:
            MisuseError: Size or kind differ.
        """
        parameter = self.parameters[index]
        kind, size = value.dtype.kind, value.dtype.itemsize
        # A pointer may be given as a number: of an address inside of a buffer, or null.
        expected = "u" if parameter.kind == "P" else parameter.kind
        fits = kind == expected or ({kind, expected} == {"i", "u"} and parameter.kind != "P" and value.item() >= 0)
        if size != parameter.size or not fits:
            raise MisuseError(
                f"{self.name}: argument {index} must be {_KINDS[parameter.kind]} of {parameter.size} bytes "
                f"(got {value.dtype} {value})"
            )

    def run(
        self,
        grid: Dim3,
        block: Dim3,
        shared: int,
        arguments: Sequence[bytes],
        buffers: Sequence[Memory],
        schedule: Schedule,
        seed: int,
    ) -> None:
        """Execute it now.

        Args:
            grid: Blocks.
            block: Threads of a block.
            shared: Dynamic shared memory in bytes.
            arguments: The parameters' bytes.
            buffers: All that it may access; of interest only where accesses are checked.
            schedule: How threads are ordered.
            seed: Of the order.

        Raises:
            KernelFault: A thread did what is not allowed.
        """
        storage = [ctypes.create_string_buffer(argument, len(argument)) for argument in arguments]
        pointers = (ctypes.c_void_p * max(1, len(storage)))(*(ctypes.addressof(argument) for argument in storage))
        ranges = (_Range * max(1, len(buffers)))(*(_Range(buffer.address, buffer.size) for buffer in buffers))
        request = _Request(
            ctypes.pointer(self._entry),
            pointers,
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(*block),
            shared,
            schedule.resident_blocks,
            schedule.preemption,
            schedule.time_limit_s,
            self._module.check_races,
            schedule.lockstep,
            len(buffers),
            ranges,
            seed,
        )
        self.rounds = self._module.launch(request)


class EmulatedModule:
    """A compiled `.cu` file, loaded."""

    def __init__(self, source: str, sources: Mapping[str, str], check_races: bool = False) -> None:
        self._source = source
        self.check_races = check_races
        self._path = library_of(source, sources, check_races)
        self._library = ctypes.CDLL(str(self._path))
        self._library.emulator_kernels.restype = ctypes.POINTER(_Kernel)
        self._library.emulator_launch.restype = None
        entries = self._library.emulator_kernels()
        found: list[_Kernel] = []
        while entries[len(found)].name is not None:
            found.append(entries[len(found)])
        shared = _static_shared(self._path, [entry.name.decode() for entry in found])
        self._kernels = {
            entry.name.decode(): EmulatedKernel(self, entry, shared[entry.name.decode()]) for entry in found
        }

    def kernel(self, name: str) -> EmulatedKernel:
        """The kernel of that name; the `.cu` file declares it `extern "C"`.

        Raises:
            UnavailableError: There is none.
        """
        if name not in self._kernels:
            known = ", ".join(self._kernels) or "none"
            raise UnavailableError(f"{self._source}: there is no kernel {name!r}. There are: {known}.")
        return self._kernels[name]

    @property
    def kernels(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._kernels)

    def launch(self, request: _Request) -> int:
        """Execute a launch; returns its rounds, which are counted in lockstep only."""
        result = _Result()
        with _lock:
            self._library.emulator_launch(ctypes.byref(request), ctypes.byref(result))
        if result.message:
            message = result.message.decode(errors="replace")
            raise KernelFault(_PLACE.sub(lambda found: _place(self._path, found[1]), message))
        return int(result.rounds)


def _static_shared(library: Path, kernels: Sequence[str]) -> dict[str, int]:
    """Bytes of each kernel's `__shared__` variables; those of functions that any kernel may call count for all.

    Counting a function's for every kernel can only be too much; what NVRTC reports of each kernel is exact.
    """
    # Those that are not local to a function are at most the dynamic array and the emulator's own.
    sizes = {name: size for name, size, _ in thread_local_symbols(library) if name.startswith("_ZZ")}
    own = {kernel: f"_ZZ{len(kernel)}{kernel}E" for kernel in kernels}
    common = sum(size for symbol, size in sizes.items() if not symbol.startswith(tuple(own.values())))
    return {
        kernel: common + sum(size for symbol, size in sizes.items() if symbol.startswith(prefix))
        for kernel, prefix in own.items()
    }


def _place(library: Path, offset: str) -> str:
    """` at file:line` of an instruction, if the tool for it is installed."""
    try:
        command = ["addr2line", "-s", "-i", "-e", str(library), offset]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    except FileNotFoundError:
        return ""
    # The innermost place that is not in the emulator's own headers.
    own = [line.split()[0] for line in lines if ".cu" in line]
    return f" at {own[0]}" if own else ""

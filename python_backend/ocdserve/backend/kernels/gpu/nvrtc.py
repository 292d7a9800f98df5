# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's run-time compiler, from the wheels of the 12.9 line and nowhere else; needs neither GPU nor driver.

It is called directly: `cuda.bindings` would take the compiler of its own major version, which other packages decide
(PyTorch for CUDA 13 asks for 13), and drivers older than 580 load no cubin of that one.
"""

import ctypes
import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocdserve.contract import UnavailableError, install_command

_COMPILER = "nvidia-cuda-nvrtc-cu12"
_HEADERS = "nvidia-cuda-runtime-cu12"
_REMEDY = f"Install what compiles the kernels: {install_command('ocdserve[gpu]')}"

_COMPILATION_FAILED = 6


class CompilationError(UnavailableError):
    """The compiler rejected a source; the message has its log."""


@dataclass(frozen=True)
class Library:
    """The compiler, loaded.

    Attributes:
        version: For example `12.9.86`, that of the wheel.
        architectures: Numbers of the architectures that it makes cubins for, ascending.
    """

    version: str
    architectures: tuple[int, ...]
    handle: Any

    def compile(
        self, name: str, text: str, headers: Mapping[str, str], options: Sequence[str]
    ) -> tuple[bytes, bytes, str]:
        """Compile one source; returns the cubin (empty for `compute_XX`), the PTX, and the compiler's log.

        Args:
            name: Name of the source in messages.
            text: The source.
            headers: Text of each header by the name that it is included by.
            options: As on NVRTC's command line.

        Raises:
            CompilationError: The source or an option is wrong.
        """
        program = ctypes.c_void_p()
        texts, names = ([item.encode() for item in items] for items in (headers.values(), headers.keys()))
        self._check(
            "nvrtcCreateProgram",
            self.handle.nvrtcCreateProgram(
                ctypes.byref(program), text.encode(), name.encode(), len(names), _strings(texts), _strings(names)
            ),
        )
        try:
            encoded = [option.encode() for option in options]
            code = self.handle.nvrtcCompileProgram(program, len(encoded), _strings(encoded))
            log = self._read(program, "ProgramLog").rstrip(b"\0 \n").decode(errors="replace")
            if code:
                raise CompilationError(
                    f"NVRTC {self.version} cannot compile {name} ({self._explain(code)}), options {' '.join(options)}:"
                    f"\n{log}"
                )
            return self._read(program, "CUBIN"), self._read(program, "PTX"), log
        finally:
            self.handle.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(f"nvrtcGet{what}Size", getattr(self.handle, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        data = ctypes.create_string_buffer(size.value) if size.value else None
        if data is None:
            return b""
        self._check(f"nvrtcGet{what}", getattr(self.handle, f"nvrtcGet{what}")(program, data))
        return data.raw

    def _check(self, call: str, code: int) -> None:
        if code:
            raise CompilationError(f"NVRTC {self.version}: {call} failed: {self._explain(code)}")

    def _explain(self, code: int) -> str:
        text: bytes = self.handle.nvrtcGetErrorString(code)
        return text.decode(errors="replace")


@functools.cache
def load() -> Library:
    """Load the compiler of the wheel.

    Raises:
        UnavailableError: The wheel is not installed, or its library does not load.
    """
    version, files = _wheel(_COMPILER)
    found = [file for file in files if file.name == "libnvrtc.so.12"]
    if not found:
        raise UnavailableError(f"{_COMPILER} {version} holds no libnvrtc.so.12. {_REMEDY}")
    try:
        handle = ctypes.CDLL(str(found[0]))
    except OSError as error:
        raise UnavailableError(f"{_COMPILER} {version} cannot be loaded: {error}. {_REMEDY}") from error
    handle.nvrtcGetErrorString.restype = ctypes.c_char_p
    count = ctypes.c_int()
    handle.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    handle.nvrtcGetSupportedArchs(numbers)
    return Library(version, tuple(sorted(numbers)), handle)


@functools.cache
def toolkit_headers() -> tuple[Path, str]:
    """The folder of CUDA's own headers (`cuda_fp16.h`, `cuda.h`), and their version.

    Raises:
        UnavailableError: The wheel is not installed.
    """
    version, files = _wheel(_HEADERS)
    found = [file.parent for file in files if file.name == "cuda_fp16.h"]
    if not found:
        raise UnavailableError(f"{_HEADERS} {version} holds no cuda_fp16.h. {_REMEDY}")
    return found[0], version


def _wheel(package: str) -> tuple[str, list[Path]]:
    """Version and files of an installed wheel."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError(f"{package} is not installed. {_REMEDY}") from error
    return distribution.version, [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]


def _strings(items: Sequence[bytes]) -> Any:
    return (ctypes.c_char_p * len(items))(*items)

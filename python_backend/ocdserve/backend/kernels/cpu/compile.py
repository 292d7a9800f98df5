# SPDX-License-Identifier: Apache-2.0
"""Compiling the C++ sources of this folder to a shared library next to them.

Only Python's own library is imported: the build hook executes this file before anything is installed.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / "postprocess.so"

_MAINS = ("postprocess.cpp", "rectify.cpp", "steps.cpp")
_HEADERS = ("array.h", "bits.h", "cpu.h", "hull.h", "regions.h")
# Shared with the GPU's kernels.
_SHARED = (
    "directions.cuh",
    "fill.cuh",
    "growth.cuh",
    "points.cuh",
    "postprocess.cuh",
    "rectangle.cuh",
    "rectify.cuh",
    "window.cuh",
)

# Products and sums are rounded one by one, as in the libraries whose results must be matched. `ziglang` would check for
# undefined behaviour and need its own library for it.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-sanitize=all",
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
    "-Wno-unknown-pragmas",
    *(("-Wl,--as-needed",) if sys.platform == "linux" else ()),
)

_LIMIT_S = 300


class CompilationError(Exception):
    """The library was not compiled; the message says why, and what to do."""


def digest() -> str:
    """Hexadecimal SHA-256 of the flags and sources; the library contains the one that it was compiled from.

    Raises:
        OSError: A source file cannot be read.
    """
    found = hashlib.sha256("\0".join(_FLAGS).encode())
    for file in _sources():
        found.update(f"\0{file.name}\0".encode())
        found.update(file.read_bytes())
    return found.hexdigest()


def find_compiler() -> list[str]:
    """The command of a C++ compiler: `$CXX`, `c++`, `g++`, `clang++`, or the package `ziglang`.

    Raises:
        CompilationError: There is none.
    """
    if named := shlex.split(os.environ.get("CXX", "")):
        return named
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    if find_spec("ziglang"):
        # Without libc++, which it would compile first.
        return [sys.executable, "-m", "ziglang", "c++", "-nostdlib++"]
    raise CompilationError(
        "there is no C++ compiler: install one (Debian, Ubuntu: apt install g++; anywhere: pip install ziglang), "
        "or set CXX"
    )


def compile_library(target: Path = LIBRARY, more_flags: Sequence[str] = ()) -> Path:
    """Compile the library in a few seconds; `target` is written atomically.

    Args:
        target: The file to write.
        more_flags: Compiler flags after the usual ones.

    Returns:
        `target`.

    Raises:
        CompilationError: There is no compiler, or it cannot compile this.
        OSError: The folder cannot be written.
    """
    mains = [str(FOLDER / name) for name in _MAINS]
    command = [*find_compiler(), *_FLAGS, *more_flags, f'-DOCDSERVE_DIGEST="{digest()}"', *mains]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".compiling-") as folder:
        made = Path(folder) / target.name
        try:
            result = subprocess.run(
                [*command, "-o", str(made)], capture_output=True, text=True, check=False, timeout=_LIMIT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilationError(f"the compiler {command[0]} does not work: {error}") from error
        if result.returncode != 0 or not made.is_file():
            log = (result.stderr or result.stdout).strip()
            raise CompilationError(f"the compiler {command[0]} fails:\n{log[:4000]}")
        made.replace(target)
    return target


def _sources() -> list[Path]:
    shared = FOLDER.parent / "shared"
    return [*(FOLDER / name for name in (*_MAINS, *_HEADERS)), *(shared / name for name in _SHARED)]

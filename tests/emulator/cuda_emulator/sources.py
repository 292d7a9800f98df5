# SPDX-License-Identifier: Apache-2.0
"""What the emulator reads in CUDA sources: includes, kernels, dynamic shared memory, barriers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ocdserve.backend.kernels
from ocdserve.contract import UnavailableError

from .errors import MisuseError

_COMMENTS_AND_STRINGS = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
_PARENTHESES = r"\((?:[^()]|\([^()]*\))*\)"
_KERNEL = re.compile(
    rf'extern\s+"C"\s+__global__\s+((?:\w+\s*(?:{_PARENTHESES})?\s+)*?)void\s+((?:\w+\s*{_PARENTHESES}\s+)*?)(?!__)(\w+)\s*\('
)
_LAUNCH_BOUNDS = re.compile(r"__launch_bounds__\s*\(((?:[^(),]|\([^()]*\))*)")
_BARRIER = re.compile(r"__syncthreads\s*\(\s*\)\s*;")


@dataclass(frozen=True)
class KernelDeclaration:
    """A kernel's name, and the C++ expression of its largest block (0 if there is none)."""

    name: str
    largest_block: str


def package_sources() -> dict[str, str]:
    """The `.cu` and `.cuh` files of `ocdserve.backend.kernels`: name to text."""
    folder = Path(str(ocdserve.backend.kernels.__file__)).parent
    files = [*folder.glob("gpu/*.cu"), *folder.glob("*/*.cuh")]
    return {file.name: file.read_text("utf-8") for file in sorted(files, key=lambda file: file.name)}


def with_includes(name: str, sources: Mapping[str, str]) -> dict[str, str]:
    """The source of that name and what it includes, directly or not; headers that are not in `sources` are CUDA's.

    Raises:
        UnavailableError: There is no such source.
    """
    if name not in sources:
        known = ", ".join(name for name in sorted(sources) if name.endswith(".cu")) or "none"
        raise UnavailableError(f"module: there is no source {name!r}. There are: {known}.")
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in sources and current not in found:
            found[current] = sources[current]
            waiting += _INCLUDE.findall(sources[current])
    return dict(sorted(found.items()))


def kernels(text: str) -> list[KernelDeclaration]:
    """The `extern "C" __global__` functions of a source, in its order."""
    text = _COMMENTS_AND_STRINGS.sub(lambda match: match[0] if match[0] == '"C"' else " ", text)
    found: dict[str, KernelDeclaration] = {}
    for match in _KERNEL.finditer(text):
        bounds = _LAUNCH_BOUNDS.search(match[1] + match[2])
        found.setdefault(match[3], KernelDeclaration(match[3], bounds[1].strip() if bounds else "0"))
    return list(found.values())


def without_barrier(source: str, n: int) -> str:
    """The source without its n-th `__syncthreads();`, counted from 0 and without those in comments.

    Lines stay where they are. A test that passes with each of the sources that this gives does not test the barriers.

    Raises:
        MisuseError: There are not so many.
    """
    blanked = _COMMENTS_AND_STRINGS.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), source)
    found = list(_BARRIER.finditer(blanked))
    if not 0 <= n < len(found):
        raise MisuseError(f"without_barrier: the source has {len(found)} __syncthreads(); n must be below (got {n})")
    return source[: found[n].start()] + ";" + source[found[n].end() :]

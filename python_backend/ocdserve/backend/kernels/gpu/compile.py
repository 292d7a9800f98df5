# SPDX-License-Identifier: Apache-2.0
"""Compiling the `.cu` files of this package, on any machine, or taking the cubins that a release has of them.

A file includes `.cuh` files of its own folder, those shared with the CPU, and at most headers of CUDA itself;
`#include` is never conditional.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ocdserve.backend.kernels.gpu import nvrtc
from ocdserve.backend.kernels.gpu.cubin_cache import CompiledModule, CubinCache, CubinKey, KernelResources
from ocdserve.contract import InvalidInputError, UnavailableError

FOLDER = Path(__file__).parent
_SHARED_FOLDER = FOLDER.parent / "shared"

# Products and sums are rounded one by one, as on the CPU, whose results must be matched. Headers are passed as text,
# never searched for in the working folder.
_OPTIONS = (
    "--std=c++17",
    "--fmad=false",
    "--no-source-include",
    "--ptxas-options=-v",
)
# For compute-sanitizer and the profiler: line numbers change no code, but double a cubin's size.
_LINE_NUMBERS = "--generate-line-info"

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_PROPERTIES = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(.*)")
_SHARED = re.compile(r"(\d+) bytes smem")

# Also the oldest of TensorRT.
OLDEST_ARCHITECTURE = 75

# A release's wheel has cubins for these in the folder; hatch_build.py makes them by `python -m` of this package.
RELEASE_ARCHITECTURES = (75, 80, 86, 89, 90, 100, 103, 120, 121)
SHIPPED = FOLDER / "cubins"
# A cubin runs on later minors of its major, but on Tegra, NVIDIA's systems on a chip, on its own alone (CUDA C++
# Programming Guide, Binary Compatibility).
_TEGRA = frozenset({72, 87, 88, 101, 110})


def compile_for(source: str | Path, architecture: str, cache: CubinCache | None = None) -> CompiledModule:
    """Take what was shipped, or compiled before, of a file; else compile it.

    Args:
        source: Name of a file of this package, `postprocess.cu`; or the path of another.
        architecture: `sm_90` for a cubin, `compute_90` for PTX.
        cache: None takes the user's.

    Raises:
        CompilationError: The source is wrong; the message has the compiler's log.
        InvalidInputError: The source does not exist, or the compiler knows no such architecture.
        UnavailableError: The compiler is needed and not installed.
    """
    if not re.fullmatch(r"(?:sm|compute)_\d+", architecture):
        raise InvalidInputError(f"architecture: must be sm_ or compute_ and a number, as sm_90 (got {architecture!r})")
    unit = _gather(FOLDER / source)
    shipped = CubinCache(SHIPPED).get(unit.release_key(architecture))
    if shipped is not None:
        return shipped
    library = nvrtc.load()
    options = (*_OPTIONS, _LINE_NUMBERS, _target_option(architecture))
    key = unit.key(options, library.version, nvrtc.toolkit_headers()[1] if unit.needs_toolkit else "")
    cache = cache or CubinCache()
    module = cache.get(key)
    if module is None:
        module = _compile(unit, architecture, options)
        cache.put(key, module)
    return module


def compile_release(folder: Path, architectures: Sequence[str]) -> None:
    """Compile every file of this package for GPUs on which a release shall need no compiler.

    Args:
        folder: Where the cubins go; `SHIPPED` is where they are looked for.
        architectures: For example `sm_90`.

    Raises:
        CompilationError: A source is wrong.
        InvalidInputError: The compiler knows no such architecture.
        UnavailableError: The compiler is not installed, or the folder cannot be written.
    """
    cache = CubinCache(folder)
    for unit in _units():
        for architecture in architectures:
            key = unit.release_key(architecture)
            cache.put(key, _compile(unit, architecture, key.options))
            if cache.get(key) is None:
                raise UnavailableError(f"{cache.file(key)} cannot be written: name a folder that can be.")


def shipped_architectures() -> tuple[int, ...]:
    """Architectures of the shipped cubins of these very sources, for example (75, 80); empty in most source trees."""
    cache, units = CubinCache(SHIPPED), _units()
    return tuple(
        number
        for number in RELEASE_ARCHITECTURES
        if all(cache.file(unit.release_key(f"sm_{number}")).is_file() for unit in units)
    )


def shipped_for(capability: int) -> int | None:
    """Architecture of the shipped cubins that run on a GPU of a compute capability, as 90; None where none do."""
    return max(
        (
            number
            for number in shipped_architectures()
            if number == capability
            or (number // 10 == capability // 10 and number < capability and capability not in _TEGRA)
        ),
        default=None,
    )


def architecture_of(major: int, minor: int) -> str:
    """Target for a GPU of that compute capability: of a shipped cubin, else of the compiler; PTX if it knows none.

    Raises:
        UnavailableError: The GPU is too old, or no cubin is shipped for it and the compiler is not installed.
    """
    capability = 10 * major + minor
    if capability < OLDEST_ARCHITECTURE:
        raise UnavailableError(
            f"a GPU of compute capability {major}.{minor} is too old: the kernels need 7.5 or newer (Turing, 2018). "
            "Serve with the CPU path."
        )
    shipped = shipped_for(capability)
    if shipped is not None:
        return f"sm_{shipped}"
    try:
        known = nvrtc.load().architectures
    except UnavailableError as error:
        raise UnavailableError(
            f"no kernels are compiled for a GPU of compute capability {major}.{minor}, and {error}"
        ) from error
    if capability in known:
        return f"sm_{capability}"
    return f"compute_{max(number for number in known if number < capability)}"


@dataclass(frozen=True)
class _Unit:
    """A file with everything that it includes.

    Attributes:
        name: Of the file.
        text: Its text.
        headers: Name and text of every header of ours that it includes.
        needs_toolkit: Whether one of CUDA's own is among its headers.
    """

    name: str
    text: str
    headers: dict[str, str]
    needs_toolkit: bool

    def key(self, options: tuple[str, ...], compiler: str, toolkit: str) -> CubinKey:
        return CubinKey(self.text, tuple(sorted(self.headers.items())), options, compiler, toolkit)

    def release_key(self, architecture: str) -> CubinKey:
        """Of a shipped cubin: looked up without a compiler and CUDA's headers, so their versions are left out."""
        return self.key((*_OPTIONS, _target_option(architecture)), "", "")


def _target_option(architecture: str) -> str:
    return f"--gpu-architecture={architecture}"


def _compile(unit: _Unit, architecture: str, options: tuple[str, ...]) -> CompiledModule:
    library = nvrtc.load()
    if int(architecture.partition("_")[2]) not in library.architectures:
        known = ", ".join(map(str, library.architectures))
        raise InvalidInputError(f"architecture: NVRTC {library.version} knows {known} (got {architecture})")
    search = (f"--include-path={nvrtc.toolkit_headers()[0]}",) if unit.needs_toolkit else ()
    cubin, ptx, log = library.compile(unit.name, unit.text, unit.headers, (*options, *search))
    return CompiledModule(cubin or ptx.rstrip(b"\0"), architecture, _resources(log))


def _units() -> list[_Unit]:
    """All files of this package."""
    return [_gather(path) for path in sorted(FOLDER.glob("*.cu"))]


def _gather(path: Path) -> _Unit:
    texts: dict[str, str] = {}
    needs_toolkit = False
    waiting = [path.name]
    while waiting:
        name = waiting.pop()
        if name in texts:
            continue
        file = next((file for file in (path.parent / name, _SHARED_FOLDER / name) if file.is_file()), None)
        if file is None:
            raise InvalidInputError(f"{name}: there is no such file next to {path.name}, in {path.parent}")
        texts[name] = file.read_text("utf-8")
        for own, toolkit in _INCLUDE.findall(texts[name]):
            needs_toolkit |= bool(toolkit)
            waiting += [own] if own else []
    return _Unit(path.name, texts.pop(path.name), texts, needs_toolkit)


def _resources(log: str) -> tuple[KernelResources, ...]:
    """Resources of each kernel; a kernel's part of the log ends where the next one's begins."""
    _, *parts = _ENTRY.split(log)
    kernels = []
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        properties = [tuple(map(int, found)) for found in _PROPERTIES.findall(part)]
        used = _USED.search(part)
        if used is None or not properties:
            raise UnavailableError(f"NVRTC's report on kernel {name} cannot be read: {part.strip()}")
        shared = _SHARED.search(used[2])
        kernels.append(
            KernelResources(
                name=name,
                registers=int(used[1]),
                spill_bytes=sum(stores + loads for _, stores, loads in properties),
                stack_bytes=sum(stack for stack, _, _ in properties),
                shared_bytes=int(shared[1]) if shared else 0,
            )
        )
    return tuple(sorted(kernels, key=lambda kernel: kernel.name))

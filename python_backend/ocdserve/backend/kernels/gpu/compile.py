# SPDX-License-Identifier: Apache-2.0
"""Compiling the `.cu` files of this package, on any machine.

A file includes `.cuh` files of its own folder, those shared with the CPU, and at most headers of CUDA itself;
`#include` is never conditional.
"""

import re
from pathlib import Path

from ocdserve.backend.kernels.gpu import nvrtc
from ocdserve.backend.kernels.gpu.cubin_cache import CompiledModule, CubinCache, CubinKey, KernelResources
from ocdserve.contract import InvalidInputError, UnavailableError

FOLDER = Path(__file__).parent
_SHARED_FOLDER = FOLDER.parent / "shared"

# Products and sums are rounded one by one, as on the CPU, whose results must be matched. Line numbers change no code;
# compute-sanitizer and the profiler show them. Headers are passed as text, never searched for in the working folder.
_OPTIONS = (
    "--std=c++17",
    "--fmad=false",
    "--generate-line-info",
    "--no-source-include",
    "--ptxas-options=-v",
)

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_PROPERTIES = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(.*)")
_SHARED = re.compile(r"(\d+) bytes smem")

# Also the oldest of TensorRT.
OLDEST_ARCHITECTURE = 75


def compile_for(source: str | Path, architecture: str, cache: CubinCache | None = None) -> CompiledModule:
    """Compile a file, or take from the cache what was compiled before.

    Args:
        source: Name of a file of this package, `postprocess.cu`; or the path of another.
        architecture: `sm_90` for a cubin, `compute_90` for PTX.
        cache: None takes the user's.

    Raises:
        CompilationError: The source is wrong; the message has the compiler's log.
        InvalidInputError: The source does not exist, or the compiler knows no such architecture.
        UnavailableError: The compiler is not installed.
    """
    if not re.fullmatch(r"(?:sm|compute)_\d+", architecture):
        raise InvalidInputError(f"architecture: must be sm_ or compute_ and a number, as sm_90 (got {architecture!r})")
    path = FOLDER / source
    text, headers, needs_toolkit = _gather(path)
    library = nvrtc.load()
    if int(architecture.partition("_")[2]) not in library.architectures:
        known = ", ".join(map(str, library.architectures))
        raise InvalidInputError(f"architecture: NVRTC {library.version} knows {known} (got {architecture})")
    options = (*_OPTIONS, f"--gpu-architecture={architecture}")
    folder, toolkit = nvrtc.toolkit_headers() if needs_toolkit else (None, "")
    key = CubinKey(text, tuple(sorted(headers.items())), options, library.version, toolkit)
    cache = cache or CubinCache()
    kept = cache.get(key)
    if kept is not None:
        return kept
    search = (f"--include-path={folder}",) if folder else ()
    cubin, ptx, log = library.compile(path.name, text, headers, (*options, *search))
    module = CompiledModule(cubin or ptx.rstrip(b"\0"), architecture, _resources(log))
    cache.put(key, module)
    return module


def architecture_of(major: int, minor: int) -> str:
    """Target for a GPU of that compute capability; PTX if it is newer than the compiler.

    Raises:
        UnavailableError: The GPU is too old, or the compiler is not installed.
    """
    capability = 10 * major + minor
    if capability < OLDEST_ARCHITECTURE:
        raise UnavailableError(
            f"a GPU of compute capability {major}.{minor} is too old: the kernels need 7.5 or newer (Turing, 2018). "
            "Serve with the CPU path."
        )
    known = nvrtc.load().architectures
    if capability in known:
        return f"sm_{capability}"
    return f"compute_{max(number for number in known if number < capability)}"


def _gather(path: Path) -> tuple[str, dict[str, str], bool]:
    """The file's text, the text of every header that it includes, and whether one of CUDA's own is among them."""
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
    return texts.pop(path.name), texts, needs_toolkit


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

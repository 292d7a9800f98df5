# SPDX-License-Identifier: Apache-2.0
"""From `.cu` sources to a shared library, once for each content.

Libraries are kept in pytest's cache under a hash of all that they are made from. They appear there by renaming, so that
no process finds half of one; of several that want the same one, the first builds it and the others wait.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ocdserve.contract import UnavailableError

from .sources import kernels, with_includes

_CPP = Path(__file__).parent / "cpp"
_CACHE = Path(__file__).resolve().parents[3] / ".pytest_cache" / "d" / "cuda_emulator"
_OLDEST_GXX = 11
_FLAGS = (
    "-std=c++17",
    "-O2",
    # Of version 5, addr2line confuses the files.
    "-g1",
    "-gdwarf-4",
    "-fPIC",
    "-fvisibility=hidden",
    # Products and sums are rounded one by one, and a pointer may be cast to a vector's, as in the real build.
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-fno-extern-tls-init",
    "-U_FORTIFY_SOURCE",
    "-Wall",
    "-Wextra",
    "-Werror",
)
# Each check ends the launch with the place in the source; the handlers are in faults.cpp.
_KERNEL_FLAGS = (
    "-fsanitize=alignment,bounds,shift,integer-divide-by-zero,float-cast-overflow,signed-integer-overflow",
    "-fno-sanitize-recover=all",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    "-Wno-sign-compare",
    "-include",
    "cuda_on_cpu.h",
)
# Each access calls a function of races.cpp; nothing is compiled in a way that hides one.
_RACE_FLAGS = (
    "-fsanitize=thread",
    "--param=tsan-distinguish-volatile=1",
    "-DEMULATOR_RACES",
    "-O1",
    "-fno-tree-loop-distribute-patterns",
)


class CompilationError(UnavailableError):
    """The source is no valid CUDA for g++; the message has the compiler's log."""


def require_compiler() -> None:
    """Check that sources can be compiled.

    Raises:
        UnavailableError: There is no g++ that can; the message says what is missing.
    """
    _compiler()


def library_of(name: str, sources: Mapping[str, str], check_races: bool) -> Path:
    """The shared library of the source of that name; `check_races` makes accesses call the emulator.

    Raises:
        UnavailableError: It does not exist or cannot be compiled; the message has the compiler's log.
    """
    compiler, flags = _compiler()
    texts = with_includes(name, sources)
    kernel_flags = [*_KERNEL_FLAGS, *(_RACE_FLAGS if check_races else ())]
    texts["emulated_module.cpp"] = _table_of(name, texts)

    def build(folder: Path, target: Path) -> None:
        for file, text in texts.items():
            (folder / file).write_text(text, "utf-8")
        search = ("-I", str(_CPP))
        _run(folder, compiler, *flags, *kernel_flags, *search, "-c", "emulated_module.cpp", "-o", "module.o")
        (folder / "emulated_shared.cpp").write_text(_dynamic_shared_of(folder / "module.o"), "utf-8")
        _run(folder, compiler, *flags, *search, "-c", "emulated_shared.cpp", "-o", "shared.o")
        _run(folder, compiler, "-shared", "-Wl,-z,defs", "module.o", "shared.o", str(_scheduler()), "-o", str(target))

    return _cached(f"{name}.so", ["module", *_runtime_texts(), *kernel_flags, *texts, *texts.values()], build)


def _scheduler() -> Path:
    """The object file that every module is linked with."""
    compiler, flags = _compiler()
    files = sorted(str(file) for file in _CPP.glob("*.cpp"))

    def build(folder: Path, target: Path) -> None:
        _run(folder, compiler, *flags, "-r", *files, "-o", str(target))

    return _cached("scheduler.o", ["scheduler", *_runtime_texts()], build)


@functools.cache
def _compiler() -> tuple[str, tuple[str, ...]]:
    """g++ and the flags of every compilation."""
    path = shutil.which("g++")
    if path is None:
        raise UnavailableError("the CUDA emulator needs g++, which is not installed (Debian: apt-get install g++)")
    text = subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    major = int(text.partition(".")[0])
    if major < _OLDEST_GXX:
        raise UnavailableError(f"the CUDA emulator needs g++ {_OLDEST_GXX} or newer; {path} is {text}")
    flags = [*_FLAGS]
    if major >= 12:
        # Variables that a kernel does not set hold garbage, as registers do.
        flags.append("-ftrivial-auto-var-init=pattern")
    if os.uname().machine == "x86_64":
        flags.append("-mtls-dialect=gnu2")
    return path, tuple(flags)


@functools.cache
def _runtime_texts() -> tuple[str, ...]:
    """Everything that the scheduler's object file depends on."""
    compiler, flags = _compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    files = sorted([*_CPP.glob("*.h"), *_CPP.glob("*.cpp")])
    return (version, os.uname().machine, *flags, *(file.read_text("utf-8") for file in files))


def _table_of(name: str, texts: Mapping[str, str]) -> str:
    """C++ that includes the source and lists its kernels."""
    declared = {kernel.name: kernel for text in texts.values() for kernel in kernels(text)}
    entries = "".join(
        f'        emulator::Entry<{kernel.name}>::kernel("{kernel.name}", {kernel.largest_block}),\n'
        for kernel in declared.values()
    )
    return (
        f'#include "{name}"\n#include "module.h"\n\n'
        'extern "C" __attribute__((visibility("default"))) const emulator::Kernel *emulator_kernels()\n{\n'
        f"    static constexpr emulator::Kernel kernels[] = {{\n{entries}        {{}},\n    }};\n"
        "    return kernels;\n}\n"
    )


def thread_local_symbols(file: Path) -> list[tuple[str, int, bool]]:
    """Name, size and definedness of a binary's thread-local symbols, which are its `__shared__` variables."""
    listing = subprocess.run(["readelf", "-sW", str(file)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [
        (row[7], int(row[2], 0), row[6] != "UND")
        for row in rows
        if len(row) == 8 and row[3] == "TLS" and row[7][:5] != "_TLS_"
    ]


def _dynamic_shared_of(module: Path) -> str:
    """C++ that defines the `extern __shared__` arrays of an object file: names of one and the same memory."""
    size = "emulator::dynamic_shared_limit + emulator::dynamic_shared_margin"
    names = [name for name, _, is_defined in thread_local_symbols(module) if not is_defined]
    aliases = "".join(
        f'extern thread_local unsigned char alias_{i}[{size}] __asm__("{name}") __attribute__((alias("all")));\n'
        for i, name in enumerate(names)
    )
    storage = f"alignas(16) thread_local unsigned char all[{size if names else 1}];\n"
    answer = f"all, {size if names else 0}"
    return (
        f'#include "launch.h"\n\n{storage}{aliases}\n'
        f"emulator::Range emulator::dynamic_shared() {{ return {{{answer}}}; }}\n"
    )


def _cached(name: str, key: Sequence[str], build: Callable[[Path, Path], None]) -> Path:
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:24]
    folder = _cache_folder()
    target = folder / f"{digest}-{name}"
    if target.exists():
        return target
    lock = folder / f"{digest}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            # Whoever waited on a lock that was removed since finds the target.
            if not target.exists():
                with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as temporary:
                    built = Path(temporary) / "built"
                    build(Path(temporary), built)
                    built.replace(target)
        finally:
            lock.unlink(missing_ok=True)
    return target


@functools.cache
def _cache_folder() -> Path:
    """pytest's, which `make clean` removes; where that cannot be written, a folder of the temporary files."""
    try:
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=_CACHE):
            return _CACHE
    except OSError:
        return Path(tempfile.mkdtemp(prefix="cuda-emulator-"))


def _run(folder: Path, *command: str) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        # The temporary folder's name would only be noise.
        log = re.sub(re.escape(f"{folder}/"), "", result.stderr)
        raise CompilationError(f"g++ cannot compile it:\n{log}")

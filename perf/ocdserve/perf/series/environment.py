# SPDX-License-Identifier: Apache-2.0
"""Machine and software of a measurement, and what makes two of them incomparable."""

import csv
import io
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

from ocdserve.backend.cores import cpu_quota
from ocdserve.backend.processor import cpu_flags, cpu_model, cpuinfo

_PACKAGES = (
    *("ocdserve", "locust", "numpy", "nvidia-pytriton", "onnxtr", "opencv-python-headless", "pillow", "pyclipper"),
    *("rapidocr", "shapely", "tritonclient"),
)
_GPU_PACKAGES = (
    *("cuda-bindings", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12"),
    *("nvidia-nvimgcodec-cu12", "onnx", "pycuda"),
)
# Fields of nvidia-smi.
_GPU_STATE = (
    *("driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem"),
    *("power.draw", "power.limit", "temperature.gpu", "ecc.mode.current", "utilization.gpu"),
)
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True)
class Gpu:
    """The GPU of a measurement.

    Attributes:
        model: Its name.
        architecture: For example `sm_90`.
        driver: Version of the driver, and of CUDA that it supports.
        versions: Versions of the installed packages that use the GPU, by name.
        state: Clocks, power and temperature before, by nvidia-smi's field names; empty if nvidia-smi does not work.
        state_after: The same at the end.
    """

    model: str
    architecture: str
    driver: str
    versions: dict[str, str]
    state: dict[str, str]
    state_after: dict[str, str] = field(default_factory=dict)

    @classmethod
    def current(cls, index: int = 0) -> "Gpu":
        """The GPU of this index, now.

        Raises:
            UnavailableError: There is no such GPU, or no driver.
        """
        # Imported here so that results can be shown without the server's packages.
        from ocdserve.backend.device.probe import driver_version, present_gpu

        architecture, model = present_gpu(index)
        return cls(
            model,
            architecture,
            driver_version(),
            package_versions(_GPU_PACKAGES + _runtime_packages(on_gpu=True)),
            gpu_state(index),
        )


@dataclass(frozen=True)
class Environment:
    """Machine and software of a measurement.

    Attributes:
        cpu: Model of the processor.
        cores: Cores that this process may use.
        memory_gib: Memory of the machine in GiB.
        system: Operating system and C library.
        python: Version of Python.
        versions: Versions of the installed packages that affect speed, by name.
        load_average: System load averages over 1, 5 and 15 minutes before the run.
        load_average_after: The same at the end; None until then.
        flags: Instruction set extensions that affect speed, in a fixed order.
        governor: CPU frequency governor of Linux; None where unknown, as in most virtual machines.
        cpu_quota: CPU time limit of the container in cores; None for no limit.
        commit: Git commit of the source, with "-changed" if files differ from it; None outside of a git checkout.
        gpu: The GPU, if the run used one.
    """

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    versions: dict[str, str]
    load_average: tuple[float, float, float]
    load_average_after: tuple[float, float, float] | None = None
    flags: tuple[str, ...] = ()
    governor: str | None = None
    cpu_quota: float | None = None
    commit: str | None = None
    gpu: Gpu | None = None

    @classmethod
    def current(cls, gpu: Gpu | None = None) -> "Environment":
        """This machine, now."""
        description = cpuinfo()
        return cls(
            cpu=cpu_model(description),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            system=platform.platform(),
            python=platform.python_version(),
            versions=package_versions(_PACKAGES + _runtime_packages(on_gpu=False)),
            load_average=os.getloadavg(),
            flags=cpu_flags(description),
            governor=_read(_GOVERNOR),
            cpu_quota=cpu_quota(),
            commit=_commit(Path(__file__).parent),
            gpu=gpu,
        )

    @property
    def all_versions(self) -> dict[str, str]:
        """`versions`, and those of the GPU."""
        return {**self.versions, **(self.gpu.versions if self.gpu else {})}

    def ended(self) -> "Environment":
        """The same with the current load average, and state of the GPU, as those of the end."""
        gpu = self.gpu and replace(self.gpu, state_after=gpu_state())
        return replace(self, load_average_after=os.getloadavg(), gpu=gpu)

    def differences(self, other: "Environment") -> Iterator[str]:
        """Differences that make speeds incomparable, one line each; load, commit and our own version do not count."""
        for name in ("cpu", "flags", "cores", "cpu_quota", "governor", "memory_gib", "system", "python", "gpu"):
            here, there = getattr(self, name), getattr(other, name)
            if name == "flags" and here != there:
                here, there = (" ".join(sorted({*a} - {*b})) or "none more" for a, b in ((here, there), (there, here)))
            if name == "gpu":
                here, there = (gpu and f"{gpu.model}, driver {gpu.driver}" for gpu in (here, there))
            if here != there:
                yield f"{name}: {_shown(here)} and {_shown(there)}"
        ours, theirs = self.all_versions, other.all_versions
        for package in sorted({*ours, *theirs} - {"ocdserve"}):
            here, there = ours.get(package), theirs.get(package)
            if here != there:
                yield f"{package}: {_shown(here)} and {_shown(there)}"


def gpu_state(index: int = 0) -> dict[str, str]:
    """Clocks, power and temperature of a GPU, by nvidia-smi's field names; empty if nvidia-smi does not work."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={','.join(_GPU_STATE)}", "--format=csv,noheader", f"--id={index}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    row = next(csv.reader(io.StringIO(answer), skipinitialspace=True), [])
    return dict(zip(_GPU_STATE, row, strict=False))


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the installed ones of these packages, by name."""
    return {name: version for name in packages if (version := _version(name))}


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return None


def _commit(folder: Path) -> str | None:
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return f"{head}-changed" if _git(folder, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.check_output(
        ["git", *arguments], cwd=folder, stderr=subprocess.DEVNULL, text=True, timeout=10
    ).strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _runtime_packages(on_gpu: bool) -> tuple[str, ...]:
    """Packages of the runtimes; none where the server's packages are not installed, as for a client of a server."""
    try:
        from ocdserve.backend.network.options import RUNTIMES
    except ModuleNotFoundError:
        return ()
    return tuple(name for row in RUNTIMES.values() if row.on_gpu == on_gpu for name in row.distributions)

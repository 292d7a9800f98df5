# SPDX-License-Identifier: Apache-2.0
"""Where a measurement was made, and whether two were made in the same place."""

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

__all__ = ["Environment", "package_versions"]

_PACKAGES = (
    "ocdserve",
    "locust",
    "numpy",
    "nvidia-pytriton",
    "onnxruntime",
    "onnxtr",
    "opencv-python-headless",
    "openvino",
    "pillow",
    "pyclipper",
    "rapidocr",
    "shapely",
    "tritonclient",
)
# Extensions that numeric code chooses its kernels by, as Linux calls them on x86-64 and on AArch64.
_FLAGS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
# Limit of the cgroup, as a container sees it: microseconds of CPU time (or "max") in each period of microseconds.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Environment:
    """Machine and software of a measurement.

    Attributes:
        cpu: Model of the processor.
        cores: Cores that this process may use.
        memory_gib: Memory of the machine in GiB.
        system: Operating system and C library.
        python: Version of Python.
        versions: Versions of the packages that matter, by name; absent ones are left out.
        load_average: Processes that ran or wanted to run, on average over 1, 5 and 15 minutes before.
        load_average_after: The same at the end; None while it is not over.
        flags: Extensions of the instruction set that matter to speed, in a fixed order.
        governor: How Linux chooses the clock; None where it does not say, as in most virtual machines.
        cpu_quota: Cores' worth of time that the container may use; None for no limit.
        commit: Git commit of the source, with "-changed" where files differ from it; None where it is not from git.
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

    @classmethod
    def current(cls) -> "Environment":
        """This machine, now."""
        cpuinfo = _read(_CPUINFO) or ""
        return cls(
            cpu=cpu_model(cpuinfo),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            system=platform.platform(),
            python=platform.python_version(),
            versions=package_versions(_PACKAGES),
            load_average=os.getloadavg(),
            flags=cpu_flags(cpuinfo),
            governor=_read(_GOVERNOR),
            cpu_quota=cpu_quota(_read(_QUOTA)),
            commit=_commit(Path(__file__).parent),
        )

    def ended(self) -> "Environment":
        """The same with the load average of now as that of the end."""
        return replace(self, load_average_after=os.getloadavg())

    def differences(self, other: "Environment") -> Iterator[str]:
        """What makes times here and there incomparable, one line each: all but load, commit and our own version."""
        for name in ("cpu", "flags", "cores", "cpu_quota", "governor", "memory_gib", "system", "python"):
            here, there = getattr(self, name), getattr(other, name)
            if name == "flags" and here != there:
                here, there = (" ".join(sorted(set(a) - set(b))) or "none more" for a, b in _both_ways(here, there))
            if here != there:
                yield f"{name}: {_shown(here)} and {_shown(there)}"
        for package in sorted({*self.versions, *other.versions} - {"ocdserve"}):
            here, there = self.versions.get(package), other.versions.get(package)
            if here != there:
                yield f"{package}: {_shown(here)} and {_shown(there)}"


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages by name; those that are not installed are left out."""
    return {name: version for name in packages if (version := _version(name))}


def cpu_model(cpuinfo: str) -> str:
    """The processor's name in the text of /proc/cpuinfo, or that of the architecture."""
    return next(_values(cpuinfo, "model name"), platform.machine())


def cpu_flags(cpuinfo: str) -> tuple[str, ...]:
    """Those of the extensions that matter which the text of /proc/cpuinfo lists, in a fixed order."""
    # "flags" on x86-64, "Features" on AArch64.
    listed = next((value.split() for name in ("flags", "Features") for value in _values(cpuinfo, name)), [])
    return tuple(flag for flag in _FLAGS if flag in listed)


def cpu_quota(text: str | None) -> float | None:
    """Cores' worth of time that the text of a cgroup's cpu.max allows; None for no limit."""
    quota, _, period = (text or "max").partition(" ")
    return round(int(quota) / int(period), 2) if quota.isdecimal() and period.isdecimal() else None


def _both_ways(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    return (a, b), (b, a)


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _values(cpuinfo: str, name: str) -> Iterator[str]:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            yield value.strip()


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
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

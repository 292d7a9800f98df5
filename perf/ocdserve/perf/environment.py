# SPDX-License-Identifier: Apache-2.0
"""Where a measurement was made."""

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "ocdserve",
    "numpy",
    "nvidia-pytriton",
    "onnxruntime",
    "opencv-python-headless",
    "openvino",
    "pillow",
    "pyclipper",
    "rapidocr",
    "shapely",
    "tritonclient",
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
        versions: Versions of the packages that matter, by name; absent ones are left out.
        load_average: Processes that ran or wanted to run, on average over 1, 5 and 15 minutes before.
    """

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    versions: dict[str, str]
    load_average: tuple[float, float, float]

    @classmethod
    def current(cls) -> "Environment":
        """This machine, now."""
        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            system=platform.platform(),
            python=platform.python_version(),
            versions=package_versions(_PACKAGES),
            load_average=os.getloadavg(),
        )


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages by name; those that are not installed are left out."""
    return {name: version for name in packages if (version := _version(name))}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

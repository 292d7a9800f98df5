# SPDX-License-Identifier: Apache-2.0
"""Checks that Triton's Python backend will work here, before anything is started.

Triton itself does not check: without libpython it stays in "loading" forever, with numpy 2 every response fails.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from ocdserve.backend.files import check_space
from ocdserve.contract import PREPROCESS, Limits, UnavailableError, install_command

_OLDEST_PYTHON = (3, 10)
_NEWEST_PYTHON = (3, 12)
_OLDEST_GLIBC = (2, 35)
_STUB_TIMEOUT_S = 20.0
# Links, health notes and the beginning of a log.
WORKSPACE_BYTES = 1 << 20
# A stub's segment grows with the tensors it passes; the initial 4 MiB hold one image of 1280 x 736.
SEGMENT_BYTES = 4 << 20
_SEGMENTS = Path("/dev/shm")
# With 64 MB, 13 of 16 photographs of 12 megapixels at the same time failed. The model that takes pixels must also hold
# the largest image that its limits allow.
LEAST_SEGMENT_BYTES = 256 << 20
_MOUNT = "(docker run --shm-size=1g; in Kubernetes an emptyDir with medium: Memory)"
SEGMENTS_REMEDY = f"mount more there {_MOUNT}"
_BYTES_PER_PIXEL = 3
_MAX_PIXELS = re.compile(r'key: "max_pixels"\s+value\s*\{\s*string_value: "(\d+)"')
# In a model's configuration: its backend, and how many processes an instance group has.
_PYTHON = re.compile(r'^\s*backend\s*:\s*"python"', re.MULTILINE)
_COUNT = re.compile(r"\bcount\s*:\s*(\d+)")
# What a stub prints when started without arguments, which means that all its libraries were found.
_STUB_WORKS = "Expected 9 arguments"


def check_python(version: tuple[int, int] = (sys.version_info.major, sys.version_info.minor)) -> None:
    """Raise UnavailableError unless nvidia-pytriton's stubs work with this version of Python."""
    if not _OLDEST_PYTHON <= version <= _NEWEST_PYTHON:
        raise UnavailableError(
            f"the server needs Python 3.10, 3.11 or 3.12 (this is {version[0]}.{version[1]}): Triton's Python backend "
            "works with these and numpy 1 only; make the environment with one of them, for example `uv venv -p 3.12`"
        )


def check_numpy(version: str | None = None) -> None:
    """Raise UnavailableError unless numpy is older than 2."""
    try:
        version = version or importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError:
        raise UnavailableError(f"numpy is not installed; run {install_command('ocdserve[server]')}") from None
    if int(version.partition(".")[0]) >= 2:
        check_python()  # numpy 1 has no wheels for newer ones
        raise UnavailableError(
            f"the server needs numpy older than 2 (installed: {version}): Triton 2.51 cannot read the arrays of "
            "numpy 2; run `pip install 'numpy<2'`"
        )


def check_glibc(libc: tuple[str, str] | None = None) -> None:
    """Raise UnavailableError unless the C library is glibc 2.35 or later, which the Triton binary is built for."""
    name, version = libc or platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name != "glibc" or numbers < _OLDEST_GLIBC:
        raise UnavailableError(
            f"the server needs glibc 2.35 or later (this is {name or 'another C library'} {version}): use Debian 12, "
            "Ubuntu 22.04 or newer, or a container"
        )


def check_room(repository: Path, workspace: Path) -> None:
    """Raise UnavailableError unless the server's files and the segments of its Python processes have room."""
    check_space(workspace, WORKSPACE_BYTES, "the server's own files", "set TMPDIR to a folder of another file system")
    python = {name: text for name, text in configurations(repository).items() if _PYTHON.search(text)}
    if python and not os.access(_SEGMENTS, os.W_OK | os.X_OK):
        raise UnavailableError(
            f"{_SEGMENTS} is missing, read-only or not this user's to write, and the models' Python processes share "
            f"memory there: mount a tmpfs {_MOUNT}"
        )
    first = SEGMENT_BYTES * sum(map(processes_in, python.values()))
    check_space(_SEGMENTS, first, "the models' Python processes", SEGMENTS_REMEDY)
    if PREPROCESS not in python:
        return
    # Under load. The whole size counts: what a server that was killed has left there is no reason not to start.
    most_pixels = _MAX_PIXELS.search(python[PREPROCESS])
    needed = max(
        LEAST_SEGMENT_BYTES, first + _BYTES_PER_PIXEL * int(most_pixels[1] if most_pixels else Limits().max_pixels)
    )
    with contextlib.suppress(OSError):
        size = shutil.disk_usage(_SEGMENTS).total
        if 0 < size < needed:
            raise UnavailableError(
                f"{_SEGMENTS} has a size of {size:,} bytes, too few for images on their way between the models' "
                f"Python processes ({needed:,}): {SEGMENTS_REMEDY}, or lower --max-pixels if it is above the default"
            )


def configurations(repository: Path) -> dict[str, str]:
    """The text of each model's `config.pbtxt`, by the model's name."""
    return {path.parent.name: path.read_text("utf-8", "replace") for path in repository.glob("*/config.pbtxt")}


def processes_in(configuration: str) -> int:
    """Processes of a model, on each GPU for models on GPUs, by its `config.pbtxt`."""
    return sum(map(int, _COUNT.findall(configuration))) or 1


def check_stub(stub: Path, environment: Mapping[str, str]) -> None:
    """Raise UnavailableError unless the stub starts, that is, unless the shared libpython is found."""
    # The stub is run as Triton runs it, so that the loader itself searches for the libraries.
    result = subprocess.run(
        [str(stub)], env=dict(environment), capture_output=True, text=True, timeout=_STUB_TIMEOUT_S, check=False
    )
    output = result.stdout + result.stderr
    if result.returncode == 1 and _STUB_WORKS in output:
        return
    name, version = libpython_name(), f"{sys.version_info.major}.{sys.version_info.minor}"
    if name in output:
        raise UnavailableError(
            f"the shared library {name} is missing, which Triton's Python backend needs; install it (Debian, Ubuntu: "
            f"`apt-get install libpython{version}`) or use a Python that brings it (`uv python install {version}`, or "
            "pyenv with PYTHON_CONFIGURE_OPTS=--enable-shared)"
        )
    reason = output.strip().splitlines()
    raise UnavailableError(
        f"Triton's Python stub does not start here (exit status {result.returncode}): "
        f"{reason[-1] if reason else 'no output'}"
    )


def pytriton_directory() -> Path:
    """Where nvidia-pytriton keeps its Triton; UnavailableError where it is not installed or not for this Python."""
    # Not imported: that would start its own machinery.
    spec = importlib.util.find_spec("pytriton")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        directory = Path(location) / "tritonserver"
        if (directory / "bin" / "tritonserver").is_file():
            return directory
    check_python()  # the extra leaves it out of the others
    raise UnavailableError(
        "nvidia-pytriton, which brings the Triton server, is not installed in this Python; run "
        f"{install_command('ocdserve[server]')}, or name another installation with --tritonserver PATH"
    )


def libpython_name() -> str:
    """File name of this Python's shared library."""
    return f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


def find_libpython() -> Path | None:
    """Shared library of this interpreter; None leaves the search to the loader's default paths."""
    libdir = Path(str(sysconfig.get_config_var("LIBDIR") or os.sep))
    multiarch = str(sysconfig.get_config_var("MULTIARCH") or "")
    # The interpreter's own comes first: another patch release on the loader's path would run with the wrong modules.
    for directory in (libdir, Path(sys.base_prefix) / "lib", libdir / multiarch):
        library = directory / libpython_name()
        # A folder above it may not be searchable.
        with contextlib.suppress(OSError):
            if library.is_file():
                return library
    return None

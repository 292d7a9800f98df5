# SPDX-License-Identifier: Apache-2.0
"""Triton's log: progress of loading, failures, new lines, and its size."""

import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ocdserve.contract import UnavailableError

_LOADING = re.compile(r'"loading: (?P<model>.+):(?P<version>\d+)"$')
_LOADED = re.compile(r"\"successfully loaded '(?P<model>.+)'\"$")
_REFUSED = re.compile(r"\"failed to load '(?P<model>.+)' version \d+: ")
_ENTRY = re.compile(r"[EWIF]\d{4} \d\d:\d\d:\d\d\.\d+ ")
_TABLE = ("+-", "| ")
# Python models report errors with a traceback, so an excerpt has to be longer than that.
_EXCERPT_LINES = 25
# Triton calls it an error that a machine has no GPU.
_HARMLESS = (
    "CudaDriverHelper has not been initialized",
    "CUDA driver version is insufficient",
)
_TAIL_BYTES = 65536
# Two files of this size are a day of some requests that fail every second.
MOST_BYTES = 10 << 20
_CHUNK_BYTES = 1 << 20
_POLL_S = 0.2
_STOP_S = 2.0


class ServerLog:
    """Triton's log file, read as it grows, and kept from growing too large.

    Triton appends to it, so it can be emptied at any time: its content is then in a second file, PATH.1.
    """

    def __init__(
        self, path: Path, most_bytes: int = MOST_BYTES, relay: Callable[[str], object] = lambda line: None
    ) -> None:
        """Make the file, if there is none.

        Args:
            path: The file.
            most_bytes: When the file is larger, its content is moved to PATH.1, in place of what is there.
            relay: Called with each new line, in a thread of its own between `start` and `stop`.

        Raises:
            UnavailableError: It cannot be written.
        """
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        except OSError as error:
            raise UnavailableError(
                f"cannot write the log file {str(path)!r}: {error.strerror}. Name a file in a folder that exists and "
                "that you may write to."
            ) from error
        self.path = path
        self._most_bytes = most_bytes
        self._relay = relay
        # Where this run, what `progress` has not seen, and what was not relayed begin.
        self._start = self._position = self._relayed = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="ocdserve-log", daemon=True)
        self.mark()
        self._relayed = self._start

    def start(self) -> None:
        """Begin to relay lines and to watch the size: of a regular file, and not of this process' own output."""
        status = self.path.stat()
        own = [os.fstat(descriptor) for descriptor in (1, 2) if _is_open(descriptor)]
        if stat.S_ISREG(status.st_mode) and not any(os.path.samestat(status, each) for each in own):
            self._thread.start()

    def stop(self) -> None:
        """Relay what is left, and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def mark(self) -> None:
        """Start a new run: the file's content so far belongs to an earlier one."""
        with self._lock:
            self._start = self._position = self.path.stat().st_size if self.path.exists() else 0

    def progress(self) -> list[str]:
        """One sentence for each model that started or finished loading since the last call."""
        with self._lock:
            lines, self._position = self._read(self._position)
        return loading_messages(lines)

    def _follow(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stopping.wait(_POLL_S)
            with suppress(OSError):
                self._relay_new()

    def _relay_new(self) -> None:
        while True:
            with self._lock:
                lines, self._relayed = self._read(self._relayed)
                if not lines and self.path.stat().st_size > self._most_bytes:
                    self._rotate()
            for line in filter(str.strip, lines):
                self._relay(line)
            if not lines:
                return

    def _rotate(self) -> None:
        """Move the content to the second file; without one on a full disk."""
        with suppress(OSError):
            older = os.open(f"{self.path}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(older, "wb") as target, self.path.open("rb") as source:
                source.seek(max(0, self.path.stat().st_size - self._most_bytes))
                shutil.copyfileobj(source, target)
        os.truncate(self.path, 0)
        self._start = self._position = self._relayed = 0

    def _read(self, position: int) -> tuple[list[str], int]:
        """Complete lines from a position on, at most a chunk, and where they end."""
        try:
            with self.path.open("rb") as file:
                file.seek(position)
                data = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return [], position
        # A line as long as this is none that Triton writes.
        complete = data if len(data) == _CHUNK_BYTES and b"\n" not in data else data[: data.rfind(b"\n") + 1]
        return _split(complete), position + len(complete)

    def excerpt(self) -> str:
        """The last lines of this run that explain a failure."""
        return explain("\n".join(self._lines()))

    def mentions_dead_stub(self) -> bool:
        """Whether this run failed because a Python process died, not because a model refused to load."""
        return any("Stub process" in line and "is not healthy" in line for line in self._lines())

    def refused(self) -> set[str]:
        """The models of this run of which Triton knows that they do not load."""
        return {match["model"] for line in self._lines() if (match := _REFUSED.search(line))}

    def _lines(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self._start, size - _TAIL_BYTES))
                return _split(file.read())
        except FileNotFoundError:
            return []


def _split(data: bytes) -> list[str]:
    """Lines of the log. Not by `splitlines`, for which what a stranger writes may end one, such as U+2028."""
    return data.decode(errors="replace").removesuffix("\n").split("\n") if data else []


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def loading_messages(lines: Iterable[str]) -> list[str]:
    """Sentences about models, from log lines."""
    messages = []
    for line in lines:
        if match := _LOADING.search(line):
            messages.append(f"loading {match['model']} ...")
        elif match := _LOADED.search(line):
            messages.append(f"{match['model']} is ready")
    return messages


def explain(text: str) -> str:
    """The part of a log that explains a failure: errors with the lines after them, else the last lines."""
    errors: list[str] = []
    in_error = False
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith(_TABLE)]
    lines = [line for line in lines if not any(harmless in line for harmless in _HARMLESS)]
    for line in lines:
        if _ENTRY.match(line):
            in_error = line[0] in "EF"
        if in_error:
            errors.append(line)
    return "\n".join((errors or lines)[-_EXCERPT_LINES:])

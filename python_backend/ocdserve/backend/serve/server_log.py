# SPDX-License-Identifier: Apache-2.0
"""Reading Triton's log: progress of loading, and failures."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ocdserve.contract import UnavailableError

_LOADING = re.compile(r'"loading: (?P<model>.+):(?P<version>\d+)"$')
_LOADED = re.compile(r"\"successfully loaded '(?P<model>.+)'\"$")
_ENTRY = re.compile(r"[EWIF]\d{4} \d\d:\d\d:\d\d\.\d+ ")
_TABLE = ("+-", "| ")
# Python models report errors with a traceback, so an excerpt has to be longer than that.
_EXCERPT_LINES = 25
_TAIL_BYTES = 65536


class ServerLog:
    """Triton's log file, read as it grows."""

    def __init__(self, path: Path) -> None:
        """Make the file, if there is none.

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
        self._start = self._position = 0
        self.mark()

    def mark(self) -> None:
        """Start a new run: the file's content so far belongs to an earlier one."""
        self._start = self._position = self.path.stat().st_size if self.path.exists() else 0

    def progress(self) -> list[str]:
        """One sentence for each model that started or finished loading since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._position += len(complete)
        return loading_messages(complete.decode(errors="replace").splitlines())

    def excerpt(self) -> str:
        """The last lines of this run that explain a failure."""
        return explain("\n".join(self._lines()))

    def mentions_dead_stub(self) -> bool:
        """Whether this run failed because a Python process died, not because a model refused to load."""
        return any("Stub process" in line and "is not healthy" in line for line in self._lines())

    def _lines(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self._start, size - _TAIL_BYTES))
                return file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []


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
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(_TABLE)]
    for line in lines:
        if _ENTRY.match(line):
            in_error = line[0] in "EF"
        if in_error:
            errors.append(line)
    return "\n".join((errors or lines)[-_EXCERPT_LINES:])

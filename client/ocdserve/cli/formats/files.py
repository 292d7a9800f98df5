# SPDX-License-Identifier: Apache-2.0
"""Result files: what a format is, and files that are whole, or not there."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ocdserve.batch.sources import Source
from ocdserve.cli import one_line
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections

STDOUT = "-"


class Writer(Protocol):
    """Receives the results one by one; closed by the stack that it was made with."""

    def begin(self) -> None:
        """Start writing: not before the detector is loaded, which may fail."""

    def found(self, source: Source, found: Detections, ms: float | None) -> None:
        """Write the result of one image; `ms` is None for one of an earlier run."""

    def failed(self, source: Source, message: str) -> None:
        """Write the error of one image, where the format has a place for it."""


@dataclass(frozen=True)
class Format:
    """A format of results.

    Attributes:
        name: Of --format.
        meaning: For the help text.
        writer: Makes the writer from the target, the names of result files by image, and the stack that closes it.
        suffixes: Of files that have the format unless --format says otherwise.
        to_stdout: Whether it can be written to stdout.
        naming: Of the files in a folder, such as "res_{}.txt"; "": it is always one file.
        is_document: Whether an input, with all its pages, is a file: alone, or in a folder.
        has_polygons: Whether it has a place for polygons.
        parameters: Request parameters that it needs.
    """

    name: str
    meaning: str
    writer: Callable[["Target", Mapping[str, str], ExitStack], Writer]
    suffixes: tuple[str, ...] = ()
    to_stdout: bool = True
    naming: str = ""
    is_document: bool = False
    has_polygons: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """Where results go.

    Attributes:
        format: What is written.
        path: File or folder; "-" for stdout.
        option: The option that named it, for messages.
        resumed: Whether an earlier run is continued.
        overwrite: Whether existing files may be replaced.
        columns: Whether plain text is read column by column.
    """

    format: Format
    path: str
    option: str
    resumed: bool = False
    overwrite: bool = False
    columns: bool = False

    @property
    def is_json_file(self) -> bool:
        """Whether it is a file of JSON Lines, which can be continued."""
        return self.format.name == "json" and self.path != STDOUT

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder: always, or where a path that may be both is one, ends in / or has no suffix."""
        if self.path == STDOUT or not self.format.naming:
            return False
        path = Path(self.path)
        return (
            not self.format.is_document
            or self.path.endswith("/")
            or path.is_dir()
            or not (path.suffix or path.exists())
        )

    def failure(self, error: OSError) -> InvalidInputError:
        """The error of a file that cannot be written."""
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        return InvalidInputError(f"cannot write the file {self.path!r} of {self.option}: {reason}")

    def refuse_existing(self, file: Path, remedy: str = "") -> None:
        """Raise InvalidInputError if a file with content would be lost; a device or a pipe is none."""
        if not self.overwrite and file.is_file() and file.stat().st_size:
            raise InvalidInputError(
                f"the file {str(file)!r} of {self.option} exists; {remedy}replace it with --overwrite, or name another"
            )


class Chunks:
    """Stdout, or a file that holds whole chunks only, also when the disk is full or Ctrl-C comes."""

    def __init__(self, target: Target, stack: ExitStack, *, is_draft: bool = False) -> None:
        """Open the file; `stack` closes it.

        Args:
            target: The file.
            stack: Closes the file.
            is_draft: Whether the file gets its name when it is complete, that is when `stack` closes it after `begin`.

        Raises:
            InvalidInputError: It exists and is neither continued nor replaced, or cannot be written.
        """
        self._target = target
        self._begun = False
        self._path = self._final = file = Path(target.path)
        self._file: Any = None
        if target.path == STDOUT:
            return
        if not target.resumed:
            target.refuse_existing(file, "continue it with --resume, " if target.is_json_file else "")
        if is_draft:
            self._path = draft_of(file)
        try:
            # Unbuffered: a buffer would be written again when the file is closed.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 closed by _close
        except OSError as error:
            raise target.failure(error) from error
        stack.callback(self._close)

    def begin(self) -> None:
        """Empty a file that is replaced."""
        self._begun = True
        is_continued = self._target.resumed and self._path == self._final
        if self._file is not None and not is_continued and self._path.is_file():
            self._file.truncate(0)

    def write(self, chunk: str | bytes) -> None:
        """Append a chunk.

        Raises:
            InvalidInputError: It cannot be written.
        """
        if self._file is None:
            if isinstance(chunk, str):
                print(chunk, end="", flush=True)
            else:
                sys.stdout.flush()
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            return
        end = self._file.tell() if self._file.seekable() else None
        # A name that is no UTF-8 came with surrogates.
        rest = memoryview(chunk.encode(errors="backslashreplace") if isinstance(chunk, str) else chunk)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except BaseException as error:
            if end is not None:
                with suppress(OSError):
                    self._file.truncate(end)
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                self._begun = False
                raise self._target.failure(error) from error
            raise

    def _close(self) -> None:
        self._file.close()
        if self._path == self._final:
            return
        try:
            if self._begun:
                os.replace(self._path, self._final)
        except OSError as error:
            raise self._target.failure(error) from error
        finally:
            self._path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either complete or not there."""
    draft = draft_of(path)
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        if draft != path:
            draft.unlink(missing_ok=True)


def draft_of(file: Path) -> Path:
    """Where a file is written before it gets its name; a device or a pipe is written directly."""
    return file.with_name(f".{file.name}-{os.getpid()}") if file.is_file() or not file.exists() else file

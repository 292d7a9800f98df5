# SPDX-License-Identifier: Apache-2.0
"""Outputs of `ocdserve detect`: a table, JSON lines, Parquet, annotated images, a progress line, a summary."""

import io
import json
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ocdserve.cli import one_line
from ocdserve.cli.sources import STDIN, Source
from ocdserve.contract import InvalidInputError, OcdserveError, UnavailableError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import draw, picture_of

# Approximate rows per row group of the Parquet file.
_ROW_GROUP = 50_000


class Progress:
    """A progress line on stderr; silent where stderr is no terminal."""

    def __init__(self, total: int, shown: bool | None) -> None:
        """Start the clock.

        Args:
            total: Number of images.
            shown: Whether to show it; None: only where stderr is a terminal.
        """
        self.shown = sys.stderr.isatty() if shown is None else shown
        self._total = total
        self._done = 0
        self._begin = perf_counter()

    def seconds(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self._begin

    def step(self) -> None:
        """Count one more image."""
        self._done += 1
        rate = self._done / max(self.seconds(), 1e-9)
        filled = 20 * self._done // max(self._total, 1)
        bar = "#" * filled + "." * (20 - filled)
        left = (self._total - self._done) / rate
        self._write(f"[{bar}] {self._done}/{self._total} images, {rate:.1f}/s, {left:.0f} s left")

    def clear(self) -> None:
        """Erase the line."""
        self._write("")

    def _write(self, text: str) -> None:
        if self.shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


class Table:
    """A Parquet file with one row per detection (`Detections.to_rows`), and none for an image without text.

    The file appears when it is complete, under a hidden name until then.
    """

    def __init__(self, file: Path, stack: ExitStack, overwrite: bool = False) -> None:
        """Open the file; `stack` finishes and closes it.

        Raises:
            UnavailableError: pyarrow is not installed.
            InvalidInputError: The file exists, or cannot be written.
        """
        if not overwrite:
            _refuse_existing(file, "--parquet", "")
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise UnavailableError(
                f"--parquet needs pyarrow: pip install 'ocdserve[tables]' ({one_line(error)})"
            ) from error
        names = ("image", "width", "height", "index", "score", *(f"{axis}{i}" for i in range(1, 5) for axis in "xy"))
        kinds = {"image": pyarrow.string(), **dict.fromkeys(("width", "height", "index"), pyarrow.int32())}
        self._arrow: Any = pyarrow
        self._schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float32())) for name in names])
        self._rows: list[dict[str, Any]] = []
        self._broken: InvalidInputError | None = None
        self._file = file
        self._draft = _draft_of(file) if file.is_file() or not file.exists() else file
        try:
            self._writer = pyarrow.parquet.ParquetWriter(str(self._draft), self._schema)
        except OSError as error:
            raise self._failure(error) from error
        stack.callback(self._close)

    def add(self, name: str, found: Detections) -> None:
        """Add the rows of one image."""
        self._rows += found.to_rows(name)
        if len(self._rows) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            try:
                self._writer.write_table(self._arrow.Table.from_pylist(rows, self._schema))
            except OSError as error:
                self._broken = self._failure(error)
                raise self._broken from error

    def _close(self) -> None:
        try:
            self._flush()
            self._writer.close()
            if self._broken is None and self._draft != self._file:
                os.replace(self._draft, self._file)
        except OSError as error:
            raise self._failure(error) from error
        finally:
            if self._draft != self._file:
                self._draft.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> InvalidInputError:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        return InvalidInputError(f"cannot write the file {str(self._file)!r} of --parquet: {reason}")


class Report:
    """Writes results one by one: rows of a table, JSON lines, Parquet; errors to stderr."""

    def __init__(
        self,
        sources: list[Source],
        json_file: str | None,
        progress: Progress,
        stack: ExitStack,
        *,
        resumed: bool = False,
        overwrite: bool = False,
        table: Table | None = None,
    ) -> None:
        """Open the JSON file.

        Args:
            sources: All images, for the width of the table.
            json_file: For the JSON lines; "-" for stdout, instead of the table; None for no JSON.
            progress: Advanced with each image.
            stack: Closes the file.
            resumed: Whether to append to the JSON file.
            overwrite: Whether to replace an existing JSON file.
            table: The Parquet file.

        Raises:
            InvalidInputError: The file exists, or cannot be written.
        """
        self._table = table
        self._progress = progress
        self._width = max(len("image"), *(len(source.name) for source in sources)) if sources else len("image")
        self._images = len(sources)
        self._done = self._boxes = self._failed = 0
        self._has_table = json_file != STDIN
        self._json = (
            stack.enter_context(JsonLines(json_file, resumed, overwrite)) if self._has_table and json_file else None
        )

    def begin(self) -> None:
        """Print the header of the table; empty a file that is replaced."""
        if self._json is not None:
            self._json.begin()
        if self._has_table:
            print(f"{'image':{self._width}}  {'size':>11}  {'boxes':>5}  {'ms':>8}", flush=True)

    def found(self, source: Source, found: Detections, ms: float) -> None:
        """Write the result of one image."""
        self._done += 1
        self._boxes += len(found)
        self._progress.clear()
        self._write({"image": source.name, **found.to_dict(), "ms": round(ms, 3)})
        if self._table is not None:
            self._table.add(source.name, found)
        if self._has_table:
            size = f"{found.width}x{found.height}"
            print(f"{source.name:{self._width}}  {size:>11}  {len(found):>5}  {ms:>8.1f}", flush=True)
        self._progress.step()

    def failed(self, source: Source, error: OcdserveError) -> None:
        """Write the error of one image."""
        self._failed += 1
        self._write({"image": source.name, "error": one_line(error)})
        self.complain(source, error)
        self._progress.step()

    def complain(self, source: Source, error: OcdserveError) -> None:
        """Report an error on stderr."""
        self._progress.clear()
        print(f"ocdserve detect: {source.name}: {one_line(error)}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Print a summary of all images: below the table, or to stderr where the progress was shown."""
        self._progress.clear()
        if self._done + self._failed < 2:
            return
        if self._has_table:
            print(self._summary())
        elif self._progress.shown:
            print(self._summary(), file=sys.stderr)

    def interrupted(self) -> None:
        """Print to stderr what was done until Ctrl-C, and how to do the rest."""
        self._progress.clear()
        left = f"stopped before {self._images - self._done - self._failed} of {self._images} images"
        remedy = "; --resume continues there" if self._json is not None else ""
        print(f"ocdserve detect: {left} ({self._summary()}){remedy}", file=sys.stderr, flush=True)

    def _summary(self) -> str:
        images, seconds = self._done + self._failed, self._progress.seconds()
        failed = f", {self._failed} failed" if self._failed else ""
        rate = images / max(seconds, 1e-9)
        return f"{images} images, {self._boxes} boxes{failed} in {seconds:.1f} s: {rate:.2f} images/s"

    def _write(self, result: dict[str, Any]) -> None:
        line = json.dumps(result, ensure_ascii=False)
        if not self._has_table:
            print(line, flush=True)
        elif self._json is not None:
            self._json.write(line)


class JsonLines:
    """A file of JSON lines that holds whole lines only, also when the disk is full or Ctrl-C comes."""

    def __init__(self, file: str, resumed: bool, overwrite: bool) -> None:
        """Open the file.

        Raises:
            InvalidInputError: It exists and is neither continued nor replaced, or cannot be written.
        """
        if not resumed and not overwrite:
            _refuse_existing(Path(file), "--json", "continue it with --resume, ")
        self._name = file
        self._is_replaced = overwrite and not resumed
        try:
            # Unbuffered: a buffer would be written again when the file is closed.
            self._file = open(file, "ab", buffering=0)  # noqa: SIM115 closed by __exit__
        except OSError as error:
            raise self._failure(error) from error

    def begin(self) -> None:
        """Empty a file that is replaced: not before the detector is loaded, which may fail."""
        if self._is_replaced and self._file.seekable():
            self._file.truncate(0)

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: str) -> None:
        """Append one line.

        Raises:
            InvalidInputError: It cannot be written.
        """
        end = self._file.tell() if self._file.seekable() else None
        # A name that is no UTF-8 came with surrogates.
        rest = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except BaseException as error:
            if end is not None:
                with suppress(OSError):
                    self._file.truncate(end)
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise self._failure(error) from error
            raise

    def _failure(self, error: OSError) -> InvalidInputError:
        return InvalidInputError(f"cannot write the file {self._name!r} of --json: {error.strerror}")


class Drawings:
    """A folder of annotated images, which never overwrite each other or an input."""

    def __init__(self, folder: Path, inputs: Iterable[Path] = ()) -> None:
        """Create the folder.

        Args:
            folder: For the pictures.
            inputs: The images to draw on; those in `folder` are not overwritten.

        Raises:
            InvalidInputError: The folder cannot be created.
            UnavailableError: Pillow is not installed.
        """
        picture_of(np.zeros((1, 1, 3), np.uint8))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from error
        self._folder = folder
        self._taken = {path.name.lower() for path in inputs if path.parent.resolve() == folder.resolve()}

    def save(self, stem: str, encoded: bytes, found: Detections) -> Path:
        """Write STEM.png, or STEM-2.png, STEM-3.png... where the name is taken.

        Raises:
            InvalidInputError: The image cannot be decoded, or the file cannot be written.
        """
        picture = draw(encoded, found)
        path = self._free_path(stem)
        encoded_picture = io.BytesIO()
        picture.save(encoded_picture, "PNG")
        draft = _draft_of(path)
        try:
            draft.write_bytes(encoded_picture.getbuffer())
            os.replace(draft, path)
        except OSError as error:
            raise InvalidInputError(f"cannot write the picture {str(path)!r}: {error.strerror or error}") from error
        finally:
            draft.unlink(missing_ok=True)
        return path

    def _free_path(self, stem: str) -> Path:
        """Take the next free name."""
        number = 1
        while (name := f"{stem}{f'-{number}' if number > 1 else ''}.png").lower() in self._taken:
            number += 1
        self._taken.add(name.lower())
        return self._folder / name


def done_before(file: Path) -> dict[str, Detections]:
    """Detections of an earlier run by image, without failures; an incomplete last line is cut off the file.

    Args:
        file: JSON lines of `ocdserve detect --json`; need not exist.

    Raises:
        InvalidInputError: It cannot be read or truncated, or has other content.
    """
    from ocdserve.results import from_dict

    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise InvalidInputError(f"cannot continue the file {str(file)!r}: {error.strerror}") from error
    whole = content[: content.rfind(b"\n") + 1]
    if content[len(whole) :] and not content.startswith(b'{"image":'):
        raise InvalidInputError(
            f"{file} is not what `ocdserve detect --json` writes; give another file, or leave out --resume"
        )
    done = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            result = json.loads(line)
            name = result["image"]
            if "error" not in result:
                done[name] = from_dict(result)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{file}, line {number}, is not what `ocdserve detect --json` writes ({one_line(error)}); "
                "give another file, or leave out --resume"
            ) from error
    try:
        if len(whole) < len(content):
            os.truncate(file, len(whole))
    except OSError as error:
        raise InvalidInputError(f"cannot continue the file {str(file)!r}: {error.strerror}") from error
    return done


def _draft_of(file: Path) -> Path:
    """Where a file is written before it gets its name."""
    return file.with_name(f".{file.name}-{os.getpid()}")


def _refuse_existing(file: Path, option: str, remedy: str) -> None:
    """Raise InvalidInputError if a file with content would be lost; a device or a pipe is none."""
    if file.is_file() and file.stat().st_size:
        raise InvalidInputError(
            f"the file {str(file)!r} of {option} exists; {remedy}replace it with --overwrite, or name another"
        )

# SPDX-License-Identifier: Apache-2.0
"""Outputs of `ocdserve detect`: a table, JSON lines, Parquet, annotated images, a progress line, a summary."""

import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from ocdserve.cli import one_line
from ocdserve.cli.sources import STDIN, Source
from ocdserve.contract import InvalidInputError, OcdserveError, UnavailableError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import draw

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
    """A Parquet file with one row per detection (`Detections.to_rows`), and none for an image without text."""

    def __init__(self, file: Path, stack: ExitStack) -> None:
        """Open the file; `stack` finishes and closes it.

        Raises:
            UnavailableError: pyarrow is not installed.
            InvalidInputError: The file cannot be written.
        """
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
        try:
            self._writer = stack.enter_context(pyarrow.parquet.ParquetWriter(str(file), self._schema))
        except OSError as error:
            raise InvalidInputError(f"cannot write the file {str(file)!r} of --parquet: {error.strerror}") from error
        stack.callback(self._flush)

    def add(self, name: str, found: Detections) -> None:
        """Add the rows of one image."""
        self._rows += found.to_rows(name)
        if len(self._rows) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
            self._rows = []


class Report:
    """Writes results one by one: rows of a table, JSON lines, Parquet; errors to stderr."""

    def __init__(
        self, sources: list[Source], json_file: str | None, resumed: bool, progress: Progress, stack: ExitStack
    ) -> None:
        """Open the JSON file and print the header of the table.

        Args:
            sources: All images, for the width of the table.
            json_file: For the JSON lines; "-" for stdout, instead of the table; None for no JSON.
            resumed: Whether to append to the JSON file.
            progress: Advanced with each image.
            stack: Closes the file.

        Raises:
            InvalidInputError: The file cannot be written.
        """
        self.table: Table | None = None
        self._json: TextIO | None = None
        self._progress = progress
        self._width = max(len("image"), *(len(source.name) for source in sources)) if sources else len("image")
        self._done = self._boxes = self._failed = 0
        if json_file:
            self._json = sys.stdout if json_file == STDIN else stack.enter_context(_opened(json_file, resumed))
        if self._has_table:
            print(f"{'image':{self._width}}  {'size':>11}  {'boxes':>5}  {'ms':>8}", flush=True)

    def found(self, source: Source, found: Detections, ms: float) -> None:
        """Write the result of one image."""
        self._done += 1
        self._boxes += len(found)
        self._progress.clear()
        self._write({"image": source.name, **found.to_dict(), "ms": round(ms, 3)})
        if self.table is not None:
            self.table.add(source.name, found)
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
        images, seconds = self._done + self._failed, self._progress.seconds()
        if images < 2:
            return
        failed = f", {self._failed} failed" if self._failed else ""
        rate = images / max(seconds, 1e-9)
        line = f"{images} images, {self._boxes} boxes{failed} in {seconds:.1f} s: {rate:.2f} images/s"
        if self._has_table:
            print(line)
        elif self._progress.shown:
            print(line, file=sys.stderr)

    @property
    def _has_table(self) -> bool:
        return self._json is not sys.stdout

    def _write(self, result: dict[str, Any]) -> None:
        if self._json is not None:
            print(json.dumps(result, ensure_ascii=False), file=self._json, flush=True)


class Drawings:
    """A folder of annotated images, which never overwrite each other or an input."""

    def __init__(self, folder: Path, inputs: Iterable[Path] = ()) -> None:
        """Create the folder.

        Args:
            folder: For the pictures.
            inputs: The images to draw on; those in `folder` are not overwritten.

        Raises:
            InvalidInputError: The folder cannot be created.
        """
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
        try:
            picture.save(path)
        except OSError as error:
            raise InvalidInputError(f"cannot write the picture {str(path)!r}: {error.strerror or error}") from error
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
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with file.open("r+b") as opened:
                opened.truncate(len(whole))
    except OSError as error:
        raise InvalidInputError(f"cannot continue the file {str(file)!r}: {error.strerror}") from error
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
    return done


def _opened(file: str, resumed: bool) -> TextIO:
    try:
        return open(file, "a" if resumed else "w", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"cannot write the file {file!r} of --json: {error.strerror}") from error

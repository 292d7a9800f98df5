# SPDX-License-Identifier: Apache-2.0
"""Outputs besides result files: a table, annotated images, a progress line, a summary."""

import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ocdserve.batch.sources import Source
from ocdserve.cli import one_line, printable
from ocdserve.cli.formats.files import Writer, write_whole
from ocdserve.contract import InvalidInputError, OcdserveError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import draw, picture_of


class Progress:
    """A progress line on stderr; where stderr is no terminal silent, or a line from time to time."""

    def __init__(self, total: int, shown: bool | None, log_s: float | None = None) -> None:
        """Start the clock.

        Args:
            total: Number of images.
            shown: Whether to show it; None: only where stderr is a terminal.
            log_s: Seconds between lines where it is not shown; None: there are none.
        """
        self.shown = sys.stderr.isatty() if shown is None else shown
        self.total = total
        self._log_s = log_s
        self._logged = 0.0
        self._done = 0
        self._begin = perf_counter()

    def seconds(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self._begin

    def step(self, count: int = 1) -> None:
        """Count more images."""
        self._done += count
        rate = max(self._done, 1e-9) / max(self.seconds(), 1e-9)
        filled = 20 * self._done // max(self.total, 1)
        bar = "#" * filled + "." * (20 - filled)
        left = (self.total - self._done) / rate
        text = f"{self._done}/{self.total} images, {rate:.1f}/s, {left:.0f} s left"
        self._write(f"[{bar}] {text}")
        if not self.shown and self._log_s is not None and self.seconds() - self._logged >= self._log_s:
            self._logged = self.seconds()
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Erase the line."""
        self._write("")

    def _write(self, text: str) -> None:
        if self.shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


class Report:
    """Reports results one by one: rows of a table, result files; errors to stderr."""

    def __init__(
        self,
        command: str,
        sources: list[Source],
        progress: Progress,
        writers: Sequence[Writer],
        *,
        has_table: bool,
        can_resume: bool,
        is_quiet: bool,
    ) -> None:
        """Prepare the table.

        Args:
            command: Name of the command, for messages.
            sources: All images, for the width of the table.
            progress: Advanced with each image.
            writers: Of the result files.
            has_table: Whether the table is printed.
            can_resume: Whether --resume continues what is written.
            is_quiet: Whether to print nothing but errors.
        """
        self._command = command
        self._writers = writers
        self._progress = progress
        self._width = (
            max(len("image"), *(len(printable(source.name)) for source in sources)) if sources else len("image")
        )
        self._images = len(sources)
        self._done = self._boxes = self._failed = 0
        self._has_table = has_table
        self._can_resume = can_resume
        self._is_quiet = is_quiet

    def begin(self, done: Mapping[Source, Detections]) -> None:
        """Print the header of the table, and begin the files with the results of an earlier run."""
        for writer in self._writers:
            writer.begin()
            for source, found in done.items():
                writer.found(source, found, None)
        if self._has_table:
            print(f"{'image':{self._width}}  {'size':>11}  {'boxes':>5}  {'ms':>8}", flush=True)

    def expect(self, more: int) -> None:
        """Count more images: the further pages of a file, or -1 if all of them are done."""
        self._images += more
        self._progress.total += more

    def found(self, source: Source, found: Detections, ms: float) -> None:
        """Write the result of one image."""
        self._done += 1
        self._boxes += len(found)
        self._progress.clear()
        for writer in self._writers:
            writer.found(source, found, ms)
        if self._has_table:
            size = f"{found.width}x{found.height}"
            print(f"{printable(source.label):{self._width}}  {size:>11}  {len(found):>5}  {ms:>8.1f}", flush=True)
        self._progress.step()

    def failed(self, source: Source, error: OcdserveError) -> None:
        """Write the error of one image."""
        self._failed += 1
        for writer in self._writers:
            writer.failed(source, _in_options(error))
        self.complain(source, error)
        self._progress.step()

    def complain(self, source: Source, error: OcdserveError) -> None:
        """Report an error on stderr."""
        self._progress.clear()
        print(f"ocdserve {self._command}: {printable(source.label)}: {_in_options(error)}", file=sys.stderr, flush=True)

    def note(self, message: str) -> None:
        """Print what a user might not expect to stderr."""
        if not self._is_quiet:
            self._progress.clear()
            print(f"ocdserve {self._command}: {printable(message)}", file=sys.stderr, flush=True)

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
        left = f"stopped before {self._images - self._done - self._failed} of {self._images} images"
        remedy = "; --resume continues there" if self._can_resume else ""
        self.note(f"{left} ({self._summary()}){remedy}")

    def _summary(self) -> str:
        images, seconds = self._done + self._failed, self._progress.seconds()
        failed = f", {self._failed} failed" if self._failed else ""
        rate = images / max(seconds, 1e-9)
        return f"{images} images, {self._boxes} boxes{failed} in {seconds:.1f} s: {rate:.2f} images/s"


def _in_options(error: OcdserveError) -> str:
    """The error's message in one line, with this command's options as remedies and without Python's."""
    text = re.sub(r",? or allow more (time )?with Downloads\.\w+| \(Downloads\.\w+\)", "", one_line(error))
    text = text.replace("give its pixels instead", "scale it down elsewhere")
    if "decompression bomb" in text or getattr(error, "limit", None) == "max_side":  # neither option decodes it
        return text.replace("Scale it down or send it in tiles", "Scale it down elsewhere")
    return text.replace("Scale it down or send it in tiles", "Scale it down (--max-side) or send it in tiles (--tile)")


# Keys of a drawn picture's text, and the value of the first.
_SOFTWARE, _SOURCE, _OURS = "Software", "Source", "ocdserve"


class Drawings:
    """A folder of annotated images, which replace earlier drawings of the same images and no other file.

    Each holds the name of its image as PNG text, by which it is recognised.
    """

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

    def save(self, stem: str, encoded: bytes, found: Detections, source: str) -> Path:
        """Write STEM.png, or STEM-2.png, STEM-3.png... where the name is taken.

        Args:
            stem: Name of the picture.
            encoded: The image.
            found: Its detections.
            source: Name of the image.

        Raises:
            InvalidInputError: The image cannot be decoded, or the file cannot be written.
        """
        picture = draw(encoded, found)
        path = self._free_path(stem, source)
        encoded_picture = io.BytesIO()
        picture.save(encoded_picture, "PNG", pnginfo=_text_of(source))
        try:
            write_whole(path, encoded_picture.getvalue())
        except OSError as error:
            raise InvalidInputError(f"cannot write the picture {str(path)!r}: {error.strerror or error}") from error
        return path

    def _free_path(self, stem: str, source: str) -> Path:
        """Take the next free name."""
        number = 1
        while True:
            path = self._folder / f"{stem}{f'-{number}' if number > 1 else ''}.png"
            if path.name.lower() not in self._taken and (not path.exists() or _is_drawing_of(path, source)):
                self._taken.add(path.name.lower())
                return path
            number += 1


def _text_of(source: str) -> Any:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(_SOFTWARE, _OURS)
    text.add_itxt(_SOURCE, _printable(source))
    return text


def _is_drawing_of(path: Path, source: str) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            text = picture.info
            return (text.get(_SOFTWARE), text.get(_SOURCE)) == (_OURS, _printable(source))
    except Exception:  # Pillow raises many types for damaged files, which are not ours
        return False


def _printable(name: str) -> str:
    """A file name that is no UTF-8 with its bytes escaped."""
    return name.encode(errors="backslashreplace").decode()

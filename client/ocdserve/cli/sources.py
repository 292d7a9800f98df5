# SPDX-License-Identifier: Apache-2.0
"""Images named on a command line: files, folders, patterns, standard input."""

import glob
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ocdserve.contract import IMAGE_SUFFIXES, InvalidInputError, is_image

__all__ = ["STDIN", "Source", "sources_of"]

STDIN = "-"

_LOOKED_FOR = ", ".join(sorted(IMAGE_SUFFIXES))


@dataclass(frozen=True)
class Source:
    """One input image.

    Attributes:
        name: As given by the user.
        path: The file; None for standard input.
    """

    name: str
    path: Path | None

    @property
    def stem(self) -> str:
        """Base name of result files."""
        return self.path.stem if self.path else "stdin"

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            InvalidInputError: The file cannot be read.
        """
        if self.path is None:
            return sys.stdin.buffer.read()
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise InvalidInputError(f"cannot read the file: {error.strerror}") from error


def sources_of(arguments: Iterable[str]) -> Iterator[Source]:
    """The images named by the arguments.

    An argument is a file, a folder (its images in natural order), a pattern (*, ?, [...], and ** for any folders) or
    "-" for standard input. An existing file whose name looks like a pattern is that file.

    Raises:
        InvalidInputError: A folder or a pattern contains no image, or a folder cannot be read.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN:
            yield Source(STDIN, None)
        elif path.is_dir():
            yield from (Source(str(file), file) for file in _images_in(path))
        elif glob.has_magic(argument) and not path.exists():
            yield from (Source(str(file), file) for file in _images_like(argument))
        else:
            yield Source(argument, path)


def _images_in(folder: Path) -> list[Path]:
    try:
        files = _images(folder.iterdir())
    except OSError as error:
        raise InvalidInputError(f"cannot read the folder {str(folder)!r}: {error.strerror}") from error
    if not files:
        raise InvalidInputError(f"no image in the folder {str(folder)!r}; looked for {_LOOKED_FOR}")
    return files


def _images_like(pattern: str) -> list[Path]:
    files = _images(Path(name) for name in glob.iglob(pattern, recursive=True))
    if not files:
        raise InvalidInputError(f"no image is like {pattern!r}; looked for {_LOOKED_FOR}")
    return files


def _images(files: Iterable[Path]) -> list[Path]:
    return sorted(filter(is_image, files), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which img_2 comes before img_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path).lower())]

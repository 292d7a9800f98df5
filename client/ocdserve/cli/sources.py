# SPDX-License-Identifier: Apache-2.0
"""Images named on a command line: files, folders, patterns, standard input."""

import glob
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ocdserve.contract import IMAGE_SUFFIXES, InvalidInputError, is_image

STDIN = "-"


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
            try:
                files = list(path.iterdir())
            except OSError as error:
                raise InvalidInputError(f"cannot read the folder {str(path)!r}: {error.strerror}") from error
            yield from _images(files, f"no image in the folder {str(path)!r}")
        elif glob.has_magic(argument) and not path.exists():
            matching = map(Path, glob.iglob(argument, recursive=True))
            yield from _images(matching, f"no image matches {argument!r}")
        else:
            yield Source(argument, path)


def _images(files: Iterable[Path], if_none: str) -> Iterator[Source]:
    """The images among the files, in natural order; raises InvalidInputError with `if_none` if there is none."""
    images = sorted(filter(is_image, files), key=_natural)
    if not images:
        raise InvalidInputError(f"{if_none}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return (Source(str(file), file) for file in images)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which img_2 comes before img_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path).lower())]

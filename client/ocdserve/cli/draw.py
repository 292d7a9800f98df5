# SPDX-License-Identifier: Apache-2.0
"""Detections drawn onto the image that they were found in."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import POLYGON_COLOUR, QUAD_COLOUR, draw

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["POLYGON_COLOUR", "QUAD_COLOUR", "Drawings", "annotate"]


def annotate(encoded: bytes, found: Detections) -> "Picture":
    """Draw the outline of every quad, and of every polygon where there are any; see `ocdserve.results.draw`."""
    return draw(encoded, found)


class Drawings:
    """A folder of annotated images; no picture in it takes the name of another, or of an input."""

    def __init__(self, folder: Path, inputs: Iterable[Path] = ()) -> None:
        """Make the folder.

        Args:
            folder: Where the pictures go.
            inputs: The images to be drawn on; those that lie in `folder` are not overwritten.

        Raises:
            InvalidInputError: The folder cannot be made.
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
            InvalidInputError: The image cannot be drawn on, or the file not written.
        """
        picture = annotate(encoded, found)
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

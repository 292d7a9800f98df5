# SPDX-License-Identifier: Apache-2.0
"""Detections drawn onto the image that they were found in."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from ocdserve.contract import Detections, InvalidInputError

__all__ = ["POLYGON_COLOUR", "QUAD_COLOUR", "Drawings", "annotate"]

QUAD_COLOUR = (0, 200, 60)
POLYGON_COLOUR = (255, 140, 0)

# One pixel of line for this many pixels of the shorter side, so that lines stay visible in a scaled-down view.
_SIDE_PER_LINE_PIXEL = 400
_THINNEST_LINE = 2


def annotate(encoded: bytes, found: Detections) -> Image.Image:
    """Draw the outline of every quad, and of every polygon where there are any.

    Args:
        encoded: The image as it was sent to the detector.
        found: What was found in it, in source pixels after EXIF orientation.

    Returns:
        An RGB picture of `found.width` x `found.height` pixels.

    Raises:
        InvalidInputError: Pillow cannot decode the image, or its size is not that of `found`.
    """
    picture = _decoded(encoded)
    if picture.size != (found.width, found.height):
        raise InvalidInputError(
            f"the detections belong to an image of {found.width}x{found.height} pixels; "
            f"got one of {picture.width}x{picture.height}"
        )
    canvas = ImageDraw.Draw(picture)
    line = max(_THINNEST_LINE, min(picture.size) // _SIDE_PER_LINE_PIXEL)
    for quad in found.quads:
        _outline(canvas, quad, QUAD_COLOUR, line)
    for polygon in found.polygons or ():
        _outline(canvas, polygon, POLYGON_COLOUR, line)
    return picture


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


def _decoded(encoded: bytes) -> Image.Image:
    """RGB as the server sees it: EXIF orientation applied, 16-bit samples scaled down."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # Pillow's own conversion of 16-bit greyscale clips at 255.
                samples = np.asarray(upright).astype(np.uint32) >> 8
                upright = Image.fromarray(samples.clip(0, 255).astype(np.uint8))
            return upright.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"cannot draw on the image: Pillow does not decode it ({error})") from error


def _outline(canvas: ImageDraw.ImageDraw, points: NDArray[np.float32], colour: tuple[int, int, int], line: int) -> None:
    if not len(points):
        return
    corners = [(float(x), float(y)) for x, y in points]
    # The first edge comes again so that the first corner is joined as the others are.
    canvas.line([*corners, *corners[:2]], fill=colour, width=line, joint="curve")

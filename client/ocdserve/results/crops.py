# SPDX-License-Identifier: Apache-2.0
"""Rectified crops of detections, as one padded batch for a recogniser."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import Image, check_size, picture_of, warped

__all__ = ["Crops", "crop"]


@dataclass(frozen=True, eq=False)
class Crops:
    """Crops of one image, in the order of its detections.

    Attributes:
        pixels: uint8 (N, H, W, 3) RGB, zero to the right of and below each crop.
        sizes: int32 (N, 2), height and width of each crop in pixels.
    """

    pixels: NDArray[np.uint8]
    sizes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One crop without padding, uint8 (height, width, 3), a view."""
        height, width = self.sizes[index]
        return self.pixels[index, :height, :width]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """The crops without padding, one by one."""
        return (self[index] for index in range(len(self)))


def crop(
    image: Image,
    found: Detections,
    *,
    height: int | None = None,
    max_width: int | None = None,
    turn_tall: float | None = 1.5,
) -> Crops:
    """Crop and rectify every detection.

    The batch is as wide as the widest crop: for many crops with long lines among them, set `max_width`, or crop a part
    at a time (`Detections.take`).

    Args:
        image: The image of the detections: encoded bytes, a path, uint8 (H, W, 3) RGB or a Pillow image; of a file of
            several pages, `found.page` is taken.
        found: Its detections.
        height: Height of every crop in pixels, widths in proportion; None: each keeps its own.
        max_width: Wider crops are squeezed to this many pixels; None: no limit.
        turn_tall: A crop at least this many times as high as wide is rotated by 90 degrees counter-clockwise; None:
            never.

    Raises:
        InvalidInputError: The image is not valid or its size is not that of the detections, or a length is below 1.
        UnavailableError: Pillow is not installed.
    """
    for name, value in (("height", height), ("max_width", max_width)):
        if value is not None and value < 1:
            raise InvalidInputError(f"{name} must be at least 1 pixel; got {value}")
    picture = picture_of(image, found.page)
    check_size(found, *picture.size)
    parts = [_crop_of(quad, turn_tall) for quad in found.quads]
    targets = [_target(size, height, max_width) for _, size in parts]
    sizes = np.array([(rows, columns) for columns, rows in targets], np.int32).reshape(-1, 2)
    pixels = np.zeros((len(parts), *(sizes.max(axis=0) if len(sizes) else (0, 0)), 3), np.uint8)
    for index, ((quad, size), target) in enumerate(zip(parts, targets, strict=True)):
        pixels[index, : target[1], : target[0]] = warped(picture, quad, size, target)
    return Crops(pixels, sizes)


def _crop_of(quad: NDArray[np.float32], turn_tall: float | None) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """The quad, beginning with the corner that becomes the crop's top left, and the crop's own width and height."""
    top, right, bottom, left = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    width, height = (max(1, round(float(max(pair)))) for pair in ((top, bottom), (right, left)))
    if turn_tall is not None and height >= turn_tall * width:
        return np.roll(quad, -1, axis=0), (height, width)
    return quad, (width, height)


def _target(size: tuple[int, int], height: int | None, max_width: int | None) -> tuple[int, int]:
    width, own_height = size
    if height is not None:
        width = max(1, round(width * height / own_height))
    return min(width, max_width or width), height or own_height

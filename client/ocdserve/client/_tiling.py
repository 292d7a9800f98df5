# SPDX-License-Identifier: Apache-2.0
"""Large images, detected in tiles: `ocdserve.results.tiles` lays them out and merges what is found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ocdserve.results.detections import Detections
from ocdserve.results.pictures import pixels_of
from ocdserve.results.tiles import DEFAULT_OVERLAP as DEFAULT_OVERLAP
from ocdserve.results.tiles import DEFAULT_TILE as DEFAULT_TILE
from ocdserve.results.tiles import Boxes
from ocdserve.results.tiles import merge_tiles as merge_tiles
from ocdserve.results.tiles import tile_boxes as tile_boxes


@dataclass(frozen=True, eq=False)
class TiledImage:
    """An image and its tiles.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        boxes: int64 (T, 4), left, top, right, bottom of each tile in pixels; see `tile_boxes`.
        page: Page of its file; None: none was chosen.
    """

    pixels: NDArray[np.uint8]
    boxes: Boxes
    page: int | None = None

    @classmethod
    def of(cls, image: bytes | NDArray[np.uint8], tile: int, overlap: int, page: int | None = None) -> "TiledImage":
        """Lay tiles over an image.

        Args:
            image: uint8 (H, W, 3) RGB, or an encoded image, which Pillow decodes.
            tile: Side of a tile in pixels.
            overlap: Minimum overlap of neighbours in pixels.
            page: Page of a file of several, from 1.

        Raises:
            InvalidInputError: The image, `tile` or `overlap` is not valid.
            UnavailableError: The image must be decoded and Pillow is not installed.
        """
        pixels = pixels_of(image, page)
        height, width = pixels.shape[:2]
        return cls(pixels, tile_boxes(width, height, tile, overlap), page)

    def tiles(self) -> Iterator[NDArray[np.uint8]]:
        """uint8 (h, w, 3) RGB tiles, all of one size, each copied when it is requested."""
        return (np.ascontiguousarray(self.pixels[top:bottom, left:right]) for left, top, right, bottom in self.boxes)

    def merge(self, found: Sequence[Detections], latency_ms: float | None = None) -> Detections:
        """The image's detections from those of its tiles, in the tiles' order; see `merge_tiles`."""
        height, width = self.pixels.shape[:2]
        return replace(merge_tiles(self.boxes, found, width, height), latency_ms=latency_ms, page=self.page)

# SPDX-License-Identifier: Apache-2.0
"""Calibration images as TAO Deploy reads them, which is not how it reads images later on.

Whatever the network's colour order, it gets RGB; the image is resized by Pillow's Lanczos filter on 8-bit values, and
no orientation is applied. Ranges measured so are for networks whose cache has to equal TAO's; ours are measured on
`ocdserve.builder.calibration.calibrate.ServingImages`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.contract import InvalidInputError


class LanczosImages(Sequence[NDArray[np.uint8]]):
    """Photographs of one size, each read when it is asked for.

    Args:
        paths: Image files.
        height, width: Size of the network's input, pixels.
    """

    def __init__(self, paths: Sequence[Path], height: int, width: int) -> None:
        self._paths = tuple(paths)
        self._size = (width, height)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> "LanczosImages": ...
    def __getitem__(self, index: int | slice) -> "NDArray[np.uint8] | LanczosImages":
        """uint8 (height, width, 3) RGB; InvalidInputError names a file that cannot be decoded."""
        if isinstance(index, slice):
            return LanczosImages(self._paths[index], self._size[1], self._size[0])
        path = self._paths[index]
        try:
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB").resize(self._size, Image.Resampling.LANCZOS))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InvalidInputError(f"{path}: {error} Remove it from the calibration images or mend it.") from error

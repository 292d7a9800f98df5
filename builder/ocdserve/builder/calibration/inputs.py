# SPDX-License-Identifier: Apache-2.0
"""Network inputs made from calibration images, as served or as TAO Deploy's calibrator makes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend.detector import Detector
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.contract import InvalidInputError


class _LazyImages(Sequence[NDArray[np.uint8]]):
    """Images that are decoded when they are accessed, uint8 (h, w, 3) RGB.

    Accessing a file that cannot be decoded raises InvalidInputError with its name.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], NDArray[np.uint8]]) -> None:
        self._paths = tuple(paths)
        self._read = read

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> "_LazyImages": ...
    def __getitem__(self, index: int | slice) -> "NDArray[np.uint8] | _LazyImages":
        if isinstance(index, slice):
            return _LazyImages(self._paths[index], self._read)
        path = self._paths[index]
        try:
            return self._read(path)
        except (InvalidInputError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise InvalidInputError(f"{path}: {error} Remove it from the calibration images or fix it.") from error


class ServingImages(_LazyImages):
    """Images as the served network receives them; of those in tiles, the tile in the middle.

    Args:
        paths: Image files.
        spec: The detector; its resize policy applies.
    """

    def __init__(self, paths: Sequence[Path], spec: DetectorSpec) -> None:
        detector = Detector(Bundle(spec, Path(spec.model)), None)

        def read(path: Path) -> NDArray[np.uint8]:
            pixels, frame = detector.preprocess(path)
            return np.ascontiguousarray(frame.cut(pixels)[frame.tiles // 2])

        super().__init__(paths, read)


class LanczosImages(_LazyImages):
    """Images as TAO Deploy's calibrator reads them, which differs from its inference.

    They are RGB whatever the network's colour order, resized by Pillow's Lanczos filter on 8-bit values, and their
    orientation is ignored. Only networks whose cache has to equal TAO's need ranges measured like this.

    Args:
        paths: Image files.
        height, width: Size of the network's input, pixels.
    """

    def __init__(self, paths: Sequence[Path], height: int, width: int) -> None:
        def read(path: Path) -> NDArray[np.uint8]:
            with Image.open(path) as picture:
                return np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))

        super().__init__(paths, read)

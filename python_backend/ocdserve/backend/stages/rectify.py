# SPDX-License-Identifier: Apache-2.0
"""Rectification by the compiled library, as `ocdserve.results.reading.lines` defines it."""

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.kernels.cpu import library
from ocdserve.results.reading import lines
from ocdserve.results.reading.lines import LARGEST_WIDTH, LineImage, LinePlace, LinePlan

__all__ = ["LARGEST_WIDTH", "LineImage", "LinePlace", "LinePlan", "rectify"]


def rectify(
    pixels: NDArray[np.uint8],
    quads: NDArray[np.float32],
    height: int,
    most_width: int = LARGEST_WIDTH,
    *,
    compiled: bool = True,
) -> list[LineImage]:
    """Cut text lines out of an image; see `ocdserve.results.reading.lines.rectify`.

    Args:
        pixels: As there.
        quads: As there.
        height: As there.
        most_width: As there.
        compiled: Whether to use the compiled library where there is one; the result is the same.
    """
    loaded = library.load() if compiled else None
    return lines.rectify(pixels, quads, height, most_width, loaded.rectify if loaded else None)

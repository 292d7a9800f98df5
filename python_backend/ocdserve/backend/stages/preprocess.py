# SPDX-License-Identifier: Apache-2.0
"""Preprocessing: an RGB image to the network's size, and the mapping of coordinates back.

The network takes uint8 pixels; normalisation, channel order and layout are part of the compiled network
(see `ocdserve.backend.network.rewrite.fold`). Only TAO's evaluation resizes floating-point images.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.results.images import check_rgb


def preprocess(
    image: NDArray[np.uint8], policy: ResizePolicy, source: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], Frame]:
    """Resize an image for the network, bilinear as `cv2.resize` does.

    Args:
        image: uint8 (H, W, 3) RGB.
        policy: How the network size follows from the image's.
        source: Height and width in pixels of the image before it was reduced, of which the frame is; None: it was not.
            A reduced image is resized by cubic interpolation.

    Returns:
        uint8 (h, w, 3) RGB, or (H, W, 3) for an image in tiles, which are one below the other (see `Frame`), and the
        frame that maps network pixels back to source pixels.

    Raises:
        InvalidInputError: The array is not an RGB image.
    """
    check_rgb(image)
    return fit(image, policy, source)


def fit(image: NDArray[Any], policy: ResizePolicy, source: tuple[int, int] | None = None) -> tuple[NDArray[Any], Frame]:
    """`preprocess` without its check, for uint8 or float32 (H, W, 3); the dtype is kept."""
    height, width = source or (image.shape[0], image.shape[1])
    frame = Frame.of(height, width, policy)
    # A reduced image is smoother than the network knows from bilinear interpolation of whole ones.
    how = cv2.INTER_LINEAR if image.shape[:2] == (height, width) else cv2.INTER_CUBIC
    if frame.network == frame.content:
        return np.ascontiguousarray(_resized(image, frame.content, how), image.dtype), frame
    packed = np.zeros((*frame.container, 3), image.dtype)
    parts = iter(frame.cut(packed))
    for level in frame.levels:
        resized = _resized(image, level.content, how)
        for (left, top, right, bottom), part in zip(level.boxes, parts, strict=False):
            rows, columns = bottom - top, right - left
            part[:rows, :columns] = resized[top:bottom, left:right]
            if policy.is_elongated(*frame.source):
                # Next to black, a page without text is one text as large as the page.
                part[:rows, columns:] = part[:rows, columns - 1 : columns]
                part[rows:] = part[rows - 1]
    return packed, frame


def _resized(image: NDArray[Any], size: tuple[int, int], how: int) -> NDArray[Any]:
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=how)

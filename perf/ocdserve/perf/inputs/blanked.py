# SPDX-License-Identifier: Apache-2.0
"""Pages without their texts: a reader has nothing to recognise on them, so that its time is that of its detection."""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.stages.image import decode
from ocdserve.perf.inputs.data_sets import LabelledImage
from ocdserve.perf.inputs.pictures import encoded

# Around each text, in pixels: what is painted over too, for quads may cut descenders off, and then the ground whose
# colour is taken.
_MARGIN, _GROUND = 6, 3


def blanked(image: LabelledImage) -> LabelledImage:
    """The same page, encoded as JPEG, with its texts painted over and no truth left.

    Each polygon of the truth, don't-care ones too, is filled with the median colour of the ground just outside of it.
    """
    original = decode(image.encoded)
    pixels = original.copy()
    for polygon in image.truth.polygons:
        _paint(pixels, original, polygon)
    return replace(image, encoded=encoded(Image.fromarray(pixels)), truth=Truth((), ()))


def _paint(pixels: NDArray[np.uint8], original: NDArray[np.uint8], polygon: NDArray[np.float64]) -> None:
    """Fill a polygon and its margin in `pixels` with the colour of the ground around it in `original`."""
    around = _MARGIN + _GROUND
    left, top = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - around, 0)
    right, bottom = np.maximum(np.ceil(polygon.max(axis=0)).astype(int) + around + 1, 0)
    here = np.s_[top:bottom, left:right]
    inside = np.zeros(original[here].shape[:2], np.uint8)
    if not inside.size:
        return
    cv2.fillPoly(inside, [np.rint(polygon - (left, top)).astype(np.int32)], (1,))
    painted = cv2.dilate(inside, np.ones((2 * _MARGIN + 1,) * 2, np.uint8))
    ground = cv2.dilate(painted, np.ones((2 * _GROUND + 1,) * 2, np.uint8)) > painted
    if ground.any():
        pixels[here][painted > 0] = np.median(original[here][ground], axis=0)

# SPDX-License-Identifier: Apache-2.0
"""The trial of a network: drawn pages whose text it must find."""

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.postprocess import postprocess

# A size (height, width) and a batch that no export is made for; sides are multiples of every stride of detectors.
TRIAL_SIZE = (192, 320)
TRIAL_BATCH = 3
FINDS_NOTHING = "it finds less than half of the words on a drawn page of black text on white"

_WORD = "Text 25"
_FONT, _THICKNESS = cv2.FONT_HERSHEY_SIMPLEX, 2
_LEFT, _COLUMN, _ROW = 16, 160, 64
# A network that reads photographs may miss some of the drawn words, or join those of a line; its boxes have a margin.
# The whole page has four times the area of its words.
_LEAST_FOUND, _LEAST_COVERED, _MOST_AREA = 0.5, 0.7, 3.0


def trial_pages(height: int, width: int, count: int) -> tuple[NDArray[np.uint8], Truth]:
    """Pages of a size in pixels, uint8 (count, height, width, 3), and the words of the first.

    The first has black words on white, the second is black, further ones are noise: what makes a network divide by
    zero differs. A page too small for a word has none.
    """
    pages = np.zeros((count, height, width, 3), np.uint8)
    pages[0] = 255
    pages[2:] = np.random.default_rng(0).integers(0, 256, pages[2:].shape, np.uint8)
    (across, up), below = cv2.getTextSize(_WORD, _FONT, 1.0, _THICKNESS)
    words = []
    for bottom in range(_ROW, height - below, _ROW):
        for left in range(_LEFT, width - across, _COLUMN):
            cv2.putText(pages[0], _WORD, (left, bottom), _FONT, 1.0, (0, 0, 0), _THICKNESS, cv2.LINE_AA)
            top, right = bottom - up, left + across
            words.append(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64))
    return pages, Truth(tuple(words), (False,) * len(words))


def finds_words(probability: NDArray[np.float32], words: Truth, params: PostprocessParams) -> bool:
    """Whether boxes of the map of a trial page, float32 (h, w), cover half of its words, and not much else."""
    size: tuple[int, int] = probability.shape  # type: ignore[assignment]
    levels = np.rint(probability * 255).clip(0, 255).astype(np.uint8)
    covered = np.zeros(size, np.uint8)
    for quad in postprocess(levels, Frame(size, size, size), params).quads:
        cv2.fillConvexPoly(covered, np.rint(quad).astype(np.int32), (1,))
    parts = []
    for word in words.polygons:
        (left, top), (right, bottom) = word[0].astype(int), word[2].astype(int)
        parts.append(covered[top:bottom, left:right])
    found = sum(part.mean() >= _LEAST_COVERED for part in parts)
    is_text = covered.sum() <= _MOST_AREA * sum(part.size for part in parts)
    return bool(is_text and found >= _LEAST_FOUND * len(parts))


def fault(network: Network, spec: DetectorSpec, size: tuple[int, int]) -> str | None:
    """What is wrong with a network's maps of the trial pages of a (height, width) in pixels; None: nothing.

    Args:
        network: A network with maps of float32 probabilities.
        spec: How it is served.
        size: Of the pages.
    """
    pages, words = trial_pages(*size, TRIAL_BATCH)
    (first, *others) = network.infer(list(pages))
    if not all(np.isfinite(found).all() for found in (first, *others)):
        return "it returns values that are not finite (NaN or infinite)"
    if words.polygons and not finds_words(first, words, spec.postprocess):
        return FINDS_NOTHING
    return None

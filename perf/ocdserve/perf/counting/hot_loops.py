# SPDX-License-Identifier: Apache-2.0
"""Hot loops whose instructions are counted: our work on one image, and a baseline implementation of the same.

The functions prepare a call in the process that counts it (see `ocdserve.perf.counting.instructions`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.backend.stages import ctc
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.backend.stages.rectify import rectify
from ocdserve.perf.counting.instructions import Counted
from ocdserve.perf.inputs.maps import dense_map
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.subjects.baseline import baseline_postprocess

# Subject of the baseline's series.
BASELINE = "plain"

# Height and width of a photograph, in pixels.
_PHOTOGRAPH = (720, 1280)
# Of rectification.
_LINES, _LINE_HEIGHT = 4, 48


@dataclass(frozen=True)
class HotLoop:
    """One piece of work, by both implementations.

    Attributes:
        name: The work.
        ours: Our implementation.
        baseline: The implementation to compare with.
    """

    name: str
    ours: Counted
    baseline: Counted


def hot_loops(words: int = 200) -> tuple[HotLoop, ...]:
    """All hot loops.

    Args:
        words: Words on the page whose map is post-processed, a multiple of 10.
    """
    page, nothing = (10, words // 10), (10, 10, True)
    return tuple(
        HotLoop(name, Counted(f"{OURS}, {name}", ours, arguments), Counted(f"{BASELINE}, {name}", baseline, arguments))
        for name, ours, baseline, arguments in (
            (f"post-processing, {words} words", postprocessing, baseline_postprocessing, page),
            ("post-processing, nothing found", postprocessing, baseline_postprocessing, nothing),
            ("preprocessing", preprocessing, baseline_preprocessing, _PHOTOGRAPH),
            (f"rectification, {_LINES} lines", rectification, baseline_rectification, (_LINES,)),
        )
    )


def postprocessing(columns: int, rows: int, without_text: bool = False) -> Callable[[], object]:
    """Our post-processing of the map of a page of columns x rows words, or of a map of that size without text."""
    probability, frame = _map(columns, rows, without_text)
    params = PostprocessParams()
    return lambda: postprocess(probability, frame, params)


def baseline_postprocessing(columns: int, rows: int, without_text: bool = False) -> Callable[[], object]:
    """The same map by a Python loop over contours."""
    probability, frame = _map(columns, rows, without_text)
    params = PostprocessParams()
    return lambda: baseline_postprocess(probability, frame, params)


def preprocessing(height: int, width: int) -> Callable[[], object]:
    """Our preprocessing of an image: pixels stay uint8, the compiled network normalises them."""
    image, policy = _pixels(height, width), ResizePolicy()
    return lambda: preprocess(image, policy)


def baseline_preprocessing(height: int, width: int) -> Callable[[], object]:
    """The same resize of float pixels, which NumPy then normalises and transposes to channels first."""
    image = _pixels(height, width)
    (rows, columns), _ = ResizePolicy().sizes(height, width)

    def call() -> object:
        resized = cv2.resize(image.astype(np.float32), (columns, rows))
        return np.ascontiguousarray(((resized / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None])

    return call


def rectification(lines: int) -> Callable[[], object]:
    """Our rectification of so many slanted lines of a photograph."""
    image, quads = _pixels(*_PHOTOGRAPH), _slanted(lines)
    return lambda: rectify(image, quads, _LINE_HEIGHT)


def baseline_rectification(lines: int) -> Callable[[], object]:
    """The same by OpenCV, as PaddleOCR does it: each quad to its own size, bicubic, then to the line's height."""
    image, quads = _pixels(*_PHOTOGRAPH), _slanted(lines)

    def call() -> object:
        cut = []
        for quad in quads:
            width, height = (int(np.hypot(*(quad[corner] - quad[0]))) for corner in (1, 3))
            target = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
            transform = cv2.getPerspectiveTransform(quad, target)
            own = cv2.warpPerspective(
                image, transform, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
            )
            cut.append(cv2.resize(own, (-(-width * _LINE_HEIGHT // height), _LINE_HEIGHT)))
        return cut

    return call


def decoding(characters: int) -> Callable[[], object]:
    """Our reading of a line of so many different characters from the best classes of its steps, and its words."""
    classes = np.zeros(3 * characters, np.int32)
    classes[::3] = np.arange(1, characters + 1)
    probabilities, texts = np.ones(len(classes), np.float32), [chr(33 + index % 90) for index in range(characters)]
    return lambda: ctc.words(ctc.greedy(classes, probabilities, texts), 8.0, 8.0 * len(classes), 48.0)


def _slanted(lines: int) -> NDArray[np.float32]:
    """Quads (lines, 4, 2) of 300 x 32 pixels, turned by 3 degrees each more than the one before."""
    corners = np.array([(-150, -16), (150, -16), (150, 16), (-150, 16)], np.float64)
    angles = np.radians(3.0 * np.arange(lines))
    turns = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], axis=1).reshape(-1, 2, 2)
    return np.asarray(corners @ turns + [640, 360], np.float32)


def _map(columns: int, rows: int, without_text: bool) -> tuple[NDArray[np.uint8], Frame]:
    cv2.setNumThreads(1)
    map_ = dense_map(columns, rows)
    return np.zeros_like(map_.probability) if without_text else map_.probability, map_.frame


def _pixels(height: int, width: int) -> NDArray[np.uint8]:
    cv2.setNumThreads(1)
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

# SPDX-License-Identifier: Apache-2.0
"""Calls whose instructions are worth counting: our work on one image, and the plain way to do the same.

The functions prepare a call in the process that counts it (see `ocdserve.perf.counting.instructions`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.perf.counting.instructions import Counted
from ocdserve.perf.inputs.maps import dense_map
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.subjects.baseline import plain_postprocess

PLAIN = "plain"

# Height and width of a photograph, in pixels.
_PHOTOGRAPH = (720, 1280)


@dataclass(frozen=True)
class HotLoop:
    """One piece of work done both ways.

    Attributes:
        name: The work.
        ours: Our way.
        plain: The plain way.
    """

    name: str
    ours: Counted
    plain: Counted

    @classmethod
    def of(
        cls,
        name: str,
        ours: Callable[..., Callable[[], object]],
        plain: Callable[..., Callable[[], object]],
        *arguments: int,
    ) -> "HotLoop":
        """Both ways with the same arguments."""
        return cls(name, *(Counted(f"{who}, {name}", way, arguments) for who, way in ((OURS, ours), (PLAIN, plain))))


def hot_loops(words: int = 200) -> tuple[HotLoop, ...]:
    """All of them; `words`: how many words, a multiple of 10, the page holds whose map is post-processed."""
    return (
        HotLoop.of(f"post-processing, {words} words", postprocessing, plain_postprocessing, 10, words // 10),
        HotLoop.of("post-processing, nothing found", postprocessing_nothing, plain_postprocessing_nothing),
        HotLoop.of("preprocessing", preprocessing, plain_preprocessing, *_PHOTOGRAPH),
    )


def postprocessing(columns: int, rows: int) -> Callable[[], object]:
    """Our post-processing of the map of a page of columns x rows words."""
    cv2.setNumThreads(1)
    map_, params = dense_map(columns, rows), PostprocessParams()
    return lambda: postprocess(map_.probability, map_.frame, params)


def plain_postprocessing(columns: int, rows: int) -> Callable[[], object]:
    """The same map by the plain loop over contours, which takes uint8 as ours does."""
    cv2.setNumThreads(1)
    map_, params = dense_map(columns, rows), PostprocessParams()
    return lambda: plain_postprocess(map_.probability, map_.frame, params)


def postprocessing_nothing() -> Callable[[], object]:
    """Our post-processing of a map without text, of the size of that of 100 words."""
    cv2.setNumThreads(1)
    map_, params = dense_map(10, 10), PostprocessParams()
    nothing = np.zeros_like(map_.probability)
    return lambda: postprocess(nothing, map_.frame, params)


def plain_postprocessing_nothing() -> Callable[[], object]:
    """The same map by the plain loop."""
    cv2.setNumThreads(1)
    map_, params = dense_map(10, 10), PostprocessParams()
    nothing = np.zeros_like(map_.probability)
    return lambda: plain_postprocess(nothing, map_.frame, params)


def preprocessing(height: int, width: int) -> Callable[[], object]:
    """Our preprocessing of an image: pixels stay bytes, the compiled network normalises them."""
    cv2.setNumThreads(1)
    image, policy = _pixels(height, width), ResizePolicy()
    return lambda: preprocess(image, policy)


def plain_preprocessing(height: int, width: int) -> Callable[[], object]:
    """The same resize of float pixels, which NumPy then normalises and lays out by channels."""
    cv2.setNumThreads(1)
    image = _pixels(height, width)
    (rows, columns), _ = ResizePolicy().sizes(height, width)

    def call() -> object:
        resized = cv2.resize(image.astype(np.float32), (columns, rows))
        return np.ascontiguousarray(((resized / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None])

    return call


def _pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

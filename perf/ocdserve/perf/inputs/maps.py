# SPDX-License-Identifier: Apache-2.0
"""Probability maps to post-process: drawn ones, and those that the network makes of photographs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Detector
from ocdserve.backend.spec.resize import Frame
from ocdserve.perf.inputs.data_sets import DataSet
from ocdserve.perf.series.samples import Progress

# Height and width of the network's input for a photograph of 720 x 1280.
_PHOTOGRAPH = (736, 1280)


@dataclass(frozen=True, eq=False)
class NamedMap:
    """A probability map to post-process.

    Attributes:
        group: What the map belongs to, such as a data set.
        name: Its own name.
        probability: (h, w), uint8: 255 times the probability; or float32.
        frame: Where the source image lies in the map.
    """

    group: str
    name: str
    probability: NDArray[Any]
    frame: Frame


def dense_map(columns: int = 20, rows: int = 50, seed: int = 1) -> NamedMap:
    """A map like that of a page full of words: columns x rows of slightly turned regions, none touching another."""
    random = np.random.default_rng(seed)
    cell_width, cell_height = 64, 26
    size = rows * cell_height, columns * cell_width
    probability = np.zeros(size, np.float32)
    for row in range(rows):
        for column in range(columns):
            centre = ((column + 0.5) * cell_width, (row + 0.5) * cell_height)
            sides = (random.uniform(18, 48), random.uniform(8, 13))
            corners = cv2.boxPoints((centre, sides, random.uniform(-6, 6)))
            cv2.fillConvexPoly(probability, corners.astype(np.int32), (random.uniform(0.8, 1.0),))
    softened = cv2.GaussianBlur(probability, (3, 3), 0)
    return _drawn(f"dense, {columns * rows} words", softened * 255)


def empty_map(size: tuple[int, int] = _PHOTOGRAPH) -> NamedMap:
    """The map of a picture without text: below every threshold."""
    return _drawn("empty", np.zeros(size, np.float32))


def noise_map(size: tuple[int, int] = _PHOTOGRAPH, seed: int = 1) -> NamedMap:
    """The map of a confused network: thousands of ragged specks above the threshold, hardly any of them a box."""
    noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    softened = cv2.GaussianBlur(noise, (0, 0), 1.2)
    # A tenth of the pixels lies above 0.3, which is where the usual threshold is.
    softened = softened / np.quantile(softened, 0.9) * 0.3
    return _drawn("noise", softened.clip(0, 1) * 255)


def real_maps(detector: Detector, data_sets: Sequence[DataSet], progress: Progress) -> Iterator[NamedMap]:
    """The network's maps of all images."""
    total = sum(len(data.images) for data in data_sets)
    done = 0
    for data in data_sets:
        for image in data.images:
            pixels, frame = detector.preprocess(image.encoded)
            (probability,) = detector.infer([pixels])
            yield NamedMap(data.name, image.name, probability, frame)
            done += 1
            progress(done, total)


def _drawn(name: str, probability: NDArray[Any]) -> NamedMap:
    height, width = probability.shape
    return NamedMap(name, name, np.round(probability).astype(np.uint8), Frame(*[(height, width)] * 3))

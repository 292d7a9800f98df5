# SPDX-License-Identifier: Apache-2.0
"""Crops of pictures at the scale at which the detector sees them, each by one affine warp of the source."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.backend.stages.image import decode
from ocdserve.builder.train.data.augment import Matrix
from ocdserve.contract import InvalidInputError

# Scales of crops around the detector's own, and their largest turn in degrees.
_SCALES, _TURN = (0.5, 2.0), 4.0
# Scales of pictures in a crop that is unlike all others.
_STRANGE_SCALES = (0.2, 2.0)
# Share of crops around a text, where there is one.
_AT_TEXT = 0.6


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture, uint8 RGB (H, W, 3).

    Raises:
        InvalidInputError: It cannot be read; the message names the file.
    """
    try:
        return decode(path.read_bytes())
    except (InvalidInputError, OSError) as error:
        raise InvalidInputError(f"{path}: {error}") from error


class PictureCache:
    """Decoded pictures, the least recently used dropped beyond so many bytes."""

    def __init__(self, most_bytes: int = 600_000_000) -> None:
        self._most_bytes = most_bytes
        self._pictures: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()

    def pixels(self, path: Path) -> NDArray[np.uint8]:
        """The same as `read_picture`."""
        if path not in self._pictures:
            self._pictures[path] = read_picture(path)
            while len(self._pictures) > 1 and sum(item.nbytes for item in self._pictures.values()) > self._most_bytes:
                self._pictures.popitem(last=False)
        self._pictures.move_to_end(path)
        return self._pictures[path]


def crop_matrix(
    random: np.random.Generator,
    size: tuple[int, int],
    policy: ResizePolicy,
    crop: tuple[int, int],
    truth: Truth | None = None,
) -> Matrix:
    """Choose a crop: around a text or anywhere, at a random scale around the detector's, slightly turned.

    Args:
        random: Source of the choice.
        size: Height and width of the picture.
        policy: The detector's.
        crop: Height and width of the crop in pixels.
        truth: Texts of the picture, if they are known.

    Returns:
        float64 (2, 3) from pixels of the picture to those of the crop.
    """
    height, width = size
    _, content = policy.sizes(height, width)
    factor = float(np.exp(random.uniform(*np.log(_SCALES))))
    scale_x, scale_y = factor * content[1] / width, factor * content[0] / height
    centre = np.array([_inside(random, width, crop[1] / scale_x), _inside(random, height, crop[0] / scale_y)])
    if truth is not None and truth.polygons and random.random() < _AT_TEXT:
        text = truth.polygons[random.integers(len(truth.polygons))].mean(axis=0)
        centre = text + random.uniform(-0.4, 0.4, 2) * crop[::-1] / np.array([scale_x, scale_y])
    angle = np.radians(random.uniform(-_TURN, _TURN))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([scale_x, scale_y])
    return np.column_stack([linear, np.array(crop[::-1]) / 2 - linear @ centre])


def _inside(random: np.random.Generator, length: int, window: float) -> float:
    """The middle of a window at a random place inside of a length, or around its middle if it is longer."""
    first, last = sorted((window / 2, length - window / 2))
    return float(random.uniform(first, last))


def recoloured(random: np.random.Generator, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels with a slightly different contrast, brightness and colour."""
    gains = random.uniform(0.8, 1.2) * random.uniform(0.95, 1.05, 3)
    return np.clip((pixels - 128.0) * gains + 128.0 + random.uniform(-20, 20), 0, 255).astype(np.uint8)


def strange_crop(
    random: np.random.Generator, pictures: Sequence[NDArray[np.uint8]], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Parts of two pictures above each other, at any scale and angle and in any colours.

    Args:
        random: Source of the choice.
        pictures: Two, uint8 (H, W, 3).
        size: Height and width of the crop.
    """
    parts = []
    for picture in pictures:
        scale, turn = np.exp(random.uniform(*np.log(_STRANGE_SCALES))), random.uniform(-np.pi, np.pi)
        linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        centre = random.uniform(0, picture.shape[1::-1])
        matrix = np.column_stack([linear, np.array(size[::-1]) / 2 - linear @ centre])
        part = cv2.warpAffine(picture, matrix, size[::-1], borderMode=cv2.BORDER_REFLECT)
        part = part[..., random.permutation(3)]
        parts.append(255 - part if random.random() < 0.5 else part)
    share = random.choice((0.0, random.uniform(0.2, 0.5)))
    mixed = ((1 - share) * parts[0] + share * parts[1]) * random.uniform(0.6, 1.3, 3)
    return np.asarray(mixed.clip(0, 255), np.uint8)

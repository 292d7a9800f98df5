# SPDX-License-Identifier: Apache-2.0
"""Batches of crops: of the user's pictures with their targets, and of other pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import DetectorSpec
from ocdserve.backend.evaluation.dataset import Sample
from ocdserve.builder.graph.execute import normalised
from ocdserve.builder.train.data.augment import crop, warp
from ocdserve.builder.train.data.targets import shrink_map
from ocdserve.builder.train.distil import TeacherMaps, cut_map
from ocdserve.builder.train.finetune.crops import PictureCache, crop_matrix, recoloured
from ocdserve.builder.train.finetune.options import Schedule
from ocdserve.builder.train.finetune.training import Batch

# Texts lower than this in a crop are don't-care, in pixels.
_LEAST_TEXT = 5.0


class CropBatches:
    """Crops of own and other pictures; see `ocdserve.builder.train.finetune.training.Batches`.

    Args:
        own: The user's pictures.
        others: Other pictures, pixels or files.
        spec: The detector's.
        schedule: Numbers of crops.
        size: Height and width of a crop in pixels of the network.
        seed: Of the choice.
        teacher: Maps to learn; None: those of the truths.
    """

    def __init__(
        self,
        own: Sequence[Sample],
        others: Sequence[Path | NDArray[np.uint8]],
        spec: DetectorSpec,
        schedule: Schedule,
        size: tuple[int, int],
        seed: int,
        teacher: TeacherMaps | None = None,
    ) -> None:
        self._own, self._others = own, others
        self._spec, self._schedule, self._size, self._seed = spec, schedule, size, seed
        self._teacher = teacher
        self._cache = PictureCache()

    def batch(self, step: int) -> Batch:
        """The crops of a step; each picture has its turn once in a round."""
        random = np.random.default_rng((self._seed, step))
        crops = [self._own_crop(random, self._turn(self._own, step, place, 0)) for place in range(self._schedule.crops)]
        pixels, targets, masks = zip(*crops, strict=True)
        others = [
            self._other_crop(random, self._turn(self._others, step, place, 1))
            for place in range(self._schedule.keep_crops if self._others else 0)
        ]
        network = self._spec.network
        empty = np.zeros((0, 3, *self._size), np.float32)
        other = normalised(others, network) if others else empty
        return Batch(normalised(pixels, network), np.stack(targets), np.stack(masks), other)

    def _turn(self, pool: Sequence[Any], step: int, place: int, kind: int) -> Any:
        number = step * (self._schedule.keep_crops if kind else self._schedule.crops) + place
        rounds, index = divmod(number, len(pool))
        return pool[np.random.default_rng((self._seed, kind, rounds)).permutation(len(pool))[index]]

    def _own_crop(
        self, random: np.random.Generator, picture: Sample
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        source = self._cache.pixels(picture.image)
        height, width, _ = source.shape
        matrix = crop_matrix(random, (height, width), self._spec.resize, self._size, picture.truth)
        piece = crop(source, picture.truth.polygons, picture.truth.ignored, matrix, self._size)
        pixels = recoloured(random, piece.image)
        if self._teacher is None:
            return pixels, *shrink_map(piece.polygons, piece.ignored, self._size, min_text_size=_LEAST_TEXT)
        target = cut_map(self._teacher.map(source), (height, width), matrix, self._size)
        return pixels, target, np.ones_like(target)

    def _other_crop(self, random: np.random.Generator, picture: Path | NDArray[np.uint8]) -> NDArray[np.uint8]:
        source = self._cache.pixels(picture) if isinstance(picture, Path) else picture
        matrix = crop_matrix(random, (source.shape[0], source.shape[1]), self._spec.resize, self._size)
        return recoloured(random, warp(source, matrix, self._size))

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
from ocdserve.builder.train.data.augment import warp
from ocdserve.builder.train.distil import cut_map
from ocdserve.builder.train.finetune.crops import PictureCache, crop_matrix, recoloured, strange_crop
from ocdserve.builder.train.finetune.material import Material
from ocdserve.builder.train.finetune.options import Schedule
from ocdserve.builder.train.finetune.training import Batch


class CropBatches:
    """Crops of own and other pictures; see `ocdserve.builder.train.finetune.training.Batches`.

    Args:
        material: The pictures, and what is to be learnt of them.
        spec: The detector's.
        schedule: Numbers of crops.
        size: Height and width of a crop in pixels of the network.
        seed: Of the choice.
    """

    def __init__(
        self,
        material: Material,
        spec: DetectorSpec,
        schedule: Schedule,
        size: tuple[int, int],
        seed: int,
    ) -> None:
        self._own, self._others, self._teacher = material.train, material.others, material.teacher
        self._spec, self._schedule, self._size, self._seed = spec, schedule, size, seed
        self._cache = PictureCache()

    def batch(self, step: int) -> Batch:
        """The crops of a step; each picture has its turn once in a round."""
        random = np.random.default_rng((self._seed, step))
        crops = [self._own_crop(random, self._turn(self._own, step, place, 0)) for place in range(self._schedule.crops)]
        pixels, targets = zip(*crops, strict=True)
        others = [
            self._other_crop(random, self._turn(self._others, step, place, 1))
            for place in range(self._schedule.keep_crops if self._others else 0)
        ]
        others += [self._strange_crop(random) for _ in range(self._schedule.strange_crops)]
        network = self._spec.network
        empty = np.zeros((0, 3, *self._size), np.float32)
        other = normalised(others, network) if others else empty
        return Batch(normalised(pixels, network), np.stack(targets), other)

    def _turn(self, pool: Sequence[Any], step: int, place: int, kind: int) -> Any:
        number = step * (self._schedule.keep_crops if kind else self._schedule.crops) + place
        rounds, index = divmod(number, len(pool))
        return pool[np.random.default_rng((self._seed, kind, rounds)).permutation(len(pool))[index]]

    def _own_crop(self, random: np.random.Generator, picture: Sample) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        source = self._cache.pixels(picture.image)
        height, width, _ = source.shape
        matrix = crop_matrix(random, (height, width), self._spec.resize, self._size, picture.truth)
        pixels = recoloured(random, warp(source, matrix, self._size))
        return pixels, cut_map(self._teacher.target(picture, source), (height, width), matrix, self._size)

    def _other_crop(self, random: np.random.Generator, picture: Path | NDArray[np.uint8]) -> NDArray[np.uint8]:
        source = self._pixels(picture)
        matrix = crop_matrix(random, (source.shape[0], source.shape[1]), self._spec.resize, self._size)
        return recoloured(random, warp(source, matrix, self._size))

    def _strange_crop(self, random: np.random.Generator) -> NDArray[np.uint8]:
        pools = [[sample.image for sample in self._own], self._others or [sample.image for sample in self._own]]
        chosen = [pools[random.integers(2)] for _ in range(2)]
        return strange_crop(random, [self._pixels(pool[random.integers(len(pool))]) for pool in chosen], self._size)

    def _pixels(self, picture: Path | NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self._cache.pixels(picture) if isinstance(picture, Path) else picture

# SPDX-License-Identifier: Apache-2.0
"""Data set of training samples, and the order in which epochs go through it."""

from collections.abc import Iterator, Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from ocdserve.backend.evaluation.dataset import Sample
from ocdserve.backend.spec.detector_spec import NetworkSpec
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.backend.stages.image import decode
from ocdserve.builder.train.data.pre_processes import Augmentation
from ocdserve.contract import InvalidInputError

ImageMode = Literal["BGR", "RGB", "GRAY"]
# An epoch and the index of a picture.
Key = tuple[int, int]

SAMPLE_KEYS = ("img", "shrink_map", "shrink_mask", "threshold_map", "threshold_mask")

# Keeps the order of an epoch apart from the samples of its pictures.
_ORDER = 0x6F72


class SampleError(InvalidInputError):
    """A picture cannot be made a sample; the message names it.

    From a worker process PyTorch raises it again with the text of the whole traceback, which ends with the message.
    """

    def __init__(self, message: str) -> None:
        """Take the message, or the text of a traceback of this error."""
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class TrainingSet(Dataset[dict[str, Tensor]]):
    """Samples of labelled pictures, those without text included.

    A sample depends on nothing but the seed, the epoch and the picture's index: not on the order, the number of workers
    or any other random number. So keys are (epoch, index), as `EpochSampler` yields them; an index alone means epoch 0.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        augmentation: Augmentation,
        seed: int = 0,
        mode: ImageMode = "BGR",
        network: NetworkSpec = PRESETS["ocdnet"].network,
    ) -> None:
        """Prepare a data set; no picture is read yet.

        Args:
            samples: Pictures and their labels.
            augmentation: How samples are made of them.
            seed: 0 or more.
            mode: Channel order of the network's input; `GRAY`: the luma in all channels.
            network: Whose mean and standard deviation, by index of the channel, normalise pixels.

        Raises:
            InvalidInputError: There are no pictures, or the seed is negative.
        """
        if not samples:
            raise InvalidInputError("there are no pictures to train with")
        if seed < 0:
            raise InvalidInputError(f"the seed of a data set must be at least 0; got {seed}")
        self.samples = tuple(samples)
        self.augmentation = augmentation
        self.seed = seed
        self.mode = mode
        self.mean, self.std = (np.array(value, np.float32).reshape(3, 1, 1) for value in (network.mean, network.std))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.samples)

    def __getitem__(self, key: Key | int) -> dict[str, Tensor]:
        """Make a sample.

        Returns:
            float32 `img` (3, H, W), normalised, and `shrink_map`, `shrink_mask`, `threshold_map`, `threshold_mask`
            (H, W).

        Raises:
            SampleError: The picture cannot be read, or its sample cannot be made.
        """
        if get_worker_info() is not None:
            # One process per worker is enough. Not 1: OpenCV then ends the threads of its pool, which a forked process
            # does not have, and waits for them for ever.
            cv2.setNumThreads(0)
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.samples[index]
        random = np.random.default_rng([self.seed, epoch, index])
        try:
            image, *maps = self.augmentation(decode(sample.image.read_bytes()), sample.truth, random)
        except OSError as error:
            raise SampleError(f"{sample.image} cannot be read: {error.strerror or error}") from error
        except Exception as error:  # whatever happens, the file must be named
            raise SampleError(f"no sample can be made of {sample.image}: {error}") from error
        # Channels first: arithmetic along rows of three elements is many times slower.
        pixels = np.ascontiguousarray(_in_mode(image, self.mode).transpose(2, 0, 1)).astype(np.float32)
        pixels -= self.mean
        pixels /= self.std
        return {name: torch.from_numpy(array) for name, array in zip(SAMPLE_KEYS, (pixels, *maps), strict=True)}


class EpochSampler(Sampler[Key]):
    """Keys (epoch, index) of one epoch, in an order that depends on the seed and the epoch alone.

    So a training that resumes at an epoch goes on as if it had never stopped. Each of several processes has its part of
    the same order; all parts are of equal length, for which some pictures come twice.
    """

    def __init__(self, length: int, seed: int = 0, shuffle: bool = True, rank: int = 0, ranks: int = 1) -> None:
        """Start at epoch 0.

        Args:
            length: Number of pictures.
            seed: 0 or more.
            shuffle: Whether to change the order.
            rank: Index of this process.
            ranks: Number of processes.

        Raises:
            InvalidInputError: `rank` is not one of `ranks`.
        """
        if not 0 <= rank < ranks:
            raise InvalidInputError(f"the rank of a process must be at least 0 and below {ranks}; got {rank}")
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.ranks = ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0; Lightning calls it before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of this process's pictures."""
        return -(-self.length // self.ranks)

    def __iter__(self) -> Iterator[Key]:
        """Yield the keys of this process."""
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch, _ORDER, self.length]).permutation(self.length)
        mine = np.resize(order, len(self) * self.ranks)[self.rank :: self.ranks]
        return ((self.epoch, int(index)) for index in mine)


def _in_mode(image: NDArray[np.uint8], mode: ImageMode) -> NDArray[np.uint8]:
    """Convert a picture, uint8 (H, W, 3) RGB, to the channels of the network's input."""
    if mode == "GRAY":
        return np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8) if mode == "BGR" else image

# SPDX-License-Identifier: Apache-2.0
"""Batches of an epoch, in an order that depends on the seed and the epoch alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ocdserve.builder.train.data.dataset import EpochSampler


@dataclass(frozen=True)
class LoaderOptions:
    """How samples are batched.

    Attributes:
        batch_size: Samples of a process's batch.
        shuffle: Whether each epoch has an order of its own.
        workers: Processes that make samples; 0: the training process.
        pin_memory: Whether batches are page-locked.
        seed: Of the order.
        rank: Index of this process.
        ranks: Number of processes.
    """

    batch_size: int
    shuffle: bool
    workers: int
    pin_memory: bool
    seed: int
    rank: int = 0
    ranks: int = 1


class EpochLoader:
    """Batches of the epoch that begins, without those that were seen before the training was interrupted.

    Args:
        dataset: Samples by (epoch, index).
        options: How they are batched.
        position: Returns the epoch and its batches that are done, when the first batch is asked for. Lightning makes
            the iterator before it has restored its own position, hence a function.
    """

    def __init__(
        self, dataset: "Dataset[Any]", options: LoaderOptions, position: Callable[[], tuple[int, int]]
    ) -> None:
        self._dataset = dataset
        self._options = options
        self._position = position

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return -(-len(self._sampler(0)) // self._options.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """Yield dictionaries of tensors."""
        epoch, done = self._position()
        keys = list(self._sampler(epoch))
        size = self._options.batch_size
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        yield from DataLoader(
            self._dataset,
            batch_sampler=batches[done:],
            num_workers=self._options.workers,
            pin_memory=self._options.pin_memory,
        )

    def _sampler(self, epoch: int) -> EpochSampler:
        options = self._options
        sampler = EpochSampler(len(self._dataset), options.seed, options.shuffle, options.rank, options.ranks)
        sampler.set_epoch(epoch)
        return sampler

# SPDX-License-Identifier: Apache-2.0
"""A few of a kind, each used by one thread at a time."""

import contextlib
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Lanes(Generic[_T]):
    """Things that are made once and lent out, the one that was free longest first.

    Args:
        make: Makes one.
        count: How many.
    """

    def __init__(self, make: Callable[[], _T], count: int) -> None:
        self._count = count
        self._free: SimpleQueue[_T] = SimpleQueue()
        for _ in range(count):
            self._free.put(make())

    @contextlib.contextmanager
    def lent(self) -> Iterator[_T]:
        """One of them, for the time of the `with` block; waits until one is free."""
        lane = self._free.get()
        try:
            yield lane
        finally:
            self._free.put(lane)

    def taken_out(self) -> list[_T]:
        """All of them, never to come back; waits for those that are lent out."""
        return [self._free.get() for _ in range(self._count)]

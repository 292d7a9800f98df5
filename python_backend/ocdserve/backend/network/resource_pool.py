# SPDX-License-Identifier: Apache-2.0
"""A pool of resources, each used by one thread at a time."""

import contextlib
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

_T = TypeVar("_T")


class ResourcePool(Generic[_T]):
    """A fixed number of resources; the one that has been free longest is acquired first.

    Args:
        make: Makes a resource.
        count: Number of resources.
    """

    def __init__(self, make: Callable[[], _T], count: int) -> None:
        self._count = count
        self._free: SimpleQueue[_T] = SimpleQueue()
        for _ in range(count):
            self._free.put(make())

    @contextlib.contextmanager
    def acquire(self) -> Iterator[_T]:
        """A resource for the duration of the `with` block; waits until one is free."""
        resource = self._free.get()
        try:
            yield resource
        finally:
            self._free.put(resource)

    def drain(self) -> list[_T]:
        """All resources, removed for good; waits until none is in use."""
        return [self._free.get() for _ in range(self._count)]

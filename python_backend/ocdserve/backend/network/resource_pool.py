# SPDX-License-Identifier: Apache-2.0
"""Reusable resources: a pool for several threads, and a cache of the most recently used ones."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)


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
        resource = self.take()
        try:
            yield resource
        finally:
            self.give(resource)

    def take(self) -> _T:
        """A resource, to be given back; waits until one is free."""
        return self._free.get()

    def give(self, resource: _T) -> None:
        """Give a resource back."""
        self._free.put(resource)

    def drain(self) -> list[_T]:
        """All resources, removed for good; waits until none is in use."""
        return [self._free.get() for _ in range(self._count)]


class RecentlyUsed(Generic[_K, _T]):
    """Resources for the most recently used keys, for one thread at a time.

    Args:
        most: Number of resources that are kept.
        release: Called with the key and the resource that is dropped, the least recently used one first.
    """

    def __init__(self, most: int, release: Callable[[_K, _T], object]) -> None:
        self._most = most
        self._release = release
        self._kept: OrderedDict[_K, _T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: _K, make: Callable[[], _T]) -> _T:
        """The resource of a key, made if there is none."""
        if key not in self._kept:
            while len(self._kept) >= self._most:
                self._release(*self._kept.popitem(last=False))
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Release all resources."""
        while self._kept:
            self._release(*self._kept.popitem())

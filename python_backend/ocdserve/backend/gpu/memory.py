# SPDX-License-Identifier: Apache-2.0
"""Memory that grows with the requested size and shrinks when it is far too large."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device

# Up to this many bytes are always kept; beyond that, at most so many times the requested size.
_KEPT = 64 << 20
_MOST_TIMES = 4
# Sizes are rounded up to multiples of this, so that similar ones share an allocation.
_STEP = 1 << 20


class DeviceSpace:
    """A GPU buffer that is replaced when it does not fit."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffer: Buffer | None = None

    def of(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes; it may replace and invalidate the one of the previous call.

        Raises:
            DeviceMemoryError: The GPU is out of memory.
        """
        if self._buffer is None or not _fits(self._buffer.size, size):
            self.close()
            self._buffer = self._device.allocate(_rounded(size))
        return self._buffer

    def close(self) -> None:
        """Release the memory; calling it again does nothing."""
        if self._buffer is not None:
            self._buffer.close()
        self._buffer = None


class SharedBuffers:
    """Named GPU buffers of users that take turns on one stream, each as large as the most demanding user needs.

    Attributes:
        version: Grows whenever a buffer is replaced; a graph that was recorded with another version holds addresses
            of released memory.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._users: list[Mapping[str, int]] = []
        self._buffers: dict[str, Buffer] = {}
        self._complete = True
        self.version = 0

    def add(self, sizes: Mapping[str, int]) -> None:
        """Add a user that needs these sizes in bytes; memory is allocated by `get`."""
        self._users.append(sizes)
        self._complete = False

    def remove(self, sizes: Mapping[str, int]) -> None:
        """Remove a user that was added with these sizes; the last one releases the memory."""
        self._users.remove(sizes)
        self._complete = False
        if not self._users:
            for buffer in self._buffers.values():
                buffer.close()
            self._buffers.clear()

    def get(self) -> Mapping[str, Buffer]:
        """The buffers; those that are too small for a user, or far too large for all, are replaced first.

        Raises:
            DeviceMemoryError: The GPU is out of memory.
        """
        if not self._complete:
            for name in {name for sizes in self._users for name in sizes}:
                self._fit(name, max(sizes.get(name, 0) for sizes in self._users))
            self._complete = True
        return self._buffers

    def _fit(self, name: str, size: int) -> None:
        if name in self._buffers and not size <= self._buffers[name].size <= _MOST_TIMES * size:
            self._buffers.pop(name).close()
        if name not in self._buffers:
            self.version += 1
            self._buffers[name] = self._device.allocate(size)


class HostSpace:
    """A page-locked array that is replaced when it does not fit; no queued work may still use it then."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._array: NDArray[np.uint8] | None = None

    def of(self, size: int) -> NDArray[np.uint8]:
        """A uint8 array of at least `size` bytes."""
        if self._array is None or not _fits(self._array.size, size):
            self.close()
            self._array = self._device.host_array(_rounded(size), np.uint8)
        return self._array

    def close(self) -> None:
        """Release the memory; calling it again does nothing."""
        self._array = None


def _fits(have: int, size: int) -> bool:
    return size <= have <= max(_MOST_TIMES * size, _KEPT)


def _rounded(size: int) -> int:
    return -(-size // _STEP) * _STEP

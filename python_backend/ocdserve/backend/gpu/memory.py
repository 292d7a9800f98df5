# SPDX-License-Identifier: Apache-2.0
"""Memory that grows with the requested size and shrinks when it is far too large."""

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device

# Up to this many bytes are always kept; beyond that, at most four times the requested size.
_KEPT = 64 << 20
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
    return size <= have <= max(4 * size, _KEPT)


def _rounded(size: int) -> int:
    return -(-size // _STEP) * _STEP

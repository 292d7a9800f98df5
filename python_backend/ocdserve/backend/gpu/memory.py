# SPDX-License-Identifier: Apache-2.0
"""Memory that grows with what is asked of it and is given back when it was far too much."""

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device

# Up to here, bytes, memory is kept however little is asked for; above, up to four times as much as is asked for.
_KEPT = 64 << 20
# Sizes are rounded up to this, so that slightly differing ones share an allocation.
_STEP = 1 << 20


class DeviceSpace:
    """One buffer of a GPU that is replaced when it does not fit."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffer: Buffer | None = None

    def of(self, size: int) -> Buffer:
        """A buffer of at least `size` bytes; the one from the call before is then invalid, unless it is the same.

        Raises:
            DeviceMemoryError: The GPU has not the memory.
        """
        if self._buffer is None or not _fits(self._buffer.size, size):
            self.close()
            self._buffer = self._device.allocate(_rounded(size))
        return self._buffer

    def close(self) -> None:
        """Give the memory back; calling it again does nothing."""
        if self._buffer is not None:
            self._buffer.close()
        self._buffer = None


class HostSpace:
    """One page-locked array that is replaced when it does not fit; nothing queued may still use it then."""

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
        """Give the memory back; calling it again does nothing."""
        self._array = None


def _fits(have: int, size: int) -> bool:
    return size <= have <= max(4 * size, _KEPT)


def _rounded(size: int) -> int:
    return -(-size // _STEP) * _STEP

# SPDX-License-Identifier: Apache-2.0
"""Memory that grows with the requested size and shrinks when it is far too large, and memory for decoded images."""

import threading
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, DeviceMemoryError

# Up to this many bytes are always kept; beyond that, at most so many times the requested size.
_KEPT = 64 << 20
_MOST_TIMES = 4
# Sizes are rounded up to multiples of this, so that similar ones share an allocation.
_STEP = 1 << 20
# Of decoded images: most bytes that are locked at the same time, those of about 40 photographs of two megapixels; an
# image of more than an eighth of it has ordinary memory.
_MOST_LOCKED = 256 << 20
_LARGEST_SHARE = 8
# Bytes behind each image, so that the GPU can read all of it in whole words.
SPARE_BYTES = 3


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


class ImagePool:
    """Page-locked arrays for decoded images, which the GPU copies from without another copy; thread-safe.

    An image is decoded before it is known which slot takes it. The memory is the image's until nothing refers to it any
    more, and then that of another.

    Args:
        device: The GPU.
        most: Most bytes that are locked at the same time.
    """

    def __init__(self, device: Device, most: int = _MOST_LOCKED) -> None:
        self._device = device
        self._most = most
        self._locked = 0
        self._idle: dict[int, list[NDArray[np.uint8]]] = {}
        # Of its own, because the garbage collector may give memory back in a thread that holds the lock.
        self._returned: deque[NDArray[np.uint8]] = deque()
        self._lock = threading.Lock()

    def array(self, height: int, width: int) -> NDArray[np.uint8]:
        """An array uint8 (height, width, 3); of ordinary memory where no more can be locked, or if it is large.

        Raises:
            DeviceError: The device has failed.
        """
        size = 3 * height * width
        block = self._block(size + SPARE_BYTES)
        if block is None:
            return np.empty((height, width, 3), np.uint8)
        return np.asarray(_Loan(block, self._returned.append))[:size].reshape(height, width, 3)

    def close(self) -> None:
        """Release what is not in use; calling it again does nothing."""
        with self._lock:
            self._collect()
            self._idle.clear()

    def _block(self, size: int) -> NDArray[np.uint8] | None:
        # Sizes have three significant bits, so that images of similar sizes share them, at most a quarter too large.
        step = max(_STEP, 1 << max(0, (size - 1).bit_length() - 3))
        size = -(-size // step) * step
        if size > self._most // _LARGEST_SHARE:
            return None
        with self._lock:
            self._collect()
            if blocks := self._idle.get(size):
                return blocks.pop()
            for blocks in self._idle.values():
                while blocks and self._locked + size > self._most:
                    self._locked -= blocks.pop().size
            if self._locked + size > self._most:
                return None
            self._locked += size
        try:
            return self._device.host_array(size, np.uint8)
        except BaseException as error:
            with self._lock:
                self._locked -= size
            # The system may lock less than the bound, as in a virtual machine.
            if isinstance(error, DeviceMemoryError):
                return None
            raise

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._idle.setdefault(block.size, []).append(block)


class _Loan:
    """What arrays of a block refer to, in place of the block; the last of them gives it back."""

    def __init__(self, block: NDArray[np.uint8], give_back: Callable[[NDArray[np.uint8]], object]) -> None:
        self.__array_interface__ = block.__array_interface__
        self._block = block
        self._give_back = give_back

    def __del__(self) -> None:
        self._give_back(self._block)


def locked_bytes(image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The bytes of an array of an `ImagePool` with the spare ones behind it; None for other arrays, and for parts."""
    whole = image
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if not isinstance(whole.base, _Loan) or whole.ctypes.data != image.ctypes.data or not image.flags.c_contiguous:
        return None
    return whole[: image.size + SPARE_BYTES]


def _fits(have: int, size: int) -> bool:
    return size <= have <= max(_MOST_TIMES * size, _KEPT)


def _rounded(size: int) -> int:
    return -(-size // _STEP) * _STEP

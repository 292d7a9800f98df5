# SPDX-License-Identifier: Apache-2.0
"""A device whose memory is the host's and whose streams execute at once; it has no kernels and no graphs."""

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

# What device memory is aligned to.
_ALIGNMENT = 256


def memory(pointer: int, *shape: int) -> NDArray[np.uint8]:
    """The bytes at an address of such a device, as an array."""
    size = int(np.prod(shape))
    return np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), np.uint8).reshape(shape)


class HostBuffer:
    def __init__(self, device: "HostDevice", size: int) -> None:
        self._device = device
        self._memory = np.zeros(size + _ALIGNMENT, np.uint8)
        self.size = size
        self.closed = False
        device.buffers.append(self)

    @property
    def pointer(self) -> int:
        return -(-self._memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT

    def close(self) -> None:
        self.closed = True


class HostStream:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def to_device(self, target: Any, source: NDArray[Any], offset: int = 0) -> None:
        memory(target.pointer + offset, source.nbytes)[:] = source.reshape(-1).view(np.uint8)

    def to_host(self, target: NDArray[Any], source: Any, offset: int = 0) -> None:
        target.reshape(-1).view(np.uint8)[:] = memory(source.pointer + offset, target.nbytes)

    def fill(self, target: Any, value: int, size: int, offset: int = 0) -> None:
        memory(target.pointer + offset, size)[:] = value

    def launch(self, *arguments: Any, **named: Any) -> None:
        raise NotImplementedError

    def capture(self) -> Any:
        raise NotImplementedError

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass


class HostDevice:
    name = "NVIDIA Imaginary"
    multiprocessors = 4
    failed = False

    def __init__(self) -> None:
        self.buffers: list[HostBuffer] = []
        self.is_current = False
        self.is_closed = False
        self._streams = 0

    @property
    def allocated(self) -> int:
        """Bytes that were not released."""
        return sum(buffer.size for buffer in self.buffers if not buffer.closed)

    def allocate(self, size: int) -> HostBuffer:
        return HostBuffer(self, size)

    def host_array(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        before, self.is_current = self.is_current, True
        yield
        self.is_current = before

    def stream(self) -> HostStream:
        self._streams += 1
        return HostStream(self._streams)

    def module(self, source: str) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.is_closed = True

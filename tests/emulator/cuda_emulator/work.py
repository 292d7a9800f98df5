# SPDX-License-Identifier: Apache-2.0
"""Work that a stream queues: launches, copies and fills, with the objects that they keep alive."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import MisuseError
from .memory import GARBAGE, Memory, bytes_at


class HostRange:
    """The bytes of a C-contiguous host array, which this object does not keep alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        if not array.flags.c_contiguous:
            raise MisuseError(f"host arrays of copies must be C-contiguous (got strides {array.strides})")
        self._owner = weakref.ref(owner_of(array))
        self.address: int = array.ctypes.data
        self.size = array.nbytes

    def bytes(self) -> NDArray[np.uint8]:
        """Its bytes, as they are now.

        Raises:
            MisuseError: The array is gone.
        """
        if self.size and self._owner() is None:
            raise MisuseError("a host array of a copy is gone before the copy happened: it must be kept until then")
        return bytes_at(self.address, self.size)

    def spoil(self) -> None:
        """Fill it with garbage: what a copy is going to write cannot be read before."""
        self.bytes().fill(GARBAGE)

    def is_within(self, other: "HostRange") -> bool:
        """Whether all of its bytes are among those of another."""
        return other.address <= self.address and self.address + self.size <= other.address + other.size

    def overlaps(self, other: "HostRange") -> bool:
        """Whether they share bytes."""
        return self.address < other.address + other.size and other.address < self.address + self.size


@dataclass(frozen=True)
class Work:
    """Something that is executed later, maybe more than once."""

    execute: Callable[[], None]
    memories: tuple[Memory, ...]
    reads: HostRange | None = None
    writes: HostRange | None = None


def owner_of(array: NDArray[Any]) -> NDArray[Any]:
    """The array that the memory of a view belongs to."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def copy_to_device(target: Memory, source: NDArray[Any], offset: int, is_pinned: bool) -> Work:
    """A page-locked array is read when the work is executed, another one is read now."""
    host = HostRange(source)
    part = target.part(offset, host.size)
    if not is_pinned:
        content = host.bytes().copy()
        return Work(lambda: np.copyto(part, content), (target,))
    return Work(lambda: np.copyto(part, host.bytes()), (target,), reads=host)


def copy_to_host(target: NDArray[Any], source: Memory, offset: int) -> Work:
    """The array holds garbage until the work is executed."""
    if not target.flags.writeable:
        raise MisuseError("the target of to_host must be writeable")
    host = HostRange(target)
    part = source.part(offset, host.size)
    return Work(lambda: np.copyto(host.bytes(), part), (source,), writes=host)


def copy_on_device(target: Memory, source: Memory, size: int, target_offset: int, source_offset: int) -> Work:
    """Copies between buffers, or within one."""
    to, of = target.part(target_offset, size), source.part(source_offset, size)
    if np.shares_memory(to, of):
        raise MisuseError(f"copy: the {size} bytes from {source_offset} and to {target_offset} overlap")
    return Work(lambda: np.copyto(to, of), (target, source))


def fill(target: Memory, value: int, size: int, offset: int) -> Work:
    """Sets bytes."""
    if not 0 <= value <= 255:
        raise MisuseError(f"fill: the value must be a byte (got {value})")
    part = target.part(offset, size)
    return Work(lambda: part.fill(value), (target,))

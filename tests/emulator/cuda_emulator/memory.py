# SPDX-License-Identifier: Apache-2.0
"""Device memory between two ranges of addresses that nothing may touch."""

import ctypes
import mmap
import os
import weakref

import numpy as np
from numpy.typing import NDArray

from .errors import MisuseError

GARBAGE = 0xCD
# The guard behind a buffer begins at most 15 bytes behind the end: no CUDA type asks for a larger alignment than 16.
_ALIGNMENT = 16
_PAGE = mmap.PAGESIZE
# Only addresses, no memory: as much as wrong arithmetic of 32 bits strays.
_GUARD = 4 * 2**30

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_PROT_NONE = 0


class Memory:
    """`size` bytes of garbage, given back with the last reference to this object.

    Reading or writing behind the end is a fault at once; in front of it, what is written is found by `check`.
    """

    def __init__(self, size: int) -> None:
        usable = max(1, -(-size // _PAGE)) * _PAGE
        start = _reserve(usable)
        weakref.finalize(self, _libc.munmap, start, usable + 2 * _GUARD)
        if _libc.mprotect(start + _GUARD, usable, mmap.PROT_READ | mmap.PROT_WRITE) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        whole = bytes_at(start + _GUARD, usable)
        whole.fill(GARBAGE)
        before = (usable - size) // _ALIGNMENT * _ALIGNMENT
        self.address: int = start + _GUARD + before
        self.size = size
        self._before = whole[:before]
        self._behind = whole[before + size :]
        self._bytes: NDArray[np.uint8] = whole[before : before + size]

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.size

    def part(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Its bytes from `offset`; valid as long as this object is.

        Raises:
            MisuseError: They are not all inside.
        """
        if offset < 0 or offset + size > self.size:
            raise MisuseError(f"bytes {offset} to {offset + size} are outside of a buffer of {self.size} bytes")
        return self._bytes[offset : offset + size]

    def damage(self) -> str | None:
        """Where something was written outside of it, if it was."""
        before = np.flatnonzero(self._before != GARBAGE)
        if before.size:
            return f"{len(self._before) - int(before[-1])} bytes in front of a buffer of {self.size} bytes"
        behind = np.flatnonzero(self._behind != GARBAGE)
        if behind.size:
            return f"{int(behind[0])} bytes behind the end of a buffer of {self.size} bytes"
        return None


def _reserve(usable: int) -> int:
    start = _libc.mmap(None, usable + 2 * _GUARD, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if start is None or start == ctypes.c_void_p(-1).value:
        reason = os.strerror(ctypes.get_errno())
        raise OSError(ctypes.get_errno(), f"no {usable + 2 * _GUARD} addresses for emulated device memory: {reason}")
    return int(start)


def bytes_at(address: int, size: int) -> NDArray[np.uint8]:
    """An array over memory that somebody else keeps alive."""
    if size == 0:
        return np.zeros(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

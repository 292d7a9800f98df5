# SPDX-License-Identifier: Apache-2.0
"""Host memory that a GPU reads and writes directly.

It belongs to the process and is only locked for the GPU: memory of the driver would be freed with the context, while
arrays still use it.
"""

import mmap

import numpy as np

from ocdserve.backend.device.deferred_release import DeferredRelease, Releasable
from ocdserve.backend.device.driver import Libraries, check


class LockedPages(Releasable):
    """Zeroed, locked memory; `np.asarray` makes an array of bytes that keeps it alive. The device must be current."""

    def __init__(self, libraries: Libraries, size: int, releases: DeferredRelease) -> None:
        cuda = libraries.bindings
        self._pages = pages = mmap.mmap(-1, size)
        pointer = np.frombuffer(pages, np.uint8).ctypes.data
        check(cuda.cuMemHostRegister(pointer, size, 0), "cuMemHostRegister")
        self.__array_interface__ = {"version": 3, "data": (pointer, False), "typestr": "|u1", "shape": (size,)}

        def release() -> mmap.mmap:
            check(cuda.cuMemHostUnregister(pointer), "cuMemHostUnregister")
            return pages  # they must outlive their registration

        super().__init__(releases, release)

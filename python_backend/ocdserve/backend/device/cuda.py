# SPDX-License-Identifier: Apache-2.0
"""The real device: one GPU, through pycuda, closed before the interpreter ends."""

import threading
from contextlib import AbstractContextManager, closing
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ocdserve.backend.device import driver, probe
from ocdserve.backend.device.atexit_close import close_at_exit
from ocdserve.backend.device.buffers import CudaBuffer, DevicePool
from ocdserve.backend.device.context import CudaContext
from ocdserve.backend.device.driver import check
from ocdserve.backend.device.host_memory import LockedPages
from ocdserve.backend.device.module import CudaModule
from ocdserve.backend.device.protocol import Buffer, Device, Module, Stream
from ocdserve.backend.device.stream import CudaStream
from ocdserve.contract import UnavailableError


def open_device(index: int = 0) -> "CudaDevice":
    """One of this machine's GPUs, numbered as by the driver, `CUDA_VISIBLE_DEVICES` included.

    Raises:
        UnavailableError: There is no such GPU, it is too old, or something is not installed; the message says what.
    """
    libraries = driver.load()
    probe.present_gpu(index)
    device = CudaDevice(libraries, index)
    close_at_exit(device)
    return device


class CudaDevice:
    """One GPU. Thread-safe; `open_device` makes it.

    Attributes:
        context: The GPU's primary context.
        name: The GPU's model.
        multiprocessors: Its streaming multiprocessors.
    """

    def __init__(self, libraries: driver.Libraries, index: int) -> None:
        self.context = CudaContext(libraries, index)
        self.name = self.context.name
        self.multiprocessors = self.context.multiprocessors
        self._modules: dict[str, CudaModule] = {}
        self._module_lock = threading.Lock()
        self._streams: set[int] = set()
        try:
            with self.context.working():
                self._pool = DevicePool(libraries, index, lambda: tuple(self._streams))
        except UnavailableError:
            self.context.close(lambda: None)
            raise

    @property
    def failed(self) -> bool:
        """Whether work failed so that nothing more can be done on the device in this process."""
        return self.context.failed

    def current(self) -> AbstractContextManager[None]:
        """Make the GPU current in the calling thread inside the `with` block, for other libraries that use CUDA.

        Calls of this device inside the block are faster: they find the GPU current.

        Raises:
            DeviceError: The device failed before, or is closed.
        """
        return self.context.working()

    def allocate(self, size: int) -> Buffer:
        """Device memory of `size` bytes, aligned to 256, its content undefined.

        Raises:
            DeviceMemoryError: There is not enough free memory; the message has the figures.
        """
        self.context.releases.drain()
        with self.context.working():
            return CudaBuffer(self._pool, max(size, 1), self.context.releases)

    def fetch(self, source: Buffer, size: int, index: int) -> Buffer:
        """A copy of the first `size` bytes of a buffer in the memory of the GPU with that index, complete on return.

        Raises:
            DeviceMemoryError: There is not enough free memory; the message has the figures.
            DeviceError: The copy failed.
        """
        cuda = self.context.libraries.bindings
        with self.context.working():
            target = self.allocate(size)
            own = check(cuda.cuCtxGetCurrent(), "cuCtxGetCurrent")
            peer = check(cuda.cuDevicePrimaryCtxRetain(index), "cuDevicePrimaryCtxRetain")
            try:
                with closing(self.stream()) as stream:
                    copied = cuda.cuMemcpyPeerAsync(target.pointer, own, source.pointer, peer, size, stream.handle)
                    check(copied, "cuMemcpyPeerAsync")
                    stream.synchronize()
            finally:
                cuda.cuDevicePrimaryCtxRelease(index)
        return target

    def host_array(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A zeroed, page-locked host array; it is unlocked with its last reference, or with the device.

        The memory is the process's own, locked for the GPU: it stays valid when the device is closed.
        """
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with self.context.working():
            pages = LockedPages(self.context.libraries, max(size, 1), self.context.releases)
        return np.asarray(pages)[:size].view(dtype).reshape(shape)

    def stream(self) -> Stream:
        """A new stream that does not wait for the legacy default stream."""
        with self.context.working():
            return CudaStream(self.context, self._streams)

    def module(self, source: str) -> Module:
        """The `.cu` file of that name in this package, compiled for this GPU and loaded.

        Raises:
            UnavailableError: It cannot be compiled or loaded; the message has the compiler's log.
        """
        with self._module_lock:
            if source not in self._modules:
                self._modules[source] = CudaModule(self.context, source)
            return self._modules[source]

    def close(self) -> None:
        """Release all that this object holds, once no other thread is inside a call; calling it again does nothing.

        Raises:
            DeviceError: The calling thread is inside `current`.
        """
        self.context.close(self._release_all)

    def _release_all(self) -> None:
        for module in self._modules.values():
            module.unload()
        self._modules.clear()
        self._pool.close()


_: type[Device] = CudaDevice  # for the type checker: it implements the protocol

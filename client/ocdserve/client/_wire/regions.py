# SPDX-License-Identifier: Apache-2.0
"""Shared memory for raw pixels: a small pool of regions of each server, reused and always released."""

import os
import secrets
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._options import SharedMemory
from ocdserve.contract import UnavailableError

__all__ = ["Region", "RegionPool"]

_PAGE = 4096


class Memory(Protocol):
    """The memory of one region."""

    def write(self, array: NDArray[Any]) -> None:
        """Copy the array to the region's begin."""

    def handle(self) -> str:
        """What the server opens it by: the key in /dev/shm, or a CUDA handle in base64."""

    def destroy(self) -> None:
        """Give the memory back."""


@dataclass(eq=False)
class Region:
    """One region of a pool.

    Attributes:
        name: As the server is to know it.
        nbytes: Its size.
        kind: "system" or "cuda".
        device: Number of the GPU.
        memory: The memory itself.
        registered: Whether the server knows it.
    """

    name: str
    nbytes: int
    kind: str
    device: int
    memory: Memory
    registered: bool = False


class RegionPool:
    """At most `options.regions` regions, each as large as the largest image that it has carried. Thread-safe."""

    def __init__(self, options: SharedMemory) -> None:
        self._options = options
        self._free: list[Region] = []
        self._all: list[Region] = []
        self._lock = threading.Lock()
        self._prefix = f"ocdserve-client-{os.getpid()}-{secrets.token_hex(4)}"
        self._made = 0
        # For a detector that is never closed: at the latest when the interpreter ends.
        self._finalizer = weakref.finalize(self, _destroy, self._all, os.getpid())

    def lease(self, nbytes: int) -> tuple[Region | None, Region | None]:
        """A region of at least that size for one request, until `give_back`.

        Returns:
            The region, or None where all are in use; and a smaller region that made room for it and that the caller
            unregisters from the server and destroys.

        Raises:
            UnavailableError: There is no room, or a package is missing.
        """
        with self._lock:
            fitting = [region for region in self._free if region.nbytes >= nbytes]
            if fitting:
                region = min(fitting, key=lambda one: one.nbytes)
                self._free.remove(region)
                return region, None
            retired = None
            if len(self._all) >= self._options.regions:
                if not self._free:
                    return None, None
                retired = min(self._free, key=lambda one: one.nbytes)
                self._free.remove(retired)
                self._all.remove(retired)
            self._made += 1
            name = f"{self._prefix}-{self._made}"
            size = -(-nbytes // _PAGE) * _PAGE
            try:
                region = Region(name, size, self._options.kind, self._options.device, self._memory(name, size))
            except BaseException:
                if retired is not None:
                    self._all.append(retired)
                    self._free.append(retired)
                raise
            self._all.append(region)
            return region, retired

    def give_back(self, region: Region) -> None:
        """End a lease."""
        with self._lock:
            if region in self._all:
                self._free.append(region)

    def forget_registrations(self) -> None:
        """The server has lost what it knew, as after a restart."""
        with self._lock:
            for region in self._all:
                region.registered = False

    def drain(self) -> list[Region]:
        """All regions, which are the caller's to unregister and destroy; the pool is empty afterwards."""
        with self._lock:
            regions = list(self._all)
            # The finalizer knows this list.
            self._all.clear()
            self._free.clear()
            return regions

    def _memory(self, name: str, nbytes: int) -> Memory:
        if self._options.kind == "cuda":
            return CudaMemory(name, nbytes, self._options.device)
        return SystemMemory(name, nbytes)


def _destroy(regions: list[Region], process: int) -> None:
    """Give memory back that nobody has released, unless it is a parent's."""
    while regions and process == os.getpid():
        regions.pop().memory.destroy()


class SystemMemory:
    """A segment in /dev/shm."""

    def __init__(self, name: str, nbytes: int) -> None:
        from multiprocessing import shared_memory

        try:
            # Without this, a full /dev/shm would show itself as SIGBUS in the first write.
            statistics = os.statvfs("/dev/shm")
            if statistics.f_bavail * statistics.f_frsize < nbytes:
                raise OSError(28, "No space left on device")
            self._segment = shared_memory.SharedMemory(name, create=True, size=nbytes)
        except OSError as error:
            raise UnavailableError(
                f"no shared memory of {nbytes} bytes in /dev/shm: {error.strerror}. Make room there, or leave out "
                "`shared_memory`."
            ) from error
        self._key = f"/{name}"

    def write(self, array: NDArray[Any]) -> None:
        buffer: memoryview | None = self._segment.buf
        if buffer is None:
            raise UnavailableError("the detector was closed during the call")
        np.ndarray(array.shape, array.dtype, buffer=buffer)[:] = array

    def handle(self) -> str:
        return self._key

    def destroy(self) -> None:
        # Another thread may be writing; then its view closes the memory.
        with suppress(BufferError):
            self._segment.close()
        self._segment.unlink()


class CudaMemory:
    """Memory of a GPU, by tritonclient's own functions. Not executed yet on a GPU."""

    def __init__(self, name: str, nbytes: int, device: int) -> None:
        try:
            from tritonclient.utils import cuda_shared_memory
        except (ImportError, RuntimeError) as error:
            # tritonclient turns the ModuleNotFoundError of its own import into a RuntimeError.
            missing = getattr(error.__cause__ or error, "name", None) or "cuda.bindings"
            raise UnavailableError(
                f'SharedMemory(kind="cuda") needs the package {missing!r}; run `pip install "tritonclient[cuda]"`, '
                'or use SharedMemory(kind="system")'
            ) from error
        self._library = cuda_shared_memory
        try:
            self._region = cuda_shared_memory.create_shared_memory_region(name, nbytes, device)
        except Exception as error:
            raise UnavailableError(
                f"no CUDA memory of {nbytes} bytes on GPU {device}: {error}. Check the driver with `nvidia-smi`, "
                'or use SharedMemory(kind="system").'
            ) from error

    def write(self, array: NDArray[Any]) -> None:
        self._library.set_shared_memory_region(self._region, [array])

    def handle(self) -> str:
        return str(self._library.get_raw_handle(self._region), "ascii")

    def destroy(self) -> None:
        self._library.destroy_shared_memory_region(self._region)

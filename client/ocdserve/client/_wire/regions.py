# SPDX-License-Identifier: Apache-2.0
"""Shared memory for raw pixels: a small pool of regions per server, reused and always released."""

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

_PAGE = 4096


class Memory(Protocol):
    """The memory of one region."""

    def write(self, array: NDArray[Any]) -> None:
        """Copy the array to the start of the region."""

    def handle(self) -> str:
        """How the server opens it: the key in /dev/shm, or a CUDA handle in base64."""

    def destroy(self) -> None:
        """Free the memory."""


@dataclass(eq=False)
class Region:
    """One region of a pool.

    Attributes:
        name: Name for registration.
        nbytes: Size in bytes.
        kind: "system" or "cuda".
        device: Index of the GPU.
        memory: The memory itself.
        registered: Whether it is registered with the server.
    """

    name: str
    nbytes: int
    kind: str
    device: int
    memory: Memory
    registered: bool = False


class RegionPool:
    """At most `options.regions` regions, each as large as its largest image so far. Thread-safe."""

    def __init__(self, options: SharedMemory) -> None:
        self._options = options
        self._free: list[Region] = []
        self._all: list[Region] = []
        self._lock = threading.Lock()
        self._prefix = f"ocdserve-client-{os.getpid()}-{secrets.token_hex(4)}"
        self._made = 0
        # For a client that is never closed: runs at the latest when the interpreter exits.
        self._finalizer = weakref.finalize(self, _destroy, self._all, os.getpid())

    def lease(self, nbytes: int) -> tuple[Region | None, Region | None]:
        """A region of at least that size for one request, until `give_back`.

        Returns:
            The region, or None if all are in use; and a smaller region that was evicted for it, which the caller must
            unregister and destroy.

        Raises:
            UnavailableError: There is not enough memory, or a package is missing.
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
        """Mark all regions as unregistered, as after a restart of the server."""
        with self._lock:
            for region in self._all:
                region.registered = False

    def drain(self) -> list[Region]:
        """Empty the pool and return all regions, which the caller must unregister and destroy."""
        with self._lock:
            regions = list(self._all)
            # The finalizer holds this list.
            self._all.clear()
            self._free.clear()
            return regions

    def _memory(self, name: str, nbytes: int) -> Memory:
        if self._options.kind == "cuda":
            return CudaMemory(name, nbytes, self._options.device)
        return SystemMemory(name, nbytes)


def _destroy(regions: list[Region], process: int) -> None:
    """Free memory that was not released, unless it belongs to the parent process."""
    while regions and process == os.getpid():
        regions.pop().memory.destroy()


class SystemMemory:
    """A segment in /dev/shm."""

    def __init__(self, name: str, nbytes: int) -> None:
        from multiprocessing import shared_memory

        try:
            # Without this check, a full /dev/shm raises SIGBUS on the first write. One without a limit has the size 0.
            statistics = os.statvfs("/dev/shm")
            if statistics.f_blocks and statistics.f_bavail * statistics.f_frsize < nbytes:
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
            raise UnavailableError("the client was closed during the call")
        np.ndarray(array.shape, array.dtype, buffer=buffer)[:] = array

    def handle(self) -> str:
        return self._key

    def destroy(self) -> None:
        # Another thread may be writing; then its view keeps the memory mapped until it is done.
        with suppress(BufferError):
            self._segment.close()
        self._segment.unlink()


class CudaMemory:
    """GPU memory, by tritonclient's own functions. Not yet run on a GPU."""

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

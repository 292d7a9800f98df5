# SPDX-License-Identifier: Apache-2.0
"""Device memory from a driver memory pool that belongs to one device object, and memory of other libraries.

`cuMemFree` waits for everything on the GPU, so one finished request would stall all others; a pool allocates and frees
in stream order. The pool is not the device's default one, which other libraries in the process use, so that its figures
are ours alone and closing it releases everything.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ocdserve.backend.device.deferred_release import DeferredRelease, Releasable
from ocdserve.backend.device.driver import Libraries, check
from ocdserve.backend.device.protocol import DeviceMemoryError
from ocdserve.contract import InvalidInputError

_ALL = 2**64 - 1


class CudaBuffer(Releasable):
    """Memory of a `DevicePool`."""

    def __init__(self, pool: "DevicePool", size: int, releases: DeferredRelease) -> None:
        self.pointer = pointer = pool.allocate(size)
        self.size = size
        super().__init__(releases, lambda: pool.free(pointer))


@dataclass(frozen=True)
class ForeignBuffer:
    """Device memory that another library owns; the user must keep that owner alive.

    Raises:
        InvalidInputError: A field is out of its range.
    """

    pointer: int
    size: int

    def __post_init__(self) -> None:
        if self.pointer < 0 or self.size < 0 or (self.size and not self.pointer):
            raise InvalidInputError(f"a buffer needs an address and a size; got {self.size} bytes at {self.pointer:#x}")

    def close(self) -> None:
        """Do nothing: the memory is not ours."""


class DevicePool:
    """The pool; all of its methods need the device to be current.

    Memory is allocated on one stream, which is always idle, so that any stream may use it at once; it is freed on
    another, which waits for all streams of the device.

    Args:
        index: The device's number.
        streams: Handles of the streams that memory may be in use on.
    """

    def __init__(self, libraries: Libraries, index: int, streams: Callable[[], Iterable[int]]) -> None:
        self._cuda = cuda = libraries.bindings
        self._pycuda = libraries.pycuda
        self._streams = streams
        properties = cuda.CUmemPoolProps()
        properties.allocType = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.handleTypes = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE
        properties.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = index
        self._pool = check(cuda.cuMemPoolCreate(properties), "cuMemPoolCreate")
        attributes = cuda.CUmemPool_attribute
        for attribute, value in (
            # Otherwise the driver returns freed memory to the system at every synchronisation.
            (attributes.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, cuda.cuuint64_t(_ALL)),
            # Otherwise it may take memory whose free is pending: the allocation would then wait for all streams.
            (attributes.CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES, 0),
        ):
            check(cuda.cuMemPoolSetAttribute(self._pool, attribute, value), "cuMemPoolSetAttribute")
        non_blocking = cuda.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._allocating = check(cuda.cuStreamCreate(non_blocking), "cuStreamCreate")
        self._freeing = check(cuda.cuStreamCreate(non_blocking), "cuStreamCreate")
        untimed = cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING
        self._event = check(cuda.cuEventCreate(untimed), "cuEventCreate")

    def allocate(self, size: int) -> int:
        """The address of `size` bytes.

        Raises:
            DeviceMemoryError: There is not enough free memory.
        """
        cuda = self._cuda
        code, pointer = cuda.cuMemAllocFromPoolAsync(size, self._pool, self._allocating)
        if code == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            # Pending frees, and what the pool keeps in blocks of the wrong size, may be enough.
            check(cuda.cuStreamSynchronize(self._freeing), "cuStreamSynchronize")
            check(cuda.cuMemPoolTrimTo(self._pool, 0), "cuMemPoolTrimTo")
            code, pointer = cuda.cuMemAllocFromPoolAsync(size, self._pool, self._allocating)
        if code == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            free, total = self._pycuda.mem_get_info()
            raise DeviceMemoryError(
                f"{size / 2**20:.1f} MiB of GPU memory were asked for; {free / 2**20:.1f} of {total / 2**20:.1f} MiB "
                f"are free, {self.used() / 2**20:.1f} MiB are ours. Give the GPU's other users less, or use smaller "
                "batches."
            )
        check((code,), "cuMemAllocFromPoolAsync")
        check(cuda.cuStreamSynchronize(self._allocating), "cuStreamSynchronize")
        return int(pointer)

    def free(self, pointer: int) -> None:
        """Free memory once the work queued so far is done; no stream may be recording."""
        cuda = self._cuda
        for stream in self._streams():
            check(cuda.cuEventRecord(self._event, stream), "cuEventRecord")
            check(cuda.cuStreamWaitEvent(self._freeing, self._event, 0), "cuStreamWaitEvent")
        check(cuda.cuMemFreeAsync(pointer, self._freeing), "cuMemFreeAsync")

    def used(self) -> int:
        """Bytes that are allocated or waiting to be freed."""
        attribute = self._cuda.CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_CURRENT
        return int(check(self._cuda.cuMemPoolGetAttribute(self._pool, attribute), "cuMemPoolGetAttribute"))

    def close(self) -> None:
        """Release all memory; none of it may be in use."""
        cuda = self._cuda
        check(cuda.cuStreamSynchronize(self._freeing), "cuStreamSynchronize")
        check(cuda.cuMemPoolDestroy(self._pool), "cuMemPoolDestroy")
        check(cuda.cuEventDestroy(self._event), "cuEventDestroy")
        for stream in (self._allocating, self._freeing):
            check(cuda.cuStreamDestroy(stream), "cuStreamDestroy")

# SPDX-License-Identifier: Apache-2.0
"""A GPU that executes kernels on the CPU, and is stricter than a real one."""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ocdserve.backend.device.protocol import Buffer, DeviceError, DeviceMemoryError

from .errors import KernelFault, MisuseError
from .launching import EmulatedModule
from .memory import Memory
from .schedule import Schedule
from .sources import package_sources
from .streams import EmulatedGraph, EmulatedStream
from .work import HostRange, Work


class EmulatedDevice:
    """Implements `ocdserve.backend.device.protocol.Device`.

    Args:
        schedule: The order of threads; each launch gets a seed of its own, made from the schedule's.
        deferred: Execute work only when its stream is synchronised, so that host code that does not wait reads
            garbage. False executes at once.
        sources: Texts of `.cu` and `.cuh` files that replace the package's of the same name, or are added to them.
        check_races: Check each access of a kernel: that it is inside of a buffer or shared memory, to the byte, and
            that a barrier or the end of the launch is between it and another thread's, one of the two writing. Atomics
            and volatile accesses may meet each other and plain reads. Slow, for small inputs.
        memory_size: Bytes of device memory.

    Raises:
        UnavailableError: There is no g++ that compiles CUDA sources.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        deferred: bool = True,
        sources: Mapping[str, str] | None = None,
        check_races: bool = False,
        memory_size: int = 16 * 2**30,
    ) -> None:
        self.schedule = schedule or Schedule()
        self.is_deferred = deferred
        self.graphs: set[EmulatedGraph] = set()
        self._sources = dict(sources or {})
        self._check_races = check_races
        self._memory_size = memory_size
        self._memories: weakref.WeakSet[Memory] = weakref.WeakSet()
        self._buffers: dict[int, EmulatedBuffer] = {}
        self._streams: list[EmulatedStream] = []
        self._modules: dict[str, EmulatedModule] = {}
        self._pinned: dict[int, weakref.ref[NDArray[Any]]] = {}
        self._launches = itertools.count()
        self._handles = itertools.count(1)
        self._lock = threading.RLock()
        self._failure: DeviceError | None = None
        self._is_open = True

    @property
    def name(self) -> str:
        """The model."""
        return "CUDA emulator"

    @property
    def multiprocessors(self) -> int:
        """Few, so that grids sized by it have blocks that do several rounds."""
        return 2

    @property
    def failed(self) -> bool:
        """Whether work failed, after which the device is unusable."""
        return self._failure is not None

    @property
    def allocated(self) -> int:
        """Bytes of the buffers that are not closed."""
        return sum(buffer.size for buffer in self.buffers)

    @property
    def buffers(self) -> tuple["EmulatedBuffer", ...]:
        """Those that are not closed."""
        return tuple(self._buffers.values())

    def allocate(self, size: int) -> "EmulatedBuffer":
        """`size` bytes of garbage; aligned to 16 only, so that the guard page is close to the end.

        Raises:
            DeviceMemoryError: There is not that much.
        """
        self.check()
        if size < 0:
            raise MisuseError(f"allocate: size must not be negative (got {size})")
        with self._lock:
            free = self._memory_size - self.allocated
            if size > free:
                raise DeviceMemoryError(f"{size} bytes asked for, {free} of {self._memory_size} are free")
            memory = Memory(max(size, 1))
            self._memories.add(memory)
            buffer = EmulatedBuffer(self, memory)
            self._buffers[buffer.pointer] = buffer
            return buffer

    def fetch(self, source: Buffer, size: int, index: int) -> "EmulatedBuffer":
        """See `Device.fetch`: the memory of all GPUs is this one's."""
        del index
        target, stream = self.allocate(size), self.stream()
        stream.copy(target, source, size)
        stream.synchronize()
        stream.close()
        return target

    def host_array(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A zeroed array that copies read and write when they are executed."""
        self.check()
        array = np.zeros(shape, dtype)
        key = id(array)
        self._pinned[key] = weakref.ref(array, lambda _: self._pinned.pop(key, None))
        return array

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Nothing: there is no library that could use this device itself."""
        self.check()
        yield

    def stream(self) -> EmulatedStream:
        """A new stream; work of others happens in no order relative to its own."""
        self.check()
        stream = EmulatedStream(self, next(self._handles))
        self._streams.append(stream)
        return stream

    def module(self, source: str) -> EmulatedModule:
        """The `.cu` file of that name, compiled by g++ and loaded.

        Raises:
            UnavailableError: It cannot be compiled; the message has the compiler's log.
        """
        self.check()
        with self._lock:
            if source not in self._modules:
                self._modules[source] = EmulatedModule(source, package_sources() | self._sources, self._check_races)
            return self._modules[source]

    def fail(self, message: str) -> None:
        """Make it fail now, as after a kernel's fault: every later call raises."""
        self._failure = KernelFault(message)

    def close(self) -> None:
        """Release everything that this object holds; unfinished work is dropped."""
        self._is_open = False
        self._buffers.clear()
        self._streams.clear()
        self.graphs.clear()

    # What streams, buffers and graphs ask of their device.

    def check(self) -> None:
        """Raise after a failure, as a GPU does, or after `close`."""
        if self._failure is not None:
            raise DeviceError(f"the device is unusable since earlier work failed: {self._failure}", sticky=True)
        if not self._is_open:
            raise MisuseError("the device is closed")

    def execute(self, queue: list[Work], until: Work | None = None) -> None:
        """Execute and remove all of the queue, or what is in it up to a point."""
        with self._lock:
            work = None
            while queue and (until is None or work is not until):
                work = queue.pop(0)
                try:
                    work.execute()
                except DeviceError as error:
                    self._failure = error
                    raise

    def memories(self) -> list[Memory]:
        """All memory, also that of closed buffers which queued work still uses."""
        with self._lock:
            return list(self._memories)

    def next_seed(self) -> int:
        """The seed of the next launch."""
        return self.schedule.seed * 1_000_003 + next(self._launches)

    def pending_sources(self) -> list[HostRange]:
        """Host arrays that queued copies are going to read."""
        return [work.reads for stream in self._streams for work in stream.queue if work.reads is not None]

    def is_pinned(self, array: NDArray[Any]) -> bool:
        """Whether its memory is of `host_array`."""
        wanted = HostRange(array)
        references = tuple(self._pinned.values())
        locked = [HostRange(known) for reference in references if (known := reference()) is not None]
        return any(wanted.is_within(each) for each in locked)

    def memory_of(self, buffer: Buffer, where: str) -> Memory:
        """The memory of a buffer that is this device's and open."""
        if not isinstance(buffer, EmulatedBuffer) or buffer.device is not self:
            raise MisuseError(f"{where}: the buffer must be one of this device (got {buffer!r})")
        return buffer.memory

    def memory_at(self, address: int, where: str) -> Memory:
        """The memory that an address is in."""
        for buffer in self.buffers:
            if address in buffer.memory:
                return buffer.memory
        raise MisuseError(f"{where}: the address {address:#x} is in no buffer of this device")

    def check_open(self, memory: Memory) -> None:
        """Refuse memory of a closed buffer."""
        if memory.address not in self._buffers or self._buffers[memory.address].memory is not memory:
            raise MisuseError(f"a graph uses a buffer of {memory.size} bytes that is closed")

    def forget_stream(self, stream: EmulatedStream) -> None:
        """It was closed."""
        if stream in self._streams:
            self._streams.remove(stream)

    def forget_buffer(self, buffer: "EmulatedBuffer") -> None:
        """It was closed."""
        with self._lock:
            self._buffers.pop(buffer.pointer, None)


class EmulatedBuffer:
    """Device memory; queued work keeps what it needs of it."""

    def __init__(self, device: EmulatedDevice, memory: Memory) -> None:
        self.device = device
        self._pointer: int = memory.address
        self._size = memory.size
        self._memory: Memory | None = memory

    @property
    def pointer(self) -> int:
        """Device address.

        Raises:
            MisuseError: The buffer is closed.
        """
        self.memory  # noqa: B018 (for its check)
        return self._pointer

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def memory(self) -> Memory:
        """The memory.

        Raises:
            MisuseError: The buffer is closed.
        """
        if self._memory is None:
            raise MisuseError(f"a buffer of {self._size} bytes is used after it was closed")
        return self._memory

    def array(self, shape: int | tuple[int, ...], dtype: DTypeLike, offset: int = 0) -> NDArray[Any]:
        """Its content, for fakes of libraries; valid while the buffer is open."""
        part = self.memory.part(offset, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return part.view(dtype).reshape(shape)

    def close(self) -> None:
        """Release the memory; calling it again does nothing."""
        if self._memory is not None:
            self.device.forget_buffer(self)
            self._memory = None

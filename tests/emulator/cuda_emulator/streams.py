# SPDX-License-Identifier: Apache-2.0
"""Streams, captures and graphs of the emulated device."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Dim3, Event, Graph, Kernel, KernelArgument

from .errors import KernelFault, MisuseError
from .events import EmulatedEvent
from .launching import EmulatedKernel
from .memory import Memory
from .work import Work, copy_on_device, copy_to_device, copy_to_host, fill

if TYPE_CHECKING:
    from .device import EmulatedDevice


class EmulatedStream:
    """A queue of work that is executed by `synchronize`, or at once if the device is not deferred."""

    def __init__(self, device: "EmulatedDevice", handle: int) -> None:
        self._device = device
        self._handle = handle
        self._queue: list[Work] = []
        self._capture: EmulatedCapture | None = None
        self._is_open = True

    @property
    def handle(self) -> int:
        """A number of this stream alone, of no use to any library."""
        return self._handle

    def launch(
        self, kernel: Kernel, grid: Dim3, block: Dim3, arguments: Sequence[KernelArgument], shared: int = 0
    ) -> None:
        """Queue a kernel.

        Raises:
            MisuseError: Grid, block, shared memory or arguments do not fit the kernel.
        """
        self._check()
        if not isinstance(kernel, EmulatedKernel):
            raise MisuseError(f"launch: the kernel must be one of the device's modules (got {kernel!r})")
        kernel.check_shape(grid, block, shared)
        if len(arguments) != len(kernel.parameters):
            raise MisuseError(f"{kernel.name}: takes {len(kernel.parameters)} arguments (got {len(arguments)})")
        encoded, memories = [], []
        for index, argument in enumerate(arguments):
            content, memory = self._encode(kernel, index, argument)
            encoded.append(content)
            memories += [memory] if memory is not None else []

        def execute() -> None:
            device = self._device
            kernel.run(grid, block, shared, encoded, device.memories(), device.schedule, device.next_seed())
            for memory in memories:
                damage = memory.damage()
                if damage is not None:
                    raise KernelFault(f"{kernel.name} wrote {damage}")

        self._submit(Work(execute, tuple(memories)))

    def to_device(self, target: Buffer, source: NDArray[Any], offset: int = 0) -> None:
        """Queue a copy to `target`, `offset` bytes from its start."""
        self._check()
        memory = self._device.memory_of(target, "to_device")
        work = copy_to_device(memory, source, offset, self._device.is_pinned(source))
        self._submit(work, source)

    def to_host(self, target: NDArray[Any], source: Buffer, offset: int = 0) -> None:
        """Queue a copy from `source`, `offset` bytes from its start."""
        self._check()
        work = copy_to_host(target, self._device.memory_of(source, "to_host"), offset)
        self._submit(work, target)

    def fill(self, target: Buffer, value: int, size: int, offset: int = 0) -> None:
        """Queue setting `size` bytes from `offset` to the byte `value`."""
        self._check()
        self._submit(fill(self._device.memory_of(target, "fill"), value, size, offset))

    def copy(self, target: Buffer, source: Buffer, size: int, target_offset: int = 0, source_offset: int = 0) -> None:
        """Queue a copy of `size` bytes between two buffers of the device."""
        self._check()
        to, of = self._device.memory_of(target, "copy"), self._device.memory_of(source, "copy")
        self._submit(copy_on_device(to, of, size, target_offset, source_offset))

    def call(self, function: Callable[[], None], *buffers: Buffer) -> None:
        """Queue a Python function, which stands for the work of a library, such as a network's.

        Args:
            function: Is called when the work is executed.
            *buffers: What it uses; see `EmulatedBuffer.array`.
        """
        self._check()
        self._submit(Work(function, tuple(self._device.memory_of(buffer, "call") for buffer in buffers)))

    def record(self) -> EmulatedEvent:
        """The point after everything that is queued so far."""
        self._check()
        event = EmulatedEvent(self, self._capture is not None)
        self._submit(event.mark)
        return event

    def wait(self, event: Event) -> None:
        """Let what is queued from now on wait until another stream has come to that point."""
        self._check()
        if not isinstance(event, EmulatedEvent):
            raise MisuseError(f"wait: the event must be of this device (got {event!r})")
        event.awaited_by(self, self._capture is not None)
        if self._capture is None:
            self._submit(Work(event.reach, ()))

    def synchronize(self) -> None:
        """Execute all work queued so far.

        Raises:
            DeviceError: The work failed.
        """
        self._check()
        if self._capture is not None:
            raise MisuseError("synchronize: the stream is being captured")
        self._device.execute(self._queue)

    def execute_until(self, mark: Work) -> None:
        """Execute the work up to an event's."""
        self._device.execute(self._queue, mark)

    @contextmanager
    def capture(self) -> Iterator["EmulatedCapture"]:
        """Record what is queued inside the `with` block instead of executing it."""
        self._check()
        if self._capture is not None:
            raise MisuseError("capture: the stream is already being captured")
        self._capture = EmulatedCapture()
        try:
            yield self._capture
            self._capture.finish(EmulatedGraph(self._device, self._capture.recorded, self._capture.held))
        finally:
            self._capture = None

    def close(self) -> None:
        """Execute the work and release the stream."""
        if self._is_open:
            if not self._device.failed:
                self.synchronize()
            self._is_open = False
            self._device.forget_stream(self)

    def enqueue(self, works: Sequence[Work]) -> None:
        """Queue the work of a graph."""
        self._check()
        if self._capture is not None:
            raise MisuseError("launch: a graph cannot be captured into another one")
        for work in works:
            self._submit(work)

    @property
    def queue(self) -> list[Work]:
        """What waits to be executed."""
        return self._queue

    def _check(self) -> None:
        self._device.check()
        if not self._is_open:
            raise MisuseError("the stream is closed")

    def _submit(self, work: Work, array: NDArray[Any] | None = None) -> None:
        """Queue or record; a graph, but no stream, holds on to the host arrays that it uses."""
        if self._capture is not None:
            self._capture.recorded.append(work)
            self._capture.held.append(array)
            return
        target = work.writes
        if target is not None and not any(target.overlaps(source) for source in self._device.pending_sources()):
            target.spoil()
        self._queue.append(work)
        if not self._device.is_deferred:
            self._device.execute(self._queue)

    def _encode(self, kernel: EmulatedKernel, index: int, argument: KernelArgument) -> tuple[bytes, Memory | None]:
        """An argument's bytes and the memory that it refers to."""
        where = f"{kernel.name}: argument {index}"
        if isinstance(argument, np.generic):
            kernel.check_scalar(index, argument)
            if kernel.parameters[index].kind != "P" or argument.item() == 0:
                return argument.tobytes(), None
            return argument.tobytes(), self._device.memory_at(argument.item(), where)
        if kernel.parameters[index].kind != "P":
            raise MisuseError(f"{where} is no pointer, but got a buffer")
        memory = self._device.memory_of(argument, where)
        return argument.pointer.to_bytes(8, "little"), memory


class EmulatedCapture:
    """A capture in progress."""

    def __init__(self) -> None:
        self.recorded: list[Work] = []
        self.held: list[NDArray[Any] | None] = []
        self._graph: EmulatedGraph | None = None

    @property
    def graph(self) -> Graph:
        """What was recorded.

        Raises:
            MisuseError: The capture has not ended.
        """
        if self._graph is None:
            raise MisuseError("the graph of a capture is there once its `with` block has ended")
        return self._graph

    def finish(self, graph: "EmulatedGraph") -> None:
        """End it."""
        self._graph = graph


class EmulatedGraph:
    """Recorded work; the buffers that it uses must be open whenever it is launched."""

    def __init__(self, device: "EmulatedDevice", works: Sequence[Work], held: Sequence[NDArray[Any] | None]) -> None:
        self._device = device
        self._held = held
        self._works = tuple(works)
        self._is_open = True
        device.graphs.add(self)

    def launch(self, stream: Any) -> None:
        """Queue all of it.

        Raises:
            MisuseError: A buffer that it uses was closed, or the graph was.
        """
        if not self._is_open:
            raise MisuseError("launch: the graph is closed")
        if not isinstance(stream, EmulatedStream):
            raise MisuseError(f"launch: the stream must be one of the device's (got {stream!r})")
        for work in self._works:
            for memory in work.memories:
                self._device.check_open(memory)
        stream.enqueue(self._works)

    def close(self) -> None:
        """Release the graph; calling it again does nothing."""
        self._is_open = False
        self._works = ()
        self._held = ()
        self._device.graphs.discard(self)

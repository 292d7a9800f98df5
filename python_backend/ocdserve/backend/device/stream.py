# SPDX-License-Identifier: Apache-2.0
"""Streams of a GPU, their events, and graphs of what they recorded.

Objects of pycuda must be destroyed while their context is current: each is the only item of a list, which its release
empties.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.context import CudaContext
from ocdserve.backend.device.deferred_release import Releasable
from ocdserve.backend.device.driver import check
from ocdserve.backend.device.module import CudaKernel
from ocdserve.backend.device.protocol import Buffer, DeviceError, Dim3, Event, Graph, Kernel, KernelArgument, Stream
from ocdserve.contract import InvalidInputError


class CudaStream(Releasable):
    """A stream that does not wait for the legacy default stream; made while the device is current.

    Args:
        context: Of the GPU.
        handles: The device's open streams; this one adds itself, and removes itself once it is idle.
    """

    def __init__(self, context: CudaContext, handles: set[int]) -> None:
        self._context = context
        self._cuda = context.libraries.bindings
        self._pycuda = context.libraries.pycuda
        self._recorded: list[object] | None = None
        self._box = box = [self._pycuda.Stream(int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))]
        self.handle = handle = int(box[0].handle)
        handles.add(handle)

        def release() -> None:
            try:
                with context.working():
                    box[0].synchronize()
            finally:
                handles.discard(handle)
                box.clear()

        super().__init__(context.releases, release)

    def launch(
        self, kernel: Kernel, grid: Dim3, block: Dim3, arguments: Sequence[KernelArgument], shared: int = 0
    ) -> None:
        """Queue a kernel; `shared` is its dynamic shared memory in bytes."""
        if not isinstance(kernel, CudaKernel):
            raise InvalidInputError(f"kernel must be one of a module of this device; got {type(kernel).__name__}")
        values = [_parameter(argument) for argument in arguments]
        self._keep(arguments)
        with self._context.working(kernel.name):
            kernel.allow_shared(shared)
            kernel.function(*values, grid=grid, block=block, stream=self._stream, shared=shared)

    def to_device(self, target: Buffer, source: NDArray[Any], offset: int = 0) -> None:
        """Queue a copy of a C-contiguous host array to `target`, `offset` bytes from its start."""
        _check_array(source)
        _check_range("target", target, offset, source.nbytes)
        self._keep((target, source))
        if source.nbytes:
            with self._context.working():
                self._pycuda.memcpy_htod_async(target.pointer + offset, source, self._stream)

    def to_host(self, target: NDArray[Any], source: Buffer, offset: int = 0) -> None:
        """Queue a copy into a C-contiguous host array from `source`, `offset` bytes from its start."""
        _check_array(target)
        _check_range("source", source, offset, target.nbytes)
        self._keep((target, source))
        if target.nbytes:
            with self._context.working():
                self._pycuda.memcpy_dtoh_async(target, source.pointer + offset, self._stream)

    def copy(self, target: Buffer, source: Buffer, size: int, target_offset: int = 0, source_offset: int = 0) -> None:
        """Queue a copy of `size` bytes between two buffers of the device."""
        _check_range("target", target, target_offset, size)
        _check_range("source", source, source_offset, size)
        self._keep((target, source))
        if size:
            with self._context.working():
                self._pycuda.memcpy_dtod_async(
                    target.pointer + target_offset, source.pointer + source_offset, size, self._stream
                )

    def fill(self, target: Buffer, value: int, size: int, offset: int = 0) -> None:
        """Queue setting `size` bytes from `offset` to the byte `value`."""
        _check_range("target", target, offset, size)
        self._keep((target,))
        if size:
            with self._context.working():
                self._pycuda.memset_d8_async(target.pointer + offset, value, size, self._stream)

    def record(self) -> Event:
        """An event after everything queued so far."""
        with self._context.working():
            event = CudaEvent(self._context)
            check(self._cuda.cuEventRecord(event.handle, self._stream.handle), "cuEventRecord")
        return event

    def wait(self, event: Event) -> None:
        """Let work queued from now on wait for an event of another stream."""
        with self._context.working():
            check(self._cuda.cuStreamWaitEvent(self._stream.handle, _own(event).handle, 0), "cuStreamWaitEvent")

    def precede(self, handle: int) -> None:
        """Let work queued from now on on another library's stream wait for what is queued here so far.

        Args:
            handle: `CUstream`; 1 is the legacy default stream, 2 that of the thread.
        """
        event = self.record()
        with self._context.working():
            check(self._cuda.cuStreamWaitEvent(handle, _own(event).handle, 0), "cuStreamWaitEvent")
        event.close()

    def synchronize(self) -> None:
        """Wait for all work queued so far.

        Raises:
            DeviceError: The work failed; the device is then unusable for this process.
        """
        with self._context.working():
            self._stream.synchronize()

    @contextlib.contextmanager
    def capture(self) -> Iterator["CudaCapture"]:
        """Record what is queued inside the `with` block instead of executing it; begin and end in one thread."""
        cuda = self._cuda
        capture = CudaCapture()
        # The context stays current, so that libraries inside find it; nothing is released while recording.
        with self._context.releases.paused(), self._context.working():
            mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            check(cuda.cuStreamBeginCapture(self._stream.handle, mode), "cuStreamBeginCapture")
            recorded: list[object] = []
            self._recorded = recorded
            try:
                yield capture
            except BaseException:
                self._recorded = None
                code, graph = cuda.cuStreamEndCapture(self.handle)
                if not int(code) and int(graph):
                    cuda.cuGraphDestroy(graph)
                raise
            self._recorded = None
            graph = check(cuda.cuStreamEndCapture(self.handle), "cuStreamEndCapture")
            try:
                executable = check(cuda.cuGraphInstantiate(graph, 0), "cuGraphInstantiate")
            finally:
                cuda.cuGraphDestroy(graph)
            capture.finish(CudaGraph(self._context, executable, recorded))

    @property
    def _stream(self) -> Any:
        if not self._box:
            raise DeviceError("the stream is closed: ask the device for another.")
        return self._box[0]

    def _keep(self, used: Sequence[object]) -> None:
        """Keep alive what a graph is recorded with."""
        if self._recorded is not None:
            self._recorded.extend(item for item in used if not isinstance(item, np.generic))


class CudaEvent(Releasable):
    """A point in a stream's work; made while the device is current. pycuda's own events hide their handle."""

    def __init__(self, context: CudaContext) -> None:
        self._context = context
        self._cuda = cuda = context.libraries.bindings
        self._event = event = check(cuda.cuEventCreate(cuda.CUevent_flags.CU_EVENT_DEFAULT), "cuEventCreate")
        super().__init__(context.releases, lambda: check(cuda.cuEventDestroy(event), "cuEventDestroy"))

    @property
    def handle(self) -> int:
        """`CUevent`."""
        if not self.is_open:
            raise DeviceError("the event is closed: record another.")
        return int(self._event)

    def elapsed_ms(self, since: Event) -> float:
        """Time between the two points; waits for both."""
        self.synchronize()
        with self._context.working():
            return float(check(self._cuda.cuEventElapsedTime(_own(since).handle, self.handle), "cuEventElapsedTime"))

    def synchronize(self) -> None:
        """Wait until the stream has come to this point."""
        with self._context.working():
            check(self._cuda.cuEventSynchronize(self.handle), "cuEventSynchronize")


class CudaGraph(Releasable):
    """Recorded work, ready to be launched.

    Args:
        context: Of the GPU.
        executable: `CUgraphExec`.
        used: Host arrays and buffers that it reads and writes.
    """

    def __init__(self, context: CudaContext, executable: Any, used: list[object]) -> None:
        self._context = context
        self._executable = executable
        self._used = used
        cuda = context.libraries.bindings
        super().__init__(context.releases, lambda: check(cuda.cuGraphExecDestroy(executable), "cuGraphExecDestroy"))

    def launch(self, stream: Stream) -> None:
        """Queue all of it; host arrays are read and written when it executes, as they are then."""
        if not self.is_open:
            raise DeviceError("the graph is closed: record another.")
        with self._context.working("graph"):
            check(self._context.libraries.bindings.cuGraphLaunch(self._executable, stream.handle), "cuGraphLaunch")


class CudaCapture:
    """A capture; `graph` is available once its `with` block has ended."""

    def __init__(self) -> None:
        self._graph: CudaGraph | None = None

    @property
    def graph(self) -> Graph:
        """What was recorded."""
        if self._graph is None:
            raise InvalidInputError(
                "a graph is available once the `with` block of capture() has ended without an error"
            )
        return self._graph

    def finish(self, graph: CudaGraph) -> None:
        """Set what was recorded."""
        self._graph = graph


def _own(event: Event) -> CudaEvent:
    if not isinstance(event, CudaEvent):
        raise InvalidInputError(f"event must be one that a stream of this device recorded; got {type(event).__name__}")
    return event


def _parameter(argument: KernelArgument) -> np.generic:
    """As pycuda takes it: a number of the parameter's width."""
    if not isinstance(argument, np.generic):
        return np.uint64(argument.pointer)
    return np.uint8(argument) if isinstance(argument, np.bool_) else argument


def _check_array(array: NDArray[Any]) -> None:
    if not array.flags.c_contiguous:
        raise InvalidInputError(f"a host array must be C-contiguous; got strides {array.strides} of {array.shape}")


def _check_range(what: str, buffer: Buffer, offset: int, size: int) -> None:
    if offset < 0 or size < 0 or offset + size > buffer.size:
        raise InvalidInputError(f"{what} has {buffer.size} bytes; got {size} bytes from {offset} on")

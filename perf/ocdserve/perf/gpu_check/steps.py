# SPDX-License-Identifier: Apache-2.0
"""Time of each kernel and each copy of the post-processing.

A kernel cannot be repeated by itself, as it changes its input. Therefore graphs of the first step, of the first two,
and so on are timed; the time of a step is what it adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, Dim3, Kernel, KernelArgument, Stream
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.maps import container_of
from ocdserve.perf.gpu_check.timing import GraphTimer, Work
from ocdserve.perf.inputs.maps import Case


@dataclass(frozen=True)
class Step:
    """One call on a stream.

    Attributes:
        name: Its number and the kernel or operation.
        work: Queues it.
        size: Bytes that it moves; None if unknown.
    """

    name: str
    work: Work
    size: int | None


class Recorder:
    """Records the calls of a stream, to be made on a real one later."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def launch(
        self, kernel: Kernel, grid: Dim3, block: Dim3, arguments: Sequence[KernelArgument], shared: int = 0
    ) -> None:
        """See `Stream.launch`."""
        self._add(kernel.name, lambda stream: stream.launch(kernel, grid, block, arguments, shared))

    def to_device(self, target: Buffer, source: NDArray[Any], offset: int = 0) -> None:
        """See `Stream.to_device`."""
        self._add("copy from the host", lambda stream: stream.to_device(target, source, offset), source.nbytes)

    def to_host(self, target: NDArray[Any], source: Buffer, offset: int = 0) -> None:
        """See `Stream.to_host`."""
        self._add("copy to the host", lambda stream: stream.to_host(target, source, offset), target.nbytes)

    def copy(self, target: Buffer, source: Buffer, size: int, target_offset: int = 0, source_offset: int = 0) -> None:
        """See `Stream.copy`."""
        self._add("copy", lambda stream: stream.copy(target, source, size, target_offset, source_offset), size)

    def fill(self, target: Buffer, value: int, size: int, offset: int = 0) -> None:
        """See `Stream.fill`."""
        self._add("fill", lambda stream: stream.fill(target, value, size, offset), size)

    def _add(self, what: str, work: Work, size: int | None = None) -> None:
        self.steps.append(Step(f"{len(self.steps) + 1}. {what}", work, size))


def time_steps(context: CheckContext, device: Device, timer: GraphTimer, cases: Sequence[Case], kind: str) -> None:
    """Add the times up to each step, in order of execution, for one batch whose buffers are in the cache."""
    container = container_of(cases)
    batch, height, width = container.shape
    stage = GpuPostprocess(device, batch, height, width)
    buffer = device.allocate(container.nbytes)
    try:
        timer.stream.to_device(buffer, container)
        stage.set([(case.frame, case.params) for case in cases])
        recorder: Any = Recorder()
        stage.enqueue(recorder, buffer)
        before = 0.0
        for count, step in enumerate(recorder.steps, start=1):
            times = timer.times_us([_first(recorder.steps[:count])])
            after = median(times)
            facts = {"added µs": after - before, **({} if step.size is None else {"bytes": step.size})}
            factors = {"batch": batch, "stage": step.name}
            context.add("post-processing up to here", kind, "µs", times, factors, facts, section="gpu-steps")
            before = after
    finally:
        timer.stream.synchronize()
        stage.close()
        buffer.close()


def _first(steps: Sequence[Step]) -> Work:
    def work(stream: Stream) -> None:
        for step in steps:
            step.work(stream)

    return work

# SPDX-License-Identifier: Apache-2.0
"""What each kernel and each copy of the post-processing takes.

A kernel cannot be repeated by itself, as it changes what it reads. So graphs of the first step, of the first two, and
so on are timed; a step takes what it adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, Dim3, Kernel, KernelArgument, Stream
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.perf.gpu_check.cases import Case, container_of
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.record import Figure
from ocdserve.perf.gpu_check.timing import GraphTimer, Work


@dataclass(frozen=True)
class Step:
    """One call on a stream.

    Attributes:
        name: Its number and what it does.
        note: How many bytes it moves, where that is known.
        work: Queues it.
    """

    name: str
    note: str
    work: Work


class Recorder:
    """In place of a stream: keeps what is queued, to be queued on a stream later."""

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
        note = "" if size is None else f"{size} bytes"
        self.steps.append(Step(f"{len(self.steps) + 1}. {what}", note, work))


def time_steps(setting: Setting, device: Device, timer: GraphTimer, cases: Sequence[Case], label: str) -> None:
    """Note the time that each step adds, in the order of execution, for one batch whose buffers are in the cache."""
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
            after = median(timer.times_us([_first(recorder.steps[:count])]))
            setting.record.steps.append(Figure(step.name, label, after - before, "µs", note=step.note))
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

# SPDX-License-Identifier: Apache-2.0
"""What each kernel and each copy of the post-processing takes.

A kernel cannot be repeated by itself, as it changes what it reads. So graphs of the first step, of the first two, and
so on are timed; a step takes what it adds.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from numpy.typing import NDArray

from ocdserve.backend.cuda.device import Buffer, Device, Dim3, Kernel, KernelArgument, Stream
from ocdserve.backend.cuda.postprocess import GpuPostprocess
from ocdserve.perf.gpu_check.cases import Case, container_of
from ocdserve.perf.gpu_check.record import Figure
from ocdserve.perf.gpu_check.setting import Setting
from ocdserve.perf.gpu_check.timing import GraphTimer


class Recorder:
    """In place of a stream: keeps what is queued, to be queued on a stream later."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, Callable[[Stream], None]]] = []

    def launch(
        self, kernel: Kernel, grid: Dim3, block: Dim3, arguments: Sequence[KernelArgument], shared: int = 0
    ) -> None:
        """See `Stream.launch`."""
        self.steps.append((kernel.name, lambda stream: stream.launch(kernel, grid, block, arguments, shared)))

    def to_device(self, target: Buffer, source: NDArray[Any], offset: int = 0) -> None:
        """See `Stream.to_device`."""
        name = f"copy {source.nbytes} bytes from the host"
        self.steps.append((name, lambda stream: stream.to_device(target, source, offset)))

    def to_host(self, target: NDArray[Any], source: Buffer, offset: int = 0) -> None:
        """See `Stream.to_host`."""
        name = f"copy {target.nbytes} bytes to the host"
        self.steps.append((name, lambda stream: stream.to_host(target, source, offset)))

    def copy(self, target: Buffer, source: Buffer, size: int, target_offset: int = 0, source_offset: int = 0) -> None:
        """See `Stream.copy`."""
        self.steps.append(
            (f"copy {size} bytes", lambda stream: stream.copy(target, source, size, target_offset, source_offset))
        )

    def fill(self, target: Buffer, value: int, size: int, offset: int = 0) -> None:
        """See `Stream.fill`."""
        self.steps.append((f"fill {size} bytes", lambda stream: stream.fill(target, value, size, offset)))


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
        for count, (name, _) in enumerate(recorder.steps, start=1):
            times = timer.times_us([_first(recorder.steps[:count])])
            after = median(times)
            note = f"step {count} of {len(recorder.steps)}; all until here {after:.2f} µs"
            setting.record.figures.append(Figure(name, label, after - before, "µs", note=note))
            before = after
    finally:
        timer.stream.synchronize()
        stage.close()
        buffer.close()


def _first(steps: Sequence[tuple[str, Callable[[Stream], None]]]) -> Callable[[Stream], None]:
    def work(stream: Stream) -> None:
        for _, step in steps:
            step(stream)

    return work

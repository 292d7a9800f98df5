# SPDX-License-Identifier: Apache-2.0
"""Times of work on the GPU, between events around launches of a recorded graph."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

from ocdserve.backend.device.protocol import Device, Event, Stream
from ocdserve.contract import InvalidInputError

Work = Callable[[Stream], None]


@dataclass(frozen=True)
class Effort:
    """Numbers of measurements; the defaults are for a GPU.

    Attributes:
        repeats: Measurements of each time.
        row: Executions in one graph.
        batches: Batch sizes.
        size: Height and width of the network's images, pixels.
        rotation: Sets of buffers that alternate, so that none stays in the GPU's cache.
        copy_bytes: Size of the copies that measure the memory bandwidth.
        cases: Generated maps.
        resizes: Random sizes of the preprocessing.
        load_s: Seconds of each load run.
        concurrencies: Numbers of concurrent callers.
        processes: Numbers of processes on the GPU.
    """

    repeats: int = 40
    row: int = 20
    batches: tuple[int, ...] = (1, 8)
    size: tuple[int, int] = (736, 1280)
    rotation: int = 16
    copy_bytes: int = 1 << 28
    cases: int = 120
    resizes: int = 300
    load_s: float = 2.0
    concurrencies: tuple[int, ...] = (1, 8, 32)
    processes: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value or min(value if isinstance(value, tuple) else (value,)) <= 0:
                raise InvalidInputError(f"Effort.{name} must be positive; got {value}")


class GraphTimer:
    """Measures times on its own stream.

    Args:
        device: The GPU.
        effort: How much is measured.
    """

    # Launches of a graph that are queued behind one stall, which lasts until the host has queued them all, so that the
    # host's speed does not count.
    _CHUNK = 16
    _STALL_US = 2000.0
    _MOST_FILLS = 64

    def __init__(self, device: Device, effort: Effort) -> None:
        self.stream = device.stream()
        self._effort = effort
        self._stall = device.allocate(effort.copy_bytes)
        self._fills = self._MOST_FILLS
        with ExitStack() as stack:
            self._queue_stall()
            begin = self._event(stack)
            self._queue_stall()
            each = 1000 * self._event(stack).elapsed_ms(begin) / self._fills
        self._fills = max(1, min(self._MOST_FILLS, round(self._STALL_US / max(each, 1e-3))))

    def times_us(self, works: Sequence[Work], row: int | None = None) -> list[float]:
        """Microseconds per execution, `Effort.repeats` samples.

        Args:
            works: Alternatives that are executed in turn; each is executed once before, outside of the graph.
            row: Executions per graph (None: the effort's); with 1 the time includes the start of a graph.

        Raises:
            UnavailableError: The work cannot be recorded.
        """
        row = row or self._effort.row
        for work in works:
            work(self.stream)
        self.stream.synchronize()
        with self.stream.capture() as capture:
            for index in range(row):
                works[index % len(works)](self.stream)
        graph = capture.graph
        try:
            graph.launch(self.stream)
            times: list[float] = []
            while len(times) < self._effort.repeats:
                self._queue_stall()
                times += self._each_us(graph.launch, min(self._CHUNK, self._effort.repeats - len(times)))
            return [time / row for time in times]
        finally:
            self.stream.synchronize()
            graph.close()

    def called_times_us(self, work: Work) -> list[float]:
        """Microseconds per call of work that cannot be recorded as a graph; includes the host if it is slower."""
        work(self.stream)
        self.stream.synchronize()
        return self._each_us(work, self._effort.repeats)

    def close(self) -> None:
        """Free its memory on the GPU."""
        self.stream.synchronize()
        self._stall.close()
        self.stream.close()

    def _each_us(self, work: Work, count: int) -> list[float]:
        """Microseconds of each of `count` executions."""
        with ExitStack() as stack:
            events = [self._event(stack)]
            for _ in range(count):
                work(self.stream)
                events.append(self._event(stack))
            self.stream.synchronize()
            return [1000 * late.elapsed_ms(early) for early, late in pairwise(events)]

    def _queue_stall(self) -> None:
        for _ in range(self._fills):
            self.stream.fill(self._stall, 0, self._stall.size)

    def _event(self, stack: ExitStack) -> Event:
        event = self.stream.record()
        stack.callback(event.close)
        return event

# SPDX-License-Identifier: Apache-2.0
"""What a part of the check gets: its files, its time, and where its findings go."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ocdserve.backend.device.protocol import Device
from ocdserve.perf.gpu_check.record import Record
from ocdserve.perf.gpu_check.timing import Effort


@dataclass(frozen=True)
class Deadline:
    """When to stop.

    Attributes:
        seconds: Time from now.
        clock: Tells the time.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    begin: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "begin", self.clock())

    @property
    def left_s(self) -> float:
        """Seconds that are left, 0 when the time is up."""
        return max(0.0, self.begin + self.seconds - self.clock())

    @property
    def spent_s(self) -> float:
        """Seconds since its beginning."""
        return self.clock() - self.begin


class OutOfTimeError(Exception):
    """The part's time is up; what it was about to measure is in the message."""


@dataclass(frozen=True)
class Files:
    """Where things are.

    Attributes:
        carried: The folder of wheels, with maps and networks made ahead; None where there is none.
        data: Photographs: a data set (`img/`), or a folder of data sets; None where there are none.
        work: Folder that the parts share: engines that one builds and the next executes.
        baseline_python: Another Python, in which PyTorch, CuPy and OpenCV may be installed.
    """

    carried: Path | None
    data: Path | None
    work: Path
    baseline_python: str | None = None


@dataclass
class Setting:
    """All that a part gets.

    Attributes:
        open_device: Opens the GPU; the caller closes it.
        files: Where things are.
        deadline: When the part must stop.
        effort: How much it measures.
        record: What it has found so far.
        keep: Writes the record to the disk.
    """

    open_device: Callable[[], Device]
    files: Files
    deadline: Deadline
    effort: Effort
    record: Record
    keep: Callable[[], None] = lambda: None

    @contextmanager
    def device(self) -> Iterator[Device]:
        """The GPU, given back at the end."""
        device = self.open_device()
        try:
            yield device
        finally:
            device.close()

    def go_on(self, what: str) -> None:
        """Write down what is known; called before each longer step.

        Raises:
            OutOfTimeError: The time is up.
        """
        self.record.seconds = self.deadline.spent_s
        self.keep()
        if not self.deadline.left_s:
            raise OutOfTimeError(what)

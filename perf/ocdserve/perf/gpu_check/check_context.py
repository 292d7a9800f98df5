# SPDX-License-Identifier: Apache-2.0
"""The context of a part of the check: device, files, time limit, and its measurements."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from ocdserve.backend.device.protocol import Device
from ocdserve.perf.gpu_check.timing import Effort
from ocdserve.perf.series.measurement import Key, Measurement
from ocdserve.perf.series.results import Part

Values = Mapping[str, str | int | float]


@dataclass
class Deadline:
    """A time limit.

    Attributes:
        seconds: The limit, from now.
        clock: Returns the time in seconds.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.begin = self.clock()

    @property
    def left_s(self) -> float:
        """Seconds left, 0 when the time is up."""
        return max(0.0, self.begin + self.seconds - self.clock())

    @property
    def spent_s(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.begin


class OutOfTimeError(Exception):
    """The part's time is up; the message says what would have been measured next."""


@dataclass(frozen=True)
class Files:
    """Folders of the check.

    Attributes:
        carried: The group `base`, with prebuilt maps and networks; None without one.
        data: Photographs: a data set (`img/`), or a folder of data sets; None without any.
        work: Shared by the parts: engines that one builds and the next executes.
    """

    carried: Path | None
    data: Path | None
    work: Path


@dataclass
class CheckContext:
    """Input and output of a part of the check.

    Attributes:
        open_device: Opens the GPU; the caller closes it.
        files: Folders.
        deadline: When the part must stop.
        effort: How much to measure.
        part: How the part went.
        measurements: Series so far, by key.
        save: Writes part and measurements to disk.
    """

    open_device: Callable[[], Device]
    files: Files
    deadline: Deadline
    effort: Effort
    part: Part
    measurements: dict[Key, Measurement] = field(default_factory=dict)
    save: Callable[[], None] = lambda: None

    def device(self) -> AbstractContextManager[Device]:
        """The GPU, closed at the end."""
        return closing(self.open_device())

    def checkpoint(self, next_step: str) -> None:
        """Save what is known; called before each longer step.

        Raises:
            OutOfTimeError: The time is up.
        """
        self.part.seconds = self.deadline.spent_s
        self.save()
        if not self.deadline.left_s:
            raise OutOfTimeError(next_step)

    def add(
        self,
        subject: str,
        group: str,
        unit: str,
        samples: Sequence[float],
        factors: Values | None = None,
        facts: Values | None = None,
        section: str | None = None,
    ) -> Measurement:
        """Add a series to the part's section or another; it replaces one with the same key."""
        found = Measurement(
            section or self.part.section, subject, group, unit, tuple(samples), (), factors or {}, facts or {}
        )
        self.measurements[found.key] = found
        return found

    def add_facts(self, measurement: Measurement, facts: Values) -> None:
        """Add facts to a series."""
        self.measurements[measurement.key] = replace(measurement, facts={**measurement.facts, **facts})

    def absent(self, what: str, reason: object) -> None:
        """Note what was not measured, and why."""
        self.part.absences[what] = " ".join(str(reason).split())

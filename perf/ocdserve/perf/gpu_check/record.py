# SPDX-License-Identifier: Apache-2.0
"""What one part of the check has found, also while it is still under way."""

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

from ocdserve.perf.series.samples import Sample

# `running`: it was cut off. `stopped`: its time was up, what it did not reach is named. `failed`: see the reason.
State = Literal["running", "complete", "stopped", "failed", "not available"]


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        subject: What it is of: a stage, a kernel, a rival.
        case: With what: size, batch, kind of maps.
        value: The number; of repeated measurements the median.
        unit: Its unit.
        low: Tenth percentile of the measurements, where there were several.
        high: Ninetieth percentile.
        note: What else to know.
    """

    subject: str
    case: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Absence:
    """Something that was not measured, and why."""

    what: str
    reason: str


@dataclass
class Record:
    """Figures of one part with the raw times behind them.

    Attributes:
        part: Name of the part.
        state: How it ended.
        reason: Why, unless it is complete.
        seconds: How long it took.
        figures: Numbers.
        steps: What the steps of one piece of work add to its time, in their order.
        deviations: Every case outside of what was promised.
        absences: What was not measured.
        samples: Raw times.
        log: The end of what its process has written.
    """

    part: str
    state: State = "running"
    reason: str = ""
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)
    steps: list[Figure] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    log: str = ""

    def count(self, subject: str, case: str, value: float, unit: str, note: str = "") -> None:
        """Note a number that is no time."""
        self.figures.append(Figure(subject, case, value, unit, note=note))

    def time(self, subject: str, case: str, times_us: Sequence[float], note: str = "", per: int = 1) -> float:
        """Note measurements of one time, in microseconds.

        Args:
            subject: What was timed.
            case: With what.
            times_us: One number a measurement.
            note: What else to know.
            per: Images of each measurement; the figure is of one image, the samples are as measured.

        Returns:
            The figure's value.
        """
        each = [time / per for time in times_us]
        low, high = (min(each), max(each)) if len(each) < 10 else (quantiles(each, n=10)[0], quantiles(each, n=10)[-1])
        self.figures.append(Figure(subject, case, median(each), "µs" if per == 1 else "µs an image", low, high, note))
        group = self.part
        self.samples += [Sample(subject, group, case, index, time / 1000) for index, time in enumerate(times_us)]
        return median(each)

    def absent(self, what: str, reason: object) -> None:
        """Note what was not measured."""
        self.absences.append(Absence(what, " ".join(str(reason).split())))

    def value(self, subject: str, case: str) -> float | None:
        """The number of that subject and case, if there is one."""
        return next((figure.value for figure in self.figures if (figure.subject, figure.case) == (subject, case)), None)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        """From `to_json`."""
        lists: dict[str, Any] = {
            "figures": [Figure(**item) for item in values["figures"]],
            "steps": [Figure(**item) for item in values["steps"]],
            "absences": [Absence(**item) for item in values["absences"]],
            "samples": [Sample(**item) for item in values["samples"]],
        }
        return cls(**{**values, **lists})

    @classmethod
    def load(cls, path: Path, part: str) -> "Record":
        """What a part has written; an empty record where it has not come so far."""
        try:
            return cls.from_json(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return cls(part)


def write_json(path: Path, document: Any) -> None:
    """Write a file that is there as a whole or as it was before."""
    write_text(path, json.dumps(document) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=".", delete=False) as draft:
        draft.write(text)
    Path(draft.name).chmod(0o644)
    os.replace(draft.name, path)


def rows_of(records: Iterable[Record], part: str) -> Record:
    """The record of a part; an empty one if it did not run."""
    return next((record for record in records if record.part == part), Record(part))

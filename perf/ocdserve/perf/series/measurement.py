# SPDX-License-Identifier: Apache-2.0
"""What every benchmark hands on: raw series and what they were measured under; statistics come later.

Conventions that tables, plots and comparisons read:

- `baseline` names the subject that a ratio divides by. Both are series of the same section, group, unit and factors,
  measured in turns, and paired by `cases`.
- Facts `precision`, `recall`, `hmean` and `boxes` stand beside a speed; `errors` counts requests without an answer.
- Factor `stage` tells the stages of one subject apart, in the order in which they run and are given here.
- Factor `concurrency` counts the requests under way in a closed loop; `rate` the arrivals a second in an open one.
- Latencies are in `ms`, a sample a request; throughput in `images/s`, a sample a pass.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ocdserve.contract import InvalidInputError

__all__ = ["OURS", "UNITS", "Key", "Measurement", "Unit", "case_of", "find", "name_of_case"]

# What our own detector and our own ways are called as subjects.
OURS = "ocdserve"

# Section, subject, group, unit, and factors as sorted pairs.
Key = tuple[str, str, str, str, tuple[tuple[str, "str | int | float"], ...]]


@dataclass(frozen=True)
class Unit:
    """A unit of measurement.

    Attributes:
        higher_is_better: Whether more of it is better.
        more: How to call a subject that has more of it.
        less: How to call a subject that has less of it.
        is_counted: Whether it is counted and comes out nearly the same each time, so that one sample tells.
    """

    higher_is_better: bool
    more: str
    less: str
    is_counted: bool = False


UNITS: Mapping[str, Unit] = {
    "ms": Unit(higher_is_better=False, more="slower", less="faster"),
    "images/s": Unit(higher_is_better=True, more="faster", less="slower"),
    "requests/s": Unit(higher_is_better=True, more="faster", less="slower"),
    "instructions": Unit(higher_is_better=False, more="more", less="fewer", is_counted=True),
    "calls": Unit(higher_is_better=False, more="more", less="fewer", is_counted=True),
    "MiB": Unit(higher_is_better=False, more="larger", less="smaller"),
}


@dataclass(frozen=True)
class Measurement:
    """One measured series, raw.

    Attributes:
        section: Part of the benchmark: "pipeline", "postprocess", "stages", "serving", "load", "capacity" or another.
        subject: What was measured, such as "ocdserve", "RapidOCR, OpenVINO engine", "ocdnet" or "bare network".
        group: Data set, scenario or image over which it was measured.
        unit: A key of `UNITS`.
        samples: Finite numbers from 0 up, at least one, in the order of measurement, none averaged.
        cases: What each sample was taken from, parallel to `samples`, each but once: see `case_of`. Empty where the
            samples are not to be paired with those of another series.
        factors: What was set: concurrency, rate, driver, protocol, batch, stage, threads.
        facts: What was found beside the samples: boxes, hmean, precision, recall, errors.
        baseline: Subject whose series ratios divide by; empty for none.

    Raises:
        InvalidInputError: A field is not valid; the message names it.
    """

    section: str
    subject: str
    group: str
    unit: str
    samples: tuple[float, ...]
    cases: tuple[str, ...] = ()
    factors: Mapping[str, str | int | float] = field(default_factory=dict)
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    baseline: str = ""

    def __post_init__(self) -> None:
        for name in ("section", "subject", "group"):
            if not getattr(self, name):
                raise InvalidInputError(f"{name} of a measurement must not be empty")
        label = f"measurement of {self.subject!r} in {self.section!r}"
        if self.unit not in UNITS:
            raise InvalidInputError(f"{label}: unit must be one of {', '.join(UNITS)}; got {self.unit!r}")
        if not self.samples:
            raise InvalidInputError(f"{label}: samples must hold at least one number; got none")
        wrong = next((value for value in self.samples if not (math.isfinite(value) and value >= 0)), None)
        if wrong is not None:
            raise InvalidInputError(f"{label}: samples must be finite numbers from 0 up; got {wrong!r}")
        if self.cases and len(self.cases) != len(self.samples):
            raise InvalidInputError(
                f"{label}: cases must name each of the {len(self.samples)} samples or be empty; got {len(self.cases)}"
            )
        if len(set(self.cases)) < len(self.cases):
            repeated = next(case for case in self.cases if self.cases.count(case) > 1)
            raise InvalidInputError(f"{label}: cases must differ; {repeated!r} is there twice; see case_of")
        for name, values in (("factors", self.factors), ("facts", self.facts)):
            wrong_key = next((key for key, value in values.items() if not _is_value(value)), None)
            if wrong_key is not None:
                raise InvalidInputError(
                    f"{label}: {name} must be texts or finite numbers; {wrong_key!r} is {values[wrong_key]!r}"
                )

    @property
    def key(self) -> Key:
        """What tells this series from all others of a run."""
        return self.key_of(self.subject)

    def key_of(self, subject: str) -> Key:
        """The key of another subject's series that was measured under the same factors."""
        return self.section, subject, self.group, self.unit, tuple(sorted(self.factors.items()))

    @property
    def by_case(self) -> dict[str, float]:
        """Samples by case; empty where there are no cases."""
        return dict(zip(self.cases, self.samples, strict=False))


def case_of(name: str, repetition: int) -> str:
    """The name of one sample: the image (or pass) that it is of, and which repetition, from 0."""
    return f"{name}#{repetition}"


def name_of_case(case: str) -> str:
    """The image or pass in a name that `case_of` made; samples that share it are not independent."""
    return case.rpartition("#")[0] or case


def find(
    measurements: Iterable[Measurement],
    *,
    section: str | None = None,
    subject: str | None = None,
    group: str | None = None,
    unit: str | None = None,
    **factors: str | int | float,
) -> tuple[Measurement, ...]:
    """All measurements in which each of the given fields and factors has the given value, in their order."""
    wanted = {"section": section, "subject": subject, "group": group, "unit": unit}
    return tuple(
        measurement
        for measurement in measurements
        if all(value is None or getattr(measurement, name) == value for name, value in wanted.items())
        and all(measurement.factors.get(name) == value for name, value in factors.items())
    )


def _is_value(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )

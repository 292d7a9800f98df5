# SPDX-License-Identifier: Apache-2.0
"""The record of a measurement: raw samples and their conditions. Statistics are computed later.

Conventions that tables, plots and comparisons rely on:

- `baseline` names the subject that a ratio divides by: a series of the same section, group, unit and factors, measured
  in alternation with this one, and paired with it by `cases`.
- Facts `precision`, `recall`, `hmean` and `boxes` qualify a speed; `errors` counts requests without an answer.
- Factor `stage` distinguishes the stages of one subject; series are in the order in which the stages run.
- Factor `concurrency` is the number of requests in flight in a closed loop; `rate` the arrivals per second in an open
  loop.
- Latencies are in `ms`, one sample per request; throughput in `images/s`, one sample per pass.
- Times of work on a GPU are in `µs`, one sample per execution of a batch (factor `batch`).
- `recall` is the share of a page's texts that were found, one sample per page; means and differences are meaningful,
  ratios are not.
- Cases whose answers were compared with a reference are counted in `cases`; facts count those that differ.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ocdserve.contract import InvalidInputError

# Subject of our own detector and our own implementations.
OURS = "ocdserve"

# Fact: the licence of what was measured.
LICENCE = "licence"
# Fact: boxes found on pages whose texts were painted over.
LEFT_OVER = "boxes without texts"
# Factor of a series that was timed on such pages, and its value; its accuracy is that on the same pages with texts.
TEXTS, PAINTED_OVER = "texts", "painted over"

# Section, subject, group, unit, and factors as sorted pairs.
Key = tuple[str, str, str, str, tuple[tuple[str, "str | int | float"], ...]]


@dataclass(frozen=True)
class Unit:
    """A unit of measurement.

    Attributes:
        title: What it measures.
        higher_is_better: Whether more of it is better.
        more: Word for a subject that has more of it.
        less: Word for a subject that has less of it.
        is_counted: Whether it is a count that hardly varies, so that one sample is significant.
        is_share: Whether it is a share from 0 to 1, whose mean counts, and that may be 0.
    """

    title: str
    higher_is_better: bool
    more: str
    less: str
    is_counted: bool = False
    is_share: bool = False


UNITS: Mapping[str, Unit] = {
    "ms": Unit("time", higher_is_better=False, more="slower", less="faster"),
    "images/s": Unit("throughput", higher_is_better=True, more="faster", less="slower"),
    "requests/s": Unit("throughput", higher_is_better=True, more="faster", less="slower"),
    "instructions": Unit("instructions", higher_is_better=False, more="more", less="fewer", is_counted=True),
    "calls": Unit("calls", higher_is_better=False, more="more", less="fewer", is_counted=True),
    "MiB": Unit("memory", higher_is_better=False, more="larger", less="smaller"),
    "µs": Unit("execution time", higher_is_better=False, more="slower", less="faster"),
    "recall": Unit("texts found", higher_is_better=True, more="more", less="fewer", is_share=True),
    "cases": Unit("cases", higher_is_better=True, more="more", less="fewer", is_counted=True),
}


@dataclass(frozen=True)
class Measurement:
    """One series of raw samples.

    Attributes:
        section: Section of the benchmark, such as "pipeline", "load" or "gpu-stages".
        subject: What was measured, such as "ocdserve", "RapidOCR, OpenVINO engine", "ocdnet" or "bare network".
        group: Data set, scenario or image that it was measured on.
        unit: A key of `UNITS`.
        samples: At least one; finite, not negative, in the order of measurement, not averaged.
        cases: Unique names of the samples, see `case_of`; empty if they are not paired with those of another series.
        factors: What was set: concurrency, rate, driver, protocol, batch, stage, threads.
        facts: What was found besides the samples: boxes, hmean, precision, recall, errors.
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
        """Identifies the series within a run."""
        return self.key_of(self.subject)

    def key_of(self, subject: str) -> Key:
        """The key of another subject's series with the same factors."""
        return self.section, subject, self.group, self.unit, tuple(sorted(self.factors.items()))

    @property
    def by_case(self) -> dict[str, float]:
        """Samples by case; empty without cases."""
        return dict(zip(self.cases, self.samples, strict=False))


def case_of(name: str, repetition: int) -> str:
    """Name of a sample: its image (or pass), and the number of the repetition, from 0."""
    return f"{name}#{repetition}"


def name_of_case(case: str) -> str:
    """The image or pass in a name made by `case_of`; samples that share it are not independent."""
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
    """The measurements with the given values of fields and factors, in order."""
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

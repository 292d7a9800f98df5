# SPDX-License-Identifier: Apache-2.0
"""Comparison of two runs of the benchmark, series by series: ratios and their significance."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ocdserve.contract import InvalidInputError
from ocdserve.perf.report.tables import number, title_of
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.estimates import CONFIDENCE, Estimate, ratio, relative
from ocdserve.perf.series.measurement import UNITS, Measurement
from ocdserve.perf.series.results import Results

Verdict = Literal["better", "worse", "not significant"]

# Fraction by which a count may differ between runs.
_COUNTS_VARY = 0.01
# Facts whose loss would outweigh a gain in speed.
_QUALITY = ("precision", "recall", "hmean", "boxes", "errors")


@dataclass(frozen=True)
class Change:
    """One series in both runs.

    Attributes:
        before: In the first run.
        after: In the second run.
        ratio: The second run's samples over the first's.
    """

    before: Measurement
    after: Measurement
    ratio: Estimate

    @property
    def verdict(self) -> Verdict:
        """Whether the series changed: the interval of the ratio excludes 1, or a count differs by over a percent."""
        is_single_count = UNITS[self.after.unit].is_counted and self.ratio.low is None
        if is_single_count and abs(self.ratio.value - 1) <= _COUNTS_VARY:
            return "not significant"
        if not is_single_count and not self.ratio.differs_from(1.0):
            return "not significant"
        return "better" if (self.ratio.value > 1) == UNITS[self.after.unit].higher_is_better else "worse"

    @property
    def loss(self) -> float:
        """Fraction by which the second run is worse, such as 0.25 for a time a quarter longer; negative if better."""
        worse = 1 / self.ratio.value if UNITS[self.after.unit].higher_is_better else self.ratio.value
        return worse - 1

    @property
    def quality(self) -> tuple[str, ...]:
        """Facts that changed, one text each."""
        pairs = ((name, self.before.facts.get(name), self.after.facts.get(name)) for name in _QUALITY)
        return tuple(f"{name} {old} -> {new}" for name, old, new in pairs if old != new)


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        changes: Series that both have, in the order of the second run.
        only_before: Series only in the first run.
        only_after: Series only in the second run.
        notices: Caveats.
    """

    changes: tuple[Change, ...]
    only_before: tuple[Measurement, ...]
    only_after: tuple[Measurement, ...]
    notices: tuple[str, ...]

    def worse(self, limit: float = 0.0) -> tuple[Change, ...]:
        """Series that are significantly worse, by more than a fraction."""
        return tuple(change for change in self.changes if change.verdict == "worse" and change.loss > limit)


def compare(
    before: Results, after: Results, fraction: float = 0.5, yardstick: str | None = None, anyway: bool = False
) -> Comparison:
    """Compare the series that both runs have.

    Args:
        before: First run.
        after: Second run.
        fraction: Quantile to compare; 0.5 is the median.
        yardstick: Subject whose samples of the same run and cases divide all others first; None for none.
        anyway: Compare even if the environments differ.

    Raises:
        InvalidInputError: The environments differ, no series is in both, or no series is of the yardstick.
    """
    differences = tuple(before.environment.differences(after.environment))
    if differences and not anyway:
        raise InvalidInputError(
            f"the runs were made in different environments ({'; '.join(differences)}); their speeds say nothing about "
            "the code; measure both on one machine, or compare --anyway"
        )
    old, new = (
        {one.key: one for one in _measured(run, yardstick) if not UNITS[one.unit].is_share} for run in (before, after)
    )
    changes = tuple(
        Change(old[key], measurement, ratio(measurement, old[key], fraction))
        for key, measurement in new.items()
        if key in old
    )
    if not changes:
        raise InvalidInputError(
            "the runs have no series in common; compare runs of the same sections and data (shares of texts found are "
            "not compared: see `ocdserve bench report`)"
        )
    return Comparison(
        changes=changes,
        only_before=tuple(measurement for key, measurement in old.items() if key not in new),
        only_after=tuple(measurement for key, measurement in new.items() if key not in old),
        notices=(
            *(f"the environments differ: {difference}" for difference in differences),
            *_busy("first", before.environment),
            *_busy("second", after.environment),
        ),
    )


def comparison_text(comparison: Comparison, statistic: str) -> str:
    """What changed, one line per series, section by section."""
    lines = [
        f"The second run compared with the first: ratio of the {statistic} with its {100 * CONFIDENCE:.0f} % interval; "
        "not significant where that includes 1."
    ]
    section = ""
    for change in comparison.changes:
        title = title_of(change.after.section, change.after.unit)
        if title != section:
            section = title
            lines += ["", title]
        lines.append(f"  {_name(change.after)}: {_said(change)}")
        lines += [f"    {fact}" for fact in change.quality]
    for run, missing in (("first", comparison.only_before), ("second", comparison.only_after)):
        if missing:
            lines += ["", f"only in the {run} run: {'; '.join(_name(measurement) for measurement in missing)}"]
    return "\n".join(lines)


def _measured(results: Results, yardstick: str | None) -> Iterator[Measurement]:
    if yardstick is None:
        yield from results.measurements
        return
    found = {measurement.key: measurement for measurement in results.measurements if measurement.subject == yardstick}
    if not found:
        subjects = dict.fromkeys(measurement.subject for measurement in results.measurements)
        raise InvalidInputError(f"no series of the yardstick {yardstick!r}; there are those of {', '.join(subjects)}")
    for measurement in results.measurements:
        divisor = found.get(measurement.key_of(yardstick))
        if divisor is not None and divisor is not measurement:
            yield relative(measurement, divisor)


def _busy(run: str, environment: Environment) -> Iterator[str]:
    others = environment.load_average[0]
    if others > environment.cores / 2:
        yield (
            f"the machine was busy before the {run} run (load average {others:.2f} on {environment.cores} cores); "
            "that alone changes times: see --yardstick"
        )


def _name(measurement: Measurement) -> str:
    factors = ", ".join(f"{name} {value}" for name, value in measurement.factors.items())
    return f"{measurement.subject}, {measurement.group}{f' ({factors})' if factors else ''}"


def _said(change: Change) -> str:
    estimate, unit = change.ratio, UNITS[change.after.unit]
    interval = "" if estimate.low is None else f" [{number(estimate.low)} – {number(estimate.high or 0)}]"
    shown = f"ratio {number(estimate.value)}{interval}"
    if change.verdict == "not significant":
        return f"not significant, {shown}"
    factor = max(estimate.value, 1 / estimate.value) if estimate.value else float("inf")
    return f"{number(factor)} times {unit.more if estimate.value > 1 else unit.less}, {shown}"

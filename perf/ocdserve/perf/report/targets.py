# SPDX-License-Identifier: Apache-2.0
"""What ocdserve promises about its speed on a CPU, beside what was measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from ocdserve.contract import ENSEMBLE, FUSED
from ocdserve.perf.report.tables import Table, number
from ocdserve.perf.series.estimates import Estimate, median, quantile, ratio
from ocdserve.perf.series.measurement import OURS, Measurement, find
from ocdserve.perf.series.results import Results

__all__ = ["AT_80", "Promise", "promise_table", "promises"]

# Value of the factor `at` of the run at 80 % of capacity.
AT_80 = "80 % of capacity"

Verdict = Literal["kept", "missed", "too close to tell", "too few samples"]

# 1.5 GB.
_MEMORY_MIB = 1.5e9 / 2**20


@dataclass(frozen=True)
class Promise:
    """One promise, measured.

    Attributes:
        what: What was promised, and on what it was measured.
        limit: The number.
        is_least: Whether the number is the least that was promised, and not the most.
        measured: What was found.
        shown: How to show a number of this kind.
    """

    what: str
    limit: float
    is_least: bool
    measured: Estimate
    shown: Callable[[float], str] = number

    @property
    def promised(self) -> str:
        """The number in words."""
        # Without digits that nobody promised.
        shown = self.shown(self.limit).replace(number(self.limit), f"{self.limit:,.4g}")
        return f"at {'least' if self.is_least else 'most'} {shown}"

    @property
    def verdict(self) -> Verdict:
        """Whether it is kept; too close to tell where the interval holds the limit."""
        if self.measured.low is not None:
            if not self.measured.is_telling:
                return "too few samples"
            if not self.measured.differs_from(self.limit):
                return "too close to tell"
        return "kept" if (self.measured.value >= self.limit) is self.is_least else "missed"


def promises(results: Results) -> tuple[Promise, ...]:
    """All promises that the run's sections measure."""
    return (
        *_beside(results, "pipeline", "RapidOCR", 4.0, _together),
        *_beside(results, "pipeline", "RapidOCR+OpenVINO", 1.3, _together),
        *_beside(results, "postprocess", "plain loop", 20.0, partial(_named, "dense, 1000 words")),
        *_beside(results, "postprocess", "plain loop", 8.0, partial(_named, "receipts")),
        *_shares(results),
        *_served(results, ENSEMBLE, 0.90),
        *_served(results, FUSED, 0.93),
        *_tails(results),
        *_memory(results),
    )


def promise_table(results: Results) -> Table | None:
    """The promises as a table; None where the run measures none."""
    found = promises(results)
    if not found:
        return None
    return Table(
        section="promises",
        title="Promises",
        notes=("What is promised for two cores of a CPU and the default network.",),
        headers=("what", "promised", "measured", "95 % interval", ""),
        rows=tuple(
            (
                one.what,
                one.promised,
                one.shown(one.measured.value),
                ""
                if one.measured.low is None or one.measured.high is None
                else f"{one.shown(one.measured.low)} – {one.shown(one.measured.high)}",
                one.verdict,
            )
            for one in found
        ),
        text_columns=2,
    )


def _together(groups: Sequence[str]) -> Sequence[str]:
    """The group of all data sets, where there is one."""
    return [group for group in groups if " + " in group] or groups


def _named(name: str, groups: Sequence[str]) -> Sequence[str]:
    return [group for group in groups if group == name]


def _beside(
    results: Results, section: str, subject: str, limit: float, chosen: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[Promise]:
    theirs = {one.group: one for one in find(results.measurements, section=section, subject=subject, unit="ms")}
    for group in chosen([*theirs]):
        for ours in _own(results, section, group, theirs[group]):
            what = f"{section}, {group}: time of {subject}, divided by {_name(ours)}{_accuracy(theirs[group], ours)}"
            yield Promise(what, limit, True, ratio(theirs[group], ours), _times)


def _own(results: Results, section: str, group: str, theirs: Measurement) -> Iterator[Measurement]:
    """Ours, and our other detectors that are at least as accurate as theirs."""
    for one in find(results.measurements, section=section, unit="ms", group=group):
        other = one.subject.startswith(f"{OURS}-") and "hmean" in one.facts and "hmean" in theirs.facts
        if one.subject == OURS or (other and float(one.facts["hmean"]) >= float(theirs.facts["hmean"])):
            yield one


def _name(ours: Measurement) -> str:
    return "ours" if ours.subject == OURS else ours.subject


def _accuracy(theirs: Measurement, ours: Measurement) -> str:
    if "hmean" not in theirs.facts or "hmean" not in ours.facts:
        return ""
    return f" (hmean {float(theirs.facts['hmean']):.4f}, ours {float(ours.facts['hmean']):.4f})"


def _shares(results: Results) -> Iterator[Promise]:
    stages = find(results.measurements, section="stages", subject=OURS, unit="ms")
    for group in _named("receipts", [*dict.fromkeys(one.group for one in stages)]):
        medians = {one.factors.get("stage"): median(one).value for one in stages if one.group == group}
        share = sum(medians.get(stage, 0.0) for stage in ("preprocess", "postprocess")) / sum(medians.values())
        what = f"stages, {group}: preprocess and postprocess, of the time in process"
        yield Promise(what, 0.05, False, Estimate(share, None, None, 0), _percent)


def _served(results: Results, model: str, limit: float) -> Iterator[Promise]:
    bare = find(results.measurements, section="serving", subject="bare network", unit="images/s", concurrency=8)
    for base in bare:
        same = find(results.measurements, section="serving", subject=model, unit="images/s", group=base.group)
        for one in same:
            if one.factors == base.factors:
                what = f"serving, {base.group}: throughput of {model} at concurrency 8, of the bare network's"
                yield Promise(what, limit, True, ratio(one, base))


def _tails(results: Results) -> Iterator[Promise]:
    for one in find(results.measurements, section="capacity", unit="ms", at=AT_80):
        middle, tail = quantile(one, 0.5), quantile(one, 0.99)
        if middle and tail:
            what = f"capacity, {one.group}: p99 latency divided by p50 at {AT_80}"
            yield Promise(what, 3.0, False, Estimate(tail / middle, None, None, 0))


def _memory(results: Results) -> Iterator[Promise]:
    for one in find(results.measurements, section="memory", unit="MiB", **{"counted as": "PSS"}):
        what = f"memory, {one.group}: the most that the server takes, in MiB"
        yield Promise(what, _MEMORY_MIB, False, Estimate(max(one.samples), None, None, 0))


def _times(value: float) -> str:
    return f"{number(value)} times"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"

# SPDX-License-Identifier: Apache-2.0
"""Performance and exactness targets of ocdserve, and whether a run meets them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ocdserve.contract import ENSEMBLE, FUSED
from ocdserve.perf.report.tables import Table, baseline_of, number
from ocdserve.perf.series.estimates import Estimate, mean_difference, median, quantile, ratio
from ocdserve.perf.series.measurement import OURS, PAINTED_OVER, TEXTS, Measurement, find
from ocdserve.perf.series.results import Results

# Value of the factor `at` of the run at 80 % of capacity.
AT_80 = "80 % of capacity"
# Subject of a series that was measured without a network on the GPU.
NO_NETWORK = "no network"
# Group of the text lines of the GPU check.
LINES = "text lines"
# Largest differences between the GPU's answers and the CPU's.
MAX_CORNER_PX = 0.01
MAX_SCORE = 1e-4
# Largest share of texts that another detector may find more, and largest upper end of its interval, of which so many
# conditions may be exceptions.
MAX_DEFICIT, MAX_DEFICIT_HIGH, MAX_EXCEPTIONS = 0.02, 0.05, 2

Verdict = Literal["met", "missed", "too close to tell", "too few samples", "not measured"]

# Of the section `reading`: how many times as long another reader must take as ours. Where the processor has bfloat16,
# RapidOCR's OpenVINO engine reads in it, and ours only by its fast recogniser.
_READING_SPEEDS = {
    (OURS, "RapidOCR"): 1.1,
    (OURS, "RapidOCR+OpenVINO"): 1.05,
    (f"{OURS}-bf16", "RapidOCR+OpenVINO"): 1.05,
    (f"{OURS}-fast", "RapidOCR"): 1.25,
    (f"{OURS}-fast", "RapidOCR+OpenVINO"): 1.15,
}

# Of the section `pipeline` on receipts without their texts: how many times as long another detector must take as the
# fastest of ours that is at least as accurate.
_FRONT_SPEEDS = {"faster-paddle": 1.8, "faster-paddle-tiny": 1.8, "RapidOCR": 4.5, "RapidOCR+OpenVINO": 3.0}

# 1.5 GB.
_MEMORY_MIB = 1.5e9 / 2**20


@dataclass(frozen=True)
class Target:
    """One target and its measurement.

    Attributes:
        what: What the target is about, and what it was measured on.
        limit: The target.
        is_least: Whether the target is a lower limit, else an upper one.
        measured: The measurement; None if it was not made.
        shown: Formats a number of this kind.
        note: A caveat about the measurement, or why there is none.
    """

    what: str
    limit: float
    is_least: bool
    measured: Estimate | None
    shown: Callable[[float], str] = number
    note: str = ""

    @property
    def limit_text(self) -> str:
        """The target as text."""
        # Four digits at most: targets are round numbers.
        shown = self.shown(self.limit).replace(number(self.limit), f"{self.limit:,.4g}")
        return f"at {'least' if self.is_least else 'most'} {shown}"

    @property
    def verdict(self) -> Verdict:
        """Whether the target is met; too close to tell if the interval of the measurement includes it."""
        if self.measured is None:
            return "not measured"
        if self.measured.low is not None:
            if not self.measured.has_enough_samples:
                return "too few samples"
            if not self.measured.differs_from(self.limit):
                return "too close to tell"
        within = self.measured.value >= self.limit if self.is_least else self.measured.value <= self.limit
        return "met" if within else "missed"


def targets(results: Results) -> tuple[Target, ...]:
    """The targets of all sections of a run; all those of the GPU if it is a GPU check."""
    is_gpu_check = any(section.startswith("gpu-") for section in results.sections)
    return (
        *_compared_with(results, "pipeline", "RapidOCR", 4.0),
        *_compared_with(results, "pipeline", "RapidOCR+OpenVINO", 1.3),
        *_front(results),
        *_readings(results),
        *_compared_with(results, "postprocess", "plain loop", 20.0, "dense, 1000 words"),
        *_compared_with(results, "postprocess", "plain loop", 8.0, "receipts"),
        *_shares(results),
        *_served(results, ENSEMBLE, 0.90),
        *_served(results, FUSED, 0.93),
        *_tails(results),
        *_memory(results),
        *_robustness(results),
        *((*exactness_targets(results), *_gpu_speeds(results)) if is_gpu_check else ()),
    )


def target_table(results: Results) -> Table | None:
    """The targets as a table; None if the run measures none."""
    found = targets(results)
    if not found:
        return None
    cpu = any(not section.startswith("gpu-") for section in results.sections)
    return Table(
        section="targets",
        title="Targets",
        notes=("Targets are for two CPU cores and the default network.",) if cpu else (),
        headers=("what", "target", "measured", "95 % interval", ""),
        rows=tuple(
            (
                one.what,
                one.limit_text,
                "" if one.measured is None else one.shown(one.measured.value),
                ""
                if one.measured is None or one.measured.low is None or one.measured.high is None
                else f"{one.shown(one.measured.low)} – {one.shown(one.measured.high)}",
                f"{one.verdict}: {one.note}" if one.note else one.verdict,
            )
            for one in found
        ),
        text_columns=2,
    )


def exactness_targets(results: Results) -> tuple[Target, ...]:
    """Targets of the GPU check for the agreement of the GPU's answers with the CPU's."""
    generated, real = "generated maps", "real maps"
    return tuple(
        _worst(results, "gpu-exactness", f"{name}, {groups[0]}", _facts(results, name, groups), limit, shown)
        for name, groups, limit, shown in (
            ("cases outside", (generated, real), 0.0, number),
            ("cases with one box off by rounding", (generated, real), 1.0, number),
            ("cases that differ from run to run", (generated,), 0.0, number),
            ("largest difference of a corner", (generated,), MAX_CORNER_PX, _in("px")),
            ("largest difference of a score", (generated,), MAX_SCORE, number),
            ("differing bytes", ("random sizes",), 0.0, number),
            ("differing bytes", (LINES,), 0.0, number),
        )
    )


def _facts(results: Results, name: str, groups: Sequence[str]) -> dict[str, float]:
    """A fact of the exactness section by what it is of."""
    measured = find(results.measurements, section="gpu-exactness")
    return {
        f"{name}, {one.group}": float(one.facts[name]) for one in measured if one.group in groups and name in one.facts
    }


def _gpu_speeds(results: Results) -> Iterator[Target]:
    """Targets of the GPU check for speeds; a note says so unless the answers are exact."""
    exact = all(target.verdict == "met" for target in exactness_targets(results))
    for target in _gpu_times(results):
        unproven = target.measured is not None and not exact
        notes = ("the answers were not proven exact" if unproven else "", target.note)
        yield replace(target, note="; ".join(filter(None, notes)))


def _gpu_times(results: Results) -> Iterator[Target]:
    """Times of executions in a row, on the slower of sparse and real maps."""
    section, faster = "gpu-stages", "times faster than the CPU"
    in_a_row = find(results.measurements, section=section, unit="µs", executed="in a row")
    series = [one for one in in_a_row if one.group != "dense"]
    for subject, batch, limit in (
        ("preprocessing", 1, 10.0),
        ("post-processing", 1, 80.0),
        ("post-processing", 8, 20.0),
    ):
        chosen = find(series, subject=subject, batch=batch)
        found = {f"{subject}, batch {batch}, {one.group}": median(one).value / batch for one in chosen}
        unit = _in("µs" if batch == 1 else "µs per image")
        yield _worst(results, section, f"{subject}, batch {batch}", found, limit, unit)
    compared = [one for one in find(series, subject="post-processing", batch=1) if faster in one.facts]
    found = {f"{faster}, batch 1, {one.group}": float(one.facts[faster]) for one in compared}
    yield _worst(results, section, f"{faster}, batch 1", found, 50.0, _in("times"), is_least=True)
    section, name = "gpu-end-to-end", "most images per second, JPEG to quads"
    loads = find(results.measurements, section=section, unit="images/s")
    alone = [one for one in loads if one.subject != NO_NETWORK and one.factors.get("processes", 1) == 1]
    most = [sample for one in alone for sample in one.samples]
    yield _worst(results, section, name, {name: max(most)} if most else {}, 2000.0, _in("images/s"), is_least=True)


def _worst(
    results: Results,
    section: str,
    name: str,
    found: Mapping[str, float],
    limit: float,
    shown: Callable[[float], str],
    is_least: bool = False,
) -> Target:
    """The target for the worst of several measurements by name; `name` is shown if there is none."""
    part = results.part(section)
    if not found:
        return Target(name, limit, is_least, None, shown, (part and part.reason) or "the part did not run")
    worst = (min if is_least else max)(found, key=found.__getitem__)
    unfinished = part and part.state != "complete" and (part.reason or part.state)
    note = f"the part was not finished: {unfinished}" if unfinished else ""
    return Target(worst, limit, is_least, _exact(found[worst]), shown, note)


def _compared_with(
    results: Results, section: str, subject: str, limit: float, group: str | None = None
) -> Iterator[Target]:
    """On one group; None: on that of all data sets if there is one, else on each."""
    measured = find(results.measurements, section=section, subject=subject, unit="ms", group=group)
    found = [one for one in measured if TEXTS not in one.factors]
    together = [one for one in found if " + " in one.group]
    for theirs in together or found:
        for ours in _own(results, section, theirs):
            name = "ours" if ours.subject == OURS else ours.subject
            what = f"{section}, {theirs.group}: time of {subject}, divided by {name}{_accuracy(theirs, ours)}"
            yield Target(what, limit, True, ratio(theirs, ours), _in("times"))


def _own(results: Results, section: str, theirs: Measurement) -> Iterator[Measurement]:
    """Ours, and our other detectors that are at least as accurate."""
    for one in find(results.measurements, section=section, unit="ms", group=theirs.group):
        if one.factors != theirs.factors:
            continue
        other = one.subject.startswith(f"{OURS}-") and "hmean" in one.facts and "hmean" in theirs.facts
        if one.subject == OURS or (other and float(one.facts["hmean"]) >= float(theirs.facts["hmean"])):
            yield one


def _front(results: Results) -> Iterator[Target]:
    """How far the fastest of ours that is as accurate is ahead of other detectors; not measured if none is."""
    rows = find(results.measurements, section="pipeline", group="receipts", **{TEXTS: PAINTED_OVER})
    for theirs in (one for one in rows if one.subject in _FRONT_SPEEDS):
        what = f"pipeline, receipts without texts: time of {theirs.subject}"
        limit = _FRONT_SPEEDS[theirs.subject]
        own = _own(results, "pipeline", theirs)
        mine = [one for one in own if float(one.facts["hmean"]) >= float(theirs.facts["hmean"])]
        if not mine:
            yield Target(f"{what}, divided by ours", limit, True, None, _in("times"), "none of ours is as accurate")
            continue
        ours = min(mine, key=lambda one: median(one).value)
        what += f", divided by {ours.subject}{_accuracy(theirs, ours)}"
        yield Target(what, limit, True, ratio(theirs, ours), _in("times"))


def _readings(results: Results) -> Iterator[Target]:
    """How much faster ours reads the receipts, and how much better it reads each set, than RapidOCR."""
    for (name, other), limit in _READING_SPEEDS.items():
        ours = {one.group: one for one in find(results.measurements, section="reading", subject=name, unit="ms")}
        for theirs in find(results.measurements, section="reading", subject=other, unit="ms"):
            what, mine = f"reading, {theirs.group}", ours.get(theirs.group)
            if mine is None:
                continue
            if theirs.group == "receipts":
                yield Target(
                    f"{what}: time of {other}, divided by {name}", limit, True, ratio(theirs, mine), _in("times")
                )
            if " + " not in theirs.group:
                for fact, sign in (("hmean", 1), ("CER", -1)):
                    more = sign * (float(mine.facts[fact]) - float(theirs.facts[fact]))
                    gain = f"{what}: {fact} of {name} better than that of {other}"
                    yield Target(gain, 0.0, True, _exact(more), _signed)


def _accuracy(theirs: Measurement, ours: Measurement) -> str:
    if "hmean" not in theirs.facts or "hmean" not in ours.facts:
        return ""
    return f" (hmean {float(theirs.facts['hmean']):.4f}, ours {float(ours.facts['hmean']):.4f})"


def _shares(results: Results) -> Iterator[Target]:
    stages = find(results.measurements, section="stages", subject=OURS, group="receipts", unit="ms")
    if medians := {one.factors.get("stage"): median(one).value for one in stages}:
        share = sum(medians.get(stage, 0.0) for stage in ("preprocess", "postprocess")) / sum(medians.values())
        what = "stages, receipts: preprocess and postprocess, of the time in process"
        yield Target(what, 0.05, False, _exact(share), _percent)


def _served(results: Results, model: str, limit: float) -> Iterator[Target]:
    bare = find(results.measurements, section="serving", subject="bare network", unit="images/s", concurrency=8)
    for base in bare:
        same = find(results.measurements, section="serving", subject=model, unit="images/s", group=base.group)
        for one in same:
            if one.factors == base.factors:
                what = f"serving, {base.group}: throughput of {model} at concurrency 8, of the bare network's"
                yield Target(what, limit, True, ratio(one, base))


def _tails(results: Results) -> Iterator[Target]:
    for one in find(results.measurements, section="capacity", unit="ms", at=AT_80):
        middle, tail = quantile(one, 0.5), quantile(one, 0.99)
        if middle and tail:
            what = f"capacity, {one.group}: p99 latency divided by p50 at {AT_80}"
            yield Target(what, 3.0, False, _exact(tail / middle))


def _memory(results: Results) -> Iterator[Target]:
    for one in find(results.measurements, section="memory", unit="MiB", **{"counted as": "PSS"}):
        what = f"memory, {one.group}: the most that the server takes, in MiB"
        yield Target(what, _MEMORY_MIB, False, _exact(max(one.samples)))


def _robustness(results: Results) -> Iterator[Target]:
    """The deficit over all conditions, and the conditions in which it is large or may be."""
    rows = results.section("robustness")
    pairs = [(base, row) for row in rows if (base := baseline_of(row, rows)) is not None]
    if not pairs:
        return
    deficit, conditions = mean_difference(pairs), f"mean of {len(pairs)} conditions"
    what = f"robustness: share of the texts that {pairs[0][0].subject} finds more than ours"
    yield Target(f"{what}, {conditions}", MAX_DEFICIT, False, _exact(deficit.value))
    if deficit.high is not None:
        yield Target(f"{what}, upper end of its 95 % interval", MAX_DEFICIT_HIGH, False, _exact(deficit.high))
    found = {ours.group: mean_difference([(theirs, ours)]) for theirs, ours in pairs}
    names = [name for name, one in found.items() if one.value > MAX_DEFICIT or (one.high or 0.0) >= MAX_DEFICIT_HIGH]
    what = f"robustness: conditions where that is above {MAX_DEFICIT:g}, or may be {MAX_DEFICIT_HIGH:g}"
    yield Target(what, MAX_EXCEPTIONS, False, _exact(len(names)), note=", ".join(names))


def _exact(value: float) -> Estimate:
    """A figure without an interval."""
    return Estimate(value, None, None, 0)


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _in(unit: str) -> Callable[[float], str]:
    return lambda value: f"{number(value)} {unit}"

# SPDX-License-Identifier: Apache-2.0
"""What the GPU path has promised, beside what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal

from ocdserve.perf.gpu_check.exactness import LARGEST_CORNER_PX, LARGEST_SCORE
from ocdserve.perf.gpu_check.record import Record, rows_of

Verdict = Literal["met", "not met", "not measured"]


@dataclass(frozen=True)
class Target:
    """A promise.

    Attributes:
        what: Of what.
        promised: The number, with how it is meant.
        measured: What was found; None where it was not measured.
        unit: Its unit.
        verdict: Whether it holds.
        note: How it was measured, or why it was not.
    """

    what: str
    promised: str
    measured: float | None
    unit: str
    verdict: Verdict
    note: str = ""


def targets(records: Sequence[Record]) -> list[Target]:
    """All promises, judged by the records of the parts.

    Times are of the kind of maps that is slowest among sparse and real ones, executed one right after the other;
    speed-ups of the kind with the smallest.
    """
    exactness, stages, end = (rows_of(records, name) for name in ("exactness", "stages", "end-to-end"))
    reason = exactness.reason or "the part did not run"
    found = [
        _at_most("cases outside", exactness, [(kind, 0.0) for kind in ("generated maps", "real maps")], "", reason),
        _at_most("cases that differ from run to run", exactness, [("generated maps", 0.0)], "", reason),
        _at_most("largest difference of a corner", exactness, [("generated maps", LARGEST_CORNER_PX)], "px", reason),
        _at_most("largest difference of a score", exactness, [("generated maps", LARGEST_SCORE)], "", reason),
        _at_most("differing bytes", exactness, [("random sizes", 0.0)], "", reason),
    ]
    exact = all(target.verdict == "met" for target in found)
    reason = stages.reason or "the part did not run"
    post = [("batch 1, sparse", 80.0), ("batch 1, real", 80.0)]
    post_of_eight = [("batch 8, sparse", 20.0), ("batch 8, real", 20.0)]
    speeds = [
        _at_most("preprocessing", stages, [("batch 1", 10.0)], "µs", reason),
        _at_most("post-processing", stages, post, "µs", reason),
        _at_most("post-processing", stages, post_of_eight, "µs an image", reason),
        _at_least("times faster than the CPU", stages, [("batch 1, sparse", 50), ("batch 1, real", 50)], "x", reason),
        _at_least("most images a second", end, [("JPEG to quads", 2000)], "images/s", end.reason or "no network ran"),
    ]
    if not exact:
        note = "the answers were not proven exact"
        speeds = [
            replace(target, note="; ".join(filter(None, (note, target.note)))) if target.measured else target
            for target in speeds
        ]
    return [*found, *speeds]


def _at_most(subject: str, record: Record, limits: list[tuple[str, float]], unit: str, reason: str) -> Target:
    known = [(value, case) for case, _ in limits if (value := record.value(subject, case)) is not None]
    limit = limits[0][1]
    promised = f"<= {limit:g} {unit}".strip()
    if not known:
        return Target(f"{subject}, {limits[0][0]}", promised, None, unit, "not measured", reason)
    value, case = max(known, key=itemgetter(0))
    verdict: Verdict = "met" if value <= limit else "not met"
    return Target(f"{subject}, {case}", promised, value, unit, verdict, _partial(record))


def _at_least(subject: str, record: Record, limits: list[tuple[str, float]], unit: str, reason: str) -> Target:
    known = [(value, case) for case, _ in limits if (value := record.value(subject, case)) is not None]
    limit = limits[0][1]
    promised = f">= {limit:g} {unit}"
    if not known:
        return Target(f"{subject}, {limits[0][0]}", promised, None, unit, "not measured", reason)
    value, case = min(known, key=itemgetter(0))
    verdict: Verdict = "met" if value >= limit else "not met"
    return Target(f"{subject}, {case}", promised, value, unit, verdict, _partial(record))


def _partial(record: Record) -> str:
    return "" if record.state == "complete" else f"the part was not finished: {record.reason or record.state}"

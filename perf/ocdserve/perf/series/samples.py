# SPDX-License-Identifier: Apache-2.0
"""Raw times of calls that are measured in alternation.

The speed of a shared machine changes from minute to minute. Therefore calls to compare are made directly after each
other on the same input, and compared in pairs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import TypeVar

from ocdserve.perf.series.measurement import Measurement, case_of

_T = TypeVar("_T")

# Called with the number of steps done and of all steps.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sample:
    """One timed call.

    Attributes:
        subject: What was timed.
        group: Group of the case, such as a data set.
        case: Input of the call, such as an image.
        round: Number of the repetition, from 0.
        ms: Wall time in milliseconds.
    """

    subject: str
    group: str
    case: str
    round: int
    ms: float


def in_turns(calls: Mapping[str, Callable[[], _T]], turn: int) -> Iterator[tuple[str, float, _T]]:
    """Make each call once, beginning with a different one each turn.

    Yields:
        Name of the call, its time in milliseconds, and its result.
    """
    names = list(calls)
    start = turn % len(names)
    for name in names[start:] + names[:start]:
        begin = perf_counter()
        result = calls[name]()
        yield name, (perf_counter() - begin) * 1000, result


def cpu_timed(call: Callable[[], object]) -> Callable[[], float]:
    """A call that returns the milliseconds of this process's CPU time that it took."""

    def timed() -> float:
        begin = process_time()
        call()
        return (process_time() - begin) * 1000

    return timed


def series(
    samples: Iterable[Sample],
    section: str,
    subject: str,
    group: str,
    *,
    baseline: str = "",
    factors: Mapping[str, str | int | float] | None = None,
    facts: Mapping[str, str | int | float] | None = None,
) -> Measurement:
    """A measurement in milliseconds from the samples of one subject and group.

    Raises:
        InvalidInputError: There is no such sample, or two have the same case and round.
    """
    chosen = [sample for sample in samples if (sample.subject, sample.group) == (subject, group)]
    return Measurement(
        section=section,
        subject=subject,
        group=group,
        unit="ms",
        samples=tuple(sample.ms for sample in chosen),
        cases=tuple(case_of(sample.case, sample.round) for sample in chosen),
        factors=factors or {},
        facts=facts or {},
        baseline=baseline,
    )

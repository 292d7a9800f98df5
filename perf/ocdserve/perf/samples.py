# SPDX-License-Identifier: Apache-2.0
"""Raw times of calls that were measured in turns, and the statistics that follow from them.

On a shared machine one call is as noisy as the minute in which it ran. Calls that are compared are made one
right after the other on the same input, and compared pair by pair.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TypeVar

from ocdserve.contract import InvalidInputError
from ocdserve.perf.measurement import Measurement, case_of

_T = TypeVar("_T")

# Is told how many steps of how many are done.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sample:
    """One timed call.

    Attributes:
        subject: What was timed.
        group: What the case belongs to, such as a data set.
        case: What it was called with, such as an image.
        round: Which repetition it was, from 0.
        ms: Wall time in milliseconds.
    """

    subject: str
    group: str
    case: str
    round: int
    ms: float


def in_turns(calls: Mapping[str, Callable[[], _T]], turn: int) -> Iterator[tuple[str, float, _T]]:
    """Make each call once; which goes first moves on by one with each turn.

    Yields:
        Name of the call, milliseconds that it took, and its result.
    """
    names = list(calls)
    start = turn % len(names)
    for name in names[start:] + names[:start]:
        begin = perf_counter()
        result = calls[name]()
        yield name, (perf_counter() - begin) * 1000, result


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
    """The times of one subject in one group as a measurement in milliseconds.

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


def median_ms(samples: Iterable[Sample], subject: str, group: str) -> float:
    """Median time of one subject in one group, in milliseconds."""
    return median(_times(samples, subject, group).values())


def median_ratio(samples: Sequence[Sample], slower: str, faster: str, group: str) -> float:
    """Median over all cases and rounds of how many times as long as `faster` the subject `slower` took."""
    return median(a / b for a, b in _pairs(samples, slower, faster, group))


def median_difference_ms(samples: Sequence[Sample], subject: str, baseline: str, group: str) -> float:
    """Median over all cases and rounds of how much longer than `baseline` the subject took, in milliseconds."""
    return median(a - b for a, b in _pairs(samples, subject, baseline, group))


def _pairs(samples: Sequence[Sample], a: str, b: str, group: str) -> list[tuple[float, float]]:
    times_a, times_b = _times(samples, a, group), _times(samples, b, group)
    if times_a.keys() != times_b.keys():
        raise InvalidInputError(f"{a!r} and {b!r} were not measured on the same cases of {group!r}; measure in turns")
    return [(times_a[key], times_b[key]) for key in times_a]


def _times(samples: Iterable[Sample], subject: str, group: str) -> dict[tuple[str, int], float]:
    times = {
        (sample.case, sample.round): sample.ms
        for sample in samples
        if sample.subject == subject and sample.group == group
    }
    if not times:
        raise InvalidInputError(f"no sample of {subject!r} in {group!r}; statistics need at least one")
    return times

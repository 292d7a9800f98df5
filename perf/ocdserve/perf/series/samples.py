# SPDX-License-Identifier: Apache-2.0
"""Raw times of calls that were measured in turns.

On a shared machine one call is as noisy as the minute in which it ran. Calls that are compared are made one
right after the other on the same input, and compared pair by pair.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

from ocdserve.perf.series.measurement import Measurement, case_of

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

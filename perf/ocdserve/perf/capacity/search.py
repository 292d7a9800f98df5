# SPDX-License-Identifier: Apache-2.0
"""The highest arrival rate at which latency stays within a limit: bisection over short open-loop runs."""

from collections.abc import Callable
from dataclasses import dataclass

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.load.loads import LoadResult

__all__ = ["Capacity", "Probe", "Trial", "find_capacity"]

# Runs an open loop at this many requests a second; the second argument numbers the runs, for arrivals of their own.
Probe = Callable[[float, int], LoadResult]

# More than this share of requests sent later than this share of the limit, and it is the load generator that was
# measured.
_LATE_SHARE, _LATE_LIMITS = 0.05, 0.1


@dataclass(frozen=True)
class Trial:
    """One open-loop run.

    Attributes:
        rate: Requests a second, on average.
        p50_ms: Median latency, from when requests were due.
        p99_ms: Latency that one in a hundred exceeds; infinite where no request was answered.
        errors: Requests without an answer.
        kept: Whether it stayed within the limit.
        result: The run.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int
    kept: bool
    result: LoadResult

    @classmethod
    def of(cls, rate: float, result: LoadResult, limit_ms: float) -> "Trial":
        """Judge a run.

        Raises:
            UnavailableError: The load generator sent too many requests late, so that nothing is known of the server.
        """
        errors = len(result.answers) - len(result.latencies_ms)
        late = sum(answer.late_ms > _LATE_LIMITS * limit_ms for answer in result.answers)
        if late > _LATE_SHARE * len(result.answers):
            raise UnavailableError(
                f"{late} of {len(result.answers)} requests were sent late at {rate:.3g} a second: the load "
                "generator did not keep up. Leave it a core of its own, or run it on another machine."
            )
        if not result.latencies_ms:
            return cls(rate, float("inf"), float("inf"), errors, False, result)
        p99 = result.percentile_ms(99)
        return cls(rate, result.percentile_ms(50), p99, errors, p99 <= limit_ms and not errors, result)


@dataclass(frozen=True)
class Capacity:
    """What a search found.

    Attributes:
        rate: Highest requests a second that stayed within the limit; 0 where none did.
        trials: All runs, in order.
    """

    rate: float
    trials: tuple[Trial, ...]


def find_capacity(
    probe: Probe,
    limit_ms: float,
    ceiling: float,
    floor: float = 0.0,
    resolution: float = 0.08,
    said: Callable[[Trial], None] = lambda trial: None,
) -> Capacity:
    """Search between two rates.

    A run that lies about its rate's fate, for it is short, costs no more than the part of the range beyond it.

    Args:
        probe: Makes a run.
        limit_ms: Highest p99 in milliseconds.
        ceiling: A rate that is surely too high, such as the throughput of a server that is never idle.
        floor: Where above 0: a rate that must be kept for the search to go on at all, tried first.
        resolution: End when the range is narrower than this share of the ceiling.
        said: Is told of each run when it has ended.

    Raises:
        InvalidInputError: The range or the limit makes no sense.
        UnavailableError: The load generator did not keep up.
    """
    if not (0 <= floor < ceiling and limit_ms > 0 and 0 < resolution < 1):
        raise InvalidInputError(
            "capacity is searched between 0 <= floor < ceiling, with a limit above 0 and a resolution between 0 and 1; "
            f"got {floor:g}, {ceiling:g}, {limit_ms:g} ms and {resolution:g}"
        )
    trials: list[Trial] = []

    def kept(rate: float) -> bool:
        trials.append(Trial.of(rate, probe(rate, len(trials)), limit_ms))
        said(trials[-1])
        return trials[-1].kept

    if floor and not kept(floor):
        return Capacity(0.0, tuple(trials))
    low, high = floor, ceiling
    while high - low > resolution * ceiling:
        middle = (low + high) / 2
        if kept(middle):
            low = middle
        else:
            high = middle
    return Capacity(low, tuple(trials))

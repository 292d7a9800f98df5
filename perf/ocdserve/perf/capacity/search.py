# SPDX-License-Identifier: Apache-2.0
"""The highest arrival rate that keeps latency within a limit: bisection over short open-loop runs."""

from collections.abc import Callable
from dataclasses import dataclass

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.load.loads import LoadResult

# Runs an open loop at this rate, in requests per second; the second argument is the seed of its arrivals.
Probe = Callable[[float, int], LoadResult]

# With more than this share of requests sent late by more than this share of the limit, the run has measured the load
# generator.
_LATE_SHARE, _LATE_LIMITS = 0.05, 0.1


@dataclass(frozen=True)
class Trial:
    """One open-loop run.

    Attributes:
        rate: Mean requests per second.
        p50_ms: Median latency in milliseconds, from when requests were due.
        p99_ms: 99th percentile of latency in milliseconds; infinite if no request was answered.
        errors: Requests without an answer.
        within_limit: Whether p99 stayed within the limit, without errors.
        result: The run.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int
    within_limit: bool
    result: LoadResult

    @classmethod
    def of(cls, rate: float, result: LoadResult, limit_ms: float) -> "Trial":
        """Judge a run.

        Raises:
            UnavailableError: The load generator sent too many requests late, so the run says nothing about the server.
        """
        errors = len(result.answers) - len(result.latencies_ms)
        late = sum(answer.late_ms > _LATE_LIMITS * limit_ms for answer in result.answers)
        if late > _LATE_SHARE * len(result.answers):
            raise UnavailableError(
                f"{late} of {len(result.answers)} requests were sent late at {rate:.3g} per second: the load "
                "generator did not keep up. Leave it a core of its own, or run it on another machine."
            )
        if not result.latencies_ms:
            return cls(rate, float("inf"), float("inf"), errors, False, result)
        p99 = result.percentile_ms(99)
        return cls(rate, result.percentile_ms(50), p99, errors, p99 <= limit_ms and not errors, result)


@dataclass(frozen=True)
class Capacity:
    """Result of a search.

    Attributes:
        rate: Highest requests per second that stayed within the limit; 0 if none did.
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
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> Capacity:
    """Search between two rates.

    Short runs are noisy: a wrong verdict loses only the part of the range beyond its rate.

    Args:
        probe: Makes a run.
        limit_ms: Highest p99 in milliseconds.
        ceiling: A rate that is too high, such as the throughput of a saturated server.
        floor: If above 0: a rate to try first; the search ends if it is over the limit.
        resolution: Stop when the range is narrower than this share of the ceiling.
        on_trial: Called after each run.

    Raises:
        InvalidInputError: The range or the limit is not valid.
        UnavailableError: The load generator did not keep up.
    """
    if not (0 <= floor < ceiling and limit_ms > 0 and 0 < resolution < 1):
        raise InvalidInputError(
            "capacity is searched between 0 <= floor < ceiling, with a limit above 0 and a resolution between 0 and 1; "
            f"got {floor:g}, {ceiling:g}, {limit_ms:g} ms and {resolution:g}"
        )
    trials: list[Trial] = []

    def succeeds(rate: float) -> bool:
        trials.append(Trial.of(rate, probe(rate, len(trials)), limit_ms))
        on_trial(trials[-1])
        return trials[-1].within_limit

    if floor and not succeeds(floor):
        return Capacity(0.0, tuple(trials))
    low, high = floor, ceiling
    while high - low > resolution * ceiling:
        middle = (low + high) / 2
        if succeeds(middle):
            low = middle
        else:
            high = middle
    return Capacity(low, tuple(trials))

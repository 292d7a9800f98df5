# SPDX-License-Identifier: Apache-2.0
"""Search for the best of a few tunings: each must first reach the capacity of the best one so far."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from ocdserve.backend.publish.tuning import Tuning
from ocdserve.contract import MAX_BATCH_SIZE, InvalidInputError, UnavailableError
from ocdserve.perf.capacity.bench import Bench
from ocdserve.perf.capacity.search import Capacity, Trial, find_capacity
from ocdserve.perf.load.loads import LoadResult

# A queue holds what is served within this multiple of the limit; requests beyond are refused at once.
_QUEUED_LIMITS = 3
_DELAY_US = 2000
_CONFIRMATIONS, _STEP_DOWN = 3, 0.85


@dataclass(frozen=True)
class CapacityPlan:
    """Parameters of the search.

    Attributes:
        limit_ms: Highest p99 in milliseconds; None: `limit_factor` times the unloaded median of the first candidate.
        limit_factor: See `limit_ms`.
        singles: Requests, one at a time, for the unloaded median.
        clients: Clients that keep the server busy.
        saturating: Their total number of requests.
        resolution: See `find_capacity`.
        try_delay: Whether to try the best tuning with a batch delay too.

    Raises:
        InvalidInputError: A field is out of its range.
    """

    limit_ms: float | None = None
    limit_factor: float = 3.0
    singles: int = 12
    clients: int = 8
    saturating: int = 48
    resolution: float = 0.08
    try_delay: bool = True

    def __post_init__(self) -> None:
        if self.limit_ms is not None and not (math.isfinite(self.limit_ms) and self.limit_ms > 0):
            raise InvalidInputError(f"the limit of p99 must be a number of milliseconds above 0; got {self.limit_ms}")
        if not self.limit_factor > 1:
            raise InvalidInputError(f"limit_factor must be above 1, an unloaded server's own; got {self.limit_factor}")
        if min(self.singles, self.clients, self.saturating) < 1 or not 0 < self.resolution < 1:
            raise InvalidInputError("singles, clients and saturating must be at least 1, resolution between 0 and 1")


@dataclass(frozen=True)
class Candidate:
    """Results of one tuning.

    Attributes:
        tuning: The tuning.
        single: Run with one client.
        saturated: Run with clients that keep the server busy.
        capacity: Result of the search.
    """

    tuning: Tuning
    single: LoadResult
    saturated: LoadResult
    capacity: Capacity


@dataclass(frozen=True)
class Outcome:
    """Result of the sweep.

    Attributes:
        limit_ms: Highest p99, in milliseconds.
        best: The candidate with the highest capacity.
        tuning: Its tuning, with the queue size for it.
        candidates: All candidates, in the order of the sweep.
        at_capacity: A run with the final tuning and new arrivals, at the best candidate's capacity or, if that was too
            slow, at a lower rate. Its rate is the capacity.
        at_80: The same at 80 % of the capacity.
        at_80_saturated: The same at 80 % of the throughput of a saturated server.
    """

    limit_ms: float
    best: Candidate
    tuning: Tuning
    candidates: tuple[Candidate, ...]
    at_capacity: Trial
    at_80: Trial
    at_80_saturated: Trial

    def text(self) -> str:
        """The result as text."""
        saturated, batch = self.best.saturated.images_per_second, self.best.saturated.scenario.batch
        lines = [
            f"capacity: {self.at_capacity.rate * batch:.2f} images/s with p99 under {self.limit_ms:.0f} ms "
            f"({describe(self.tuning)}, queue {self.tuning.queue_size})",
            f"never idle: {saturated:.2f} images/s",
            f"single requests: {self.best.single.percentile_ms(50):.0f} ms",
        ]
        for name, one in (
            ("at capacity, once more", self.at_capacity),
            ("at 80 % of capacity", self.at_80),
            ("at 80 % of never idle", self.at_80_saturated),
        ):
            lines.append(
                f"{name}: {one.rate:.2f} requests/s, p50 {one.p50_ms:.0f} ms, p99 {one.p99_ms:.0f} ms, "
                f"p99/p50 {one.p99_ms / one.p50_ms:.2f}"
            )
        if not self.at_capacity.within_limit:
            lines.append("no rate near it met the limit when measured again: the machine is busy, repeat the run")
        return "\n".join(lines)


def candidates(cores: int, base: Tuning | None = None) -> tuple[Tuning, ...]:
    """Candidate tunings for a CPU with this number of cores, the default one first."""
    base = base or Tuning()
    half = max(1, cores // 2)
    tried = [
        replace(base, threads=cores, streams=1),
        replace(base, threads=cores, streams=cores),
        replace(base, threads=cores, streams=half),
        replace(base, threads=half, streams=1, instances=2 if cores > 1 else 1),
    ]
    return tuple(dict.fromkeys(tried))


def queue_size(limit_ms: float, requests_per_second: float) -> int:
    """Size of the queue: the requests served in `_QUEUED_LIMITS` limits, and at least two batches."""
    return max(2 * MAX_BATCH_SIZE, math.ceil(_QUEUED_LIMITS * limit_ms / 1000 * requests_per_second))


def find_best(
    tunings: tuple[Tuning, ...],
    open_bench: Callable[[Tuning], AbstractContextManager[Bench]],
    plan: CapacityPlan,
    say: Callable[[str], None],
) -> Outcome:
    """Search the capacity of each tuning, then of the best one with a batch delay, then measure the final one.

    Args:
        tunings: At least one; if the plan has no limit, it follows from the first one's unloaded median.
        open_bench: Starts a server.
        plan: Parameters of the search.
        say: Receives one line per run.

    Raises:
        UnavailableError: No tuning stays within the limit at any rate, or the load generator does not keep up.
    """
    limit = plan.limit_ms
    found: list[Candidate] = []
    for tuning in tunings:
        with open_bench(tuning) as bench:
            say(f"{describe(tuning)}:")
            single = bench.closed(1, plan.singles)
            if limit is None:
                limit = plan.limit_factor * single.percentile_ms(50)
                say(f"  limit of p99: {limit:.0f} ms, {plan.limit_factor:g} times the median of single requests")
            best_rate = max((candidate.capacity.rate for candidate in found), default=0.0)
            found.append(_searched(tuning, bench, single, limit, plan, best_rate, say))
    assert limit is not None
    best = max(found, key=lambda candidate: candidate.capacity.rate)
    if not best.capacity.rate:
        raise UnavailableError(
            f"no rate kept p99 under {limit:.0f} ms: single requests take {best.single.percentile_ms(50):.0f} ms at "
            "the median. Allow more with --p99-ms, or use a faster machine or a smaller network."
        )
    if plan.try_delay:
        delayed = replace(best.tuning, queue_delay_us=_DELAY_US)
        # A delay must sustain a rate that the same tuning without it did not.
        missed = [one.rate for one in best.capacity.trials if not one.within_limit and one.rate > best.capacity.rate]
        floor = min(missed, default=_requests_per_second(best.saturated))
        with open_bench(delayed) as bench:
            say(f"{describe(delayed)}:")
            found.append(_searched(delayed, bench, bench.closed(1, plan.singles), limit, plan, floor, say))
        best = max(found, key=lambda candidate: candidate.capacity.rate)
    saturated = _requests_per_second(best.saturated)
    final = replace(best.tuning, queue_size=queue_size(limit, saturated))
    with open_bench(final) as bench:
        say(f"{describe(final)}, final:")
        confirmed = _confirmed(bench, best.capacity.rate, limit, say)
        at_80, at_80_saturated = (
            _trial(bench, 0.8 * rate, seed, limit, say) for seed, rate in ((80, confirmed.rate), (81, saturated))
        )
    return Outcome(limit, best, final, tuple(found), confirmed, at_80, at_80_saturated)


def describe(tuning: Tuning) -> str:
    """A tuning as text."""
    threads = "all" if tuning.threads is None else tuning.threads
    words = f"instances {tuning.instances}, threads {threads}, streams {tuning.streams}"
    return words + (f", batch delay {tuning.queue_delay_us} us" if tuning.queue_delay_us else "")


def _confirmed(bench: Bench, rate: float, limit_ms: float, say: Callable[[str], None]) -> Trial:
    """A run at the rate; if it exceeds the limit, because the search was lucky, one at a lower rate."""
    for number in range(_CONFIRMATIONS):
        trial = _trial(bench, rate * _STEP_DOWN**number, number, limit_ms, say)
        if trial.within_limit:
            break
    return trial


def _trial(bench: Bench, rate: float, number: int, limit_ms: float, say: Callable[[str], None]) -> Trial:
    # A seed that no trial of the search uses.
    trial = Trial.of(rate, bench.open(rate, 1000 + number), limit_ms)
    say(_line(trial))
    return trial


def _searched(
    tuning: Tuning,
    bench: Bench,
    single: LoadResult,
    limit_ms: float,
    plan: CapacityPlan,
    floor: float,
    say: Callable[[str], None],
) -> Candidate:
    saturated = bench.closed(plan.clients, plan.saturating)
    say(
        f"  single requests {single.percentile_ms(50):.0f} ms, {plan.clients} clients "
        f"{saturated.images_per_second:.2f} images/s"
    )
    ceiling = _requests_per_second(saturated)
    if floor >= ceiling:
        say("  cannot reach the capacity of the best one")
        return Candidate(tuning, single, saturated, Capacity(0.0, ()))
    capacity = find_capacity(bench.open, limit_ms, ceiling, floor, plan.resolution, lambda trial: say(_line(trial)))
    return Candidate(tuning, single, saturated, capacity)


def _requests_per_second(saturated: LoadResult) -> float:
    return saturated.images_per_second / saturated.scenario.batch


def _line(trial: Trial) -> str:
    verdict = "within the limit" if trial.within_limit else f"{trial.errors} errors" if trial.errors else "too slow"
    return f"  {trial.rate:6.2f} requests/s: p50 {trial.p50_ms:.0f} ms, p99 {trial.p99_ms:.0f} ms, {verdict}"

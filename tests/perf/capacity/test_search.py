# SPDX-License-Identifier: Apache-2.0
"""The search for capacity, against simulated servers whose capacity is known."""

import heapq
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ocdserve.backend.publish.tuning import Tuning
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.capacity.search import find_capacity
from ocdserve.perf.capacity.sweep import CapacityPlan, candidates, find_best, queue_size
from ocdserve.perf.load.loads import Answer, LoadResult
from ocdserve.perf.load.scenarios import Scenario, arrivals_s

SCENARIO = Scenario("simulated", concurrency=1, requests=1)


@dataclass(frozen=True)
class Queue:
    """So many servers with one queue, each of which answers in so many seconds."""

    servers: int
    service_s: float
    requests: int = 4000
    lost: bool = False

    def latencies_s(self, arrivals: tuple[float, ...]) -> list[float]:
        free = [0.0] * self.servers
        latencies = []
        for due in arrivals:
            end = max(due, heapq.heappop(free)) + self.service_s
            heapq.heappush(free, end)
            latencies.append(end - due)
        return latencies

    def open(self, rate: float, seed: int) -> LoadResult:
        arrivals = arrivals_s(rate, seed, self.requests, None)
        error = "UnavailableError" if self.lost else ""
        answers = tuple(
            Answer(due, 1000 * latency, error)
            for due, latency in zip(arrivals, self.latencies_s(arrivals), strict=True)
        )
        return LoadResult("simulated", replace(SCENARIO, concurrency=None, rate=rate), "", answers)

    def closed(self, concurrency: int, requests: int) -> LoadResult:
        busy = min(concurrency, self.servers)
        answers = tuple(Answer(n // busy * self.service_s, 1000 * self.service_s) for n in range(requests))
        return LoadResult("simulated", replace(SCENARIO, concurrency=concurrency, requests=requests), "", answers)


def known_load(waits: float) -> float:
    """Share of its time that one server with constant service is busy, where 99 of 100 wait at most so many services.

    Erlang's distribution of the wait in the M/D/1 queue.
    """

    def within(load: float) -> float:
        terms = (
            (load * (k - waits)) ** k / math.factorial(k) * math.exp(-load * (k - waits)) for k in range(int(waits) + 1)
        )
        return (1 - load) * math.fsum(terms)

    return float(next(load for load in np.linspace(1, 0, 2001) if within(float(load)) >= 0.99))


@pytest.mark.parametrize("factor", [2.0, 3.0, 6.0])
def test_the_capacity_that_is_known_is_found(factor: float) -> None:
    found = find_capacity(Queue(1, 0.1, 10_000).open, factor * 100, ceiling=10, resolution=0.02)
    # One in a hundred waits longer than the limit less its own service.
    assert found.rate == pytest.approx(10 * known_load(factor - 1), abs=0.4)
    assert len(found.trials) == 6
    assert max(trial.rate for trial in found.trials if trial.within_limit) == found.rate


def test_a_limit_below_every_latency_is_a_capacity_of_0() -> None:
    found = find_capacity(Queue(1, 0.1).open, 99, ceiling=10, resolution=0.1)
    assert found.rate == 0 and not any(trial.within_limit for trial in found.trials)


def test_a_run_with_errors_is_over_the_limit_however_fast_they_are() -> None:
    assert find_capacity(Queue(1, 0.001, lost=True).open, 500, ceiling=10).rate == 0


def test_a_floor_over_the_limit_ends_the_search_at_once() -> None:
    found = find_capacity(Queue(1, 0.1).open, 300, ceiling=10, floor=9.5)
    assert found.rate == 0 and len(found.trials) == 1


def test_a_late_load_generator_is_not_mistaken_for_a_slow_server() -> None:
    late_ms = 31.0

    def late(rate: float, seed: int) -> LoadResult:
        result = Queue(1, 0.01).open(rate, seed)
        return replace(result, answers=tuple(replace(answer, late_ms=late_ms) for answer in result.answers))

    with pytest.raises(UnavailableError, match="load generator did not keep up"):
        find_capacity(late, 300, ceiling=10)
    late_ms = 29.0
    assert find_capacity(late, 300, ceiling=10).rate > 0


@pytest.mark.parametrize("change", [{"limit_ms": 0.0}, {"ceiling": 0.0}, {"floor": 20.0}, {"resolution": 1.0}])
def test_an_invalid_search_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match="capacity is searched"):
        find_capacity(Queue(1, 0.1).open, **{"limit_ms": 300.0, "ceiling": 10.0, **change})


class TestSweep:
    def test_the_best_tuning_wins_and_worse_ones_cost_little(self) -> None:
        # Two streams serve 12.5 requests per second, one 10; two instances 8. The limit is 3 times 100 ms for all.
        opened = []

        @contextmanager
        def open_bench(tuning: Tuning) -> Iterator[Queue]:
            opened.append(tuning)
            if tuning.instances == 2:
                yield Queue(2, 0.25)
            elif tuning.queue_delay_us:
                yield Queue(2, 0.2)
            else:
                yield Queue(2, 0.16) if tuning.streams == 2 else Queue(1, 0.1)

        said: list[str] = []
        outcome = find_best(candidates(2), open_bench, CapacityPlan(), said.append)
        assert outcome.limit_ms == pytest.approx(300)
        assert (outcome.tuning.streams, outcome.tuning.instances, outcome.tuning.queue_delay_us) == (2, 1, 0)
        # 3 limits of 0.3 s at 12.5 requests per second are 11.25; two batches are more.
        assert outcome.tuning.queue_size == 16
        assert outcome.best.capacity.rate == pytest.approx(4.1, abs=1.2)
        assert outcome.at_80.rate == pytest.approx(0.8 * outcome.at_capacity.rate)
        assert outcome.at_80_saturated.rate == pytest.approx(0.8 * 12.5)
        assert outcome.at_80.p99_ms < outcome.at_capacity.p99_ms
        assert [len(one.capacity.trials) <= 1 for one in outcome.candidates] == [False, False, True, True]
        assert opened[-1] == outcome.tuning and any("too slow" in line for line in said)

    def test_a_capacity_that_fails_confirmation_is_lowered(self) -> None:
        seeds: list[int] = []

        class Tiring(Queue):
            """Slower in its second life, by half."""

            def open(self, rate: float, seed: int) -> LoadResult:
                seeds.append(seed)
                return Queue(1, 0.1 if seed < 1000 else 0.125, 10_000).open(rate, seed)

        @contextmanager
        def open_bench(tuning: Tuning) -> Iterator[Queue]:
            yield Tiring(1, 0.1)

        plan = CapacityPlan(limit_factor=4.0, try_delay=False)
        outcome = find_best((Tuning(),), open_bench, plan, lambda line: None)
        assert outcome.at_capacity.rate in [pytest.approx(outcome.best.capacity.rate * step) for step in (0.85, 0.7225)]
        assert outcome.at_80.rate == pytest.approx(0.8 * outcome.at_capacity.rate)
        assert len(set(seeds)) == len(seeds) and len(outcome.candidates) == 1

    def test_a_limit_below_the_fastest_answer_is_reported(self) -> None:
        @contextmanager
        def open_bench(tuning: Tuning) -> Iterator[Queue]:
            yield Queue(1, 0.1)

        with pytest.raises(UnavailableError, match="no rate kept p99 under 50 ms: single requests take 100 ms"):
            find_best((Tuning(),), open_bench, CapacityPlan(limit_ms=50), lambda line: None)

    def test_candidates_depend_on_the_number_of_cores(self) -> None:
        assert candidates(1) == (Tuning(threads=1),)
        assert candidates(2) == (
            Tuning(threads=2),
            Tuning(threads=2, streams=2),
            Tuning(threads=1, instances=2),
        )
        assert Tuning(threads=8, streams=4) in candidates(8)

    def test_a_queue_holds_what_is_served_in_three_limits(self) -> None:
        assert queue_size(1000, 40.0) == 120
        assert queue_size(100, 2.0) == 16

    @pytest.mark.parametrize("fields", [{"limit_ms": -1.0}, {"limit_factor": 1.0}, {"clients": 0}, {"resolution": 0.0}])
    def test_an_invalid_plan_is_refused(self, fields: dict[str, float]) -> None:
        with pytest.raises(InvalidInputError):
            CapacityPlan(**fields)  # type: ignore[arg-type]

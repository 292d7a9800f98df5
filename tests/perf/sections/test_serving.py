# SPDX-License-Identifier: Apache-2.0
"""The serving section without a server: load runs over functions, and series of literals."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from ocdserve.contract import UnavailableError
from ocdserve.perf.load.loads import Answer, LoadResult
from ocdserve.perf.load.scenarios import Scenario
from ocdserve.perf.sections.serving import BARE_NETWORK, IN_PROCESS, Call, latency_series, load_run, load_series
from ocdserve.perf.series.samples import Sample

SAMPLES = tuple(
    Sample(path, "image", "image", round_, ms)
    for round_, times in enumerate([(10.0, 14.0, 20.0), (50.0, 53.0, 62.0), (12.0, 17.0, 23.0)])
    for path, ms in zip((IN_PROCESS, "ocdnet_fused", "ocdnet"), times, strict=True)
)


def test_single_requests_are_paired_with_those_in_process() -> None:
    found = list(latency_series(SAMPLES, "image"))
    assert [(one.subject, one.baseline, one.unit, one.samples) for one in found] == [
        (IN_PROCESS, IN_PROCESS, "ms", (10.0, 50.0, 12.0)),
        ("ocdnet_fused", IN_PROCESS, "ms", (14.0, 53.0, 17.0)),
        ("ocdnet", IN_PROCESS, "ms", (20.0, 62.0, 23.0)),
    ]
    assert {one.cases for one in found} == {("image#0", "image#1", "image#2")}


def run_of(seconds: float, first_ms: float, second_ms: float) -> LoadResult:
    """Two requests, of which the second ends with the run."""
    scenario = Scenario("serving", model="any", concurrency=2, requests=2)
    return LoadResult("sdk", scenario, "", (Answer(0.0, first_ms), Answer(seconds - second_ms / 1000, second_ms)))


def test_load_runs_become_throughput_by_pass_and_latencies_of_all_passes() -> None:
    runs = {
        ("ocdnet", 2): [run_of(1.0, 240.0, 250.0), run_of(8.0, 2000.0, 3000.0)],
        (BARE_NETWORK, 2): [run_of(0.5, 100.0, 120.0), run_of(2.0, 900.0, 950.0)],
    }
    found = list(load_series(runs, "image"))
    assert [(one.subject, one.unit, one.samples, one.cases) for one in found] == [
        (BARE_NETWORK, "images/s", (4.0, 1.0), ("pass#0", "pass#1")),
        (BARE_NETWORK, "ms", (100.0, 120.0, 900.0, 950.0), ()),
        ("ocdnet", "images/s", (2.0, 0.25), ("pass#0", "pass#1")),
        ("ocdnet", "ms", (240.0, 250.0, 2000.0, 3000.0), ()),
    ]
    assert all(one.factors == {"driver": "closed loop", "concurrency": 2} for one in found)
    assert {one.baseline for one in found} == {BARE_NETWORK}


def test_concurrent_requests_are_as_many_as_requested() -> None:
    together = threading.Barrier(3)
    calls = itertools.count()

    def call() -> None:
        # The first call of each client opens its connection and is alone.
        if next(calls) >= 3:
            together.wait(timeout=10)

    run = load_run("fake", lambda: nullcontext(call), concurrency=3, requests=6)
    assert (run.scenario.model, run.scenario.concurrency, len(run.latencies_ms)) == ("fake", 3, 6)


def test_the_first_request_of_a_client_is_not_timed() -> None:
    opened: list[list[int]] = []

    @contextmanager
    def client() -> Iterator[Call]:
        calls: list[int] = []
        opened.append(calls)

        def call() -> None:
            time.sleep(0.001 if calls else 0.3)
            calls.append(1)

        yield call

    run = load_run("fake", client, concurrency=2, requests=4)
    assert len(opened) == 2
    assert sum(len(calls) for calls in opened) == 6
    assert max(run.latencies_ms) < 300
    assert run.seconds < 0.3
    assert run.images_per_second == pytest.approx(4 / run.seconds)


def test_a_failing_request_ends_the_run() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        if len(calls) > 3:
            raise UnavailableError("the server is gone")

    with pytest.raises(UnavailableError, match="the server is gone"):
        load_run("fake", lambda: nullcontext(call), concurrency=2, requests=10)
    assert len(calls) < 7

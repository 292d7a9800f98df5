# SPDX-License-Identifier: Apache-2.0
"""The serving section without a server: load runs with clients that are functions, and statistics on literals."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from ocdserve.contract import UnavailableError
from ocdserve.perf.samples import Sample
from ocdserve.perf.serving import BARE_NETWORK, IN_PROCESS, Call, LoadRun, ServingResult, closed_loop

SAMPLES = tuple(
    Sample(path, "image", "image", round_, ms)
    for round_, times in enumerate([(10.0, 14.0, 20.0), (50.0, 53.0, 62.0), (12.0, 17.0, 23.0)])
    for path, ms in zip((IN_PROCESS, "ocdnet_fused", "ocdnet"), times, strict=True)
)


def test_what_serving_adds_is_the_median_of_pairs() -> None:
    rows = ServingResult("image", SAMPLES, ()).latency_rows()
    assert [(row.path, row.median_ms, row.added_ms) for row in rows] == [
        (IN_PROCESS, 12.0, 0.0),
        ("ocdnet_fused", 17.0, 4.0),
        ("ocdnet", 23.0, 11.0),
    ]


def test_throughput_is_compared_within_a_pass() -> None:
    # The machine is busy in the second pass.
    loads = (
        LoadRun("ocdnet", 1, 2.0, (250.0,) * 8),
        LoadRun("ocdnet", 2, 1.0, (240.0,) * 8),
        LoadRun("ocdnet", 1, 8.0, (1000.0,) * 8),
        LoadRun("ocdnet", 2, 8.0, (2000.0,) * 8),
        LoadRun("ocdnet", 1, 2.0, (250.0,) * 8),
        LoadRun("ocdnet", 2, 1.0, (240.0,) * 8),
        LoadRun(BARE_NETWORK, 1, 4.0, (100.0,) * 8),
    )
    rows = ServingResult("image", (), loads).throughput_rows()
    assert [(row.path, row.concurrency, row.per_second, row.against_one_client, row.median_ms) for row in rows] == [
        (BARE_NETWORK, 1, 2.0, 1.0, 100.0),
        ("ocdnet", 1, 2.0, 1.0, 250.0),
        ("ocdnet", 2, 2.4, 2.0, 240.0),
    ]


def test_as_many_clients_work_at_once_as_are_asked_for() -> None:
    together = threading.Barrier(3)
    run = closed_loop("fake", lambda: nullcontext(lambda: together.wait(timeout=10)), concurrency=3, requests=6)
    assert (run.subject, run.concurrency, len(run.latencies_ms)) == ("fake", 3, 6)


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

    run = closed_loop("fake", client, concurrency=2, requests=4)
    assert len(opened) == 2
    assert sum(len(calls) for calls in opened) == 6
    assert max(run.latencies_ms) < 300
    assert run.seconds < 0.3
    assert run.per_second == pytest.approx(4 / run.seconds)


def test_a_failing_request_ends_the_run() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        if len(calls) > 3:
            raise UnavailableError("the server is gone")

    with pytest.raises(UnavailableError, match="the server is gone"):
        closed_loop("fake", lambda: nullcontext(call), concurrency=2, requests=10)

# SPDX-License-Identifier: Apache-2.0
"""The SDK's closed and open loop, on calls that sleep."""

import threading
import time

import pytest

from ocdserve.contract import UnavailableError
from ocdserve.perf.load.drivers.sdk import closed_loop, open_loop


class Server:
    """Answers one call at a time, in `seconds` each, after a first one that takes `first`."""

    def __init__(self, seconds: float, first: float = 0.0) -> None:
        self.numbers: list[int] = []
        self._lock = threading.Lock()
        self._seconds, self._first = seconds, first

    def __call__(self, number: int) -> None:
        with self._lock:
            time.sleep(self._first if not self.numbers else self._seconds)
            self.numbers.append(number)


def test_a_closed_loop_makes_every_request_once() -> None:
    server = Server(0.0)
    answers = closed_loop(server, 4, 40)
    assert sorted(server.numbers) == list(range(40)) and len(answers) == 40
    assert [answer.begin_s for answer in answers] == sorted(answer.begin_s for answer in answers)


def test_a_closed_loop_keeps_that_many_calls_in_flight() -> None:
    in_flight: set[int] = set()
    most = []

    def call(number: int) -> None:
        in_flight.add(number)
        most.append(len(in_flight))
        time.sleep(0.005)
        in_flight.discard(number)

    closed_loop(call, 3, 30)
    assert max(most) == 3


def test_a_closed_loop_begins_nothing_after_its_time() -> None:
    answers = closed_loop(lambda number: time.sleep(0.02), 2, None, 0.1)
    assert answers and all(answer.begin_s < 0.1 for answer in answers)


def test_an_open_loop_counts_the_wait_of_requests_that_arrive_while_the_server_is_stuck() -> None:
    # The server does nothing for 0.3 s. Requests that arrive meanwhile wait for the rest of it, which a closed loop
    # would have seen in one request only.
    answers = open_loop(Server(0.0, first=0.3), [0.0, 0.05, 0.1, 0.15, 0.2, 0.25])
    latencies = [answer.latency_ms for answer in answers]
    for due_ms, latency_ms in zip((0, 50, 100, 150, 200, 250), latencies, strict=True):
        assert latency_ms >= 300 - due_ms - 1
    assert all(answer.begin_s == due for answer, due in zip(answers, (0.0, 0.05, 0.1, 0.15, 0.2, 0.25), strict=True))


def test_a_late_generator_is_reported_and_its_delay_counted() -> None:
    # All threads are busy: the second request is due at 0 and is sent when the first has its answer.
    answers = open_loop(Server(0.0, first=0.2), [0.0, 0.0, 0.0], max_in_flight=3)
    assert len(answers) == 3 and min(answer.latency_ms for answer in answers) >= 199
    assert all(0 <= answer.late_ms <= answer.latency_ms for answer in answers)


def test_arrivals_beyond_the_limit_in_flight_are_dropped_and_counted() -> None:
    answers = open_loop(Server(0.0, first=0.3), [0.0, 0.02, 0.04, 0.06], max_in_flight=2)
    assert [answer.error for answer in answers] == ["", "", "dropped", "dropped"]


def test_errors_are_counted_by_class_and_others_are_not_hidden() -> None:
    def failing(number: int) -> None:
        if number % 2:
            raise UnavailableError("queue full")

    assert [answer.error for answer in open_loop(failing, [0.0, 0.001])] == ["", "UnavailableError"]
    assert sorted(answer.error for answer in closed_loop(failing, 2, 4)) == ["", "", *2 * ["UnavailableError"]]

    def broken(number: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        closed_loop(broken, 1, 1)


def test_a_closed_loop_can_stop_at_the_first_error() -> None:
    numbers = []

    def call(number: int) -> None:
        numbers.append(number)
        if number == 3:
            raise UnavailableError("the server is gone")
        time.sleep(0.002)

    with pytest.raises(UnavailableError, match="the server is gone"):
        closed_loop(call, 2, 1000, stop_on_error=True)
    assert len(numbers) < 500


def test_an_interrupted_closed_loop_makes_no_more_requests() -> None:
    numbers = []

    def call(number: int) -> None:
        numbers.append(number)
        time.sleep(0.002)
        if number == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        closed_loop(call, 2, 10_000)
    assert len(numbers) < 5_000

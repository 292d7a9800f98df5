# SPDX-License-Identifier: Apache-2.0
"""Load by the SDK: threads that share one detector. All closed and open loops of the benchmarks are here.

In the open loop a latency begins when the request was due, so that a generator that waits or is late cannot hide a slow
server (no coordinated omission); its own lateness is reported.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from ocdserve.contract import OcdserveError
from ocdserve.perf.load.drivers.payloads import Target, client_for, send
from ocdserve.perf.load.loads import DROPPED, Answer, LoadResult

# With more requests in flight an open loop drops arrivals: the server is overloaded, and threads are not free.
MAX_IN_FLIGHT = 256

# Sends the request of this number and waits for its answer; raises OcdserveError.
Call = Callable[[int], object]


def run(target: Target) -> LoadResult:
    """Run the scenario once; see `ocdserve.perf.load.drivers.run_load`."""
    scenario, payloads = target.scenario, target.payloads
    with client_for(target) as detector:

        def call(number: int) -> None:
            send(detector, payloads[number % len(payloads)])

        # Opens the connection.
        _outcome(call, 0)
        if scenario.concurrency is None:
            answers = open_loop(call, scenario.arrivals_s())
        else:
            answers = closed_loop(call, scenario.concurrency, scenario.requests, scenario.duration_s)
    return LoadResult("sdk", scenario, target.images.digest, answers)


def closed_loop(
    call: Call,
    concurrency: int,
    requests: int | None,
    duration_s: float | None = None,
    *,
    stop_on_error: bool = False,
) -> tuple[Answer, ...]:
    """Call from several threads without a pause, until the number of requests or the time is reached.

    Args:
        call: Called with 0, 1, ...
        concurrency: Threads.
        requests: Total number of requests; None: until `duration_s` is over.
        duration_s: In seconds.
        stop_on_error: Raise the first `OcdserveError` and make no more requests; False: count it as an answer.

    Returns:
        All requests by `begin_s`.

    Raises:
        Exception: What `call` raised, other than a counted error.
    """
    numbers = itertools.count() if requests is None else iter(range(requests))
    gate = threading.Barrier(concurrency)
    given_up = threading.Event()
    start = 0.0

    def work() -> list[Answer]:
        nonlocal start
        if gate.wait() == 0:
            start = perf_counter()
        gate.wait()
        answers = []
        # next() of these iterators is atomic in CPython.
        for number in numbers:
            begin = perf_counter()
            if given_up.is_set() or (duration_s is not None and begin - start >= duration_s):
                break
            try:
                error = _outcome(call, number, stop_on_error)
            except BaseException:
                # Set by the failing thread: the results of other threads may be awaited first.
                given_up.set()
                raise
            answers.append(Answer(begin - start, (perf_counter() - begin) * 1000, error))
        return answers

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            parts = [pool.submit(work) for _ in range(concurrency)]
            return _sorted(answer for part in parts for answer in part.result())
        except BaseException:
            # Such as Ctrl-C in this thread: the pool waits for its threads, which must stop.
            given_up.set()
            raise


def open_loop(call: Call, arrivals_s: Sequence[float], max_in_flight: int = MAX_IN_FLIGHT) -> tuple[Answer, ...]:
    """Call at given times, whether or not earlier calls have returned.

    Args:
        call: Called with 0, 1, ..., from several threads.
        arrivals_s: When each call is due, ascending, in seconds from the start.
        max_in_flight: Arrivals while so many calls are in flight are dropped, and counted as errors.

    Returns:
        All arrivals by `begin_s`.
    """
    places = threading.Semaphore(max_in_flight)
    answers: list[Answer] = []

    def work(number: int, due: float) -> Answer:
        try:
            late_ms = (perf_counter() - start - due) * 1000
            error = _outcome(call, number)
            return Answer(due, (perf_counter() - start - due) * 1000, error, late_ms)
        finally:
            places.release()

    with ThreadPoolExecutor(min(max_in_flight, len(arrivals_s))) as pool:
        # Start threads now, so that the first requests are not late.
        list(pool.map(lambda _: time.sleep(0.01), range(min(8, max_in_flight))))
        start, jobs = perf_counter(), []
        for number, due in enumerate(arrivals_s):
            pause = start + due - perf_counter()
            if pause > 0:
                time.sleep(pause)
            if places.acquire(blocking=False):
                jobs.append(pool.submit(work, number, due))
            else:
                answers.append(Answer(due, 0.0, DROPPED))
        answers += [job.result() for job in jobs]
    return _sorted(answers)


def _outcome(call: Call, number: int, raises: bool = False) -> str:
    """Class name of the error that the call raised; empty for none."""
    try:
        call(number)
    except OcdserveError as error:
        if raises:
            raise
        return type(error).__name__
    return ""


def _sorted(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    return tuple(sorted(answers, key=lambda answer: answer.begin_s))

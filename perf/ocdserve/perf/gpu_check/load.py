# SPDX-License-Identifier: Apache-2.0
"""Callers that never pause: how many images a second come back, and how long each call takes."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from time import perf_counter

# Detects in some images.
Call = Callable[[], object]


@dataclass(frozen=True)
class Load:
    """One run.

    Attributes:
        images: Answered in all.
        seconds: From the first call to the last answer.
        latencies_ms: Of each call.
    """

    images: int
    seconds: float
    latencies_ms: tuple[float, ...]

    @property
    def per_second(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def median_ms(self) -> float:
        """Median time of a call."""
        return median(self.latencies_ms)


def keep_busy(calls: Sequence[Call], images: int, seconds: float) -> Load:
    """Let callers, one thread each, repeat their calls for some seconds; each makes one call before, untimed.

    Args:
        calls: One for each caller.
        images: Images of each call.
        seconds: No call begins later than that.
    """
    start = threading.Barrier(len(calls))

    def work(call: Call) -> list[tuple[float, float]]:
        try:
            call()
        except BaseException:
            # Else the others would wait for this one for ever.
            start.abort()
            raise
        start.wait()
        begin = perf_counter()
        answers: list[tuple[float, float]] = []
        while not answers or answers[-1][1] < begin + seconds:
            called = perf_counter()
            call()
            answers.append((called, perf_counter()))
        return answers

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(work, call) for call in calls]
        failures = [error for future in futures if (error := future.exception())]
    for error in sorted(failures, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    answers = [answer for future in futures for answer in future.result()]
    took = max(end for _, end in answers) - min(begin for begin, _ in answers)
    return Load(images * len(answers), took, tuple(1000 * (end - begin) for begin, end in answers))

# SPDX-License-Identifier: Apache-2.0
"""Callers that never pause."""

import threading
import time

import pytest

from ocdserve.perf.gpu_check.load import keep_busy


def test_images_of_all_callers_are_counted() -> None:
    callers: set[int] = set()

    def call() -> None:
        callers.add(threading.get_ident())
        time.sleep(0.01)

    load = keep_busy([call] * 3, images=8, seconds=0.1)

    assert len(callers) == 3
    assert load.images == 8 * len(load.latencies_ms)
    # Three callers of 10 ms and 8 images would give 2400 a second; on a busy machine fewer, never more.
    assert 0 < load.per_second <= 2400
    assert load.median_ms >= 10
    assert load.seconds >= 0.1


@pytest.mark.timeout(20)
def test_a_caller_that_fails_is_told_and_stops_the_others() -> None:
    def fails() -> None:
        raise ZeroDivisionError("the third caller")

    with pytest.raises(ZeroDivisionError, match="the third caller"):
        keep_busy([time.time, time.time, fails], images=1, seconds=30)

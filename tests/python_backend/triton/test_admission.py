# SPDX-License-Identifier: Apache-2.0
"""Which requests are admitted, by number and by time; the clock is the test's."""

import importlib
import shutil
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

MS = 1_000_000
S = 1000 * MS


@pytest.fixture
def admission(models: ModuleType) -> ModuleType:
    return importlib.import_module("ocdserve.backend.triton.admission")


class Queue:
    """The admission to a pipeline, at times in milliseconds from 1000 on."""

    def __init__(
        self,
        admission: ModuleType,
        queue_size: int = 256,
        page: Any = None,
        working: int = 5,
        queue_time_ms: int = 1000,
    ) -> None:
        self.waiters = importlib.import_module("ocdserve.backend.triton.waiter")
        self._admission = admission.Admission("m", working, queue_size, queue_time_ms, page)
        self._page = page

    def enter(self, at_ms: float, images: int = 1, timeout_ms: float = 0) -> Any:
        """The waiter of a request that is admitted; its refusal."""
        arrival = S + int(at_ms * MS)
        waiter = self.waiters.Waiter(arrival + int(timeout_ms * MS) if timeout_ms else 0, arrival=arrival)
        try:
            self._admission.enter(waiter, images)
        except self.waiters.OverloadError as refusal:
            return str(refusal)
        return waiter

    def leave(self, waiter: Any, at_ms: float, is_error: bool = False) -> None:
        self._admission.leave(waiter, S + int(at_ms * MS), is_error)

    def report(self, waiter: Any, at_ms: float, is_error: bool = False) -> None:
        """The last step answers."""
        self._page.write(waiter.arrival, S + int(at_ms * MS), is_error)

    def waiting(self, at_ms: float) -> tuple[int, float]:
        """How many, and for how many milliseconds."""
        count, seconds = self._admission.waiting(S + int(at_ms * MS))
        return count, round(seconds * 1000, 6)

    def admitted(self, at_ms: float, number: int) -> list[Any]:
        """Waiters of those that are admitted of a number that arrive one by one."""
        found = [self.enter(at_ms + index / 1000) for index in range(number)]
        return [waiter for waiter in found if not isinstance(waiter, str)]


def test_the_queue_is_as_long_as_what_is_answered_in_time(admission: ModuleType) -> None:
    queue = Queue(admission)
    for index in range(40):
        queue.leave(queue.enter(100 * index), 100 * index + 20)
    # 20 ms each: 37 are answered within three quarters of a second.
    found = queue.admitted(5000, 60)
    assert len(found) == 37
    refusal = queue.enter(5001)
    assert refusal == (
        "37 images wait for m, which takes about 0.8 s, too long for its queue time of 1 s. "
        "Try again later, or publish with a larger queue_time_ms."
    )
    # One leaves, and one finds its place.
    queue.leave(found[0], 5020)
    assert len(queue.admitted(5021, 2)) == 1


def test_requests_of_several_images_count_as_several(admission: ModuleType) -> None:
    queue = Queue(admission)
    for index in range(40):
        queue.leave(queue.enter(100 * index, images=4), 100 * index + 80)
    assert [isinstance(queue.enter(5000 + index / 1000, images=8), str) for index in range(6)] == [False] * 4 + [
        True
    ] * 2
    assert not isinstance(queue.enter(5001, images=5), str)
    assert isinstance(queue.enter(5002, images=1), str)


def test_what_is_worked_on_is_no_queue_however_long_it_takes(admission: ModuleType) -> None:
    for working, expected in ((5, 16), (24, 24)):
        queue = Queue(admission, working=working)
        queue.leave(queue.enter(0), 9000)
        assert len(queue.admitted(10_000, 40)) == expected


def test_at_first_only_the_number_counts(admission: ModuleType) -> None:
    queue = Queue(admission, queue_size=30)
    assert len(queue.admitted(0, 60)) == 35
    assert queue.enter(1).startswith("30 requests wait for m, the most that its queue holds.")


def test_who_has_too_little_time_is_not_admitted(admission: ModuleType) -> None:
    queue = Queue(admission)
    for index in range(40):
        queue.leave(queue.enter(100 * index), 100 * index + 20)
    assert not isinstance(queue.enter(5000, timeout_ms=1), str)
    assert len(queue.admitted(5000.1, 19)) == 19
    assert queue.enter(5001, timeout_ms=300) == (
        "20 images wait for m, which takes about 0.4 s, more than the request's timeout. "
        "Allow more time, or try again later."
    )
    assert not isinstance(queue.enter(5002, timeout_ms=500), str)


def test_neither_few_slow_images_nor_refused_ones_change_the_estimate(admission: ModuleType) -> None:
    queue = Queue(admission)
    for index in range(40):
        slow, bad = index % 3 == 0, index % 3 == 1
        queue.leave(queue.enter(100 * index), 100 * index + (90 if slow else 1 if bad else 20), is_error=bad)
        queue.leave(queue.enter(100 * index + 95), 100 * index + 115)
    assert len(queue.admitted(9000, 60)) == 37


@pytest.fixture
def page(admission: ModuleType, tmp_path: Path) -> Any:
    return admission.LastAnswer(tmp_path)


@pytest.mark.parametrize("shape", [1000.0, 4.0], ids=["even", "uneven"])
@pytest.mark.parametrize("passes_on", [True, False])
def test_at_twice_the_capacity_the_server_is_busy_and_answers_in_time(
    admission: ModuleType, page: Any, passes_on: bool, shape: float
) -> None:
    """Thirty seconds of random arrivals at a server that takes 16 ms at the mean for each request."""
    queue, chance = Queue(admission, page=page if passes_on else None), np.random.default_rng(7)
    arrivals = chance.exponential(8, 3750).cumsum()
    # Ends of the work of those that were admitted, in order.
    working: deque[tuple[float, Any]] = deque()
    latencies, free = [], 0.0
    for now in [*arrivals, 1e6]:
        while working and working[0][0] <= now:
            end, waiter = working.popleft()
            latencies.append(end - (waiter.arrival - S) / MS)
            if passes_on:
                queue.report(waiter, end)
            else:
                queue.leave(waiter, end)
        waiter = queue.enter(now)
        if not isinstance(waiter, str):
            free = max(free, now) + chance.gamma(shape, 16 / shape)
            working.append((free, waiter))
            if passes_on:
                queue.leave(waiter, now)
    assert len(latencies) > 0.97 * arrivals[-1] / 16
    assert np.percentile(latencies, 99) < 1000


def test_the_first_step_counts_what_the_later_ones_have_not_answered(admission: ModuleType, page: Any) -> None:
    queue = Queue(admission, page=page)
    for index in range(40):
        waiter = queue.enter(100 * index)
        queue.leave(waiter, 100 * index + 5)
        queue.report(waiter, 100 * index + 20)
    found = queue.admitted(5000, 60)
    assert len(found) == 37
    for waiter in found:
        queue.leave(waiter, 5010)
    assert queue.admitted(5020, 5) == []
    # Whatever is older than what was answered was answered too, or dropped on its way.
    queue.report(found[9], 5200, is_error=True)
    assert len(queue.admitted(5201, 20)) == 10


def test_what_a_page_says_of_another_time_is_ignored(admission: ModuleType, page: Any) -> None:
    queue = Queue(admission, queue_size=1, page=page)
    for waiter in queue.admitted(0, 6):
        queue.leave(waiter, 1)
    page.write(S + 50 * MS, S + 10 * MS, False)
    assert isinstance(queue.enter(11), str)
    page.write(S - 1, S + 11 * MS, False)
    assert isinstance(queue.enter(12), str)


def test_what_was_lost_on_its_way_does_not_count_for_long(admission: ModuleType, page: Any) -> None:
    queue = Queue(admission, queue_size=1, page=page)
    first = queue.admitted(0, 6)
    for waiter in first:
        queue.leave(waiter, 1)
    queue.report(first[0], 20)
    second = queue.admitted(30, 6)
    assert len(second) == 1
    # The later steps have reported since the others were passed on: they are slow, or have lost these only.
    assert isinstance(queue.enter(1500), str)
    queue.leave(second[0], 1900)
    assert len(queue.admitted(2100, 9)) == 5


def test_without_news_only_the_own_queue_counts(admission: ModuleType, page: Any) -> None:
    queue = Queue(admission, queue_size=1, page=page)
    for waiter in queue.admitted(0, 6):
        queue.leave(waiter, 1)
    assert isinstance(queue.enter(1900), str)
    # Nothing was heard of for two seconds: the later steps are dead.
    for round_ in range(5):
        found = queue.admitted(2100 + 10 * round_, 9)
        assert len(found) == 6
        for waiter in found:
            queue.leave(waiter, 2105 + 10 * round_)
    # They are back.
    waiter = queue.enter(3000)
    queue.leave(waiter, 3001)
    queue.report(waiter, 3010)
    for waiter in queue.admitted(3020, 6):
        queue.leave(waiter, 3021)
    assert isinstance(queue.enter(3030), str)


def test_requests_that_take_longer_than_lost_ones_count_are_learned_from(admission: ModuleType, page: Any) -> None:
    """Batches of 8 images, one every 3 s, that take 5.2 s each, after a small picture that took 20 ms."""
    queue = Queue(admission, page=page)
    small = queue.enter(0)
    queue.leave(small, 1)
    queue.report(small, 20)
    working: deque[tuple[float, Any]] = deque()
    latencies, free = [], 0.0
    for now in range(10_000, 310_000, 3000):
        while working and working[0][0] <= now:
            end, waiter = working.popleft()
            latencies.append(end - (waiter.arrival - S) / MS)
            queue.report(waiter, end)
        waiter = queue.enter(now, images=8)
        if not isinstance(waiter, str):
            queue.leave(waiter, now + 10)
            free = max(free, now) + 5200
            working.append((free, waiter))
    # Without end it would be 120 s at the end. Those at the beginning found an estimate of the small picture.
    assert max(latencies) < 12_000
    assert max(latencies[-20:]) < 3 * 5200


def test_processes_share_a_page_even_when_its_directory_is_lost(admission: ModuleType, tmp_path: Path) -> None:
    directory = tmp_path / "health"
    directory.mkdir()
    first, last = (admission.LastAnswer(directory) for _ in range(2))
    last.write(5, 7, False)
    assert first.read(8) == (5, 7)
    assert (directory / "answered").stat().st_mode & 0o777 == 0o600
    shutil.rmtree(directory)
    last.write(9, 10, False)
    assert first.read(11) == (9, 10)
    directory.mkdir()
    # One process was started again; the others look for its page within a second.
    new = admission.LastAnswer(directory)
    new.write(2 * S, 3 * S, True)
    assert first.read(3 * S) == (2 * S, 0)
    last.write(4 * S, 5 * S, False)
    assert first.read(5 * S) == (4 * S, 5 * S)
    assert new.read(6 * S) == (4 * S, 5 * S)


def test_a_page_is_where_the_launcher_says_or_for_the_children_of_one_process(
    admission: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    named = tmp_path / "named"
    named.mkdir()
    pages = [admission.LastAnswer.of_server({"OCDSERVE_HEALTH_DIRECTORY": str(named)}) for _ in range(2)]
    pages += [admission.LastAnswer.of_server({}) for _ in range(2)]
    pages[0].write(5, 7, False)
    pages[2].write(6, 7, False)
    assert [each.read(8) for each in pages] == [(5, 7), (5, 7), (6, 7), (6, 7)]
    assert (named / "answered").is_file()
    assert len(list(tmp_path.glob("ocdserve-*-steps/answered"))) == 1


def test_the_queue_has_a_length_and_an_age_also_behind_the_first_step(admission: ModuleType, tmp_path: Path) -> None:
    queue = Queue(admission, page=admission.LastAnswer(tmp_path))
    assert queue.waiting(0) == (0, 0)
    first, second = queue.enter(10), queue.enter(30)
    assert queue.waiting(50) == (2, 40)
    queue.leave(first, 60)
    assert queue.waiting(70) == (2, 60)
    queue.report(first, 80)
    assert queue.waiting(90) == (1, 60)
    queue.leave(second, 100, is_error=True)
    assert queue.waiting(110) == (0, 0)

# SPDX-License-Identifier: Apache-2.0
import io
import threading

import pytest

from ocdserve.builder.progress import SILENT, TerminalProgress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What was drawn, one text for each time."""
        return [text.replace("\x1b[K", "") for text in self.getvalue().split("\r")[1:]]


class TestPlainStream:
    def test_reports_begin_end_and_state_at_intervals(self) -> None:
        clock, stream = Clock(), io.StringIO()
        with TerminalProgress(stream, clock).task("calibrate", 20) as task:
            for _ in range(20):
                clock.now += 4
                task.advance()
        assert stream.getvalue().splitlines() == [
            "calibrate: 0 %, 0 of 20, 0 s",
            "calibrate: 20 %, 4 of 20, 16 s, about 1 min 04 s left",
            "calibrate: 40 %, 8 of 20, 32 s, about 48 s left",
            "calibrate: 60 %, 12 of 20, 48 s, about 32 s left",
            "calibrate: 80 %, 16 of 20, 1 min 04 s, about 16 s left",
            "calibrate: 100 %, 20 of 20, 1 min 20 s",
            "calibrate: done, 20 of 20, 1 min 20 s",
        ]

    def test_a_task_of_unknown_length_reports_the_current_step(self) -> None:
        clock, stream = Clock(), io.StringIO()
        with TerminalProgress(stream, clock).task("engine") as task:
            clock.now += 3700
            task.advance(0, "Timing\ngraph nodes")
        assert stream.getvalue().splitlines() == [
            "engine: 0 s",
            "engine: 1 h 01 min, Timing graph nodes",
            "engine: done, 1 h 01 min",
        ]

    def test_a_failure_is_reported_and_propagates(self) -> None:
        def interrupted() -> None:
            with TerminalProgress(stream, Clock()).task("search", 4) as task:
                task.advance(3)
                raise KeyboardInterrupt

        stream = io.StringIO()
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert stream.getvalue().splitlines()[-1] == "search: stopped, 3 of 4, 0 s"

    def test_parts_leave_no_lines_of_their_own(self) -> None:
        clock, stream = Clock(), io.StringIO()
        progress = TerminalProgress(stream, clock)
        with progress.task("build"), progress.task("nodes", 2) as part:
            clock.now += 20
            part.advance()
        assert stream.getvalue().splitlines() == [
            "build: 0 s",
            "build > nodes: 50 %, 1 of 2, 20 s, about 20 s left",
            "build: done, 20 s",
        ]

    def test_a_task_without_steps_does_not_divide_by_zero(self) -> None:
        stream = io.StringIO()
        with TerminalProgress(stream, Clock()).task("nothing", 0):
            pass
        assert stream.getvalue().splitlines()[-1] == "nothing: done, 0 of 0, 0 s"


class TestTerminal:
    def test_draws_one_line_in_place_and_leaves_the_last(self) -> None:
        clock, stream = Clock(), Terminal()
        with TerminalProgress(stream, clock).task("calibrate", 4) as task:
            clock.now += 1
            task.advance(1, "receipt_03.jpg")
        assert stream.lines() == [
            "calibrate: 0 %, 0 of 4, 0 s",
            "calibrate: 25 %, 1 of 4, 1 s, about 3 s left, receipt_03.jpg",
            "calibrate: done, 1 of 4, 1 s\n",
        ]
        assert stream.getvalue().count("\n") == 1

    def test_draws_at_most_ten_times_per_second(self) -> None:
        clock, stream = Clock(), Terminal()
        with TerminalProgress(stream, clock).task("search", 1000) as task:
            for _ in range(1000):
                clock.now += 0.001
                task.advance()
        assert 8 <= len(stream.lines()) <= 13

    def test_no_line_is_wider_than_the_terminal(self) -> None:
        stream = Terminal()  # has no size, so 80 columns
        with TerminalProgress(stream, Clock()).task("x" * 200):
            pass
        assert [len(line.rstrip("\n")) for line in stream.lines()] == [79, 79]


def test_threads_lose_no_step() -> None:
    stream = io.StringIO()
    with TerminalProgress(stream).task("nodes", 4000) as task:
        threads = [threading.Thread(target=lambda: [task.advance() for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert stream.getvalue().splitlines()[-1].startswith("nodes: done, 4000 of 4000")


def test_silent_progress_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with SILENT.task("a", 2) as task, SILENT.task("b"):
        task.advance(1, "note")
    assert capfd.readouterr() == ("", "")

# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: steps done, elapsed time, estimated remaining time.

Library code accepts a `Progress` and is silent by default; command lines pass a `TerminalProgress`.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TextIO

_REDRAW_S = 0.1
_LINE_S = 15.0


class Task(Protocol):
    """A task in progress."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report `steps` more as done, 0 to only show activity; `note` says what is being done."""


class Progress(Protocol):
    """Receiver of progress reports; thread-safe."""

    def task(self, label: str, total: int | None = None) -> AbstractContextManager[Task]:
        """Begin a task of `total` steps, None if unknown; leaving the context ends it.

        A task that begins within another one is part of it.
        """


class _Silent:
    def task(self, label: str, total: int | None = None) -> AbstractContextManager[Task]:
        return nullcontext(self)

    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


SILENT: Progress = _Silent()


class TerminalProgress:
    """Progress as text: one line redrawn in place on a terminal, otherwise a plain line every few seconds.

    Args:
        stream: Output, usually `sys.stderr`.
        clock: Monotonic clock, seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._in_place = stream.isatty()
        self._lock = threading.Lock()
        self._tasks: list[_TerminalTask] = []
        self._shown = clock()

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:
        """Begin a task; see `Progress.task`. The outermost task ends with a line that stays."""
        task = _TerminalTask(self.show, label, total, self._clock)
        with self._lock:
            self._tasks.append(task)
        self.show(force=self._in_place or len(self._tasks) == 1)
        try:
            yield task
        except BaseException:
            self._end(task, "stopped")
            raise
        self._end(task, "done")

    def show(self, force: bool = False) -> None:
        """Write the state of the newest task, unless it was written a moment ago."""
        with self._lock:
            now = self._clock()
            if not self._tasks or (not force and now - self._shown < (_REDRAW_S if self._in_place else _LINE_S)):
                return
            self._shown = now
            labels = " > ".join(task.label for task in self._tasks)
            self._write(f"{labels}: {self._tasks[-1].state()}", in_place=self._in_place)

    def _end(self, task: "_TerminalTask", how: str) -> None:
        with self._lock:
            self._tasks.remove(task)
            if not self._tasks:
                self._write(f"{task.label}: {how}, {task.count()}{_duration(task.elapsed_s())}", in_place=False)

    def _write(self, line: str, in_place: bool) -> None:
        line = " ".join(line.split())
        if self._in_place:
            # One column stays free: a terminal may wrap after the last one. "\x1b[K" clears the rest of an older line.
            line = f"\r{line[: _columns(self._stream) - 1]}\x1b[K"
        self._stream.write(line if in_place else f"{line}\n")
        self._stream.flush()


class _TerminalTask:
    def __init__(self, show: Callable[[], None], label: str, total: int | None, clock: Callable[[], float]) -> None:
        self.label = label
        self._show = show
        self._total = total
        self._clock = clock
        self._begin = clock()
        self._done = 0
        self._note = ""
        self._lock = threading.Lock()

    def advance(self, steps: int = 1, note: str = "") -> None:
        with self._lock:
            self._done += steps
            self._note = note or self._note
        self._show()

    def elapsed_s(self) -> float:
        return self._clock() - self._begin

    def count(self) -> str:
        if self._total is None:
            return f"{self._done}, " if self._done else ""
        return f"{self._done} of {self._total}, "

    def state(self) -> str:
        elapsed = self.elapsed_s()
        parts = [f"{self.count()}{_duration(elapsed)}"]
        if self._total:
            parts.insert(0, f"{min(100, 100 * self._done // self._total)} %")
            if 0 < self._done < self._total:
                # Assumes steps of equal duration.
                parts.append(f"about {_duration(elapsed * (self._total - self._done) / self._done)} left")
        return ", ".join([*parts, *filter(None, [self._note])])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:  # a stream that only claims to be a terminal
        return 80

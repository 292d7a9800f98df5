# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM between two steps of a training, so that its last checkpoint is a whole one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A signal that waits for the end of a step.

    Attributes:
        is_busy: Whether a step is under way; signals take effect at once when none is, or at the second time.
    """

    def __init__(self) -> None:
        self.is_busy = False
        self._waiting: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """End the step: raise what the program raises for the signal that waits, if any."""
        self.is_busy = False
        if self._waiting is not None:
            self._pass_on(self._waiting, None)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hold signals back within this context, where that is possible: in the main thread.

        What the training raised because of a signal becomes what the program raises for it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {
            number: signal.signal(number, self._arrived)
            for number in _SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            yield
        except BaseException:
            self._restore()
            self.check()
            raise
        finally:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        is_second = self._waiting is not None
        self._waiting = signal.Signals(number)
        if is_second or not self.is_busy:
            self._pass_on(self._waiting, frame)

    def _pass_on(self, number: signal.Signals, frame: FrameType | None) -> None:
        handler = self._before.get(number, signal.SIG_DFL)
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            raise SystemExit(128 + number)

# SPDX-License-Identifier: Apache-2.0
"""Points in the work of emulated streams."""

import time
from typing import TYPE_CHECKING

from ocdserve.backend.device.protocol import Event

from .errors import MisuseError
from .work import Work

if TYPE_CHECKING:
    from .streams import EmulatedStream


class EmulatedEvent:
    """A point in a stream's work."""

    def __init__(self, stream: "EmulatedStream", is_captured: bool) -> None:
        self._stream = stream
        self._is_captured = is_captured
        self._is_open = True
        self._reached_s: float | None = None
        self.mark = Work(self._reach, ())

    def elapsed_ms(self, since: Event) -> float:
        """Time between the two points; executes the work before both."""
        if not isinstance(since, EmulatedEvent):
            raise MisuseError(f"elapsed_ms: the event must be of this device (got {since!r})")
        return 1000 * (self._reached() - since._reached())

    def synchronize(self) -> None:
        """Execute the work before it."""
        self._reached()

    def close(self) -> None:
        """Release the event; calling it again does nothing."""
        self._is_open = False

    def awaited_by(self, waiting: "EmulatedStream", is_capturing: bool) -> None:
        """Check that the stream may wait for it.

        Raises:
            MisuseError: One of the two is inside of a capture and the other is not.
        """
        self._check()
        if self._is_captured != is_capturing or (is_capturing and waiting is not self._stream):
            raise MisuseError("wait: a capture can wait only for events of its own, and nothing else for those")

    def reach(self) -> None:
        """Execute the work before it, for another stream."""
        if self._reached_s is None:
            self._stream.execute_until(self.mark)

    def _reach(self) -> None:
        self._reached_s = time.perf_counter()

    def _reached(self) -> float:
        self._check()
        if self._is_captured:
            raise MisuseError("an event that was recorded by a capture cannot be waited for by the host")
        self.reach()
        if self._reached_s is None:
            raise MisuseError("the event's stream was closed before its work was executed")
        return self._reached_s

    def _check(self) -> None:
        if not self._is_open:
            raise MisuseError("the event is closed")

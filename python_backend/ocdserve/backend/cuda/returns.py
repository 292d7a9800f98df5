# SPDX-License-Identifier: Apache-2.0
"""What is on its way back to the device: memory, streams, graphs.

The last reference to something may go in any thread, in the middle of the garbage collection, and while a stream
records a graph, where giving memory back would spoil the recording. So giving back is queued, and done at once only
when that is allowed.
"""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from ocdserve.backend.cuda.device import DeviceError


class Returns:
    """The queue of one device; usable from any thread, also from within itself.

    Args:
        current: Makes the device the thread's; raises DeviceError where nothing can be done on it any more, and what
            is queued then waits for `discard`.

    Attributes:
        members: What may still have to be given back.
    """

    def __init__(self, current: Callable[[], AbstractContextManager[None]]) -> None:
        self._current = current
        self._queue: deque[Callable[[], object]] = deque()
        # Never waited for while giving back: the garbage collection may come here from inside the lock.
        self._lock = threading.Lock()
        self._recordings = 0
        self.members: weakref.WeakSet[Returnable] = weakref.WeakSet()

    def put(self, action: Callable[[], object]) -> None:
        """Give something back by calling `action`, now or later; its errors are of no use to anybody."""
        self._queue.append(action)
        self.drain()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Gives nothing back inside the `with` block."""
        with self._lock:
            self._recordings += 1
        try:
            yield
        finally:
            with self._lock:
                self._recordings -= 1
            self.drain()

    def drain(self) -> None:
        """Give back what is queued, unless another thread is at it or a recording is under way."""
        # Looked at again after the lock is free: what came in between would stay for long.
        while self._queue and self._lock.acquire(blocking=False):
            try:
                if self._recordings or not self._give_back():
                    return
            finally:
                self._lock.release()

    def finish(self) -> None:
        """Give all members back; nobody else uses the device any more."""
        for member in tuple(self.members):
            member.close()
        with self._lock:
            self._give_back()

    def discard(self) -> None:
        """Forget what is queued: it went with the device."""
        self._queue.clear()

    def _give_back(self) -> bool:
        try:
            with self._current():
                while self._queue:
                    with contextlib.suppress(DeviceError):
                        self._queue.popleft()()
        except DeviceError:
            return False
        return True


class Returnable:
    """Something of a device that is given back by `close`, or when the last reference goes.

    Args:
        returns: The device's queue.
        action: Gives it back; it must hold no reference to this object.
    """

    def __init__(self, returns: "Returns", action: Callable[[], object]) -> None:
        self._give_back = weakref.finalize(self, returns.put, action)
        # The device closes all that is left of it, in its own order.
        self._give_back.atexit = False
        returns.members.add(self)

    @property
    def is_open(self) -> bool:
        """Whether it was not given back."""
        return self._give_back.alive

    def close(self) -> None:
        """Give it back, in order behind all work that is queued now; calling it again does nothing."""
        self._give_back()

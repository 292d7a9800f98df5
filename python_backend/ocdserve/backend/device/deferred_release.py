# SPDX-License-Identifier: Apache-2.0
"""A queue of frees of device resources (memory, streams, graphs), run when that is safe.

The last reference to a resource may be dropped in any thread, during garbage collection, and while a stream records a
graph, where a free would spoil the recording. So frees are queued, and run at once only when that is allowed.
"""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from ocdserve.backend.device.protocol import DeviceError


class DeferredRelease:
    """The queue of one device. Thread-safe and reentrant.

    Args:
        current: Makes the device current in the thread; raises DeviceError if the device is unusable; the queue then
            waits for `discard`.

    Attributes:
        members: Resources that are not freed yet.
    """

    def __init__(self, current: Callable[[], AbstractContextManager[None]]) -> None:
        self._current = current
        self._queue: deque[Callable[[], object]] = deque()
        # `drain` never blocks on it: the garbage collector may call it while this thread holds the lock.
        self._lock = threading.Lock()
        self._recordings = 0
        self.members: weakref.WeakSet[Releasable] = weakref.WeakSet()

    def put(self, action: Callable[[], object]) -> None:
        """Free a resource by calling `action`, now or later; its errors are ignored."""
        self._queue.append(action)
        self.drain()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Free nothing inside the `with` block."""
        with self._lock:
            self._recordings += 1
        try:
            yield
        finally:
            with self._lock:
                self._recordings -= 1
            self.drain()

    def drain(self) -> None:
        """Run the queued frees, unless another thread does or a stream is recording."""
        # Checked again once the lock is released: something may have been queued in between.
        while self._queue and self._lock.acquire(blocking=False):
            try:
                if self._recordings or not self._run():
                    return
            finally:
                self._lock.release()

    def finish(self) -> None:
        """Free all members; no other thread may use the device any more."""
        for member in tuple(self.members):
            member.close()
        with self._lock:
            self._run()

    def discard(self) -> None:
        """Drop the queue: its resources were freed with the device."""
        self._queue.clear()

    def _run(self) -> bool:
        try:
            with self._current():
                while self._queue:
                    with contextlib.suppress(DeviceError):
                        self._queue.popleft()()
        except DeviceError:
            return False
        return True


class Releasable:
    """A resource of a device that is freed by `close`, or with its last reference.

    Args:
        releases: The device's queue.
        action: Frees it; it must hold no reference to this object.
    """

    def __init__(self, releases: "DeferredRelease", action: Callable[[], object]) -> None:
        self._release = weakref.finalize(self, releases.put, action)
        # The device frees what is left, in its own order.
        self._release.atexit = False
        releases.members.add(self)

    @property
    def is_open(self) -> bool:
        """Whether it is not freed yet."""
        return self._release.alive

    def close(self) -> None:
        """Free it, in order behind all work that is queued now; calling it again does nothing."""
        self._release()

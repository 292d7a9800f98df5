# SPDX-License-Identifier: Apache-2.0
"""Closing at interpreter exit what is still open: libraries that outlive their GPU complain or crash."""

import atexit
import contextlib
import os
import weakref
from typing import Protocol

from ocdserve.backend.device.forks import bind_to_process
from ocdserve.contract import UnavailableError


class Closeable(Protocol):
    """An object whose `close` may be called more than once."""

    def close(self) -> None:
        """Release everything it holds."""
        ...


def close_at_exit(thing: Closeable) -> None:
    """Close an object at interpreter exit, unless it has been garbage-collected by then.

    Objects are closed in reverse order of registration, so before the device that they were made on. Copies in forked
    children are left alone: CUDA does not survive a fork.
    """
    process = bind_to_process(thing)
    reference = weakref.ref(thing)

    def close() -> None:
        alive = reference()
        if alive is not None and os.getpid() == process:
            with contextlib.suppress(UnavailableError):
                alive.close()

    atexit.register(close)

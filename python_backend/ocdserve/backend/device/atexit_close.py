# SPDX-License-Identifier: Apache-2.0
"""Closing at exit what is still open: libraries that outlive their GPU complain or crash."""

import atexit
import contextlib
import weakref
from typing import Protocol

from ocdserve.contract import UnavailableError


class Closeable(Protocol):
    """Something that may be closed more than once."""

    def close(self) -> None:
        """Release everything it holds."""
        ...


def close_at_exit(thing: Closeable) -> None:
    """Close a thing at interpreter exit, unless it has been garbage-collected by then.

    Things close in reverse order of registration, so a thing closes before the device it was made on.
    """
    reference = weakref.ref(thing)

    def close() -> None:
        alive = reference()
        if alive is not None:
            with contextlib.suppress(UnavailableError):
                alive.close()

    atexit.register(close)

# SPDX-License-Identifier: Apache-2.0
"""Closing what was never closed before the process ends: libraries that outlive their GPU complain, or worse."""

import atexit
import contextlib
import weakref
from typing import Protocol

from ocdserve.contract import UnavailableError


class Closeable(Protocol):
    """Something that may be closed more than once."""

    def close(self) -> None:
        """Give back all that it holds."""
        ...


def close_at_exit(thing: Closeable) -> None:
    """Close a thing at the end of the process, unless nothing refers to it any more by then.

    What is registered later is closed earlier: a thing closes before the device that it was made on.
    """
    reference = weakref.ref(thing)

    def close() -> None:
        alive = reference()
        if alive is not None:
            with contextlib.suppress(UnavailableError):
                alive.close()

    atexit.register(close)

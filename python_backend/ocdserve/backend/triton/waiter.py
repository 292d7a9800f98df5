# SPDX-License-Identifier: Apache-2.0
"""Whether anybody still waits for a request's answer, and the errors of requests that are not worked on."""

import time
from collections.abc import Callable

from ocdserve.contract import OcdserveError

# A younger request's cancellation is not asked for: each question is a call to Triton.
_ASK_AFTER_NS = 50_000_000
# DEADLINE is int64.
_LATEST = 2**63 - 1


class OverloadError(OcdserveError):
    """The server does not do this work: too many requests wait, or the answer would come too late."""


class CancelledError(OcdserveError):
    """The client has cancelled the request."""


class Waiter:
    """Whoever waits for the answer of a request that has just arrived.

    Attributes:
        deadline: When the waiting ends, in nanoseconds of the monotonic clock, which the processes of a machine share;
            0: never.
    """

    def __init__(self, deadline: int = 0, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        self.deadline = deadline
        self._is_cancelled = is_cancelled
        self._arrival = time.monotonic_ns()

    @classmethod
    def limited(cls, timeout_us: int, is_cancelled: Callable[[], bool] = lambda: False) -> "Waiter":
        """One who waits for some microseconds from now, without a limit if they are 0."""
        return cls(min(time.monotonic_ns() + 1000 * timeout_us, _LATEST) if timeout_us else 0, is_cancelled)

    def check(self, stage: str) -> None:
        """Raise OverloadError or CancelledError if nobody waits any more; `stage` is what comes next."""
        now = time.monotonic_ns()
        if 0 < self.deadline < now:
            raise OverloadError(
                f"the request's timeout was over {(now - self.deadline) / 1e9:.3f} s before the stage {stage} could "
                "begin. Allow more time, or try again when the server has less to do."
            )
        if now - self._arrival > _ASK_AFTER_NS and self._is_cancelled():
            raise CancelledError(f"the request was cancelled before the stage {stage} could begin")

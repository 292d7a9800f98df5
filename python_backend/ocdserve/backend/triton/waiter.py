# SPDX-License-Identifier: Apache-2.0
"""Whether anybody still waits for a request's answer, and the errors of requests that are not worked on."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import ASKED_MODELS, CONTEXT, EXPIRED, MODELS, OcdserveError

# A younger request's cancellation is not asked for: each question is a call to Triton.
_ASK_AFTER_NS = 50_000_000
# CONTEXT is int64.
_LATEST = 2**63 - 1


class OverloadError(OcdserveError):
    """The server does not do this work: too many requests wait."""


class ExpiredError(OverloadError):
    """The server does not do this work: the answer would come too late."""


class GenerationError(OcdserveError):
    """The step before was done by another detector."""


class CancelledError(OcdserveError):
    """The client has cancelled the request."""


class Waiter:
    """Whoever waits for the answer of a request.

    Attributes:
        deadline: When the waiting ends, in nanoseconds of the monotonic clock, which the processes of a machine share;
            0: never.
        arrival: When the request arrived at the first step, by the same clock.
        model: One of `ASKED_MODELS`, which the client has asked for; None: a step, or a canary.
        arrival_here: When it arrived at this step.
        generation: Which detector has done the steps before; 0: none, or unknown.
        request_id: As the client has chosen it, for logs; "" for none.
        may_wait: Whether its images may wait for room, in threads that others do not need.
    """

    def __init__(
        self,
        deadline: int = 0,
        is_cancelled: Callable[[], bool] = lambda: False,
        model: str | None = None,
        arrival: int | None = None,
        generation: int = 0,
        request_id: str = "",
    ) -> None:
        self.deadline = deadline
        self.model = model
        self.generation = generation
        self.request_id = request_id
        self.may_wait = False
        self._is_cancelled = is_cancelled
        self._began = time.monotonic_ns()
        self.arrival = self.arrival_here = self._began if arrival is None else arrival

    @classmethod
    def limited(
        cls,
        timeout_us: int,
        is_cancelled: Callable[[], bool] = lambda: False,
        model: str | None = None,
        request_id: str = "",
    ) -> "Waiter":
        """One who waits for some microseconds from now, without a limit if they are 0."""
        deadline = min(time.monotonic_ns() + 1000 * timeout_us, _LATEST) if timeout_us else 0
        return cls(deadline, is_cancelled, model, request_id=request_id)

    @classmethod
    def behind(
        cls,
        context: NDArray[np.int64],
        request_id: str = "",
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> "Waiter":
        """The one that the step before has passed on as CONTEXT (B, N)."""
        deadline, arrival, number, generation = (*context.max(axis=0, initial=0).tolist(), 0, 0, 0, 0)[:4]
        model = ASKED_MODELS[number - 1] if 0 < number <= len(ASKED_MODELS) else None
        # Others have no step before: a client has made this up.
        model = model if model and MODELS[model].is_ensemble else None
        waiter = cls(deadline, is_cancelled, model, arrival or None, generation, request_id)
        waiter.arrival_here = time.monotonic_ns()
        return waiter

    def passed_on(self, count: int, generation: int) -> dict[str, NDArray[np.int64]]:
        """For the next step of this detector, as CONTEXT (B, 4), the same for all `count` images."""
        number = ASKED_MODELS.index(self.model) + 1 if self.model else 0
        values = np.array([self.deadline, self.arrival, number, generation], np.int64)
        return {CONTEXT.name: np.tile(values, (count, 1))}

    def check(self, stage: str) -> None:
        """Raise ExpiredError or CancelledError if nobody waits any more; `stage` is what comes next."""
        now = time.monotonic_ns()
        if 0 < self.deadline < now:
            raise ExpiredError(
                f"{EXPIRED} {(now - self.deadline) / 1e9:.3f} s before the stage {stage} could begin. "
                "Allow more time, or try again when the server has less to do."
            )
        if now - self._began > _ASK_AFTER_NS and self._is_cancelled():
            raise CancelledError(f"the request was cancelled before the stage {stage} could begin")

# SPDX-License-Identifier: Apache-2.0
"""Events for logs and metrics, and the trace that a request belongs to."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ocdserve.contract import InvalidInputError, OcdserveError

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True)
class RequestEvent:
    """An attempt is about to be sent.

    Attributes:
        request_id: Id of the request, the same for all its attempts.
        url: The server.
        model: Served model.
        images: Number of images.
        nbytes: Bytes of these images, as they are sent.
        attempt: Number of the attempt, from 1.
    """

    request_id: str
    url: str
    model: str
    images: int
    nbytes: int
    attempt: int


@dataclass(frozen=True)
class ResponseEvent:
    """An attempt was answered.

    Attributes:
        request: The attempt.
        ms: From sending to the response, in milliseconds.
    """

    request: RequestEvent
    ms: float


@dataclass(frozen=True)
class ErrorEvent:
    """An attempt failed.

    Attributes:
        request: The attempt.
        ms: From sending to the failure, in milliseconds.
        error: The error.
        retry_in_s: Seconds until the next attempt; None: there is none, and the caller gets the error.
    """

    request: RequestEvent
    ms: float
    error: OcdserveError
    retry_in_s: float | None


@dataclass(frozen=True)
class Hooks:
    """Callbacks for events, called in the thread or event loop of the call: keep them short.

    What a hook raises reaches the caller of the client.

    Attributes:
        on_request: Before each attempt.
        on_response: After each response.
        on_error: After each failed attempt.
    """

    on_request: Callable[[RequestEvent], object] | None = None
    on_response: Callable[[ResponseEvent], object] | None = None
    on_error: Callable[[ErrorEvent], object] | None = None


def current_traceparent(given: str | None) -> str | None:
    """The W3C trace context to send: the given one, else that of OpenTelemetry's current span, else none.

    Raises:
        InvalidInputError: `given` is not of the form 00-<32 hex digits>-<16 hex digits>-<2 hex digits>.
    """
    if given is not None:
        if not _TRACEPARENT.fullmatch(given):
            raise InvalidInputError(
                f"traceparent must be VERSION-TRACE-SPAN-FLAGS in 2, 32, 16 and 2 lower-case hex digits; got {given!r}"
            )
        return given
    # A program that traces has imported it already.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

# SPDX-License-Identifier: Apache-2.0
"""Errors of the client, and the one place that maps foreign errors to them.

OcdserveError
├── InvalidInputError   the request is at fault (INVALID_ARGUMENT, HTTP 400)
├── AccessError         credentials are missing or rejected (UNAUTHENTICATED, HTTP 401 and 403)
├── UnavailableError    no connection, queue full, model not loaded
│   └── DeadlineError   no response in time
└── ServerError         the server failed, or its response does not follow the contract
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from ocdserve.contract import (
    EXPIRED,
    REQUEST_TOO_LARGE,
    TOO_MANY_REQUESTS,
    InvalidInputError,
    OcdserveError,
    UnavailableError,
)


class ServerError(OcdserveError):
    """The server failed on a valid request, or its response is malformed."""


class AccessError(OcdserveError):
    """The server rejects this client: credentials are missing or not accepted."""


class DeadlineError(UnavailableError):
    """No response within the time limit."""


# Names of gRPC status codes and numbers of HTTP statuses. All others are a ServerError.
_INVALID_INPUT = {"INVALID_ARGUMENT", "OUT_OF_RANGE", "400", "413", "415", "422"}
# An unknown model counts as unavailable: the server may be reloading it.
_UNAVAILABLE = {"UNAVAILABLE", "NOT_FOUND", "RESOURCE_EXHAUSTED", "404", "429", "502", "503"}
_TIMED_OUT = {"DEADLINE_EXCEEDED", "408", "504"}
_OTHER_PORT = (
    ". This is no port for inference, perhaps that of the metrics; by default, 8000 is Triton's for HTTP, 8001 for "
    "gRPC and 8002 for metrics."
)
_NO_ACCESS = {"UNAUTHENTICATED", "PERMISSION_DENIED", "401", "403"}

# A proxy reports a lost connection as 502.
_RETRYABLE = {"UNAVAILABLE", "429", "502", "503"}
# Triton's message while a model is reloaded (its code depends on protocol and release).
_RELOADING = "no available versions"
# Triton's message for a model whose Python process has died; the launcher reloads it.
_DEAD_STUB = ("Stub process", "is not healthy")
# OpenSSL's message for an untrusted certificate, in all libraries.
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
# gRPC's message, with RESOURCE_EXHAUSTED, for a response over `max_response_bytes`.
_TOO_LARGE = "Received message larger than max"
# Triton's message, with UNAVAILABLE, for an API closed by `--grpc-restricted-protocol`.
_RESTRICTED = "protocol is restricted"


@contextmanager
def mapped_errors(url: str, timeout_s: float) -> Iterator[None]:
    """Map what grpc, aiohttp, tritonclient and Python's sockets raise inside the block to an `OcdserveError`.

    Args:
        url: The server's address, for the message.
        timeout_s: The time limit of the call, in seconds, for the message.
    """
    try:
        yield
    except Exception as error:
        ours = error_from(url, timeout_s, error)
        if ours is None or ours is error:
            raise
        raise ours from error


def error_from(url: str, timeout_s: float, error: Exception) -> OcdserveError | None:
    """The `OcdserveError` for any other error; None if it is a programming error.

    Args:
        url: The server's address.
        timeout_s: The time limit of the call, in seconds.
        error: What was raised.
    """
    if isinstance(error, OcdserveError):
        return error
    if _is_a(error, "grpc", "RpcError"):
        code, details = getattr(error, "code", None), getattr(error, "details", None)
        return error_from_status(url, timeout_s, str(code()) if code else "UNKNOWN", details() if details else None)
    if _is_a(error, "tritonclient.utils", "InferenceServerException"):
        status, message = error.status(), error.message()  # type: ignore[attr-defined]
        return error_from_status(url, timeout_s, status, message)
    # Before Python 3.11, asyncio's TimeoutError is a class of its own.
    if isinstance(error, TimeoutError) or _is_a(error, "asyncio", "TimeoutError"):
        return error_from_status(url, timeout_s, "DEADLINE_EXCEEDED", None)
    if isinstance(error, OSError | HTTPException) or _is_a(error, "aiohttp", "ClientConnectionError"):
        return error_from_status(url, timeout_s, "UNAVAILABLE", str(error) or type(error).__name__)
    if isinstance(error, ValueError | LookupError) or _is_a(error, "aiohttp", "ClientError"):
        return _about(ServerError(f"{url}: the response is not that of an inference server: {error}"), url, None)
    return None


def error_from_status(url: str, timeout_s: float, status: str | None, message: str | None) -> OcdserveError:
    """Choose the error for a status.

    Args:
        url: The server's address.
        timeout_s: The time limit of the call, in seconds.
        status: "StatusCode.NAME" or "NAME" (gRPC), a number as text (HTTP), or None if the library itself refused.
        message: The message of the server or the library.
    """
    code = (status or "").removeprefix("StatusCode.")
    reason = (message or "no reason given").strip()
    reloading = _RELOADING in reason
    if not code or (code in _INVALID_INPUT and not reloading) or reason.startswith(REQUEST_TOO_LARGE):
        return _about(InvalidInputError(reason), url, code or None)
    if code in _NO_ACCESS or _RESTRICTED in reason:
        text = (
            f"{url}: {reason} ({code}). Pass the credentials that the server requires by `token`, `headers` or `tls`."
        )
        return _about(AccessError(text), url, code)
    if code in _TIMED_OUT or EXPIRED in reason:
        limit = f"{timeout_s:.3g} s"
        text = f"{url}: no answer within {limit}. Try again later, or allow more time with timeout_s."
        return _about(DeadlineError(text), url, code)
    if (code in _UNAVAILABLE and _TOO_LARGE not in reason) or reloading:
        text = f"{url}: {reason}. Check the address and that the server is ready, or try again later ({code})."
        overloaded = code in _RETRYABLE or reason.startswith(TOO_MANY_REQUESTS)
        retryable = (overloaded and _UNTRUSTED not in reason) or reloading
        return _about(UnavailableError(text), url, code, retryable=retryable)
    dead_stub = all(part in reason for part in _DEAD_STUB)
    remedy = _OTHER_PORT if code == "405" else ""
    return _about(ServerError(f"{url}: the server answered {code}: {reason}{remedy}"), url, code, retryable=dead_stub)


def _about(error: OcdserveError, url: str, status: str | None, *, retryable: bool = False) -> OcdserveError:
    error.url, error.status, error.retryable = url, status, retryable
    return error


def _is_a(error: Exception, module: str, name: str) -> bool:
    """Whether the error is of a library's class, without importing the library."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)

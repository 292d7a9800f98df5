# SPDX-License-Identifier: Apache-2.0
"""Errors of the client, and the one place where foreign errors become ours.

OcdserveError
├── InvalidInputError   the request is at fault (INVALID_ARGUMENT, HTTP 400)
├── AccessError         credentials are missing or not accepted (UNAUTHENTICATED, HTTP 401 and 403)
├── UnavailableError    no connection, queue full, model not loaded
│   └── DeadlineError   no answer in time
└── ServerError         the server failed, or its answer is not one of this contract
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from ocdserve.contract import InvalidInputError, OcdserveError, UnavailableError

__all__ = ["AccessError", "DeadlineError", "ServerError", "error_from", "error_from_status", "mapped_errors"]


class ServerError(OcdserveError):
    """The server failed while it worked on a valid request, or its answer cannot be understood."""


class AccessError(OcdserveError):
    """The server does not let this client in: credentials are missing or not accepted."""


class DeadlineError(UnavailableError):
    """No answer within the limit of time."""


# Keys are the names of gRPC status codes and the numbers of HTTP statuses. What is not listed is a ServerError.
_INVALID_INPUT = {"INVALID_ARGUMENT", "OUT_OF_RANGE", "400", "413", "415", "422"}
# An unknown model counts as absent: the server may be about to load it again.
_UNAVAILABLE = {"UNAVAILABLE", "NOT_FOUND", "RESOURCE_EXHAUSTED", "404", "429", "502", "503"}
_TIMED_OUT = {"DEADLINE_EXCEEDED", "408", "504"}
_NO_ACCESS = {"UNAUTHENTICATED", "PERMISSION_DENIED", "401", "403"}

# 502 is a proxy's word for a lost connection.
_RETRYABLE = {"UNAVAILABLE", "502", "503"}
# What Triton says while a model is loaded again (its code differs with protocol and release).
_RELOADING = "no available versions"
# What Triton says of a model whose Python process has died; the launcher loads it again.
_DEAD_STUB = ("Stub process", "is not healthy")
# What OpenSSL says of a server's certificate, in all libraries.
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
# What Triton says, with UNAVAILABLE, of an API that `--grpc-restricted-protocol` closes.
_RESTRICTED = "protocol is restricted"


@contextmanager
def mapped_errors(url: str, timeout_s: float) -> Iterator[None]:
    """Turn what grpc, aiohttp, tritonclient and Python's sockets raise inside the block into an `OcdserveError`.

    Args:
        url: The server's address, for the message.
        timeout_s: The limit that was in force, in seconds, for the message.
    """
    try:
        yield
    except Exception as error:
        ours = error_from(url, timeout_s, error)
        if ours is None or ours is error:
            raise
        raise ours from error


def error_from(url: str, timeout_s: float, error: Exception) -> OcdserveError | None:
    """Our error for any other; None where it is a mistake in the program.

    Args:
        url: The server's address.
        timeout_s: The limit that was in force, in seconds.
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
    # Before Python 3.11, asyncio has a TimeoutError of its own.
    if isinstance(error, TimeoutError) or _is_a(error, "asyncio", "TimeoutError"):
        return error_from_status(url, timeout_s, "DEADLINE_EXCEEDED", None)
    if isinstance(error, OSError | HTTPException) or _is_a(error, "aiohttp", "ClientConnectionError"):
        return error_from_status(url, timeout_s, "UNAVAILABLE", str(error) or type(error).__name__)
    if isinstance(error, ValueError | LookupError) or _is_a(error, "aiohttp", "ClientError"):
        return _about(ServerError(f"{url}: the answer is not one of an inference server: {error}"), url, None)
    return None


def error_from_status(url: str, timeout_s: float, status: str | None, message: str | None) -> OcdserveError:
    """Choose the error for a status.

    Args:
        url: The server's address.
        timeout_s: The limit that was in force, in seconds.
        status: "StatusCode.NAME" or "NAME" (gRPC), a number as text (HTTP), or None where the library itself refused.
        message: What the server or the library said.
    """
    code = (status or "").removeprefix("StatusCode.")
    said = (message or "no reason given").strip()
    reloading = _RELOADING in said
    if not code or (code in _INVALID_INPUT and not reloading):
        return _about(InvalidInputError(said), url, code or None)
    if code in _NO_ACCESS or _RESTRICTED in said:
        text = f"{url}: {said} ({code}). Give the server what it asks for by `token`, `headers` or `tls`."
        return _about(AccessError(text), url, code)
    if code in _TIMED_OUT:
        limit = f"{timeout_s:.3g} s"
        text = f"{url}: no answer within {limit}. Try again later, or allow more time with timeout_s."
        return _about(DeadlineError(text), url, code)
    if code in _UNAVAILABLE or reloading:
        text = f"{url}: {said}. Check the address and that the server is ready, or try again later ({code})."
        retryable = (code in _RETRYABLE and _UNTRUSTED not in said) or reloading
        return _about(UnavailableError(text), url, code, retryable=retryable)
    dead_stub = all(part in said for part in _DEAD_STUB)
    return _about(ServerError(f"{url}: the server answered {code}: {said}"), url, code, retryable=dead_stub)


def _about(error: OcdserveError, url: str, status: str | None, *, retryable: bool = False) -> OcdserveError:
    error.url, error.status, error.retryable = url, status, retryable
    return error


def _is_a(error: Exception, module: str, name: str) -> bool:
    """Whether the error is of a class of a library; one that was never imported has raised nothing."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(error, kind)

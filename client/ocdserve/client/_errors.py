# SPDX-License-Identifier: Apache-2.0
"""Errors of the client, and the one place where foreign errors become ours.

OcdserveError
├── InvalidInputError   the request is at fault (INVALID_ARGUMENT, HTTP 400)
├── UnavailableError    no connection, no answer in time, queue full, model not loaded
└── ServerError         the server failed, or its answer is not one of this contract
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from tritonclient.utils import InferenceServerException

from ocdserve.contract import InvalidInputError, OcdserveError, UnavailableError

__all__ = ["ServerError", "error_from_status", "mapped_errors"]


class ServerError(OcdserveError):
    """The server failed while it worked on a valid request, or its answer cannot be understood."""


# Keys are as tritonclient reports them: the name of a gRPC status code, or the number of an HTTP status.
# What is not listed here is a ServerError.
_INVALID_INPUT = {"INVALID_ARGUMENT", "OUT_OF_RANGE", "400", "413", "415", "422"}
# An unknown model counts as absent: the server may be about to load it again.
_UNAVAILABLE = {"UNAVAILABLE", "NOT_FOUND", "RESOURCE_EXHAUSTED", "404", "429", "502", "503"}
_TIMED_OUT = {"DEADLINE_EXCEEDED", "408", "504"}


@contextmanager
def mapped_errors(url: str, timeout_s: float) -> Iterator[None]:
    """Turn what tritonclient, grpc and geventhttpclient raise inside the block into an `OcdserveError`.

    Args:
        url: The server's address, for the message.
        timeout_s: The limit that was in force, in seconds, for the message.
    """
    try:
        yield
    except OcdserveError:
        raise
    except InferenceServerException as error:
        raise error_from_status(url, timeout_s, error.status(), error.message()) from error
    except TimeoutError as error:
        raise error_from_status(url, timeout_s, "DEADLINE_EXCEEDED", None) from error
    except (OSError, HTTPException) as error:
        raise error_from_status(url, timeout_s, "UNAVAILABLE", str(error) or type(error).__name__) from error
    except (ValueError, LookupError) as error:
        raise ServerError(f"{url}: the answer is not one of an inference server: {error}") from error


def error_from_status(url: str, timeout_s: float, status: str | None, message: str | None) -> OcdserveError:
    """Choose the error for a status.

    Args:
        url: The server's address.
        timeout_s: The limit that was in force, in seconds.
        status: "StatusCode.NAME" (gRPC), a number as text (HTTP), or None where the client library itself refused.
        message: What the server or the library said.
    """
    code = (status or "").removeprefix("StatusCode.")
    said = (message or "no reason given").strip()
    if not code or code in _INVALID_INPUT:
        return InvalidInputError(said)
    if code in _TIMED_OUT:
        return UnavailableError(
            f"{url}: no answer within {timeout_s:g} s. Try again later, or allow more time with timeout_s."
        )
    if code in _UNAVAILABLE:
        return UnavailableError(
            f"{url}: {said}. Check the address and that the server is ready, or try again later ({code})."
        )
    return ServerError(f"{url}: the server answered {code}: {said}")

# SPDX-License-Identifier: Apache-2.0
"""Errors that both sides of the contract share.

OcdserveError
├── InvalidInputError   the request, image, option or file is at fault; trying again does not help
└── UnavailableError    the server or a component is absent or not ready; trying again may help
"""

import difflib
from collections.abc import Iterable

# How the front door begins refusals over gRPC, whose status RESOURCE_EXHAUSTED is the same for both.
REQUEST_TOO_LARGE = "the request is too large"
TOO_MANY_REQUESTS = "too many requests"
# What a server says of a request whose own time limit has passed, with UNAVAILABLE.
EXPIRED = "the request's timeout was over"

# Characters of a value in a message.
_SHOWN = 80


class OcdserveError(Exception):
    """Base of every error that ocdserve raises deliberately.

    Attributes:
        url: Server that the error is about; None: it does not come from one.
        status: Its name in the server or protocol, such as "UNAVAILABLE" or "503"; None: there is none.
        request_id: Request that failed; None: it was not sent, or the error is about something else.
        retryable: Whether the same request may succeed when sent again; the client has already retried.
    """

    url: str | None = None
    status: str | None = None
    request_id: str | None = None
    retryable: bool = False


class InvalidInputError(OcdserveError, ValueError):
    """The input is at fault. The message says what was wrong, the value, the rule and the remedy.

    Attributes:
        limit: Field of `Limits` that it exceeds; None: it is another fault, or the error comes from a server.
        pixels: Those of the image, if they exceed that limit; None: they do not, or their number is not known.
    """

    limit: str | None = None
    pixels: int | None = None


class UnavailableError(OcdserveError, RuntimeError):
    """A server or a component that the call needs is absent or not ready."""


class UsageError(OcdserveError):
    """The command line is at fault, in a way that the argument parser cannot see; exit code 2."""


def exceeded(limit: str, message: str, pixels: int | None = None) -> InvalidInputError:
    """The error for input that exceeds a field of `Limits`; see `InvalidInputError`."""
    error = InvalidInputError(message)
    error.limit, error.pixels = limit, pixels
    return error


def not_one_of(name: str, value: object, known: Iterable[str]) -> InvalidInputError:
    """The error for a value that is none of the known names, with the one that was probably meant."""
    names = list(known)
    return InvalidInputError(
        f"{name} must be one of {', '.join(names)}; got {shown(value)}{did_you_mean(str(value), names)}"
    )


def shown(value: object) -> str:
    """A value for an error message: its representation, of which a long one is shortened."""
    try:
        text = repr(value[: _SHOWN + 1] if isinstance(value, str | bytes) else value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes; lists in lists
        return f"a very long {type(value).__name__}"
    length = len(value) if isinstance(value, str | bytes) else len(text)
    return text if length <= _SHOWN else f"{text[: _SHOWN // 2]}... ({length} characters)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an error message, "; did you mean X?"; empty if no known word is similar, in whatever case."""
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word[:_SHOWN].casefold(), list(folded), 1)
    return f"; did you mean {folded[near[0]]}?" if near else ""

# SPDX-License-Identifier: Apache-2.0
"""Download images within limits."""

import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from typing import IO, Any

from ocdserve.contract import Downloads, InvalidInputError, UnavailableError, is_url

_CHUNK = 2**16


def download(url: str, limits: Downloads) -> bytes:
    """The content of a URL.

    Raises:
        InvalidInputError: Downloads are not allowed, the URL is refused by its server, or the image is too large.
        UnavailableError: The URL's server cannot be reached, fails, or is too slow.
    """
    if not limits.allowed:
        raise InvalidInputError(f"images by URL are not allowed here (Downloads.allowed); got {url!r}")
    deadline = time.monotonic() + limits.timeout_s
    opener = urllib.request.OpenerDirector()
    # Unlike urllib's default opener, no handler for file:, ftp: or data:.
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(limits.redirects, deadline),
    ):
        opener.add_handler(handler)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "ocdserve", "Accept": "image/*, */*;q=0.5"})
        with opener.open(request, timeout=limits.timeout_s) as response:
            return _read_within(url, response, limits, deadline)
    except InvalidInputError:  # which is a ValueError
        raise
    except urllib.error.HTTPError as error:
        with error:
            kind = UnavailableError if error.code >= 500 or error.code == 429 else InvalidInputError
            raise kind(f"cannot fetch the image {url!r}: HTTP {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise _too_slow(url, limits) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            raise _too_slow(url, limits) from error
        raise UnavailableError(f"cannot fetch the image {url!r}: {reason}. Check the address.") from error
    except ValueError as error:
        raise InvalidInputError(f"cannot fetch the image {url!r}: {error}. Correct the URL.") from error


def _read_within(url: str, response: Any, limits: Downloads, deadline: float) -> bytes:
    chunks, size = [], 0
    while chunk := response.read1(_CHUNK):
        chunks.append(chunk)
        size += len(chunk)
        if size > limits.max_bytes:
            raise InvalidInputError(
                f"the image {url!r} has more than {limits.max_bytes} bytes; send a smaller one, "
                "or allow more with Downloads.max_bytes"
            )
        if time.monotonic() > deadline:
            raise _too_slow(url, limits)
    announced = response.headers.get("Content-Length")
    if announced is not None and announced.isdecimal() and int(announced) > size:
        raise UnavailableError(f"the image {url!r} ended after {size} of {announced} bytes. Try again.")
    return b"".join(chunks)


def _too_slow(url: str, limits: Downloads) -> UnavailableError:
    return UnavailableError(
        f"the image {url!r} was not received within {limits.timeout_s:g} s. Try again, or allow more time with "
        "Downloads.timeout_s."
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, all within one time limit."""

    def __init__(self, most: int, deadline: float) -> None:
        self._left = most
        self._deadline = deadline

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not is_url(newurl):
            raise ValueError(f"it redirects to {newurl!r}, which is neither http nor https")
        if self._left == 0:
            raise ValueError("it redirects too often (Downloads.redirects)")
        self._left -= 1
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it redirects too slowly")
        # urllib opens the next request with this one's timeout.
        req.timeout = left
        return super().redirect_request(req, fp, code, msg, headers, newurl)

# SPDX-License-Identifier: Apache-2.0
"""Download images within limits."""

import http.client
import ipaddress
import socket
import ssl
import time
import urllib.error
import urllib.request
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection
from typing import IO, Any

from ocdserve.contract import Downloads, InvalidInputError, UnavailableError, is_url
from ocdserve.results.limited_response import LimitedResponse

# Of a response, header lines included; what an image may have comes on top.
_MOST_HEADER_BYTES = 2**20
# The IPv6 addresses of the internet; and those of its IPv4 addresses on networks that have IPv6 only.
_UNICAST, _NAT64 = ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("64:ff9b::/96")


def download(url: str, limits: Downloads) -> bytes:
    """The content of a URL.

    Raises:
        InvalidInputError: The URL is refused by its server or leads to an address that is not public, or the image is
            too large.
        UnavailableError: The URL's server cannot be reached, fails, or is too slow.
    """
    deadline = time.monotonic() + limits.timeout_s
    opener = urllib.request.OpenerDirector()
    # Unlike urllib's default opener, no handler for file:, ftp: or data:.
    for handler in (
        _Connections(url, limits, deadline),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(limits.redirects, deadline),
    ):
        opener.add_handler(handler)
    if limits.private:
        # A proxy resolves names itself, so that addresses could not be checked.
        opener.add_handler(urllib.request.ProxyHandler())
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "ocdserve", "Accept": "image/*, */*;q=0.5"})
        with opener.open(request, timeout=limits.timeout_s) as response:
            return _content(url, response, limits)
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


def _content(url: str, response: Any, limits: Downloads) -> bytes:
    # One byte more shows that there are too many.
    content: bytes = response.read(limits.max_bytes + 1)
    if len(content) > limits.max_bytes:
        raise _too_large(url, limits)
    announced = response.headers.get("Content-Length")
    if announced is not None and announced.isdecimal() and int(announced) > len(content):
        raise UnavailableError(f"the image {url!r} ended after {len(content)} of {announced} bytes. Try again.")
    return content


def _too_large(url: str, limits: Downloads) -> InvalidInputError:
    return InvalidInputError(
        f"the image {url!r} has more than {limits.max_bytes} bytes; send a smaller one, "
        "or allow more with Downloads.max_bytes"
    )


def _too_slow(url: str, limits: Downloads) -> UnavailableError:
    return UnavailableError(
        f"the image {url!r} was not received within {limits.timeout_s:g} s. Try again, or allow more time with "
        "Downloads.timeout_s."
    )


class _Connections(urllib.request.AbstractHTTPHandler):
    """Opens connections whose responses are read within the limits, to public addresses unless others are allowed."""

    def __init__(self, url: str, limits: Downloads, deadline: float) -> None:
        super().__init__()
        self._kinds: tuple[Any, Any] = (HTTPConnection, HTTPSConnection)
        if not limits.private:
            self._kinds = (_PublicHttp, _PublicHttps)
        self._response = partial(
            LimitedResponse,
            deadline=deadline,
            most=limits.max_bytes + _MOST_HEADER_BYTES,
            too_large=partial(_too_large, url, limits),
        )

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Called by urllib."""
        return self.do_open(partial(self._connection, self._kinds[0]), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Called by urllib."""
        return self.do_open(partial(self._connection, self._kinds[1]), request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _connection(self, kind: Any, host: str, **options: Any) -> HTTPConnection:
        connection: HTTPConnection = kind(host, **options)
        connection.response_class = self._response  # type: ignore[assignment]
        return connection


class _PublicHttp(HTTPConnection):
    def connect(self) -> None:
        self.sock = _public_socket(self)


class _PublicHttps(HTTPSConnection):
    def connect(self) -> None:
        self.sock = ssl.create_default_context().wrap_socket(_public_socket(self), server_hostname=self.host)


def _public_socket(connection: HTTPConnection) -> socket.socket:
    """A connection to an address that was checked, so that a name cannot have another one by then."""
    found = socket.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(row[4][0]) for row in found))
    for address in addresses:
        if not _is_public(address):
            named = "" if address == connection.host else f", the address of {connection.host},"
            raise InvalidInputError(
                f"an image is fetched from public addresses only; {address}{named} is not one. "
                "If you trust the URL, allow it with Downloads(private=True)."
            )
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, connection.port), connection.timeout)
        except OSError:
            continue
    return socket.create_connection((addresses[-1], connection.port), connection.timeout)


def _is_public(address: str) -> bool:
    """Whether it is a unicast address of the internet, and so is the IPv4 address that it leads to."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed in _NAT64:
            parsed = ipaddress.IPv4Address(parsed.packed[-4:])
        elif parsed not in _UNICAST or parsed.sixtofour is not None:
            return False
    return parsed.is_global and not parsed.is_multicast


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

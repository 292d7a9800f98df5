# SPDX-License-Identifier: Apache-2.0
"""HTTP with keep-alive, by the standard library: tritonclient's client, on gevent, is bound to one thread."""

import gzip
import http.client
import select
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from numpy.typing import NDArray

from ocdserve.client._endpoint import Endpoint
from ocdserve.client._errors import ServerError, error_from_status, mapped_errors
from ocdserve.client._options import Compression, Tls
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._wire.codec import InferRequest
from ocdserve.client._wire.http import (
    decode_tensors,
    encode_infer,
    error_message,
    json_object,
    region_body,
    region_path,
)
from ocdserve.client._wire.regions import Region
from ocdserve.contract import UnavailableError
from ocdserve.results.limited_response import LimitedResponse, limit_time

Body = Sequence[bytes | memoryview]
Answer = tuple[int, dict[str, str], bytes]

# Statuses that say nothing about a model's readiness.
# 405 comes from a server that is no inference server, such as Triton's metrics.
REFUSED = (401, 403, 405)
_CHUNK = 2**20
# How zlib is asked for each encoding; HTTP's "deflate" is the zlib format.
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class HttpTransport:
    """A pool of connections to one server; thread-safe."""

    def __init__(self, endpoint: Endpoint, settings: Settings) -> None:
        """Connect on the first request."""
        self._endpoint = endpoint
        self._url = endpoint.url
        self._settings = settings
        self._headers = fixed_headers(settings)
        self._region_headers = settings.region_headers()
        self._ssl = ssl_context_of(settings.tls) if endpoint.is_encrypted else None
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._closed = False

    def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        with mapped_errors(self._url, request.timeout_s):
            path, headers, pieces = encode_infer(request)
            headers, body = compressed(headers, pieces, self._settings.compression)
            answer = self._request("POST", path, {**self._headers, **headers}, body, request.timeout_s)
            return decode_tensors(answer[1], self._content(answer, request.timeout_s))

    def ready(self, model: str, timeout_s: float) -> bool:
        with mapped_errors(self._url, timeout_s):
            headers = {**self._headers, **self._settings.headers}
            answer = self._request("GET", f"/v2/models/{quote(model, safe='')}/ready", headers, (), timeout_s)
            if answer[0] in REFUSED:
                self._content(answer, timeout_s)
            return answer[0] == 200

    def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
        path = "/v2" if model is None else f"/v2/models/{quote(model, safe='')}"
        with mapped_errors(self._url, timeout_s):
            return json_object(self._control("GET", path, (), timeout_s))

    def register(self, region: Region, timeout_s: float) -> None:
        self._control("POST", region_path(region, "register"), (region_body(region),), timeout_s, self._region_headers)

    def unregister(self, region: Region, timeout_s: float) -> None:
        self._control("POST", region_path(region, "unregister"), (), timeout_s, self._region_headers)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for connection in idle:
            connection.close()
        for connection in busy:
            # Wakes the thread that waits on it, which then closes it.
            if connection.sock is not None:
                _shut(connection.sock)

    def _control(
        self, method: str, path: str, body: Body, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        with mapped_errors(self._url, timeout_s):
            headers = {**self._headers, **(self._settings.headers if headers is None else headers)}
            return self._content(self._request(method, path, headers, body, timeout_s), timeout_s)

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: Body, timeout_s: float) -> Answer:
        deadline = time.monotonic() + timeout_s
        headers = {**headers, "content-length": str(sum(len(piece) for piece in body))}
        path = self._endpoint.path + path
        connection, reused = self._take()
        try:
            return self._exchange(connection, method, path, headers, body, deadline)
        except (ConnectionError, http.client.BadStatusLine):
            # A server may close an idle connection; that is not a failure, but shows only now.
            if not reused or self._closed or time.monotonic() >= deadline:
                raise
        connection, _ = self._take(fresh=True)
        return self._exchange(connection, method, path, headers, body, deadline)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Body,
        deadline: float,
    ) -> Answer:
        complete = False
        try:
            if connection.sock is None:
                self._connect(connection, deadline)
            limit_time(connection.sock, deadline)
            # A request that is too large is refused before all of it was sent. If there is no response either, reading
            # it says so.
            with suppress(ConnectionError):
                connection.request(method, path, _limited(connection, body, deadline) if body else None, headers)
            most = self._settings.max_response_bytes
            connection.response_class = partial(  # type: ignore[assignment]
                LimitedResponse, deadline=deadline, most=most, too_large=partial(too_large, most)
            )
            chunks = []
            # Closing the response leaves the connection open.
            with connection.getresponse() as response:
                while chunk := response.read1(_CHUNK):
                    chunks.append(chunk)
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)
            found = {name.lower(): value for name, value in response.getheaders()}
            complete = not response.will_close
            return response.status, found, chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except (OSError, http.client.HTTPException) as error:
            if self._closed:
                raise UnavailableError(f"{self._url}: the client was closed during the call") from error
            raise
        finally:
            if not complete:
                connection.close()
            self._put(connection)

    def _content(self, answer: Answer, timeout_s: float) -> bytes:
        return content(self._url, answer, timeout_s, self._settings.max_response_bytes)

    def _connect(self, connection: http.client.HTTPConnection, deadline: float) -> None:
        left = max(deadline - time.monotonic(), 0.001)
        limit = self._settings.timeout.connect
        connection.timeout = min(left, limit)
        try:
            connection.connect()
        except TimeoutError as error:
            if left <= limit:
                raise
            raise ConnectionError(f"no connection within {limit:g} s") from error

    def _take(self, *, fresh: bool = False) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, new if `fresh`, and whether it was used before."""
        with self._lock:
            if self._closed:
                raise UnavailableError(f"{self._url}: the connection is closed")
            while self._idle and not fresh:
                connection = self._idle.pop()
                if _is_alive(connection.sock):
                    self._busy.add(connection)
                    return connection, True
                connection.close()
            if self._ssl is not None:
                connection = http.client.HTTPSConnection(self._endpoint.host, self._endpoint.port, context=self._ssl)
            else:
                connection = http.client.HTTPConnection(self._endpoint.host, self._endpoint.port)
            self._busy.add(connection)
            return connection, False

    def _put(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
            if connection.sock is not None and not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def too_large(most: int) -> ServerError:
    """The error for a response over the limit of bytes."""
    return ServerError(
        f"the server's response is larger than {most} bytes. If it is to be trusted, allow more with "
        "max_response_bytes."
    )


def fixed_headers(settings: Settings) -> dict[str, str]:
    """Headers of every request, in addition to the user's."""
    return {"accept-encoding": settings.compression or "identity", "user-agent": "ocdserve"}


def ssl_context_of(tls: Tls | None) -> ssl.SSLContext:
    """SSL context; servers are always verified."""
    tls = tls or Tls()
    context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
    if tls.cert is not None:
        context.load_cert_chain(str(tls.cert), None if tls.key is None else str(tls.key))
    return context


def compressed(headers: dict[str, str], body: Body, compression: Compression | None) -> tuple[dict[str, str], Body]:
    """Headers and body of a request, compressed."""
    if compression is None:
        return headers, body
    whole = b"".join(body)
    # Level 1, because image data gains nothing from more.
    packed = gzip.compress(whole, 1) if compression == "gzip" else zlib.compress(whole, 1)
    return {**headers, "content-encoding": compression}, (packed,)


def content(url: str, answer: Answer, timeout_s: float, most: int) -> bytes:
    """The decompressed body of a response, of at most `most` bytes.

    Raises:
        OcdserveError: The response reports an error, or is too large.
        ValueError: The body is corrupt.
    """
    status, headers, body = answer
    body = _decompressed(headers, body, most)
    if status != 200:
        raise error_from_status(url, timeout_s, str(status), error_message(body))
    return body


def _decompressed(headers: Mapping[str, str], body: bytes, most: int) -> bytes:
    encoding = headers.get("content-encoding", "identity")
    if encoding not in _WINDOW_BITS:
        return body
    inflate = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        content = inflate.decompress(body, most)
    except zlib.error as error:
        raise ValueError(f"its {encoding} is damaged ({error})") from error
    if inflate.unconsumed_tail:
        raise too_large(most)
    if not inflate.eof:
        raise ValueError(f"its {encoding} is damaged (it ends too early)")
    return content


def _limited(connection: http.client.HTTPConnection, body: Body, deadline: float) -> Iterator[bytes | memoryview]:
    """The pieces of a body, each sent within the time left."""
    for piece in body:
        limit_time(connection.sock, deadline)
        yield piece


def _is_alive(sock: Any) -> bool:
    """Whether an idle connection is still open: one that is readable has been closed by the server."""
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLHUP | select.POLLERR)
    return not poll.poll(0)


def _shut(sock: socket.socket) -> None:
    # It may have been closed in the meantime.
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)

# SPDX-License-Identifier: Apache-2.0
"""What all clients share: their settings, and transports that are opened once and closed once."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ocdserve.client._endpoint import Endpoint
from ocdserve.client._options import MAX_RESPONSE_BYTES, Compression, Retry, SharedMemory, Timeout, Tls
from ocdserve.client._sansio.calls import CallOptions
from ocdserve.client._sansio.hooks import Hooks, current_traceparent
from ocdserve.client._sansio.machine import RequestMachine
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._wire.tasks import Found, Task
from ocdserve.contract import ASKED_MODELS, Downloads, InvalidInputError, UnavailableError, check_seconds
from ocdserve.results.pictures import check_max_side

TransportT = TypeVar("TransportT")


class ClientBase(Generic[TransportT, Found]):
    """Settings and transports of a client; see `SyncClient` and `AsyncClient`."""

    _task: Task[Found]

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        timeout_s: float = 60.0,
        model: str | None = None,
        timeout: Timeout | None = None,
        retry: Retry | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        compression: Compression | None = None,
        shared_memory: SharedMemory | None = None,
        downloads: Downloads | None = None,
        hooks: Hooks | None = None,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        transport: TransportT | Sequence[TransportT] | None = None,
    ) -> None:
        """Prepare the connections; the first call opens them.

        Args:
            url: grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT[/PATH] or https://HOST:PORT[/PATH]; several of
                them are balanced: the server with the fewest requests in flight gets the next; one that fails three
                times in a row is left out, and probed after a pause.
            timeout_s: Time limit of one call with all its attempts, in seconds; short for `Timeout(total=...)`.
            model: Served model; None: `ocdnet` (`ocr`) for encoded images, `ocdnet_raw` (`ocr_raw`) for pixels.
            timeout: All time limits.
            retry: When and how often a failed attempt is repeated.
            token: Sent as `authorization: Bearer TOKEN`.
            headers: Sent with every request: HTTP headers, gRPC metadata.
            tls: Certificates for grpcs:// and https://; None: those that the system trusts.
            compression: "gzip" or "deflate" for requests and responses. It does not make encoded images smaller.
            shared_memory: Send raw pixels through shared memory.
            downloads: How images given by URL are fetched; None: they are refused.
            hooks: Called for every attempt.
            max_response_bytes: Largest response that is read, in bytes, also after decompression.
            transport: Replaces the transport that the URL selects (see `MockTransport`); one per URL.

        Raises:
            InvalidInputError: An option is not valid; the message names it.
        """
        urls = (url,) if isinstance(url, str) else tuple(url)
        if not urls:
            raise InvalidInputError("url must name at least one server; got none")
        self.url = ", ".join(urls)
        self._model = model
        self._downloads = downloads
        if timeout is None:
            check_seconds("timeout_s", timeout_s)
        settings = Settings(
            endpoints=tuple(Endpoint.parse(one) for one in urls),
            timeout=timeout or Timeout(total=timeout_s),
            retry=retry or Retry(),
            tls=tls,
            headers=_headers(headers, token),
            compression=compression,
            shared_memory=shared_memory,
            hooks=hooks or Hooks(),
            max_response_bytes=max_response_bytes,
        )
        self._machine = RequestMachine(settings)
        self._transports: list[TransportT] | None = None
        self._given = _one_per_url(urls, transport)
        self._opened_in: int | None = None
        self._closed = False
        self._mutex = threading.Lock()

    def _options(
        self,
        request_id: str | None,
        traceparent: str | None,
        overrides: Any,
        max_side: int | None = None,
        bgr: bool = False,
    ) -> CallOptions[Found]:
        """Validated options of a call; checks that the client is open."""
        self._check_open()
        check_max_side(max_side)
        headers = self._machine.settings.headers
        trace = current_traceparent(traceparent)
        if trace is not None:
            headers = {**headers, "traceparent": trace}
        parameters = self._task.parameters.parse(overrides)
        return CallOptions(self._task, self._model, parameters, headers, request_id, max_side, bgr)

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError(f"this {type(self).__name__}({self.url!r}) is closed; make a new one")
        if self._opened_in is not None and self._opened_in != os.getpid():
            raise UnavailableError(
                f"this {type(self).__name__}({self.url!r}) was used in process {self._opened_in} and cannot be used in "
                f"its child {os.getpid()}: connections do not survive a fork. Make one in each process, or make the "
                "first call after the fork."
            )

    def _open(self, make: Callable[[Endpoint, Settings], TransportT]) -> list[TransportT]:
        """The transports, created by the first call, so that a client that has made none may be forked."""
        self._check_open()
        transports = self._transports
        if transports is None:
            with self._mutex:
                self._check_open()
                transports = self._transports
                if transports is None:
                    self._opened_in = os.getpid()
                    settings = self._machine.settings
                    transports = self._given or [make(one, settings) for one in settings.endpoints]
                    self._transports = transports
        return transports

    def _shut_down(self) -> list[TransportT]:
        """Mark as closed; the transports to close: none if that was done before, or in another process."""
        with self._mutex:
            was_closed, self._closed = self._closed, True
            transports, self._transports = self._transports, None
        if was_closed or (self._opened_in is not None and self._opened_in != os.getpid()):
            return []
        return transports or self._given

    def _model_for_health(self, model: str | None) -> str:
        return model or self._model or self._task.encoded

    def _described_models(self) -> tuple[str, ...]:
        """Models to look for on a server, each once."""
        return tuple(dict.fromkeys((*ASKED_MODELS, self._model or self._task.encoded)))


def _headers(headers: Mapping[str, str] | None, token: str | None) -> dict[str, str]:
    """Headers with names in lower case, as gRPC requires, and the token among them."""
    named = {name.lower(): str(value) for name, value in (headers or {}).items()}
    if token is not None:
        if "authorization" in named:
            raise InvalidInputError("token and the header `authorization` say the same thing; give one of them")
        named["authorization"] = f"Bearer {token}"
    return named


def _one_per_url(urls: Sequence[str], transport: Any) -> list[Any]:
    """The given transports, one per URL; empty if none is given."""
    if transport is None:
        return []
    given = list(transport) if isinstance(transport, list | tuple) else [transport]
    if len(given) != len(urls):
        raise InvalidInputError(f"transport must be one for each of the {len(urls)} URLs; got {len(given)}")
    return given

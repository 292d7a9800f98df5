# SPDX-License-Identifier: Apache-2.0
"""What the two detectors share: their options, and a call as a course of steps (see `_calls`). Nothing is sent here."""

import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from ocdserve.client._endpoint import Endpoint
from ocdserve.client._images import Sendable
from ocdserve.client._options import Compression, Downloads, Retry, SharedMemory, Timeout, Tls
from ocdserve.client._outcomes import DETECTING_MODELS
from ocdserve.client._sansio.calls import Calls, Settings, Steps, new_request_id
from ocdserve.client._sansio.hooks import Hooks, current_traceparent
from ocdserve.client._wire.codec import InferRequest, decode_batch, encode_batch
from ocdserve.contract import (
    ENSEMBLE,
    MAX_BATCH_SIZE,
    InvalidInputError,
    OcdserveError,
    RequestParameters,
    UnavailableError,
)
from ocdserve.results.detections import Detections

__all__ = ["CallOptions", "DetectorBase"]

TransportT = TypeVar("TransportT")

# What the server calls an image of a request that it refuses.
_IMAGE_NUMBER = re.compile(r"\bimage (\d+) of \d+\b")


@dataclass(frozen=True)
class CallOptions:
    """Options of one call, checked.

    Attributes:
        parameters: Request parameters.
        headers: Sent with the request.
        request_id: Given by the caller; None: one is made up for each request.
    """

    parameters: RequestParameters
    headers: Mapping[str, str]
    request_id: str | None


class DetectorBase(Generic[TransportT]):
    """Options and state of a detector; see `TextDetector` and `AsyncTextDetector`."""

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
        transport: TransportT | Sequence[TransportT] | None = None,
    ) -> None:
        """Prepare the connections; the first call opens them.

        Args:
            url: grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT[/PATH] or https://HOST:PORT[/PATH]; several of
                them share the work: the server with the fewest requests under way gets the next, one that fails three
                times in a row is left out, and probed after a pause.
            timeout_s: Limit of one call with all its attempts, in seconds; short for `timeout=Timeout(total=...)`.
            model: Served model; None: `ocdnet` for encoded images, `ocdnet_raw` for pixels.
            timeout: All limits of time.
            retry: When and how often a failed attempt is repeated.
            token: Sent as `authorization: Bearer TOKEN`.
            headers: Sent with every request: HTTP headers, gRPC metadata.
            tls: Certificates for grpcs:// and https://; None: what the system trusts.
            compression: "gzip" or "deflate" for requests and answers. Encoded images do not get smaller by it.
            shared_memory: Send raw pixels through shared memory.
            downloads: Limits for images that are given by URL.
            hooks: Are told of every attempt.
            transport: Carries the requests instead of the one that the URL names (see `MockTransport`); one a URL.

        Raises:
            InvalidInputError: An option is not valid; the message names it.
        """
        urls = (url,) if isinstance(url, str) else tuple(url)
        if not urls:
            raise InvalidInputError("url must name at least one server; got none")
        self.url = ", ".join(urls)
        self._model = model
        self._downloads = downloads or Downloads()
        settings = Settings(
            endpoints=tuple(Endpoint.parse(one) for one in urls),
            timeout=timeout or _short_timeout(timeout_s),
            retry=retry or Retry(),
            tls=tls,
            headers=_checked_headers(headers, token),
            compression=_checked_compression(compression),
            shared_memory=shared_memory,
            hooks=hooks or Hooks(),
        )
        self._calls = Calls(settings)
        self._transports: list[TransportT] | None = None
        self._given = _one_each(urls, transport)
        self._opened_in: int | None = None
        self._closed = False
        self._mutex = threading.Lock()

    def _options(self, request_id: str | None, traceparent: str | None, overrides: Any) -> CallOptions:
        """The options of a call, checked; also whether the detector may be used at all."""
        self._check_open()
        headers = self._calls.settings.headers
        trace = current_traceparent(traceparent)
        if trace is not None:
            headers = {**headers, "traceparent": trace}
        return CallOptions(RequestParameters.parse(overrides), headers, request_id)

    def _detection(self, image: Sendable, options: CallOptions) -> Steps[Detections]:
        """The course of `detect`."""
        request = self._request([image], options)
        found = yield from self._answered(request, options)
        return found[0]

    def _batch_detection(self, images: Sequence[Sendable], options: CallOptions) -> Steps[list[Detections]]:
        """The course of `detect_batch`: as few requests as the server's largest batch and the images' kinds allow."""
        found: dict[int, Detections] = {}
        for places in _groups(images):
            request = self._request([images[place] for place in places], options)
            try:
                answer = yield from self._answered(request, options)
            except InvalidInputError as error:
                raise _with_places(error, places, len(images)) from error
            found.update(zip(places, answer, strict=True))
        return [found[place] for place in range(len(images))]

    def _answered(self, request: InferRequest, options: CallOptions) -> Steps[list[Detections]]:
        begin = time.perf_counter()
        tensors = yield from self._calls.infer(request)
        return decode_batch(
            tensors,
            len(request),
            polygons=options.parameters.polygons,
            latency_ms=(time.perf_counter() - begin) * 1000,
            request_id=request.request_id,
        )

    def _request(self, images: Sequence[Sendable], options: CallOptions) -> InferRequest:
        request = encode_batch(images, options.parameters, self._model)
        request_id = options.request_id or new_request_id()
        return replace(request, request_id=request_id, headers=options.headers)

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
        """The transports, made by the first call, so that a detector that was only made may be forked."""
        self._check_open()
        transports = self._transports
        if transports is None:
            with self._mutex:
                self._check_open()
                transports = self._transports
                if transports is None:
                    self._opened_in = os.getpid()
                    transports = self._given or [make(one, self._calls.settings) for one in self._endpoints]
                    self._transports = transports
        return transports

    def _taken_down(self) -> list[TransportT]:
        """The transports that `close` has to close: none where it was called before, or in another process."""
        with self._mutex:
            was_closed, self._closed = self._closed, True
            transports, self._transports = self._transports, None
        if was_closed or (self._opened_in is not None and self._opened_in != os.getpid()):
            return []
        return transports or self._given

    @property
    def _endpoints(self) -> tuple[Endpoint, ...]:
        return self._calls.settings.endpoints

    @property
    def _control_s(self) -> float:
        """Limit of questions that a server answers at once, in seconds."""
        timeout = self._calls.settings.timeout
        return min(timeout.total, timeout.connect)

    def _asked_model(self, model: str | None) -> str:
        return model or self._model or ENSEMBLE

    def _described_models(self) -> tuple[str, ...]:
        """Models to look for on a server."""
        others = (self._model,) if self._model and self._model not in DETECTING_MODELS else ()
        return (*DETECTING_MODELS, *others)


def _groups(images: Sequence[Sendable]) -> list[list[int]]:
    """Places of images that may share a request: all encoded, or all pixels of one size."""
    kinds: dict[tuple[int, ...] | None, list[int]] = {}
    for place, image in enumerate(images):
        kinds.setdefault(image.shape if isinstance(image, np.ndarray) else None, []).append(place)
    size = MAX_BATCH_SIZE
    return [places[begin : begin + size] for places in kinds.values() for begin in range(0, len(places), size)]


def _with_places(error: InvalidInputError, places: Sequence[int], images: int) -> InvalidInputError:
    """The server's refusal, with the numbers of the caller's images for those of the request's."""

    def place(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"image {places[number]} of {images}" if number < len(places) else found[0]

    renamed = InvalidInputError(_IMAGE_NUMBER.sub(place, str(error), count=1))
    renamed.url, renamed.status, renamed.request_id = error.url, error.status, error.request_id
    return renamed


def _short_timeout(timeout_s: float) -> Timeout:
    try:
        return Timeout(total=timeout_s)
    except OcdserveError as error:
        raise InvalidInputError(str(error).replace("Timeout.total", "timeout_s")) from None


def _checked_headers(headers: Mapping[str, str] | None, token: str | None) -> dict[str, str]:
    """Headers in lower case, as gRPC wants them."""
    checked = {name.lower(): str(value) for name, value in (headers or {}).items()}
    if token is not None:
        if "authorization" in checked:
            raise InvalidInputError("token and the header `authorization` say the same thing; give one of them")
        checked["authorization"] = f"Bearer {token}"
    for name, value in checked.items():
        if not (re.fullmatch(r"[0-9a-z_.-]+", name) and value.isprintable()):
            # The value may be a secret.
            raise InvalidInputError(
                f"header {name!r} must have a name of letters, digits, `_`, `.` and `-` and a printable text as value"
            )
    return checked


def _checked_compression(compression: Compression | None) -> Compression | None:
    if compression not in (None, "gzip", "deflate"):
        raise InvalidInputError(f'compression must be "gzip", "deflate" or None; got {compression!r}')
    return compression


def _one_each(urls: Sequence[str], transport: Any) -> list[Any]:
    """The given transports, one for each URL; empty where none is given."""
    if transport is None:
        return []
    given = list(transport) if isinstance(transport, list | tuple) else [transport]
    if len(given) != len(urls):
        raise InvalidInputError(f"transport must be one for each of the {len(urls)} URLs; got {len(given)}")
    return given

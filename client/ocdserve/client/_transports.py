# SPDX-License-Identifier: Apache-2.0
"""How a request travels: one protocol, a gRPC and an HTTP adapter over tritonclient, and a mock."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._codec import InferRequest
from ocdserve.client._errors import mapped_errors
from ocdserve.contract import InvalidInputError

__all__ = ["GrpcTransport", "HttpTransport", "MockTransport", "Transport", "transport_for"]

# gRPC's own default of 4 MB is less than one large photograph.
_LARGEST_MESSAGE = 2**31 - 1
# gRPC waits up to two minutes before it tries a lost server again; a restarted server is back within seconds.
_LONGEST_RECONNECT_MS = 1000
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Transport(Protocol):
    """Carries requests to one server. Every method raises only `OcdserveError`."""

    def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        """Send the request; return the wanted outputs by name."""

    def ready(self, model: str) -> bool:
        """Whether the server says that this model is ready.

        Raises:
            UnavailableError: Nothing answers.
        """

    def close(self) -> None:
        """Release the connection."""


def transport_for(url: str, timeout_s: float) -> Transport:
    """Make the transport that the URL's scheme names.

    Args:
        url: grpc://HOST:PORT or http://HOST:PORT[/PATH].
        timeout_s: Limit of one call, in seconds.

    Raises:
        InvalidInputError: The URL or the limit is not valid.
    """
    if isinstance(timeout_s, bool) or not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise InvalidInputError(f"timeout_s must be a finite number of seconds above 0; got {timeout_s!r}")
    parts = _split(url)
    if parts.scheme == "grpc":
        return GrpcTransport(parts.netloc, timeout_s, use_proxy=parts.hostname not in _LOOPBACK)
    return HttpTransport(parts.netloc + parts.path.rstrip("/"), timeout_s)


class GrpcTransport:
    """Adapter over `tritonclient.grpc`."""

    def __init__(self, address: str, timeout_s: float, *, use_proxy: bool = True) -> None:
        """Connect on the first call.

        Args:
            address: HOST:PORT.
            timeout_s: Limit of one call, in seconds.
            use_proxy: Whether gRPC may go through the proxy that the environment names.
        """
        # Imported here: either protocol's library costs a quarter of a second, and a client uses one.
        import tritonclient.grpc

        self._library = tritonclient.grpc
        self._url = f"grpc://{address}"
        self._timeout_s = timeout_s
        self._client = tritonclient.grpc.InferenceServerClient(
            address,
            channel_args=[
                ("grpc.max_send_message_length", _LARGEST_MESSAGE),
                ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
                ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
                ("grpc.enable_http_proxy", int(use_proxy)),
            ],
        )

    def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        with mapped_errors(self._url, self._timeout_s):
            tensor = self._library.InferInput(request.input_name, list(request.array.shape), request.datatype)
            tensor.set_data_from_numpy(request.array)
            result = self._client.infer(
                request.model,
                [tensor],
                outputs=[self._library.InferRequestedOutput(name) for name in request.outputs],
                parameters=dict(request.parameters),
                client_timeout=self._timeout_s,
            )
            return _named_outputs(result, request)

    def ready(self, model: str) -> bool:
        with mapped_errors(self._url, self._timeout_s):
            return bool(self._client.is_model_ready(model, client_timeout=self._timeout_s))

    def close(self) -> None:
        self._client.close()


class HttpTransport:
    """Adapter over `tritonclient.http`, tensors in binary. For one thread."""

    def __init__(self, address: str, timeout_s: float) -> None:
        """Connect on the first call.

        Args:
            address: HOST:PORT[/PATH].
            timeout_s: Limit of each wait for the network, in seconds.
        """
        import tritonclient.http

        self._library = tritonclient.http
        self._url = f"http://{address}"
        self._timeout_s = timeout_s
        self._client = tritonclient.http.InferenceServerClient(
            address, connection_timeout=timeout_s, network_timeout=timeout_s
        )

    def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        with mapped_errors(self._url, self._timeout_s):
            tensor = self._library.InferInput(request.input_name, list(request.array.shape), request.datatype)
            tensor.set_data_from_numpy(request.array, binary_data=True)
            result = self._client.infer(
                request.model,
                [tensor],
                outputs=[self._library.InferRequestedOutput(name, binary_data=True) for name in request.outputs],
                parameters=dict(request.parameters),
            )
            return _named_outputs(result, request)

    def ready(self, model: str) -> bool:
        with mapped_errors(self._url, self._timeout_s):
            return bool(self._client.is_model_ready(model))

    def close(self) -> None:
        self._client.close()


class MockTransport:
    """A transport that asks a function instead of a server, for tests of code that uses `TextDetector`.

    Attributes:
        requests: Every request so far.
        closed: Whether `close` was called.
    """

    def __init__(
        self,
        handler: Callable[[InferRequest], Mapping[str, NDArray[Any]]],
        *,
        ready: Callable[[str], bool] | None = None,
    ) -> None:
        """Use `handler` as the server: it returns output tensors by name, or raises an `OcdserveError`.

        Args:
            handler: Answers a request.
            ready: Answers whether a model is ready; None: every model is.
        """
        self.requests: list[InferRequest] = []
        self.closed = False
        self._handler = handler
        self._ready = ready

    def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        self.requests.append(request)
        return self._handler(request)

    def ready(self, model: str) -> bool:
        return self._ready is None or self._ready(model)

    def close(self) -> None:
        self.closed = True


def _split(url: str) -> SplitResult:
    wanted = "grpc://HOST:PORT or http://HOST:PORT"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInputError(f"url must be {wanted}; got {url!r} ({error})") from None
    if parts.scheme in ("grpcs", "https"):
        raise InvalidInputError(f"encrypted connections are not supported; url must be {wanted}, got {url!r}")
    if parts.scheme not in ("grpc", "http") or not parts.hostname or not port:
        raise InvalidInputError(f"url must be {wanted}; got {url!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidInputError(f"url must not hold a user name, query or fragment; got {url!r}")
    if parts.scheme == "grpc" and parts.path.strip("/"):
        raise InvalidInputError(f"a grpc:// url must not hold a path; got {url!r}")
    return parts


def _named_outputs(result: Any, request: InferRequest) -> dict[str, NDArray[Any]]:
    """The wanted outputs that the answer holds; the codec names the missing ones."""
    arrays = {name: result.as_numpy(name) for name in request.outputs}
    return {name: np.asarray(array) for name, array in arrays.items() if array is not None}

# SPDX-License-Identifier: Apache-2.0
"""gRPC, by tritonclient's stubs."""

from collections.abc import Mapping
from typing import Any

import grpc
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ocdserve.client._endpoint import Endpoint
from ocdserve.client._errors import mapped_errors
from ocdserve.client._options import Tls
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._wire.codec import InferRequest
from ocdserve.client._wire.grpc import (
    decode_metadata,
    decode_tensors,
    encode_describe,
    encode_infer,
    encode_register,
    encode_unregister,
)
from ocdserve.client._wire.regions import Region
from ocdserve.contract import GRPC_HEADER_PREFIX, UnavailableError

# gRPC's default of 4 MB is less than one large photograph.
_LARGEST_MESSAGE = 2**31 - 1
# By default gRPC waits up to two minutes before it reconnects; a restarted server is back within seconds.
_FIRST_RECONNECT_MS = 200
_LONGEST_RECONNECT_MS = 1000


class GrpcTransport:
    """One channel to one server; thread-safe."""

    def __init__(self, endpoint: Endpoint, settings: Settings) -> None:
        """Connect on the first request."""
        self._url = endpoint.url
        self._settings = settings
        self._region_headers = settings.region_headers(GRPC_HEADER_PREFIX)
        self._closed = False
        options = channel_options(endpoint, settings)
        if endpoint.is_encrypted:
            self._channel = grpc.secure_channel(endpoint.address, credentials_of(settings.tls), options)
        else:
            self._channel = grpc.insecure_channel(endpoint.address, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._compression = call_options(settings)

    def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        with mapped_errors(self._url, request.timeout_s):
            message = encode_infer(request)
            return decode_tensors(
                self._call("ModelInfer", message, request.timeout_s, request.headers, self._compression)
            )

    def ready(self, model: str, timeout_s: float) -> bool:
        message = service_pb2.ModelReadyRequest(name=model)
        return bool((self._call("ModelReady", message, timeout_s)).ready)

    def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
        return decode_metadata(self._call(*encode_describe(model), timeout_s))

    def register(self, region: Region, timeout_s: float) -> None:
        self._call(*encode_register(region), timeout_s, self._region_headers)

    def unregister(self, region: Region, timeout_s: float) -> None:
        self._call(*encode_unregister(region), timeout_s, self._region_headers)

    def close(self) -> None:
        self._closed = True
        self._channel.close()

    def _call(
        self,
        method: str,
        message: Any,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        compression: Any = None,
    ) -> Any:
        metadata = tuple((self._settings.headers if headers is None else headers).items())
        with mapped_errors(self._url, timeout_s):
            try:
                call = getattr(self._stub, method)
                return call(message, timeout=timeout_s, metadata=metadata, compression=compression)
            except (grpc.RpcError, ValueError) as error:
                if self._closed:
                    raise UnavailableError(f"{self._url}: the client was closed during the call") from error
                raise


def channel_options(endpoint: Endpoint, settings: Settings) -> list[tuple[str, int | str]]:
    """Channel arguments."""
    connect_ms = max(1, int(settings.timeout.connect * 1000))
    return [
        ("grpc.max_send_message_length", _LARGEST_MESSAGE),
        ("grpc.max_receive_message_length", min(settings.max_response_bytes, _LARGEST_MESSAGE)),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        # Time limit of one attempt to connect.
        ("grpc.min_reconnect_backoff_ms", connect_ms),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
        # The environment's proxy is not for servers on this machine.
        ("grpc.enable_http_proxy", int(not endpoint.is_loopback)),
        # Otherwise channels of one process share connections, and their backoff after failures.
        ("grpc.use_local_subchannel_pool", 1),
        # A name with several addresses, such as a headless service of Kubernetes: requests go to all of them in turn.
        # It is resolved again when a connection ends.
        ("grpc.lb_policy_name", "round_robin"),
    ]


def credentials_of(tls: Tls | None) -> Any:
    """Credentials of an encrypted channel."""
    tls = tls or Tls()
    return grpc.ssl_channel_credentials(tls.pem("ca"), tls.pem("key"), tls.pem("cert"))


def call_options(settings: Settings) -> Any:
    """gRPC's value for the compression of requests, or None."""
    return {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}[settings.compression]

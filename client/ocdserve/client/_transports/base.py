# SPDX-License-Identifier: Apache-2.0
"""The transport protocols, and the choice of a transport by the URL's scheme."""

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from ocdserve.client._endpoint import Endpoint
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._wire.codec import InferRequest
from ocdserve.client._wire.regions import Region


class Transport(Protocol):
    """Sends requests to one server; thread-safe. Every method raises only `OcdserveError`."""

    def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        """Send the request; return the output tensors by name."""

    def ready(self, model: str, timeout_s: float) -> bool:
        """Whether the server reports this model as ready.

        Raises:
            UnavailableError: The server does not answer.
        """

    def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
        """The KServe v2 metadata of a model, or of the server: name, version(s), inputs, outputs, extensions."""

    def register(self, region: Region, timeout_s: float) -> None:
        """Register shared memory with the server."""

    def unregister(self, region: Region, timeout_s: float) -> None:
        """Unregister shared memory from the server."""

    def close(self) -> None:
        """Close the connections; requests in flight fail."""


class AsyncTransport(Protocol):
    """`Transport` for asyncio: the same methods, awaited. Cancelling one drops its connection."""

    async def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        """Send the request; return the output tensors by name."""

    async def ready(self, model: str, timeout_s: float) -> bool:
        """Whether the server reports this model as ready.

        Raises:
            UnavailableError: The server does not answer.
        """

    async def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
        """The KServe v2 metadata of a model, or of the server: name, version(s), inputs, outputs, extensions."""

    async def register(self, region: Region, timeout_s: float) -> None:
        """Register shared memory with the server."""

    async def unregister(self, region: Region, timeout_s: float) -> None:
        """Unregister shared memory from the server."""

    async def close(self) -> None:
        """Close the connections; requests in flight fail."""


def transport_for(endpoint: Endpoint, settings: Settings) -> Transport:
    """Create the transport for the endpoint's scheme; it connects with the first request."""
    # Imported late: each protocol's library takes a quarter of a second, and a client uses one.
    if endpoint.is_grpc:
        from ocdserve.client._transports.grpc import GrpcTransport

        return GrpcTransport(endpoint, settings)
    from ocdserve.client._transports.http import HttpTransport

    return HttpTransport(endpoint, settings)


def async_transport_for(endpoint: Endpoint, settings: Settings) -> AsyncTransport:
    """Create the asyncio transport for the endpoint's scheme; it connects with the first request."""
    if endpoint.is_grpc:
        from ocdserve.client._transports.grpc_async import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint, settings)
    from ocdserve.client._transports.http_async import AsyncHttpTransport

    return AsyncHttpTransport(endpoint, settings)

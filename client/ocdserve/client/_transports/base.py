# SPDX-License-Identifier: Apache-2.0
"""What a transport is, and the choice of one by the URL's scheme."""

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from ocdserve.client._endpoint import Endpoint
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._wire.codec import InferRequest
from ocdserve.client._wire.regions import Region

__all__ = ["AsyncTransport", "Transport", "async_transport_for", "transport_for"]


class Transport(Protocol):
    """Carries requests to one server, for several threads at once. Every method raises only `OcdserveError`."""

    def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        """Send the request; return the outputs by name."""

    def ready(self, model: str, timeout_s: float) -> bool:
        """Whether the server says that this model is ready.

        Raises:
            UnavailableError: Nothing answers.
        """

    def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
        """The KServe v2 metadata of a model, or of the server: name, version(s), inputs, outputs, extensions."""

    def register(self, region: Region, timeout_s: float) -> None:
        """Tell the server of shared memory."""

    def unregister(self, region: Region, timeout_s: float) -> None:
        """Have the server forget shared memory."""

    def close(self) -> None:
        """Release the connections; requests under way fail."""


class AsyncTransport(Protocol):
    """`Transport` for asyncio: the same methods, awaited. Cancelling one gives its connection up."""

    async def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        """Send the request; return the outputs by name."""

    async def ready(self, model: str, timeout_s: float) -> bool:
        """Whether the server says that this model is ready.

        Raises:
            UnavailableError: Nothing answers.
        """

    async def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
        """The KServe v2 metadata of a model, or of the server: name, version(s), inputs, outputs, extensions."""

    async def register(self, region: Region, timeout_s: float) -> None:
        """Tell the server of shared memory."""

    async def unregister(self, region: Region, timeout_s: float) -> None:
        """Have the server forget shared memory."""

    async def close(self) -> None:
        """Release the connections; requests under way fail."""


def transport_for(endpoint: Endpoint, settings: Settings) -> Transport:
    """Make the transport that the endpoint's scheme names; it connects with the first request."""
    # Imported here: each protocol's library costs a quarter of a second, and a client uses one.
    if endpoint.is_grpc:
        from ocdserve.client._transports.grpc import GrpcTransport

        return GrpcTransport(endpoint, settings)
    from ocdserve.client._transports.http import HttpTransport

    return HttpTransport(endpoint, settings)


def async_transport_for(endpoint: Endpoint, settings: Settings) -> AsyncTransport:
    """Make the transport for asyncio that the endpoint's scheme names; it connects with the first request."""
    if endpoint.is_grpc:
        from ocdserve.client._transports.grpc_async import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint, settings)
    from ocdserve.client._transports.http_async import AsyncHttpTransport

    return AsyncHttpTransport(endpoint, settings)

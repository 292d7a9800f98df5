# SPDX-License-Identifier: Apache-2.0
"""gRPC for asyncio, by tritonclient's stubs."""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ocdserve.client._endpoint import Endpoint
from ocdserve.client._errors import mapped_errors
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._transports.grpc import call_options, channel_options, credentials_of
from ocdserve.client._transports.per_loop import PerLoop
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


class AsyncGrpcTransport:
    """One channel to one server per event loop."""

    def __init__(self, endpoint: Endpoint, settings: Settings) -> None:
        """Connect on the first request."""
        self._endpoint = endpoint
        self._url = endpoint.url
        self._settings = settings
        self._region_headers = settings.region_headers(GRPC_HEADER_PREFIX)
        self._compression = call_options(settings)
        self._connection = PerLoop(self._connect, lambda connection: connection[0].close())
        self._closed = False

    async def infer(self, request: InferRequest) -> Mapping[str, NDArray[Any]]:
        with mapped_errors(self._url, request.timeout_s):
            message = encode_infer(request)
            return decode_tensors(
                await self._call("ModelInfer", message, request.timeout_s, request.headers, self._compression)
            )

    async def ready(self, model: str, timeout_s: float) -> bool:
        message = service_pb2.ModelReadyRequest(name=model)
        return bool((await self._call("ModelReady", message, timeout_s)).ready)

    async def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
        return decode_metadata(await self._call(*encode_describe(model), timeout_s))

    async def register(self, region: Region, timeout_s: float) -> None:
        await self._call(*encode_register(region), timeout_s, self._region_headers)

    async def unregister(self, region: Region, timeout_s: float) -> None:
        await self._call(*encode_unregister(region), timeout_s, self._region_headers)

    async def close(self) -> None:
        self._closed = True
        await self._connection.close()

    async def _call(
        self,
        method: str,
        message: Any,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        compression: Any = None,
    ) -> Any:
        metadata = tuple((self._settings.headers if headers is None else headers).items())
        with mapped_errors(self._url, timeout_s):
            _, stub = await self._connection.get()
            try:
                # Cancelling the task cancels the call on the server too.
                call = getattr(stub, method)
                return await call(message, timeout=timeout_s, metadata=metadata, compression=compression)
            except (grpc.RpcError, grpc.aio.UsageError) as error:
                if self._closed:
                    raise UnavailableError(f"{self._url}: the client was closed during the call") from error
                raise
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                # Closing a channel cancels its calls, which is not a cancellation of the task.
                if self._closed and task is not None and not _is_being_cancelled(task):
                    raise UnavailableError(f"{self._url}: the client was closed during the call") from error
                raise

    def _connect(self) -> tuple[Any, Any]:
        """A channel in the running loop, and its stub."""
        options = channel_options(self._endpoint, self._settings)
        if self._endpoint.is_encrypted:
            channel = grpc.aio.secure_channel(self._endpoint.address, credentials_of(self._settings.tls), options)
        else:
            channel = grpc.aio.insecure_channel(self._endpoint.address, options)
        return channel, service_pb2_grpc.GRPCInferenceServiceStub(channel)


def _is_being_cancelled(task: "asyncio.Task[Any]") -> bool:
    # Python 3.10 does not say; there the cancellation is passed on unchanged.
    cancelling = getattr(task, "cancelling", None)
    return cancelling is None or cancelling() > 0

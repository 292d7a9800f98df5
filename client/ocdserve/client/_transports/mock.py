# SPDX-License-Identifier: Apache-2.0
"""Transports that call a function instead of a server, for tests of code that uses a client."""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from numpy.typing import NDArray

from ocdserve.client._wire.codec import InferRequest
from ocdserve.client._wire.regions import Region
from ocdserve.contract import MODELS, UnavailableError

Tensors: TypeAlias = Mapping[str, NDArray[Any]]
Handler = TypeVar("Handler")


class _Mock(Generic[Handler]):
    """The state of a mock.

    Attributes:
        requests: Every request so far.
        regions: Names of the currently registered shared memory.
        closed: Whether `close` was called.
    """

    def __init__(self, handler: Handler, *, ready: Callable[[str], bool] | None = None) -> None:
        """Use `handler` as the server: it returns output tensors by name, or raises an `OcdserveError`.

        Args:
            handler: Answers a request; for `AsyncMockTransport` its result may be awaitable.
            ready: Answers whether a model is ready; None: every model is.
        """
        self.requests: list[InferRequest] = []
        self.regions: list[str] = []
        self.closed = False
        self._handler = handler
        self._is_ready = ready or (lambda _: True)


class MockTransport(_Mock[Callable[[InferRequest], Tensors]]):
    """A transport for `TextDetector` and `TextReader` that calls a function."""

    def infer(self, request: InferRequest) -> Tensors:
        self.requests.append(request)
        return self._handler(request)

    def ready(self, model: str, timeout_s: float) -> bool:
        return self._is_ready(model)

    def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
        return _metadata(model)

    def register(self, region: Region, timeout_s: float) -> None:
        self.regions.append(region.name)

    def unregister(self, region: Region, timeout_s: float) -> None:
        self.regions.remove(region.name)

    def close(self) -> None:
        self.closed = True


class AsyncMockTransport(_Mock[Callable[[InferRequest], Tensors | Awaitable[Tensors]]]):
    """`MockTransport` for asyncio; the function may be a coroutine function."""

    async def infer(self, request: InferRequest) -> Tensors:
        self.requests.append(request)
        answer = self._handler(request)
        return await answer if inspect.isawaitable(answer) else answer

    async def ready(self, model: str, timeout_s: float) -> bool:
        return self._is_ready(model)

    async def describe(self, model: str | None, timeout_s: float) -> Mapping[str, Any]:
        return _metadata(model)

    async def register(self, region: Region, timeout_s: float) -> None:
        self.regions.append(region.name)

    async def unregister(self, region: Region, timeout_s: float) -> None:
        self.regions.remove(region.name)

    async def close(self) -> None:
        self.closed = True


def _metadata(model: str | None) -> Mapping[str, Any]:
    """Metadata of a server with the models of the contract."""
    if model is None:
        return {"name": "mock", "version": "0", "extensions": ["binary_tensor_data", "system_shared_memory"]}
    contract = MODELS.get(model)
    if contract is None:
        raise UnavailableError(f"the mock has no model {model!r}; it has {', '.join(MODELS)}")
    return {
        "name": model,
        "versions": ["1"],
        "platform": "mock",
        "inputs": [{"name": one.name, "datatype": one.dtype, "shape": [-1, *one.dims]} for one in contract.inputs],
        "outputs": [{"name": one.name, "datatype": one.dtype, "shape": [-1, *one.dims]} for one in contract.outputs],
    }

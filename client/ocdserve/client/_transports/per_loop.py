# SPDX-License-Identifier: Apache-2.0
"""Connections bound to an event loop, for objects that are used in one loop after another."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """A resource per event loop, created on first use and again in another loop.

    It is closed when its loop shuts down its asynchronous generators, as `asyncio.run` does at its end: later nothing
    could close its sockets.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[object]]) -> None:
        """Create nothing yet."""
        self._make = make
        self._close = close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resource: T | None = None
        self._guard: AsyncGenerator[None, None] | None = None

    async def get(self) -> T:
        """The running loop's resource."""
        loop = asyncio.get_running_loop()
        if self._resource is None or self._loop is not loop:
            resource = self._make()
            self._loop, self._resource = loop, resource
            self._guard = self._closing(resource)
            await self._guard.__anext__()
            return resource
        return self._resource

    async def close(self) -> None:
        """Close the resource if it belongs to the running loop. Idempotent."""
        guard, self._guard, self._resource = self._guard, None, None
        if guard is not None and self._loop is asyncio.get_running_loop():
            await guard.aclose()

    async def _closing(self, resource: T) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self._resource is resource:
                self._resource = None
            await self._close(resource)

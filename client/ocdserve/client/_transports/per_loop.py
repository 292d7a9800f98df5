# SPDX-License-Identifier: Apache-2.0
"""Connections that belong to an event loop, for objects that may be used in one loop after another."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["PerLoop"]

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Makes a resource in the running loop when it is first asked for, and anew in another loop.

    A resource is closed when its loop shuts down its asynchronous generators, as `asyncio.run` does at its end: later
    nothing could close its sockets.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[object]]) -> None:
        """Make nothing yet."""
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
        """Close the resource if it is of the running loop; calling it again does nothing."""
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

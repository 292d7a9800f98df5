# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the client's tests: leak checks, and one call of either detector."""

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc.aio
import pytest

from ocdserve.client import AsyncTextDetector, TextDetector


@pytest.fixture(scope="module")
def heap_at_rest() -> Iterator[None]:
    """Exclude earlier objects from garbage collection, which takes 0.3 s per test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def no_socket_left(heap_at_rest: None) -> Iterator[None]:
    """Fail if the test leaks a socket."""

    def sockets() -> int:
        found = 0
        for entry in os.listdir("/proc/self/fd"):
            try:
                found += os.readlink(f"/proc/self/fd/{entry}").startswith("socket:")
            except OSError:
                continue
        return found

    async def wake() -> None:
        await grpc.aio.insecure_channel("127.0.0.1:1").close()

    # grpc.aio keeps one pair of sockets per process.
    asyncio.run(wake())
    gc.collect()
    before = sockets()
    yield
    gc.collect()
    deadline = time.monotonic() + 3
    while sockets() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sockets() <= before


def _ask_async(url: str, **options: Any) -> Any:
    async def _ask() -> Any:
        async with AsyncTextDetector(url, **options) as detector:
            return await detector.detect(b"jpeg", thresh=0.25)

    return asyncio.run(_ask())


def _ask(url: str, **options: Any) -> Any:
    with TextDetector(url, **options) as detector:
        return detector.detect(b"jpeg", thresh=0.25)


@pytest.fixture(params=[_ask, _ask_async], ids=["plain", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`call(url, **options)`: one call of either detector, created with these options and closed afterwards."""
    chosen: Callable[..., Any] = request.param
    return chosen

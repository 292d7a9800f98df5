# SPDX-License-Identifier: Apache-2.0
"""Each image is answered once while connections drop and a model process and the server are killed."""

import asyncio
import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dropping_proxy import DroppingProxy, dropping_proxy

from ocdserve.backend.serve import TritonServer
from ocdserve.backend.serve.process.processes import find_stubs
from ocdserve.client import AsyncTextDetector, ErrorEvent, Hooks, Outcome, Retry, TextDetector, Timeout
from ocdserve.perf.load.echo_model import ECHO, echo_image, write_echo_repository

pytestmark = pytest.mark.triton

CONCURRENCY = 16
PATIENT = Retry(attempts=40, backoff_s=0.1, longest_s=2.0)
# Over HTTP a piece is about a request; over gRPC a dropped connection fails up to 16 requests.
CHANCE = {"http": 0.05, "grpc": 0.01}
# After the first quarter, of the process that holds client and proxy.
MEMORY_GROWTH_MB = 30.0


@dataclass
class Toll:
    """Counts of a run."""

    outcomes: Counter[int] = field(default_factory=Counter)
    wrong: list[int] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    memory_mb: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, event: ErrorEvent) -> None:
        with self.lock:
            self.retries[str(event.error.status)] += 1

    def count(self, outcome: Outcome[bytes]) -> None:
        self.outcomes[outcome.index] += 1
        if outcome.detections is None:
            self.reported.append(str(outcome.error))
        elif outcome.detections.width != outcome.index + 1:
            self.wrong.append(outcome.index)


class Disaster:
    """Kills the model's process after a third of the images, and the server after two thirds."""

    def __init__(self, server: TritonServer, images: int, toll: Toll) -> None:
        self._server = server
        self._images = images
        self._toll = toll
        self._done = 0

    def step(self, outcome: Outcome[bytes]) -> None:
        self._toll.count(outcome)
        self._done += 1
        if self._done % (self._images // 20) == 0:
            self._toll.memory_mb.append(memory_mb())
        if self._done == self._images // 3:
            assert self._server.pid is not None
            os.kill(find_stubs(self._server.pid)[-1].pid, signal.SIGKILL)
        if self._done == 2 * self._images // 3:
            assert self._server.pid is not None
            os.kill(self._server.pid, signal.SIGKILL)


def memory_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def sockets() -> int:
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{entry}").startswith("socket:")
        except OSError:
            continue
    return found


def images(count: int) -> Iterator[bytes]:
    return (echo_image(index + 1, 20_000) for index in range(count))


def run_plain(url: str, count: int, toll: Toll, disaster: Disaster) -> None:
    options: dict[str, Any] = {"retry": PATIENT, "timeout": Timeout(120), "hooks": Hooks(on_error=toll.hear)}
    with TextDetector(url, model=ECHO, **options) as detector:
        for outcome in detector.detect_many(images(count), concurrency=CONCURRENCY):
            disaster.step(outcome)


def run_async(url: str, count: int, toll: Toll, disaster: Disaster) -> None:
    async def run() -> None:
        options: dict[str, Any] = {"retry": PATIENT, "timeout": Timeout(120), "hooks": Hooks(on_error=toll.hear)}
        async with AsyncTextDetector(url, model=ECHO, **options) as detector:
            async for outcome in detector.detect_many(images(count), concurrency=CONCURRENCY, ordered=False):
                disaster.step(outcome)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


WAYS = {"plain": run_plain, "async": run_async}


def survive(server: TritonServer, protocol: str, way: str, count: int) -> tuple[Toll, DroppingProxy]:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    toll = Toll()
    with dropping_proxy(int(url.rpartition(":")[2]), CHANCE[protocol]) as proxy:
        WAYS[way](f"{protocol}://127.0.0.1:{proxy.port}", count, toll, Disaster(server, count, toll))
    return toll, proxy


@pytest.fixture
def server(
    tmp_path: Path, running_server: Callable[..., AbstractContextManager[TritonServer]]
) -> Iterator[TritonServer]:
    with running_server(write_echo_repository(tmp_path / "models", delay_s=0.002)) as running:
        yield running


def assert_survived(count: int, toll: Toll, proxy: DroppingProxy) -> None:
    assert toll.outcomes == Counter(range(count))
    assert toll.wrong == []
    assert toll.reported == []
    assert proxy.drops > 0
    # The outages were noticed.
    assert sum(toll.retries.values()) > 0


@pytest.mark.parametrize(("protocol", "way"), [("grpc", "plain"), ("http", "async")])
def test_every_image_is_answered_once_through_kills_and_drops(server: TritonServer, protocol: str, way: str) -> None:
    count = 900
    assert_survived(count, *survive(server, protocol, way, count))


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("protocol", "way"), list(itertools.product(CHANCE, WAYS)))
def test_ten_thousand_images_are_answered_once_without_leaks(server: TritonServer, protocol: str, way: str) -> None:
    count = 10_000
    gc.collect()
    threads, open_before = threading.active_count(), sockets()
    start = time.monotonic()
    toll, proxy = survive(server, protocol, way, count)
    seconds = time.monotonic() - start
    print(  # noqa: T201
        f"{protocol} {way}: {count} images in {seconds:.0f} s, {proxy.drops} connections dropped, retries"
        f" {dict(toll.retries)}, memory {toll.memory_mb[5]:.0f} to {toll.memory_mb[-1]:.0f} MB",
        file=sys.stderr,
    )
    assert_survived(count, toll, proxy)
    assert toll.memory_mb[-1] - toll.memory_mb[5] < MEMORY_GROWTH_MB
    gc.collect()
    deadline = time.monotonic() + 5
    while (sockets() > open_before + 2 or threading.active_count() > threads) and time.monotonic() < deadline:
        time.sleep(0.05)
    # grpc.aio keeps one pair of sockets per process.
    assert sockets() <= open_before + 2
    assert threading.active_count() <= threads + (way == "async" and protocol == "grpc")
    assert [name for name in os.listdir("/dev/shm") if name.startswith(f"ocdserve-client-{os.getpid()}-")] == []

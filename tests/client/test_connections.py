# SPDX-License-Identifier: Apache-2.0
"""Connections over real sockets: TLS, keep-alive, event loops, cancellation, leaks."""

import asyncio
import inspect
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from kserve_fakes import FOUND, HttpFake, grpc_server, http_server

from ocdserve.client import (
    AccessError,
    AsyncTextDetector,
    DeadlineError,
    InvalidInputError,
    Retry,
    ServerError,
    TextDetector,
    Timeout,
    UnavailableError,
)
from ocdserve.client._endpoint import Endpoint
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._transports import async_transport_for, transport_for

ONCE = Retry(attempts=1)
pytestmark = pytest.mark.usefixtures("no_socket_left")

both = pytest.mark.parametrize("running", [grpc_server, http_server], ids=["grpc", "http"])


@both
def test_image_parameters_and_headers_arrive(running: Any, call: Callable[..., Any]) -> None:
    with running() as (url, server):
        assert call(url, headers={"X-Tenant": "a"}, token="t").to_dict() == FOUND
    if running is grpc_server:
        headers, binary = server.metadata, server.last.raw_input_contents[0]
        assert server.last.parameters["thresh"].double_param == 0.25
        waits = server.last.parameters["timeout"].int64_param
        assert len(server.last.id) == 16
    else:
        headers, binary = server.headers, server.last[2]
        waits = server.last[1]["parameters"].pop("timeout")
        assert server.last[1]["parameters"] == {"thresh": 0.25}
        assert len(server.last[1]["id"]) == 16
        assert headers["accept-encoding"] == "identity"
    assert 55_000_000 < waits <= 60_000_000
    assert binary == b"\x04\x00\x00\x00jpeg"
    assert (headers["x-tenant"], headers["authorization"]) == ("a", "Bearer t")


@both
def test_errors_are_mapped(running: Any, call: Callable[..., Any]) -> None:
    cases = [
        (grpc.StatusCode.INVALID_ARGUMENT, 400, InvalidInputError),
        (grpc.StatusCode.UNAUTHENTICATED, 401, AccessError),
        (grpc.StatusCode.UNAVAILABLE, 503, UnavailableError),
        (grpc.StatusCode.INTERNAL, 500, ServerError),
    ]
    with running() as (url, server):
        for code, status, kind in cases:
            server.failure, server.answer = (code, "why"), (status, b'{"error": "why"}')
            with pytest.raises(kind, match="why") as caught:
                call(url, retry=ONCE)
            assert caught.value.url == url
            assert caught.value.request_id is not None


@both
def test_an_absent_server_is_unavailable(running: Any, call: Callable[..., Any]) -> None:
    with running() as (url, _):
        pass
    with pytest.raises(UnavailableError, match=url) as caught:
        call(url, retry=Retry(attempts=2, backoff_s=0.01))
    assert caught.value.retryable


def test_a_silent_server_times_out(call: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no answer within 0\.2 s"):
            call(url, timeout_s=0.2)
        with pytest.raises(DeadlineError, match=r"no answer within 0\.1 s"):
            call(url, timeout=Timeout(total=5, read=0.1))
        assert time.monotonic() - start < 3


def test_a_trickling_server_times_out(call: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(100):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return
                    time.sleep(0.05)

        thread = threading.Thread(target=drip)
        thread.start()
        start = time.monotonic()
        with pytest.raises(DeadlineError):
            call(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.4)
        assert time.monotonic() - start < 2
        thread.join()


def test_http_reuses_its_connection_and_drops_one_closed_by_the_server() -> None:
    with http_server() as (url, server), TextDetector(url, retry=ONCE) as detector:
        for _ in range(5):
            detector.detect(b"jpeg")
        assert len(server.connections) == 1
        server.connections[0].shutdown(socket.SHUT_RDWR)
        time.sleep(0.05)
        assert detector.detect(b"jpeg").to_dict() == FOUND
        assert len(server.connections) == 2


def test_threads_share_the_connections_of_a_detector() -> None:
    with http_server() as (url, server), TextDetector(url) as detector, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: detector.detect(b"jpeg").to_dict(), range(80)))
        assert found == [FOUND] * 80
        assert 1 <= len(server.connections) <= 4


@both
def test_a_loop_closes_its_connections_at_its_end_and_the_next_opens_new_ones(running: Any) -> None:
    with running() as (url, _):
        detector = AsyncTextDetector(url)
        for _ in range(3):
            assert asyncio.run(detector.detect(b"jpeg")).to_dict() == FOUND
        asyncio.run(detector.close())


def test_cancelling_a_task_cancels_the_call_on_the_server() -> None:
    async def run(url: str, fake: Any) -> None:
        async with AsyncTextDetector(url) as detector:
            task = asyncio.create_task(detector.detect(b"jpeg"))
            while fake.calls == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(fake.cancelled.wait, 5)

    with grpc_server() as (url, fake):
        fake.delay_s = 30
        asyncio.run(run(url, fake))


def test_closing_fails_calls_in_flight_and_cancels_them_on_the_server() -> None:
    with grpc_server() as (url, fake), ThreadPoolExecutor(1) as pool:
        fake.delay_s = 30
        detector = TextDetector(url)
        call = pool.submit(detector.detect, b"jpeg")
        while fake.calls == 0:
            time.sleep(0.01)
        detector.close()
        with pytest.raises(UnavailableError, match="closed"):
            call.result(timeout=5)
        assert fake.cancelled.wait(5)


def test_closing_fails_calls_in_flight_over_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        detector = TextDetector(f"http://127.0.0.1:{listener.getsockname()[1]}")
        call = pool.submit(detector.detect, b"jpeg")
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            detector.close()
            with pytest.raises(UnavailableError, match="closed"):
                call.result(timeout=5)


def test_ctrl_c_aborts_a_call_and_cancels_it_on_the_server() -> None:
    with grpc_server() as (url, fake), TextDetector(url) as detector:
        fake.delay_s = 30

        def interrupt() -> None:
            while fake.calls == 0:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            detector.detect(b"jpeg")
        thread.join()
        assert fake.cancelled.wait(5)
        assert detector.health().servers[0].under_way == 0


@both
def test_requests_go_to_the_remaining_server(running: Any) -> None:
    with ExitStack() as stack:
        first, _ = stack.enter_context(running())
        second, _ = stack.enter_context(running())
        detector = stack.enter_context(TextDetector([first, second], timeout_s=5))
        assert detector.detect(b"jpeg").to_dict() == FOUND
        with running() as (third, _):
            pass
        balanced = stack.enter_context(TextDetector([third, second], timeout_s=5))
        assert [balanced.detect(b"jpeg").to_dict() for _ in range(8)] == [FOUND] * 8
        assert [row.left_out for row in balanced.health().servers] == [True, False]


def test_compressed_requests_are_marked(call: Callable[..., Any]) -> None:
    with http_server() as (url, server):
        # The small server does not decompress: the headers are enough.
        server.answer = (503, b"")
        with pytest.raises(UnavailableError):
            call(url, compression="gzip", retry=ONCE)
        assert server.headers["content-encoding"] == "gzip"
        assert server.headers["accept-encoding"] == "gzip"
        assert server.last[2][:2] == b"\x1f\x8b"


def test_strided_pixels_arrive_in_logical_order() -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    with grpc_server() as (url, fake), TextDetector(url) as detector:
        detector.detect(pixels[::2, ::-1], bgr=True)
        assert list(fake.last.raw_input_contents) == [pixels[::2, ::-1, ::-1].tobytes()]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_corrupt_response_is_a_server_error(call: Callable[..., Any], encoding: str) -> None:
    with http_server() as (url, server):
        server.answer = (200, b"not compressed", {"Content-Encoding": encoding})
        with pytest.raises(ServerError, match="damaged"):
            call(url, compression=encoding)


@pytest.mark.parametrize("transport_of", [transport_for, async_transport_for])
def test_metadata_that_is_not_json_is_a_server_error(
    transport_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HttpFake, "do_GET", lambda self: self.answer(200, b"<html>"))

    async def describe(url: str) -> None:
        endpoint = Endpoint.parse(url)
        transport = transport_of(endpoint, Settings((endpoint,)))
        try:
            answer = transport.describe(None, 2.0)
            if inspect.isawaitable(answer):
                await answer
        finally:
            closed = transport.close()
            if inspect.isawaitable(closed):
                await closed

    with http_server() as (url, _), pytest.raises(ServerError, match="not that of an inference server"):
        asyncio.run(describe(url))


def test_a_server_that_reads_many_images_slowly_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def sip() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                while connection.recv(2**16):
                    time.sleep(0.005)

        thread = threading.Thread(target=sip)
        thread.start()
        with TextDetector(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.6) as detector:
            start = time.monotonic()
            with pytest.raises(DeadlineError):
                detector.detect_batch([bytes(4 * 2**20)] * 8)
            assert time.monotonic() - start < 1.2
        thread.join()


@pytest.mark.parametrize("is_async", [False, True])
def test_requests_go_to_all_addresses_of_a_name_in_turn(is_async: bool) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"localhost has one address only ({error})")
    with ExitStack() as stack:
        url, first = stack.enter_context(grpc_server())
        port = int(url.rpartition(":")[2])
        _, second = stack.enter_context(grpc_server(port, host="[::1]"))

        deadline = time.monotonic() + 30

        def is_enough() -> bool:
            # The first requests are sent before the second connection is there.
            assert time.monotonic() < deadline, (first.calls, second.calls)
            return min(first.calls, second.calls) >= 5

        async def ask() -> None:
            async with AsyncTextDetector(f"grpc://localhost:{port}") as detector:
                while not is_enough():
                    await detector.detect(b"jpeg")

        if is_async:
            asyncio.run(ask())
        else:
            with TextDetector(f"grpc://localhost:{port}") as detector:
                while not is_enough():
                    detector.detect(b"jpeg")

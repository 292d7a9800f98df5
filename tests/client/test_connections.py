# SPDX-License-Identifier: Apache-2.0
"""Connections over real sockets: TLS, keep-alive, loops, cancellation, and what is left behind."""

import asyncio
import gc
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from kserve_fakes import FOUND, grpc_server, http_server

from ocdserve.client import (
    AccessError,
    AsyncTextDetector,
    DeadlineError,
    InvalidInputError,
    Retry,
    ServerError,
    TextDetector,
    Timeout,
    Tls,
    UnavailableError,
)

ONCE = Retry(attempts=1)
both = pytest.mark.parametrize("running", [grpc_server, http_server], ids=["grpc", "http"])


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No socket is open after a test that was not before."""

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

    # grpc.aio keeps one pair of sockets for the process.
    asyncio.run(wake())
    gc.collect()
    before = sockets()
    yield
    gc.collect()
    deadline = time.monotonic() + 3
    while sockets() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sockets() <= before


def ask_async(url: str, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncTextDetector(url, **options) as detector:
            return await detector.detect(b"jpeg", thresh=0.25)

    return asyncio.run(ask())


def ask(url: str, **options: Any) -> Any:
    with TextDetector(url, **options) as detector:
        return detector.detect(b"jpeg", thresh=0.25)


either = pytest.mark.parametrize("call", [ask, ask_async], ids=["plain", "async"])


@both
def test_the_async_detector_sends_what_the_other_sends(running: Any) -> None:
    with running() as (url, server):
        messages = []
        for call in (ask, ask_async):
            assert call(url, headers={"X-Tenant": "a"}, token="t").to_dict() == FOUND
            message = server.last
            if running is grpc_server:
                message.id = ""
                assert server.metadata["x-tenant"] == "a"
                assert server.metadata["authorization"] == "Bearer t"
            else:
                message[1].pop("id")
                assert server.headers["x-tenant"] == "a"
                assert server.headers["authorization"] == "Bearer t"
                assert server.headers["accept-encoding"] == "identity"
            messages.append(message)
        assert messages[0] == messages[1]


@both
@either
def test_errors_have_their_kind(running: Any, call: Callable[..., Any]) -> None:
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
@either
def test_an_absent_server_is_unavailable(running: Any, call: Callable[..., Any]) -> None:
    with running() as (url, _):
        pass
    with pytest.raises(UnavailableError, match=url) as caught:
        call(url, retry=Retry(attempts=2, backoff_s=0.01))
    assert caught.value.retryable


@either
def test_a_silent_server_meets_the_limit(call: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no answer within 0\.2 s"):
            call(url, timeout_s=0.2)
        with pytest.raises(DeadlineError, match=r"no answer within 0\.1 s"):
            call(url, timeout=Timeout(total=5, read=0.1))
        assert time.monotonic() - start < 3


def test_a_server_that_sends_drop_by_drop_meets_the_limit() -> None:
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
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.4)
        assert time.monotonic() - start < 2
        thread.join()


def test_http_keeps_its_connection_and_forgets_one_that_the_server_closed() -> None:
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
def test_a_loop_that_ends_takes_its_connections_along_and_the_next_opens_new_ones(running: Any) -> None:
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


def test_closing_fails_the_calls_under_way_and_cancels_them_on_the_server() -> None:
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


def test_closing_fails_the_calls_under_way_over_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        detector = TextDetector(f"http://127.0.0.1:{listener.getsockname()[1]}")
        call = pool.submit(detector.detect, b"jpeg")
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            detector.close()
            with pytest.raises(UnavailableError, match="closed"):
                call.result(timeout=5)


def test_ctrl_c_ends_a_call_and_cancels_it_on_the_server() -> None:
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
def test_requests_go_to_the_server_that_is_left(running: Any) -> None:
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


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server 127.0.0.1 and of a client."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs the program openssl to make certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    return folder


@pytest.fixture(params=["grpc", "http"])
def secure_server(request: pytest.FixtureRequest, certificates: Path) -> Iterator[str]:
    """A server that asks clients for a certificate."""
    if request.param == "grpc":
        pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
        authority = (certificates / "ca.pem").read_bytes()
        credentials = grpc.ssl_server_credentials([pair], authority, require_client_auth=True)
        with grpc_server(credentials=credentials) as (url, _):
            yield url
    else:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem"))
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        context.verify_mode = ssl.CERT_REQUIRED
        with http_server(context=context) as (url, _):
            yield url


@either
def test_client_and_server_know_each_other_by_certificates(
    secure_server: str, certificates: Path, call: Callable[..., Any]
) -> None:
    ca, cert, key = (certificates / name for name in ("ca.pem", "client.pem", "client.key"))
    assert call(secure_server, tls=Tls(ca, cert, key)).to_dict() == FOUND


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_is_not_trusted_and_a_client_without_certificate_are_refused(
    secure_server: str, certificates: Path
) -> None:
    with pytest.raises(UnavailableError):
        ask(secure_server, retry=ONCE, timeout_s=5)
    with pytest.raises(UnavailableError):
        ask(secure_server, tls=Tls(certificates / "ca.pem"), retry=ONCE, timeout_s=5)


def test_compressed_requests_say_so() -> None:
    import gzip

    with http_server() as (url, server):
        # The small server does not decompress: what it tells of the request is enough.
        server.answer = (503, b"")
        for call in (ask, ask_async):
            with pytest.raises(Exception):  # noqa: B017, PT011
                call(url, compression="gzip", retry=ONCE)
            assert server.headers["content-encoding"] == "gzip"
            assert server.headers["accept-encoding"] == "gzip"
    assert gzip.decompress(gzip.compress(b"x")) == b"x"


def test_pixels_of_any_strides_arrive_as_they_look() -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    with grpc_server() as (url, fake), TextDetector(url) as detector:
        detector.detect(pixels[::2, ::-1], bgr=True)
        assert list(fake.last.raw_input_contents) == [pixels[::2, ::-1, ::-1].tobytes()]

# SPDX-License-Identifier: Apache-2.0
"""Servers that mean harm: every answer ends in an OcdserveError, in time and within the limit of bytes."""

import asyncio
import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from ocdserve.client import (
    AsyncTextDetector,
    DeadlineError,
    InvalidInputError,
    OcdserveError,
    Retry,
    ServerError,
    TextDetector,
    TextReader,
    Timeout,
)

ONCE = Retry(attempts=1)
GOOD = [
    {"name": "QUADS", "datatype": "FP32", "shape": [1, 1, 4, 2], "data": [0, 0, 9, 0, 9, 9, 0, 9]},
    {"name": "SCORES", "datatype": "FP32", "shape": [1, 1], "data": [0.9]},
    {"name": "COUNT", "datatype": "INT32", "shape": [1, 1], "data": [1]},
    {"name": "SIZE", "datatype": "INT32", "shape": [1, 2], "data": [10, 10]},
]


@contextmanager
def answering(send: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that lets `send` do what it wants with each connection, and then reads the request."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            send(connection)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 20):
                pass

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def detect(url: str, asynchronous: bool, image: bytes = b"image", **options: Any) -> Any:
    if not asynchronous:
        with TextDetector(url, retry=ONCE, **options) as detector:
            return detector.detect(image)

    async def call() -> Any:
        async with AsyncTextDetector(url, retry=ONCE, **options) as detector:
            return await detector.detect(image)

    return asyncio.run(call())


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])


def whole(body: bytes, *headers: bytes) -> Callable[[socket.socket], None]:
    head = b"\r\n".join([b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), *headers])
    return lambda connection: connection.sendall(head + b"\r\n\r\n" + body)


def without_end(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b" " * (1 << 20))


def dripping_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def dripping_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


@both
@pytest.mark.parametrize("send", [dripping_head, dripping_body])
def test_a_slow_drip_ends_at_the_deadline(send: Callable[[socket.socket], None], asynchronous: bool) -> None:
    with answering(send) as url:
        begin = time.monotonic()
        with pytest.raises(DeadlineError):
            detect(url, asynchronous, timeout=Timeout(total=0.5))
        assert time.monotonic() - begin < 2.5


@both
def test_a_response_without_end_is_cut_at_the_limit(asynchronous: bool) -> None:
    with answering(without_end) as url:
        tracemalloc.start()
        try:
            with pytest.raises(ServerError, match=r"larger than 4000000 bytes.*max_response_bytes"):
                detect(url, asynchronous, max_response_bytes=4_000_000)
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()


@both
def test_a_response_that_inflates_is_cut_at_the_limit(asynchronous: bool) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    with (
        answering(whole(bomb, b"content-encoding: gzip")) as url,
        pytest.raises(ServerError, match="larger than 4000000 bytes"),
    ):
        detect(url, asynchronous, max_response_bytes=4_000_000)


def changed(name: str, **fields: Any) -> bytes:
    return json.dumps({"outputs": [{**one, **fields} if one["name"] == name else one for one in GOOD]}).encode()


@both
@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b"7",
        b'{"outputs": null}',
        b'{"outputs": [null]}',
        b'{"outputs": {"a": 1}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        changed("QUADS", data=[float("nan")] * 8),
        changed("QUADS", data=[float("inf")] * 8),
        changed("QUADS", shape=[1, -1, 4, 2]),
        changed("QUADS", shape=[-1, 1, 4, 2]),
        changed("QUADS", shape=[1, 2**62, 4, 2]),
        changed("QUADS", shape=None),
        changed("QUADS", shape="1142"),
        changed("QUADS", datatype=["FP32"]),
        changed("QUADS", data={"a": 1}),
        changed("QUADS", parameters=[]),
        changed("QUADS", parameters={"binary_data_size": "8"}),
        changed("QUADS", parameters={"binary_data_size": -8}),
        changed("QUADS", parameters={"binary_data_size": 2**70}),
        changed("SCORES", data=[float("nan")]),
        changed("COUNT", data=[2]),
        changed("COUNT", data=[-1]),
        changed("COUNT", data=[2**40]),
        changed("SIZE", data=[0, 0]),
        changed("SIZE", data=[-5, -5]),
    ],
    ids=lambda body: body[:40].decode(),
)
def test_a_malformed_response_is_an_error_of_the_server(body: bytes, asynchronous: bool) -> None:
    with answering(whole(body)) as url, pytest.raises(OcdserveError) as caught:
        detect(url, asynchronous)
    assert isinstance(caught.value, ServerError)


TEXTS = [
    *GOOD,
    {"name": "TEXTS", "datatype": "BYTES", "shape": [1, 1], "data": ["tea"]},
    {"name": "TEXT_SCORES", "datatype": "FP32", "shape": [1, 1], "data": [0.9]},
]


@pytest.mark.parametrize(
    "fields",
    [
        {"data": ["\ud800"]},
        {"data": ["a\x1b[2J"]},
        {"data": ["a", "b"]},
        {"data": []},
        {"data": [7]},
        {"data": [None]},
        {"data": [["a"]]},
        {"data": 5},
        {"datatype": "FP32", "data": [1]},
        {"shape": [1, 2**40]},
        {"shape": [1, 2], "data": ["a", "b"]},
        {"parameters": {"binary_data_size": 3}},
        {"parameters": {"binary_data_size": -4}},
        {"parameters": {"binary_data_size": 2**70}},
    ],
    ids=str,
)
def test_malformed_texts_are_an_error_of_the_server(fields: dict[str, Any]) -> None:
    outputs = [{**one, **fields} if one["name"] == "TEXTS" else one for one in TEXTS]
    body = json.dumps({"outputs": outputs}).encode()
    with answering(whole(body)) as url, TextReader(url, retry=ONCE) as reader, pytest.raises(ServerError):
        reader.read(b"image")


def test_unchanged_texts_are_accepted() -> None:
    with answering(whole(json.dumps({"outputs": TEXTS}).encode())) as url, TextReader(url, retry=ONCE) as reader:
        assert reader.read(b"image").texts == ("tea",)


@both
def test_the_unchanged_response_is_accepted(asynchronous: bool) -> None:
    with answering(whole(json.dumps({"outputs": GOOD}).encode())) as url:
        found = detect(url, asynchronous)
    assert found.quads.tolist() == [[[0, 0], [9, 0], [9, 9], [0, 9]]] and (found.width, found.height) == (10, 10)


@pytest.mark.parametrize("body", [b"null", b"[" * 100_000])
def test_malformed_metadata_is_an_error_too(body: bytes) -> None:
    with answering(whole(body)) as url, TextDetector(url, retry=ONCE) as detector, pytest.raises(OcdserveError):
        detector.capabilities()


def test_a_request_that_is_refused_before_it_has_arrived_is_an_error_about_the_input() -> None:
    body = b'{"error": "at most 64 bytes"}'

    def refuse(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(
            b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        time.sleep(0.2)
        # What has not been read makes this a reset.
        connection.close()

    with answering(refuse) as url, pytest.raises(InvalidInputError, match="at most 64 bytes"):
        detect(url, asynchronous=False, image=bytes(20 << 20))

# SPDX-License-Identifier: Apache-2.0
"""Attackers on the front door, and what one client may take of it."""

import gzip
import json
import select
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from front_doors import (
    FOUND,
    GOOD,
    INFER,
    JSON,
    LARGEST,
    LENGTH,
    SERVICE,
    WORD,
    ask,
    call,
    door,
    good_clients,
    infer_request,
    send,
    serves,
    wait_for,
    wire,
)

from ocdserve.backend.serve import TritonServer
from ocdserve.backend.serve.public.front_door import FrontDoor
from ocdserve.client import InvalidInputError, TextDetector

pytestmark = [pytest.mark.triton, pytest.mark.timed]


def test_attacks_on_memory_and_parsers_harm_no_other_client(server: TritonServer, plain: FrontDoor) -> None:
    pid = server.pid
    chunked = wire(f"{LENGTH}: {len(JSON)}", "Transfer-Encoding: chunked", body=b"")
    with good_clients(plain):
        # A chunk per byte, which overflow Triton's stack.
        data = b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"1\r\nx\r\n" * 700_000 + b"0\r\n\r\n"
        assert send(plain, chunked + data).startswith(b"400 ")
        shared_memory = chunked.replace(INFER.encode(), b"/v2/systemsharedmemory/region/x/register")
        assert send(plain, shared_memory + data).startswith(b"404 ")
        # The raw body that crashes Triton from 4 MB on.
        assert ask(plain, body=bytes(6 << 20), headers={LENGTH: "0"})[0] == 400
        # A body that inflates to a thousand times its size.
        bomb = gzip.compress(bytes(64 << 20), 1)
        assert ask(plain, body=bomb, headers={LENGTH: "9", "Content-Encoding": "gzip"})[0] == 415
        status, text = call(plain, f"{SERVICE}ModelInfer", infer_request(tensor=bytes(LARGEST + 1)))
        assert (status, f"at most {LARGEST} bytes" in text) == ("RESOURCE_EXHAUSTED", True)
        for url in plain.urls:
            with TextDetector(url) as detector, pytest.raises(InvalidInputError, match="the request is too large"):
                detector.detect(WORD + bytes(LARGEST))
        assert send(plain, b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 200_000 + b"\r\n").startswith(b"431 ")
    assert server.pid == pid and server.exit_status() is None
    assert _memory(plain.pids[0]) < 256 << 20


def test_floods_of_http_2_end_the_connection_and_no_other(server: TritonServer, plain: FrontDoor) -> None:
    def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    def field(name: bytes, value: bytes) -> bytes:
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    data, headers, reset, settings, ping, more = 0, 1, 3, 4, 6, 9
    named = {b":method": b"POST", b":scheme": b"http", b":authority": b"x", b"content-type": b"application/grpc"}
    fields = b"".join(field(*item) for item in {**named, b":path": f"{SERVICE}ModelInfer".encode()}.items())
    floods = {
        "resets": [frame(headers, 4, 2 * n + 1, fields) + frame(reset, 0, 2 * n + 1, bytes(4)) for n in range(5000)],
        "continued headers": [frame(headers, 0, 1, fields), *[frame(more, 0, 1, field(b"x", b"v" * 99))] * 20_000],
        "settings": [frame(settings, 0, 0)] * 50_000,
        "pings": [frame(ping, 0, 0, bytes(8))] * 50_000,
        "empty data": [frame(headers, 4, 1, fields), *[frame(data, 0, 1)] * 50_000],
    }

    def closed(frames: list[bytes]) -> bool:
        """Sends frames until the connection is closed; one that stays open ends in a TimeoutError."""
        with socket.create_connection(("127.0.0.1", plain.port), 20) as connection, suppress(ConnectionError):
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings, 0, 0) + b"".join(frames))
            while connection.recv(1 << 16):
                pass
        return True

    with good_clients(plain), ThreadPoolExecutor() as threads:
        assert all(threads.map(closed, floods.values()))


def _memory(pid: int | None) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def test_a_request_in_single_bytes_is_served(plain: FrontDoor) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\n\r\n"
    answer = send(plain, wire(f"{LENGTH}: {len(JSON)}", "Transfer-Encoding: chunked", body=chunks))
    assert answer.startswith(b"200 ") and b'"name":"QUADS"' in answer


def test_unfinished_uploads_are_bounded_in_memory(server: TritonServer) -> None:
    most = 64 << 20
    with door(server, max_proxy_bytes=most) as opened, ExitStack() as stack:
        before = _memory(opened.pids[0])
        connections = []
        for _ in range(40):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", opened.port), 5))
            connection.setblocking(False)
            connections.append(connection)
        begin = wire(f"{LENGTH}: {len(JSON)}", f"Content-Length: {8 << 20}", body=b"")
        pieces = [begin + bytes(7 << 20)] * len(connections)
        end = time.monotonic() + 10
        while any(pieces) and time.monotonic() < end:
            for index, connection in enumerate(connections):
                try:
                    pieces[index] = pieces[index][connection.send(pieces[index][: 1 << 16]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    pieces[index] = b""
            # At most 100 MB/s: the proxy looks at its memory ten times per second.
            time.sleep(0.026)
        # Of 280 MB.
        assert _memory(opened.pids[0]) - before < 2 * most
        answered, _, _ = select.select(connections, [], [], 5)
        answers = []
        for connection in answered:
            with suppress(ConnectionError):
                answers.append(connection.recv(1 << 16))
        refused = [answer for answer in answers if answer]
        assert refused
        for answer in refused:
            assert answer.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in answer, answer
        wait_for(lambda: serves(opened))


def test_a_plain_upload_is_copied_at_most_once_by_its_process(plain: FrontDoor) -> None:
    def peak() -> int:
        return int(Path(f"/proc/{plain.pids[1]}/status").read_text().partition("VmHWM:")[2].split()[0]) << 10

    # What the first request imports is not its memory.
    assert ask(plain, "/detect", WORD, {})[0] == 200
    before, image = peak(), b"BM" + bytes(7 << 20)
    assert ask(plain, "/detect", image, {})[0] == 400
    assert peak() - before < 2.5 * len(image)


def test_slow_and_idle_clients_are_cut_off(server: TritonServer) -> None:
    limits = {"header_timeout": 1, "upload_timeout": 2, "idle_timeout": 1}
    with door(server, **limits) as opened, good_clients(opened):
        slow = {
            "nothing": b"",
            "half of the headers": b"POST /v2 HTTP/1.1\r\nHost: x\r\n",
            "half of the body": wire(f"{LENGTH}: {len(JSON)}", f"Content-Length: {len(GOOD)}", body=GOOD[:-1]),
        }
        start, left = time.monotonic(), {}
        for name, data in slow.items():
            left[name] = socket.create_connection(("127.0.0.1", opened.port), 10)
            left[name].sendall(data)
        answers = {}
        for name, connection in left.items():
            with connection, connection.makefile("rb") as stream:
                answers[name] = stream.read()
        assert time.monotonic() - start < 8
        assert answers["nothing"] == b""
        for name in ("half of the headers", "half of the body"):
            assert answers[name].startswith(b"HTTP/1.1 408 ") and b"not complete in time" in answers[name]


def test_requests_of_one_address_are_limited_and_others_are_served(server: TritonServer) -> None:
    with door(server, rate=5) as opened:
        ready = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
        answers = [ask(opened, "/v2/health/ready", None, {}, "GET") for _ in range(30)]
        assert {status for status, _, _ in answers} == {200, 429}
        # Twice the rate at once, and what came in the meantime.
        assert 10 <= sum(status == 200 for status, _, _ in answers) <= 15
        _, headers, body = next(answer for answer in answers if answer[0] == 429)
        assert headers["retry-after"] == "1"
        assert json.loads(body) == {"error": "too many requests: more than 5 per second came from your address"}
        codes = {call(opened, f"{SERVICE}ServerReady", b"")[0] for _ in range(10)}
        assert "RESOURCE_EXHAUSTED" in codes
        claimed = {"X-Forwarded-For": "10.1.2.3", "X-Real-IP": "10.1.2.3", "Forwarded": "for=10.1.2.3"}
        assert {ask(opened, "/v2/health/ready", None, claimed, "GET")[0] for _ in range(10)} >= {429}
        assert send(opened, ready, source="127.0.0.2") == b"200 "
        # The client library tries again until it is served.
        with TextDetector(opened.urls[0]) as http_client, TextDetector(opened.urls[1]) as grpc_client:
            for detector in (http_client, grpc_client, http_client, grpc_client) * 4:
                assert len(detector.detect(WORD)) == FOUND


def test_connections_above_the_limit_are_closed(server: TritonServer) -> None:
    with door(server, max_connections=3) as opened:
        with ExitStack() as stack:
            held = [stack.enter_context(socket.create_connection(("127.0.0.1", opened.port), 10)) for _ in range(4)]
            ended, _, _ = select.select(held, [], [], 5)
            # Two threads of the proxy may count at the same time.
            assert [connection.recv(1) for connection in ended] in ([b""], [b"", b""])
        wait_for(lambda: serves(opened))

# SPDX-License-Identifier: Apache-2.0
"""The front door: the real Envoy before the real Triton, for good clients and for attackers."""

import gzip
import http.client
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2

from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import TritonServer
from ocdserve.backend.serve.public import front_door
from ocdserve.backend.serve.public.front_door import FrontDoor
from ocdserve.backend.serve.public.options import PublicOptions
from ocdserve.client import AccessError, InvalidInputError, Retry, TextDetector, Tls, UnavailableError

pytestmark = pytest.mark.triton

TOKEN = "a-token-of-the-tests"
INFER = "/v2/models/ocdnet/infer"
LENGTH = "Inference-Header-Content-Length"
SERVICE = "/inference.GRPCInferenceService/"
ONCE = Retry(attempts=1)
LARGEST = 8 << 20


def word() -> bytes:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[10:20, 20:60] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


WORD = word()
# One word, which its tallest possible box holds.
FOUND = 1


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    red_bundle: Path,
    running_server: Callable[..., AbstractContextManager[TritonServer]],
) -> Iterator[TritonServer]:
    """A detector of red areas."""
    repository = publish(PublishOptions(tmp_path_factory.mktemp("public") / "models", red_bundle, threads=1))
    with running_server(repository) as running:
        yield running


@contextmanager
def door(server: TritonServer, messages: list[str] | None = None, **options: Any) -> Iterator[FrontDoor]:
    report = [] if messages is None else messages
    with FrontDoor(
        PublicOptions(**{"port": 0, "rate": 0, "no_uploads": True, **options}), server, report.append
    ) as opened:
        opened.open()
        yield opened


@pytest.fixture(scope="module")
def plain(server: TritonServer) -> Iterator[FrontDoor]:
    """A front door with neither TLS nor tokens."""
    with door(server, no_uploads=False, max_body_bytes=LARGEST) as opened:
        yield opened


def message(tensor_bytes: int, **more: Any) -> bytes:
    sized = {"binary_data_size": tensor_bytes}
    tensor = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": sized}
    return json.dumps({"inputs": [tensor], **more}).encode()


TENSOR = struct.pack("<I", len(WORD)) + WORD
JSON = message(len(TENSOR))
GOOD = JSON + TENSOR


def ask(
    opened: FrontDoor,
    path: str = INFER,
    body: Any = GOOD,
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body of one request; by default a good one."""
    connection = http.client.HTTPConnection("127.0.0.1", opened.port, timeout=60)
    try:
        connection.connect()
        # What is refused by its headers may be answered before all of it was sent.
        with suppress(ConnectionError):
            connection.request(method, path, body, {LENGTH: str(len(JSON))} if headers is None else headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def serves(opened: FrontDoor) -> bool:
    try:
        return ask(opened)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def send(opened: FrontDoor, data: bytes, source: str = "127.0.0.1") -> bytes:
    """All that is answered to raw bytes, until the connection is closed or the answer complete."""
    with socket.create_connection(("127.0.0.1", opened.port), 30, (source, 0)) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return str(answer.status).encode() + b" " + answer.read()


def call(opened: FrontDoor, method: str, request: Any, **options: Any) -> tuple[str, str]:
    """Name of the status and message of one RPC; `request` is a message or its bytes."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    settings = [("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{opened.port}", settings) as channel:
        try:
            channel.unary_unary(method)(data, timeout=60, **options)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return "OK", ""


def infer_request(model: str = "ocdnet", tensor: bytes = TENSOR) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[tensor])
    request.inputs.add(name="IMAGE", datatype="BYTES", shape=[1, 1])
    return request


@contextmanager
def good_clients(opened: FrontDoor) -> Iterator[None]:
    """Clients of both protocols that ask all the time; each of their requests must be answered, and right."""
    done, counts = threading.Event(), []

    def run(url: str) -> None:
        count = 0
        with TextDetector(url, retry=ONCE) as detector:
            while not done.is_set():
                assert len(detector.detect(WORD)) == FOUND
                count += 1
        counts.append(count)

    threads = [threading.Thread(target=run, args=(url,)) for url in (*opened.urls, *opened.urls)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert len(counts) == len(threads) and min(counts) > 0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates for 127.0.0.1, each its own authority."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs the program openssl to make certificates")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("old", "new"):
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        subject = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-out", f"{name}.pem")
        subprocess.run(
            [program, "req", "-x509", "-days", "2", *key, *subject], cwd=folder, check=True, capture_output=True
        )
    return folder


def test_the_client_library_detects_through_tls_and_tokens(
    server: TritonServer, certificates: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# of the tests\n{TOKEN}  # the first\n\nanother-token-of-them\n")
    tls = Tls(ca=certificates / "old.pem")
    messages: list[str] = []
    given = {"tls_cert": certificates / "old.pem", "tls_key": certificates / "old.key", "tokens": tokens}
    with door(server, messages, **given) as opened:
        assert [url.partition(":")[0] for url in opened.urls] == ["https", "grpcs"]
        assert messages == [f"open to the holders of 2 tokens: {opened.urls[0]}  {opened.urls[1]}"]
        for url, direct in zip(opened.urls, (server.http_url, server.grpc_url), strict=True):
            with TextDetector(direct) as detector:
                expected = detector.detect(WORD)
            for token in (TOKEN, "another-token-of-them"):
                with TextDetector(url, tls=tls, token=token) as detector:
                    assert detector.ready()
                    assert detector.detect(WORD).to_dict() == expected.to_dict()
                    assert len(detector.detect(np.zeros((64, 128, 3), np.uint8))) == 0
            for wrong in (None, TOKEN[:-1], TOKEN + "x", "# of the tests"):
                with TextDetector(url, tls=tls, token=wrong) as detector, pytest.raises(AccessError) as caught:
                    detector.detect(WORD)
                assert "a token of this server is missing" in str(caught.value)
                assert caught.value.status in ("401", "UNAUTHENTICATED")
        folder = server.workspace / f"door-{opened.port}"
        assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {
            "admin": "0o600",
            "bootstrap.json": "0o600",
            "listeners.json": "0o600",
            "proxy.log": "0o600",
        }
        assert TOKEN not in (folder / "bootstrap.json").read_text()


def test_secrets_of_a_configuration_that_the_proxy_refuses_are_not_shown(
    server: TritonServer, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    given = {"tls_cert": certificates / "old.pem", "tls_key": certificates / "old.key", "tokens": tmp_path / "tokens"}
    real = front_door.listeners
    monkeypatch.setattr(front_door, "listeners", lambda *args: {**real(*args), "version_info": {}})
    monkeypatch.setattr(front_door, "_START_S", 2)
    with pytest.raises(UnavailableError, match="proxy does not start") as caught, door(server, **given):
        pass
    assert "version_info" in str(caught.value)
    assert TOKEN not in str(caught.value) and "PRIVATE KEY" not in str(caught.value)


def test_an_image_file_as_the_body_is_answered_with_json(server: TritonServer, plain: FrontDoor) -> None:
    with TextDetector(server.http_url) as detector:
        expected = detector.detect(WORD, thresh=0.2).to_dict()
    status, _, body = ask(plain, "/detect?thresh=0.2", WORD, {})
    found = json.loads(body)
    assert (status, found["ms"] > 0, len(found["request_id"]) > 8) == (200, True, True)
    assert {name: found[name] for name in expected} == expected
    assert len(found["detections"]) == FOUND
    page = {"Host": "attacked.example", "Origin": "http://page.example"}
    assert ask(plain, "/detect", WORD, page)[0] == 200
    for query, image, reason in (
        ("", b"text", "not an image"),
        ("", b"%PDF-1.7\n", "PDF files are not rendered here"),
        ("?thresh=2", WORD, "request parameter 'thresh'"),
        ("?color=red", WORD, "request parameter 'color'"),
    ):
        status, _, body = ask(plain, f"/detect{query}", image, {})
        assert (status, reason in json.loads(body)["error"]) == (400, True), body
    for method, path in (
        ("GET", "/"),
        ("GET", "/config"),
        ("GET", "/detect"),
        ("POST", "/pages"),
        ("POST", "/preview"),
    ):
        assert ask(plain, path, WORD, {}, method)[0] == 404
    chunks = iter([WORD[:10], WORD[10:]])
    assert ask(plain, "/detect", chunks, {})[0] == 200


def test_probes_of_load_balancers_need_no_token(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    with door(server, tokens=tmp_path / "tokens") as opened:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert ask(opened, path, None, {}, "GET")[0] == 200
        for method in (f"{SERVICE}ServerLive", f"{SERVICE}ServerReady", "/grpc.health.v1.Health/Check"):
            assert call(opened, method, b"") == ("OK", "")
        assert ask(opened)[0] == 401
        assert ask(opened, "/v2", None, {}, "GET")[1]["www-authenticate"] == "Bearer"
        assert ask(opened, "/detect", WORD, {})[0] == 401
        assert call(opened, f"{SERVICE}ServerMetadata", b"")[0] == "UNAUTHENTICATED"


def wire(*headers: str, body: bytes = GOOD) -> bytes:
    """A POST of a good request with further header lines."""
    return "\r\n".join((f"POST {INFER} HTTP/1.1", "Host: x", *headers, "", "")).encode() + body


def test_http_requests_that_are_not_served_are_refused_in_the_form_of_triton(plain: FrontDoor) -> None:
    sized = f"Content-Length: {len(GOOD)}"
    right = f"{LENGTH}: {len(JSON)}"
    many = json.dumps({"inputs": [], "parameters": {f"p{index}": 1 for index in range(20_000)}}).encode()
    lying = struct.pack("<I", 2**31 - 1) + WORD
    parameters = {"shared_memory_region": "w", "shared_memory_byte_size": 9}
    region = message(len(TENSOR), outputs=[{"name": "QUADS", "parameters": parameters}])
    refused: list[tuple[int, str, bytes]] = [
        # Nothing but detection.
        *(
            (404, "not served here", f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            for path in (
                "/",
                "/metrics",
                "/v2/repository/index",
                "/v2/models/stats",
                "/v2/systemsharedmemory/status",
                "/v2/models/ocdnet_network",
                "/v2/models/../repository/index",
                "/v2/models/ocdnet%2Fconfig",
                "/v2/logging",
                "/v2/trace/setting",
                "/v2//models/ocdnet",
                INFER,
            )
        ),
        *(
            (404, "not served here", wire(sized, right).replace(INFER.encode(), path.encode()))
            for path in (
                "/v2/systemsharedmemory/region/w/register",
                "/v2/models/ocdnet_preprocess/infer",
                "/v2/models/ocdnet/generate",
                "/v2/repository/models/ocdnet/unload",
                "/v2/models/ocdnet/versions/1/infer",
            )
        ),
        # The length of the JSON is one plain number.
        *(
            (400, "one whole number above 0", wire(sized, *(f"{LENGTH}: {value}" for value in values)))
            for values in (
                ["0"],
                ["-1"],
                [f"+{len(JSON)}"],
                [f"{len(JSON)}.5"],
                [f"{len(JSON)},{len(JSON)}"],
                [""],
                ["0x10"],
                ["9" * 30],
                ["0", str(len(JSON))],
                [str(len(JSON)), "0"],
                ["x", str(len(JSON))],
            )
        ),
        # It is limited, as is a body that is nothing but JSON.
        *(
            (413, "at most 32768 bytes of JSON", wire(sized, *(f"{LENGTH}: {value}" for value in values)))
            for values in (
                ["32769"],
                ["9999999999"],
                [str(len(JSON)), "40000"],
                ["40000", str(len(JSON))],
            )
        ),
        (413, "at most 32768 bytes of JSON", wire(f"Content-Length: {len(many)}", body=many)),
        # No compression.
        *(
            (415, "without compression", wire(sized, right, *lines))
            for lines in (
                ["Content-Encoding: gzip"],
                ["Content-Encoding: deflate"],
                ["Content-Encoding: GZIP"],
                ["Content-Encoding: gzip", "Content-Encoding: gzip"],
                ["Content-Encoding: identity, gzip"],
            )
        ),
        # One way to say how long the body is.
        (
            400,
            "Bad Request",
            wire("Content-Length: 4", "Transfer-Encoding: chunked", body=b"0\r\n\r\nGET /v2 HTTP/1.1"),
        ),
        (400, "Bad Request", wire("Content-Length: 4", "Content-Length: 5", body=b"{}  ")),
        (431, "too many or too long", wire(sized, right, *(f"x-{index}: 1" for index in range(100)))),
        (431, "too many or too long", wire(sized, right, f"x: {'1' * 20_000}")),
        # What Triton says, which calls malformed JSON an internal error.
        (400, "failed to parse the request JSON", wire("Content-Length: 1", body=b"{")),
        (400, "Unable to parse", wire("Content-Length: 2", body=b"{}")),
        (
            404,
            "shared memory region",
            wire(f"Content-Length: {len(region + TENSOR)}", f"{LENGTH}: {len(region)}", body=region + TENSOR),
        ),
        (
            400,
            "incomplete string data",
            wire(
                f"Content-Length: {len(message(len(lying)) + lying)}",
                f"{LENGTH}: {len(message(len(lying)))}",
                body=message(len(lying)) + lying,
            ),
        ),
    ]
    for status, text, data in refused:
        number, _, body = send(plain, data).partition(b" ")
        assert (int(number), text in json.loads(body)["error"]) == (status, True), (data[:300], body)
    assert ask(plain)[0] == 200


def test_an_encoding_that_is_called_identity_is_served(plain: FrontDoor) -> None:
    assert ask(plain, headers={LENGTH: str(len(JSON)), "Content-Encoding": "identity"})[0] == 200
    assert call(plain, f"{SERVICE}ModelInfer", infer_request(), metadata=(("grpc-encoding", "identity"),)) == ("OK", "")


def test_rpcs_that_are_not_served_are_refused_with_a_grpc_status(plain: FrontDoor) -> None:
    infer = f"{SERVICE}ModelInfer"
    assert call(plain, infer, infer_request()) == ("OK", "")
    assert call(plain, infer, infer_request("ocdnet_fused")) == ("OK", "")
    for method in (
        "RepositoryIndex",
        "RepositoryModelUnload",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryStatus",
        "CudaSharedMemoryStatus",
        "TraceSetting",
        "LogSettings",
        "ModelStatistics",
        "ModelStreamInfer",
    ):
        assert call(plain, SERVICE + method, b"")[0] == "UNIMPLEMENTED", method
    other = "the request names no model that is served here: ocdnet, ocdnet_raw, ocdnet_fused"
    step = service_pb2.ModelInferRequest(model_name="ocdnet_network").SerializeToString()
    good = infer_request().SerializeToString()
    # Of a field that is sent twice, the last value counts.
    for data in (infer_request("ocdnet_network"), infer_request(""), b"", b"\xff\xff\xff", good + step):
        assert call(plain, infer, data) == ("PERMISSION_DENIED", other)
    assert call(plain, infer, step + good) == ("OK", "")
    for method in ("ModelReady", "ModelMetadata", "ModelConfig"):
        assert call(plain, SERVICE + method, service_pb2.ModelReadyRequest(name="ocdnet")) == ("OK", "")
        step_named = service_pb2.ModelReadyRequest(name="ocdnet_network")
        assert call(plain, SERVICE + method, step_named) == ("PERMISSION_DENIED", other)
    status, text = call(plain, infer, infer_request(), compression=grpc.Compression.Gzip)
    assert (status, "without compression" in text) == ("INVALID_ARGUMENT", True)
    status, text = call(plain, infer, infer_request(tensor=struct.pack("<I", 2**31 - 1) + WORD))
    assert (status, "incomplete string data" in text) == ("INVALID_ARGUMENT", True)


def test_headers_that_triton_cannot_read_fail_their_own_request_only(plain: FrontDoor) -> None:
    infer = f"{SERVICE}ModelInfer"
    lines = ("Host: x", "Content-Type: application/grpc", "TE: trailers", "Content-Length: 5")
    for wrong in ("grpc-timeout: 1x", "grpc-timeout: ", "a-bin: ???", "x!: 1"):
        # All requests of all clients share the proxy's connections to Triton.
        for _ in range(6):
            refused = "\r\n".join((f"POST {SERVICE}ServerReady HTTP/1.1", *lines, wrong, "", "")).encode() + bytes(5)
            assert send(plain, refused).startswith(b"200 ")
            assert call(plain, infer, infer_request()) == ("OK", ""), wrong


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
        _wait(lambda: serves(opened))


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
        _wait(lambda: serves(opened))


def test_a_model_that_is_loading_is_temporarily_unavailable(server: TritonServer, plain: FrontDoor) -> None:
    server.api.unload("ocdnet_fused")
    path = INFER.replace("ocdnet", "ocdnet_fused")
    try:
        deadline = time.monotonic() + 10
        while ask(plain, path)[0] == 200:
            assert time.monotonic() < deadline
        status, headers, body = ask(plain, path, headers={LENGTH: str(len(JSON)), "Accept-Encoding": "gzip"})
        assert (status, headers["retry-after"]) == (503, "1")
        assert "ocdnet_fused" in json.loads(body)["error"]
        status, text = call(plain, f"{SERVICE}ModelInfer", infer_request("ocdnet_fused"))
        assert (status, "ocdnet_fused" in text) == ("UNAVAILABLE", True)
    finally:
        server.api.load("ocdnet_fused")
    # The supervisor loads it once more, since its process has ended.
    _wait(lambda: ask(plain, path)[0] == 200)


def test_a_proxy_that_is_killed_or_hangs_is_replaced(server: TritonServer) -> None:
    messages: list[str] = []
    with door(server, messages) as opened:
        folder = server.workspace / f"door-{opened.port}"
        for fault, reason in (
            (lambda: os.kill(opened.pids[0], signal.SIGKILL), "was ended by signal 9"),
            (lambda: os.kill(opened.pids[0], signal.SIGSTOP), "hangs (it was stopped by a signal)"),
            (lambda: shutil.rmtree(folder), "has lost its files"),
        ):
            fault()
            expected = [
                f"the front door's proxy {reason}; it is started again",
                "the front door's proxy was started again",
            ]
            _wait(lambda expected=expected: messages[-2:] == expected)
            _wait(lambda: serves(opened))


def test_a_process_for_uploads_that_dies_is_replaced(plain: FrontDoor) -> None:
    first = plain.pids[1]
    os.kill(first, signal.SIGKILL)
    _wait(lambda: plain.pids[1] != first and ask(plain, "/detect", WORD, {})[0] == 200)


def test_a_front_door_that_closes_answers_those_who_are_in(server: TritonServer) -> None:
    with door(server) as opened:
        connection = http.client.HTTPConnection("127.0.0.1", opened.port, timeout=30)
        headers = {LENGTH: str(len(JSON))}
        for closes in (None, "close"):
            connection.request("POST", INFER, GOOD, headers)
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("connection")) == (200, closes)
            assert b'"name":"QUADS"' in answer.read()
            opened.drain()
        with pytest.raises(ConnectionRefusedError):
            connection.connect()


def test_the_command_serves_and_stops_with_its_front_door(
    server: TritonServer, tmp_path: Path, leftovers: Callable[[int], list[str]]
) -> None:
    command = [
        sys.executable,
        "-m",
        "ocdserve",
        "serve",
        "--repository",
        str(server.options.repository),
        "--public",
        "0",
    ]
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen([*command, *ports], stderr=log)
    try:
        while "Ctrl-C stops" not in (tmp_path / "log").read_text():
            assert launcher.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        port = re.search(r"open to anybody: http://127.0.0.1:(\d+)  grpc://", (tmp_path / "log").read_text())
        assert port
        with TextDetector(f"grpc://127.0.0.1:{port[1]}") as detector:
            assert len(detector.detect(WORD)) == FOUND
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(30) == 0
    finally:
        launcher.kill()
        launcher.wait()
    assert leftovers(launcher.pid) == []


def test_new_tokens_and_certificates_are_used_without_a_restart(
    server: TritonServer, certificates: Path, tmp_path: Path
) -> None:
    cert, key, tokens = (tmp_path / name for name in ("cert", "key", "tokens"))
    shutil.copy(certificates / "old.pem", cert)
    shutil.copy(certificates / "old.key", key)
    tokens.write_text(TOKEN)
    messages: list[str] = []

    def works(ca: str, token: str) -> bool:
        try:
            with TextDetector(opened.urls[0], tls=Tls(ca=certificates / ca), token=token, retry=ONCE) as detector:
                return len(detector.detect(WORD)) == FOUND
        except Exception:
            return False

    with door(server, messages, tls_cert=cert, tls_key=key, tokens=tokens) as opened:
        pid = opened.pids[0]
        assert works("old.pem", TOKEN)
        tokens.write_text("short")
        _wait(lambda: "goes on as before: tokens: line 1" in messages[-1])
        assert works("old.pem", TOKEN)
        tokens.write_text("another-token-of-them")
        _wait(lambda: works("old.pem", "another-token-of-them") and not works("old.pem", TOKEN))
        shutil.copy(certificates / "new.key", key)
        shutil.copy(certificates / "new.pem", cert)
        _wait(lambda: works("new.pem", "another-token-of-them") and not works("old.pem", "another-token-of-them"))
        assert opened.pids[0] == pid


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)

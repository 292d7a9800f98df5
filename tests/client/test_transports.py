# SPDX-License-Identifier: Apache-2.0
"""The two adapters against small servers of this file, over real sockets of the loopback interface."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ocdserve.client import InvalidInputError, ServerError, TextDetector, UnavailableError
from ocdserve.client._calls import Settings
from ocdserve.client._endpoint import Endpoint
from ocdserve.client._transports import transport_for
from ocdserve.client._transports.grpc import GrpcTransport
from ocdserve.client._transports.http import HttpTransport

TENSORS: list[tuple[str, str, Any]] = [
    ("QUADS", "FP32", np.array([[[[1.5, 2], [11, 2], [11, 7], [1, 7]]]], np.float32)),
    ("SCORES", "FP32", np.array([[0.5]], np.float32)),
    ("COUNT", "INT32", np.array([[1]], np.int32)),
    ("SIZE", "INT32", np.array([[20, 30]], np.int32)),
]
FOUND = {
    "width": 30,
    "height": 20,
    "detections": [{"quad": [[1.5, 2.0], [11.0, 2.0], [11.0, 7.0], [1.0, 7.0]], "score": 0.5}],
}


class GrpcFake(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Keeps the last request and answers with one box, or with an error where `failure` is set."""

    def __init__(self) -> None:
        self.last: Any = None
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.tensors = TENSORS
        self.delay = threading.Event()
        self.delay_s = 0.0

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.last = request
        self.delay.wait(self.delay_s)
        if self.failure:
            context.abort(*self.failure)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, datatype, array in self.tensors:
            response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name == "ocdnet")


@contextmanager
def grpc_server(port: int = 0) -> Iterator[tuple[str, GrpcFake]]:
    fake = GrpcFake()
    unlimited = [("grpc.max_receive_message_length", -1)]
    with ThreadPoolExecutor(2) as workers:
        server = grpc.server(workers, options=unlimited)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield f"grpc://127.0.0.1:{port}", fake
        finally:
            fake.delay.set()
            server.stop(None).wait()


class HttpFake(BaseHTTPRequestHandler):
    """The KServe HTTP protocol, as much as one detection needs; settings are on the server object."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        server: Any = self.server
        server.connections.append(self.connection)

    def do_GET(self) -> None:
        self.answer(200 if self.path == "/v2/models/ocdnet/ready" else 400, b"")

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        split = int(self.headers["Inference-Header-Content-Length"])
        server.last = (self.path, json.loads(body[:split]), body[split:])
        if server.answer is not None:
            self.answer(*server.answer)
            return
        outputs = [
            {
                "name": name,
                "datatype": datatype,
                "shape": array.shape,
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, datatype, array in TENSORS
        ]
        header = json.dumps({"model_name": "ocdnet", "model_version": "1", "outputs": outputs}).encode()
        binary = b"".join(array.tobytes() for _, _, array in TENSORS)
        self.answer(200, header + binary, {"Inference-Header-Content-Length": str(len(header))})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def http_server(port: int = 0) -> Iterator[tuple[str, Any]]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", port), HttpFake)
    server.daemon_threads = True
    server.answer = None
    server.connections = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        for connection in server.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


def test_grpc_carries_image_parameters_and_wanted_outputs() -> None:
    with grpc_server() as (url, fake), TextDetector(url) as detector:
        found = detector.detect(b"jpeg", thresh=0.25, max_candidates=9)
    assert found.to_dict() == FOUND
    assert fake.last.model_name == "ocdnet"
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in fake.last.inputs] == [
        ("IMAGE", "BYTES", [1, 1])
    ]
    assert list(fake.last.raw_input_contents) == [b"\x04\x00\x00\x00jpeg"]
    assert fake.last.parameters["thresh"].double_param == 0.25
    assert fake.last.parameters["max_candidates"].int64_param == 9
    assert [output.name for output in fake.last.outputs] == ["QUADS", "SCORES", "COUNT", "SIZE"]


def test_http_carries_image_parameters_and_wanted_outputs() -> None:
    with http_server() as (url, server), TextDetector(url) as detector:
        found = detector.detect(b"jpeg", request_id="r1", thresh=0.25, max_candidates=9)
        path, header, binary = server.last
    assert found.to_dict() == FOUND
    assert path == "/v2/models/ocdnet/infer"
    assert binary == b"\x04\x00\x00\x00jpeg"
    assert header == {
        "inputs": [{"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 8}}],
        "outputs": [
            {"name": name, "parameters": {"binary_data": True}} for name in ("QUADS", "SCORES", "COUNT", "SIZE")
        ],
        "id": "r1",
        "parameters": {"thresh": 0.25, "max_candidates": 9},
    }


def test_pixels_travel_as_raw_bytes_over_both_protocols() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    with grpc_server() as (url, fake), TextDetector(url) as detector:
        detector.detect(pixels)
    assert (fake.last.model_name, list(fake.last.inputs[0].shape)) == ("ocdnet_raw", [1, 2, 2, 3])
    assert list(fake.last.raw_input_contents) == [bytes(range(12))]
    with http_server() as (url, server), TextDetector(url) as detector:
        detector.detect(pixels)
    assert server.last[0] == "/v2/models/ocdnet_raw/infer"
    assert server.last[2] == bytes(range(12))


def test_grpc_takes_images_and_answers_far_above_its_default_limit_of_4_mb() -> None:
    with grpc_server() as (url, fake), TextDetector(url) as detector:
        padding = [("QUADS", "FP32", np.zeros((1, 200_000, 4, 2), np.float32))]
        fake.tensors = [*padding, ("SCORES", "FP32", np.zeros((1, 200_000), np.float32)), *TENSORS[2:]]
        found = detector.detect(b"x" * 9_000_000)
    assert len(found) == 1
    assert len(fake.last.raw_input_contents[0]) == 9_000_004


@pytest.mark.parametrize("running", [grpc_server, http_server])
def test_ready_is_what_the_server_says_of_the_model(running: Any) -> None:
    with running() as (url, _):
        with TextDetector(url) as detector:
            assert detector.ready() is True
        with TextDetector(url, model="other") as detector:
            assert detector.ready() is False


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_an_absent_server_is_unavailable_and_not_ready(scheme: str, closed_port: int) -> None:
    with TextDetector(f"{scheme}://127.0.0.1:{closed_port}", timeout_s=5) as detector:
        assert detector.ready() is False
        with pytest.raises(UnavailableError, match=rf"{scheme}://127\.0\.0\.1:{closed_port}: .*[Cc]onnect"):
            detector.detect(b"jpeg")


def test_a_grpc_error_keeps_its_kind_and_reason() -> None:
    with grpc_server() as (url, fake), TextDetector(url) as detector:
        fake.failure = (grpc.StatusCode.INVALID_ARGUMENT, "image 0: not an image")
        with pytest.raises(InvalidInputError, match=r"^image 0: not an image$"):
            detector.detect(b"jpeg")
        fake.failure = (grpc.StatusCode.INTERNAL, "stub died")
        with pytest.raises(ServerError, match="the server answered INTERNAL: stub died"):
            detector.detect(b"jpeg")


def test_an_http_error_keeps_its_kind_and_reason() -> None:
    with http_server() as (url, server), TextDetector(url) as detector:
        server.answer = (400, b'{"error": "image 0: not an image"}')
        with pytest.raises(InvalidInputError, match=r"^image 0: not an image$"):
            detector.detect(b"jpeg")
        server.answer = (500, b'{"error": "stub died"}')
        with pytest.raises(ServerError, match="the server answered 500: stub died"):
            detector.detect(b"jpeg")


def test_an_http_server_of_another_kind_is_recognised() -> None:
    with http_server() as (url, server), TextDetector(url) as detector:
        server.answer = (200, b"<html>hello</html>")
        with pytest.raises(ServerError, match="the answer is not one of an inference server"):
            detector.detect(b"jpeg")
        server.answer = (200, b"{}")
        with pytest.raises(ServerError, match="lacks the output QUADS; it has none"):
            detector.detect(b"jpeg")


def test_an_answer_without_a_wanted_output_names_it() -> None:
    with grpc_server() as (url, _), TextDetector(url) as detector, pytest.raises(ServerError, match=r"lacks .* POINTS"):
        detector.detect(b"jpeg", polygons=True)


def test_a_slow_grpc_server_meets_the_limit() -> None:
    with grpc_server() as (url, fake), TextDetector(url, timeout_s=0.2) as detector:
        fake.delay_s = 30
        with pytest.raises(UnavailableError, match=r"no answer within 0\.2 s"):
            detector.detect(b"jpeg")


def test_a_silent_http_server_meets_the_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with TextDetector(url, timeout_s=0.2) as detector:
            assert detector.ready() is False
            with pytest.raises(UnavailableError, match=r"no answer within 0\.2 s"):
                detector.detect(b"jpeg")


@pytest.mark.parametrize("running", [grpc_server, http_server])
def test_a_restarted_server_is_found_again_within_seconds(running: Any) -> None:
    with running() as (url, _):
        detector = TextDetector(url, timeout_s=5)
        assert detector.detect(b"jpeg").to_dict() == FOUND
    port = int(url.rpartition(":")[2])
    gone_until = time.monotonic() + 1.5
    while time.monotonic() < gone_until:
        assert detector.ready() is False
        time.sleep(0.1)
    with running(port):
        deadline = time.monotonic() + 3
        while not detector.ready():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert detector.detect(b"jpeg").to_dict() == FOUND
        detector.close()


def test_the_scheme_chooses_the_adapter() -> None:
    for url, kind in (("grpc://[::1]:8001", GrpcTransport), ("http://host:8000/prefix/", HttpTransport)):
        endpoint = Endpoint.parse(url)
        transport = transport_for(endpoint, Settings((endpoint,)))
        assert type(transport) is kind
        transport.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("127.0.0.1:8001", r"url must be grpc://HOST:PORT or http://HOST:PORT .*; got '127\.0\.0\.1:8001'"),
        ("", "url must be grpc://HOST:PORT or http://HOST:PORT .*; got ''"),
        ("ftp://host:21", "url must be grpc://HOST:PORT or http://HOST:PORT .*; got 'ftp://host:21'"),
        ("grpc://host", "url must be grpc://HOST:PORT"),
        ("grpc://:8001", "url must be grpc://HOST:PORT"),
        ("http://host:99999", r"got 'http://host:99999' \(Port out of range 0-65535\)"),
        ("grpc://host:8001/models", "a grpc:// url must not hold a path"),
        ("http://user:secret@host:8000", r"must not hold a user name.* got 'http://\*\*\*@host:8000'"),
        ("http://host:8000?x=1", "must not hold a user name, query or fragment"),
    ],
)
def test_a_bad_url_is_refused_with_the_accepted_forms(url: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        TextDetector(url)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), True])
def test_a_bad_limit_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidInputError, match="timeout_s must be a finite number of seconds above 0"):
        TextDetector("grpc://host:8001", timeout_s=timeout_s)

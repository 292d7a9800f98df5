# SPDX-License-Identifier: Apache-2.0
"""Small servers of the KServe protocol on the loopback interface: one box for every image, or what a test sets."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

TENSORS: list[tuple[str, str, Any]] = [
    ("QUADS", "FP32", np.array([[[[1.5, 2], [11, 2], [11, 7], [1, 7]]]], np.float32)),
    ("SCORES", "FP32", np.array([[0.5]], np.float32)),
    ("COUNT", "INT32", np.array([[1]], np.int32)),
    ("SIZE", "INT32", np.array([[20, 30]], np.int32)),
]
# Of the models that read, too.
TEXTS: list[tuple[str, str, Any]] = [
    ("TEXTS", "BYTES", np.array([["Größe 42".encode()]], np.object_)),
    ("TEXT_SCORES", "FP32", np.array([[0.75]], np.float32)),
]
FOUND = {
    "width": 30,
    "height": 20,
    "detections": [{"quad": [[1.5, 2.0], [11.0, 2.0], [11.0, 7.0], [1.0, 7.0]], "score": 0.5}],
}


def raw(array: Any) -> bytes:
    """The bytes of a tensor; each element of BYTES after its length."""
    if array.dtype != np.object_:
        return bytes(array.tobytes())
    return b"".join(len(item).to_bytes(4, "little") + item for item in array.flat)


class GrpcFake(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Keeps the last request and answers with one box, or with an error where `failure` is set."""

    def __init__(self) -> None:
        self.last: Any = None
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.tensors = TENSORS
        self.delay = threading.Event()
        self.delay_s = 0.0
        self.calls = 0
        self.cancelled = threading.Event()
        self.metadata: dict[str, str] = {}

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.last = request
        self.calls += 1
        self.metadata = {item.key: item.value for item in context.invocation_metadata()}
        context.add_callback(lambda: None if context.is_active() else self._note(context))
        self.delay.wait(self.delay_s)
        if self.failure:
            context.abort(*self.failure)
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, datatype, array in self.tensors + (TEXTS if request.model_name.startswith("ocr") else []):
            response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            response.raw_output_contents.append(raw(array))
        return response

    def _note(self, context: Any) -> None:
        # Also called at the end of an ordinary call, but then its answer was sent.
        if context.code() is None:
            self.cancelled.set()

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="fake", version="0")

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name == "ocdnet")


@contextmanager
def grpc_server(port: int = 0, credentials: Any = None, host: str = "127.0.0.1") -> Iterator[tuple[str, GrpcFake]]:
    fake = GrpcFake()
    unlimited = [("grpc.max_receive_message_length", -1)]
    with ThreadPoolExecutor(2) as workers:
        server = grpc.server(workers, options=unlimited)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
        if credentials is None:
            port = server.add_insecure_port(f"{host}:{port}")
        else:
            port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
        server.start()
        try:
            yield f"grpc{'s' if credentials else ''}://127.0.0.1:{port}", fake
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
        server.headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(self.headers["Content-Length"]))
        # A compressed body is kept as it is.
        split = 0 if "Content-Encoding" in self.headers else int(self.headers["Inference-Header-Content-Length"])
        server.last = (self.path, json.loads(body[:split] or b"{}"), body[split:])
        if server.answer is not None:
            self.answer(*server.answer)
            return
        tensors = TENSORS + (TEXTS if self.path.startswith("/v2/models/ocr") else [])
        outputs = [
            {
                "name": name,
                "datatype": datatype,
                "shape": array.shape,
                "parameters": {"binary_data_size": len(raw(array))},
            }
            for name, datatype, array in tensors
        ]
        header = json.dumps({"model_name": "ocdnet", "model_version": "1", "outputs": outputs}).encode()
        binary = b"".join(raw(array) for _, _, array in tensors)
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
def http_server(port: int = 0, context: ssl.SSLContext | None = None) -> Iterator[tuple[str, Any]]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", port), HttpFake)
    server.daemon_threads = True
    server.answer = None
    server.connections = []
    server.headers = {}
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_port}", server
    finally:
        for connection in server.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.shutdown()
        server.server_close()
        thread.join()

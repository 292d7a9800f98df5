# SPDX-License-Identifier: Apache-2.0
"""Front doors before a real server, and plain requests to them over HTTP and gRPC."""

import http.client
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2

from ocdserve.backend.serve import TritonServer
from ocdserve.backend.serve.public.front_door import FrontDoor
from ocdserve.backend.serve.public.options import PublicOptions
from ocdserve.client import Retry, TextDetector

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


@contextmanager
def door(server: TritonServer, messages: list[str] | None = None, **options: Any) -> Iterator[FrontDoor]:
    report = [] if messages is None else messages
    with FrontDoor(
        PublicOptions(**{"port": 0, "rate": 0, "no_uploads": True, **options}), server, report.append
    ) as opened:
        opened.open()
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


def wire(*headers: str, body: bytes = GOOD) -> bytes:
    """A POST of a good request with further header lines."""
    return "\r\n".join((f"POST {INFER} HTTP/1.1", "Host: x", *headers, "", "")).encode() + body


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


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)

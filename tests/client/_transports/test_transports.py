# SPDX-License-Identifier: Apache-2.0
"""The two synchronous transports against small servers, over real loopback sockets."""

import socket
import time
from typing import Any

import grpc
import numpy as np
import pytest
from kserve_fakes import FOUND, TENSORS, grpc_server, http_server

from ocdserve.client import InvalidInputError, ServerError, TextDetector, UnavailableError
from ocdserve.client._endpoint import Endpoint
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._transports import transport_for
from ocdserve.client._transports.grpc import GrpcTransport
from ocdserve.client._transports.http import HttpTransport


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


def test_grpc_sends_image_parameters_and_requested_outputs() -> None:
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


def test_http_sends_image_parameters_and_requested_outputs() -> None:
    with http_server() as (url, server), TextDetector(url) as detector:
        found = detector.detect(b"jpeg", request_id="r1", thresh=0.25, max_candidates=9)
        path, header, binary = server.last
    assert found.to_dict() == FOUND
    assert path == "/v2/models/ocdnet/infer"
    assert binary == b"\x04\x00\x00\x00jpeg"
    assert type(header["parameters"]["timeout"]) is int
    assert 55_000_000 < header["parameters"].pop("timeout") <= 60_000_000
    assert header == {
        "inputs": [{"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 8}}],
        "outputs": [
            {"name": name, "parameters": {"binary_data": True}} for name in ("QUADS", "SCORES", "COUNT", "SIZE")
        ],
        "id": "r1",
        "parameters": {"thresh": 0.25, "max_candidates": 9},
    }


def test_pixels_are_sent_as_raw_bytes_over_both_protocols() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    with grpc_server() as (url, fake), TextDetector(url) as detector:
        detector.detect(pixels)
    assert (fake.last.model_name, list(fake.last.inputs[0].shape)) == ("ocdnet_raw", [1, 2, 2, 3])
    assert list(fake.last.raw_input_contents) == [bytes(range(12))]
    with http_server() as (url, server), TextDetector(url) as detector:
        detector.detect(pixels)
    assert server.last[0] == "/v2/models/ocdnet_raw/infer"
    assert server.last[2] == bytes(range(12))


def test_grpc_messages_may_exceed_its_default_limit_of_4_mb() -> None:
    with grpc_server() as (url, fake), TextDetector(url) as detector:
        padding = [("QUADS", "FP32", np.zeros((1, 200_000, 4, 2), np.float32))]
        fake.tensors = [*padding, ("SCORES", "FP32", np.zeros((1, 200_000), np.float32)), *TENSORS[2:]]
        found = detector.detect(b"x" * 9_000_000)
    assert len(found) == 1
    assert len(fake.last.raw_input_contents[0]) == 9_000_004


@pytest.mark.parametrize("running", [grpc_server, http_server])
def test_ready_is_the_servers_report_on_the_model(running: Any) -> None:
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


def test_a_different_http_server_is_recognised() -> None:
    with http_server() as (url, server), TextDetector(url) as detector:
        server.answer = (200, b"<html>hello</html>")
        with pytest.raises(ServerError, match="the response is not that of an inference server"):
            detector.detect(b"jpeg")
        server.answer = (200, b"{}")
        with pytest.raises(ServerError, match="lacks the output QUADS; it has none"):
            detector.detect(b"jpeg")


def test_a_missing_output_is_named() -> None:
    with grpc_server() as (url, _), TextDetector(url) as detector, pytest.raises(ServerError, match=r"lacks .* POINTS"):
        detector.detect(b"jpeg", polygons=True)


def test_a_slow_grpc_server_times_out() -> None:
    with grpc_server() as (url, fake), TextDetector(url, timeout_s=0.2) as detector:
        fake.delay_s = 30
        with pytest.raises(UnavailableError, match=r"no answer within 0\.2 s"):
            detector.detect(b"jpeg")


def test_a_silent_http_server_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with TextDetector(url, timeout_s=0.2) as detector:
            assert detector.ready() is False
            with pytest.raises(UnavailableError, match=r"no answer within 0\.2 s"):
                detector.detect(b"jpeg")


@pytest.mark.parametrize("running", [grpc_server, http_server])
def test_a_restarted_server_is_reconnected_within_seconds(running: Any) -> None:
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


def test_the_scheme_selects_the_transport() -> None:
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
def test_an_invalid_url_is_refused_with_the_accepted_forms(url: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        TextDetector(url)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), True])
def test_an_invalid_timeout_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidInputError, match="timeout_s must be a finite number of seconds above 0"):
        TextDetector("grpc://host:8001", timeout_s=timeout_s)

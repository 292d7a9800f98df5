# SPDX-License-Identifier: Apache-2.0
"""Requests that the front door does not serve, and how it refuses them."""

import json
import struct

import grpc
import pytest
from front_doors import GOOD, INFER, JSON, LENGTH, SERVICE, TENSOR, WORD, ask, call, infer_request, message, send, wire
from tritonclient.grpc import service_pb2

from ocdserve.backend.serve.public.front_door import FrontDoor

pytestmark = pytest.mark.triton


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
    served = "ocdnet, ocdnet_raw, ocdnet_fused, ocr, ocr_raw, ocr_fused"
    other = f"the request names no model that is served here: {served}"
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

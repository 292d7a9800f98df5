# SPDX-License-Identifier: Apache-2.0
import http.client
import json
import socket

import geventhttpclient.response
import grpc
import pytest
from tritonclient.utils import InferenceServerException

from ocdserve.client import AccessError, DeadlineError, InvalidInputError, OcdserveError, ServerError, UnavailableError
from ocdserve.client._errors import mapped_errors

URL = "grpc://10.0.0.7:8001"

EXPECTED_OF_GRPC = {
    "CANCELLED": ServerError,
    "UNKNOWN": ServerError,
    "INVALID_ARGUMENT": InvalidInputError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "NOT_FOUND": UnavailableError,
    "ALREADY_EXISTS": ServerError,
    "PERMISSION_DENIED": AccessError,
    "UNAUTHENTICATED": AccessError,
    "RESOURCE_EXHAUSTED": UnavailableError,
    "FAILED_PRECONDITION": ServerError,
    "ABORTED": ServerError,
    "UNIMPLEMENTED": ServerError,
    "INTERNAL": ServerError,
    "UNAVAILABLE": UnavailableError,
    "DATA_LOSS": ServerError,
    "OUT_OF_RANGE": InvalidInputError,
}


def mapped(error: Exception) -> OcdserveError:
    with pytest.raises(OcdserveError) as caught, mapped_errors(URL, 2.5):
        raise error
    return caught.value


def test_every_grpc_status_is_mapped() -> None:
    failures = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
    classes = {code.name: type(mapped(InferenceServerException("why", str(code)))) for code in failures}
    assert classes == EXPECTED_OF_GRPC


@pytest.mark.parametrize("code", ["StatusCode.UNAVAILABLE", "503"])
def test_a_server_that_notices_first_that_the_time_is_over_raises_the_same_as_the_client(code: str) -> None:
    reason = "in ensemble 'ocdnet', the request's timeout was over 0.001 s before the stage network could begin"
    error = mapped(InferenceServerException(reason, code))
    assert type(error) is DeadlineError and not error.retryable and "within 2.5 s" in str(error)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, InvalidInputError),
        (401, AccessError),
        (403, AccessError),
        (404, UnavailableError),
        (405, ServerError),
        (408, DeadlineError),
        (413, InvalidInputError),
        (415, InvalidInputError),
        (422, InvalidInputError),
        (429, UnavailableError),
        (500, ServerError),
        (501, ServerError),
        (502, UnavailableError),
        (503, UnavailableError),
        (504, DeadlineError),
    ],
)
def test_every_http_status_of_triton_and_proxies_is_mapped(status: int, expected: type[OcdserveError]) -> None:
    assert type(mapped(InferenceServerException("why", str(status)))) is expected


@pytest.mark.parametrize(
    ("status", "message", "expected", "retryable"),
    [
        ("429", "too many requests: more than 5 per second came from your address", UnavailableError, True),
        ("RESOURCE_EXHAUSTED", "too many requests: more than 5 per second came from yours", UnavailableError, True),
        ("RESOURCE_EXHAUSTED", "the request is too large: at most 9 bytes are accepted", InvalidInputError, False),
        ("RESOURCE_EXHAUSTED", "out of memory", UnavailableError, False),
    ],
)
def test_too_many_requests_are_repeated_and_too_large_ones_are_not(
    status: str, message: str, expected: type[OcdserveError], retryable: bool
) -> None:
    error = mapped(InferenceServerException(message, status))
    assert (type(error), error.retryable) == (expected, retryable)


def test_a_port_that_is_not_for_inference_is_recognised() -> None:
    assert str(mapped(InferenceServerException("Method Not Allowed", "405"))).endswith(
        ": the server answered 405: Method Not Allowed. This is no port for inference, perhaps that of the metrics; by "
        "default, 8000 is Triton's for HTTP, 8001 for gRPC and 8002 for metrics."
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InferenceServerException("got unexpected datatype"), InvalidInputError),
        (ConnectionRefusedError(111, "Connection refused"), UnavailableError),
        (ConnectionResetError(104, "Connection reset by peer"), UnavailableError),
        (socket.gaierror(-2, "Name or service not known"), UnavailableError),
        (TimeoutError("timed out"), DeadlineError),
        (geventhttpclient.response.HTTPConnectionClosed("connection closed."), UnavailableError),
        (geventhttpclient.response.HTTPProtocolViolationError("a new response began"), UnavailableError),
        (geventhttpclient.response.HTTPParseError("expected HTTP/"), UnavailableError),
        (http.client.BadStatusLine("x"), UnavailableError),
        (json.JSONDecodeError("Expecting value", "<html>", 0), ServerError),
        (KeyError("outputs"), ServerError),
    ],
)
def test_every_foreign_error_is_mapped_and_keeps_its_cause(error: Exception, expected: type[OcdserveError]) -> None:
    ours = mapped(error)
    assert type(ours) is expected
    assert ours.__cause__ is error


def test_the_servers_reason_for_bad_input_is_the_message() -> None:
    reason = "image 0: truncated JPEG; send the whole file"
    assert str(mapped(InferenceServerException(reason, "StatusCode.INVALID_ARGUMENT"))) == reason


def test_a_timeout_names_server_limit_and_remedy() -> None:
    message = "grpc://10.0.0.7:8001: no answer within 2.5 s. Try again later, or allow more time with timeout_s."
    assert str(mapped(InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED"))) == message
    assert str(mapped(TimeoutError("timed out"))) == message


def test_our_own_errors_pass_unchanged() -> None:
    error = InvalidInputError("thresh must be a number")
    assert mapped(error) is error


def test_a_programming_error_is_not_hidden() -> None:
    with pytest.raises(TypeError, match="oops"), mapped_errors(URL, 1.0):
        raise TypeError("oops")

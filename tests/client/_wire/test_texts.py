# SPDX-License-Identifier: Apache-2.0
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from ocdserve.client import ServerError
from ocdserve.client._wire import grpc as grpc_wire
from ocdserve.client._wire.codec import encode_batch
from ocdserve.client._wire.http import bytes_tensor, decode_tensors, elements_of
from ocdserve.client._wire.texts import READ, decode_readings, encode_lines
from ocdserve.contract import ReadingParameters

WORDS = ReadingParameters(words=True)


def texts(*rows: list[bytes]) -> NDArray[np.object_]:
    array = np.empty((len(rows), len(rows[0])), np.object_)
    for index, row in enumerate(rows):
        array[index, :] = row
    return array


def response(**changes: Any) -> dict[str, NDArray[Any]]:
    """Two lines of two and one words, of three rows, in an image 640 wide and 480 high."""
    tensors: dict[str, NDArray[Any]] = {
        "QUADS": np.arange(24, dtype=np.float32).reshape(1, 3, 4, 2),
        "SCORES": np.array([[0.75, 0.5, 0.0]], np.float32),
        "COUNT": np.array([[2]], np.int32),
        "SIZE": np.array([[480, 640]], np.int32),
        "TEXTS": texts(["Grüner Tee".encode(), "四".encode(), b""]),
        "TEXT_SCORES": np.array([[0.875, 0.625, 0.0]], np.float32),
        "WORD_TEXTS": texts(["Grüner".encode(), b"Tee", "四".encode(), b""]),
        "WORD_SCORES": np.array([[0.5, 0.25, 0.125, 0]], np.float32),
        "WORD_QUADS": np.arange(32, dtype=np.float32).reshape(1, 4, 4, 2),
        "WORD_COUNTS": np.array([[2, 1, 0]], np.int32),
    }
    tensors.update(changes)
    return {name: array for name, array in tensors.items() if array is not None}


def test_texts_and_words_belong_to_their_lines() -> None:
    [reading] = decode_readings(response(), 1, WORDS, latency_ms=3.0, request_id="r")
    assert (reading.texts, reading.text_scores.tolist()) == (("Grüner Tee", "四"), [0.875, 0.625])
    assert reading.words is not None
    assert [[(word.text, word.score, word.quad[0, 0]) for word in words] for words in reading.words] == [
        [("Grüner", 0.5, 0.0), ("Tee", 0.25, 8.0)],
        [("四", 0.125, 16.0)],
    ]
    assert (reading.width, reading.latency_ms, reading.request_id) == (640, 3.0, "r")
    [plain] = decode_readings(response(WORD_TEXTS=None, WORD_COUNTS=None), 1, ReadingParameters())
    assert (plain.texts, plain.words) == (reading.texts, None)


def test_a_response_without_lines_is_valid() -> None:
    empty = response(
        QUADS=np.zeros((1, 0, 4, 2), np.float32),
        SCORES=np.zeros((1, 0), np.float32),
        COUNT=np.array([[0]], np.int32),
        TEXTS=np.empty((1, 0), np.object_),
        TEXT_SCORES=np.zeros((1, 0), np.float32),
        WORD_TEXTS=np.empty((1, 0), np.object_),
        WORD_SCORES=np.zeros((1, 0), np.float32),
        WORD_QUADS=np.zeros((1, 0, 4, 2), np.float32),
        WORD_COUNTS=np.zeros((1, 0), np.int32),
    )
    [reading] = decode_readings(empty, 1, WORDS)
    assert (len(reading), reading.text, reading.words) == (0, "", ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"TEXTS": None}, "lacks the output TEXTS"),
        ({"TEXTS": texts([b"a", b"b"])}, r"TEXTS must have shape \(1, 3\); got \(1, 2\)"),
        ({"TEXTS": np.zeros((1, 3), np.float32)}, "TEXTS must be BYTES; got float32"),
        ({"TEXTS": texts([b"a\xff", b"b", b""])}, "TEXTS must be UTF-8 .*invalid start byte"),
        ({"TEXTS": texts([b"\xed\xa0\x80", b"b", b""])}, "TEXTS must be UTF-8"),
        ({"TEXTS": texts([b"a\nb", b"b", b""])}, r"TEXTS must hold no control characters; got 'a\\nb'"),
        ({"TEXTS": texts([b"\x1b[2J", b"b", b""])}, "TEXTS must hold no control characters"),
        ({"TEXTS": texts(["\x9b2J".encode(), b"b", b""])}, "TEXTS must hold no control characters"),
        ({"TEXTS": texts(["a\u2028".encode(), b"b", b""])}, "TEXTS must hold no control characters"),
        ({"TEXT_SCORES": np.array([[np.nan, 0, 0]], np.float32)}, "TEXT_SCORES has values that are not finite"),
        ({"TEXT_SCORES": np.array([[1.5, 0, 0]], np.float32)}, "TEXT_SCORES must be from 0 to 1; got 0.0 to 1.5"),
        ({"TEXT_SCORES": np.array([[1, 0, 0]], np.int32)}, "TEXT_SCORES must be FP32; got int32"),
        ({"WORD_TEXTS": None}, "lacks the output WORD_TEXTS"),
        ({"WORD_TEXTS": texts([b"\xff", b"b", b"c", b""])}, "WORD_TEXTS must be UTF-8"),
        ({"WORD_SCORES": np.zeros((1, 3), np.float32)}, r"WORD_SCORES must have shape \(1, 4\)"),
        ({"WORD_SCORES": np.full((1, 4), -1, np.float32)}, "WORD_SCORES must be from 0 to 1"),
        ({"WORD_QUADS": np.zeros((1, 5, 4, 2), np.float32)}, r"WORD_QUADS must have shape \(1, 4, 4, 2\)"),
        ({"WORD_QUADS": np.full((1, 4, 4, 2), np.inf, np.float32)}, "WORD_QUADS has values that are not finite"),
        ({"WORD_COUNTS": np.array([[2, 3, 0]], np.int32)}, "WORD_COUNTS must add up to at most the 4 rows"),
        ({"WORD_COUNTS": np.array([[3, -1, 0]], np.int32)}, "WORD_COUNTS must add up"),
        ({"WORD_COUNTS": np.array([[2**31 - 1, 2**31 - 1, 2]], np.int32)}, "WORD_COUNTS must add up"),
        ({"WORD_COUNTS": np.array([[1, 1, 1]], np.float32)}, "WORD_COUNTS must be INT32; got float32"),
        ({"COUNT": np.array([[2]], np.float32)}, "COUNT must be INT32; got float32"),
    ],
)
def test_tensors_that_do_not_fit_are_the_servers_fault(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ServerError, match=reason):
        decode_readings(response(**changes), 1, WORDS)


def test_texts_past_the_count_are_not_read() -> None:
    [reading] = decode_readings(response(TEXTS=texts([b"a", b"b", b"\xff"])), 1, WORDS)
    assert reading.texts == ("a", "b")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=6), max_size=5))
def test_elements_survive_both_protocols(elements: list[bytes]) -> None:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    data = b"".join(bytes(piece) for piece in bytes_tensor(array))
    assert elements_of(data).tolist() == elements
    output = {"name": "TEXTS", "datatype": "BYTES", "shape": [1, len(elements)]}
    header = json.dumps({"outputs": [{**output, "parameters": {"binary_data_size": len(data)}}]}).encode()
    headers = {"inference-header-content-length": str(len(header))}
    message = service_pb2.ModelInferResponse(raw_output_contents=[data])
    message.outputs.add(**output)
    for tensors in (decode_tensors(headers, header + data), grpc_wire.decode_tensors(message)):
        assert tensors["TEXTS"].shape == (1, len(elements))
        assert tensors["TEXTS"][0].tolist() == elements


def test_texts_may_come_as_json() -> None:
    output = {"name": "TEXTS", "datatype": "BYTES", "shape": [1, 2], "data": ["Tee", "四"]}
    assert decode_tensors({}, json.dumps({"outputs": [output]}).encode())["TEXTS"].tolist() == [[b"Tee", "四".encode()]]


@pytest.mark.parametrize("data", [b"\1", b"\0\0\0", b"\2\0\0\0a", b"\0\0\0\0\xff\xff\xff\xffa"])
def test_an_element_that_is_cut_off_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="end inside an element"):
        elements_of(data)


def test_lines_are_padded_and_carry_the_parameters_of_reading_alone() -> None:
    lines = [np.full((48, width, 3), width, np.uint8) for width in (3, 2)]
    request = encode_lines(lines, ReadingParameters(thresh=0.25, min_text_score=0.5, direction=False))
    assert (request.model, request.input_name, request.array.shape) == ("ocrnet_recognise", "CROPS", (1, 2, 48, 3, 3))
    assert request.array[0, :, 0, :, 0].tolist() == [[3, 3, 3], [2, 2, 0]]
    assert request.more["CROP_SIZES"].tolist() == [[[48, 3], [48, 2]]]
    assert dict(request.parameters) == {"min_text_score": 0.5, "direction": False}
    assert request.outputs == ("TEXTS", "TEXT_SCORES")
    assert encode_lines(lines, WORDS).outputs[2:] == ("WORD_TEXTS", "WORD_SCORES", "WORD_QUADS", "WORD_COUNTS")


def test_polygons_come_with_the_texts() -> None:
    request = encode_batch([b"x"], ReadingParameters(polygons=True), None, READ)
    assert request.outputs == ("QUADS", "SCORES", "COUNT", "SIZE", "POINTS", "POINT_COUNTS", "TEXTS", "TEXT_SCORES")
    outlines = {
        "POINTS": np.array([[[1, 2], [3, 4], [5, 6]]], np.float32),
        "POINT_COUNTS": np.array([[1, 2, 0]], np.int32),
    }
    [reading] = decode_readings(response(**outlines), 1, ReadingParameters(polygons=True))
    assert reading.polygons is not None
    assert [outline.tolist() for outline in reading.polygons] == [[[1, 2]], [[3, 4], [5, 6]]]

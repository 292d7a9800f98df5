# SPDX-License-Identifier: Apache-2.0
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.client import InvalidInputError, ServerError
from ocdserve.client._wire.codec import encode_batch
from ocdserve.client._wire.decoding import decode_batch
from ocdserve.contract import RequestParameters

PLAIN = RequestParameters()


def response(**changes: Any) -> dict[str, NDArray[Any]]:
    """Two detections of three rows, with polygons of 3 and 2 points, in an image 640 wide and 480 high."""
    tensors: dict[str, NDArray[Any]] = {
        "QUADS": np.arange(24, dtype=np.float32).reshape(1, 3, 4, 2),
        "SCORES": np.array([[0.75, 0.5, 0.0]], np.float32),
        "COUNT": np.array([[2]], np.int32),
        "SIZE": np.array([[480, 640]], np.int32),
        "POINTS": np.array([[[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [0, 0]]], np.float32),
        "POINT_COUNTS": np.array([[3, 2, 0]], np.int32),
    }
    tensors.update(changes)
    return {name: array for name, array in tensors.items() if array is not None}


def test_encoded_bytes_go_to_the_ensemble_as_one_bytes_element() -> None:
    request = encode_batch([b"\xff\xd8jpeg\x00"], PLAIN)
    assert (request.model, request.input_name, request.datatype) == ("ocdnet", "IMAGE", "BYTES")
    assert request.array.shape == (1, 1)
    assert request.array.dtype == np.object_
    assert request.array[0, 0] == b"\xff\xd8jpeg\x00"


def test_pixels_go_to_the_raw_ensemble_with_a_batch_dimension() -> None:
    pixels = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    request = encode_batch([pixels], PLAIN)
    assert (request.model, request.input_name, request.datatype) == ("ocdnet_raw", "PIXELS", "UINT8")
    assert request.array.shape == (1, 2, 5, 3)
    assert request.array.ravel().tolist() == list(range(30))


def test_a_view_with_reversed_colours_is_sent_in_logical_order() -> None:
    bgr = np.array([[[1, 2, 3]]], np.uint8)
    request = encode_batch([bgr[:, :, ::-1]], PLAIN)
    assert request.array.flags["C_CONTIGUOUS"]
    assert request.array.tobytes() == bytes([3, 2, 1])


def test_outputs_are_always_named_and_polygons_only_on_request() -> None:
    assert encode_batch([b"x"], PLAIN).outputs == ("QUADS", "SCORES", "COUNT", "SIZE")
    assert encode_batch([b"x"], RequestParameters(polygons=True)).outputs == (
        "QUADS",
        "SCORES",
        "COUNT",
        "SIZE",
        "POINTS",
        "POINT_COUNTS",
    )


def test_only_given_parameters_are_sent_with_their_types() -> None:
    request = encode_batch([b"x"], RequestParameters(thresh=0.25, max_candidates=7, polygons=True))
    assert dict(request.parameters) == {"thresh": 0.25, "max_candidates": 7, "polygons": True}
    assert [type(value) for value in request.parameters.values()] == [float, int, bool]


def test_the_fused_model_can_be_chosen() -> None:
    assert encode_batch([b"x"], PLAIN, "ocdnet_fused").model == "ocdnet_fused"


def test_a_model_outside_the_contract_is_left_to_the_server() -> None:
    assert encode_batch([b"x"], PLAIN, "receipts_v2").model == "receipts_v2"


@pytest.mark.parametrize(
    ("image", "model", "reason"),
    [
        (b"", None, r"image is empty \(0 bytes\)"),
        ([1, 2], None, r"image must be encoded bytes or a uint8 \(H, W, 3\) RGB array; got list"),
        (np.zeros((4, 4), np.uint8), None, r"shape \(H, W, 3\), RGB; got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), None, r"got uint8 \(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), None, r"got float32 \(4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), None, r"got uint8 \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), "ocdnet_fused", r"'ocdnet_fused' takes IMAGE, not raw pixels \(PIXELS\)"),
        (b"x", "ocdnet_raw", r"'ocdnet_raw' takes PIXELS, not encoded images \(IMAGE\)"),
        (b"x", "ocdnet_network", r"is a step and returns no detections; use ocdnet, ocdnet_raw, ocdnet_fused"),
    ],
)
def test_an_image_that_cannot_be_sent_is_refused_with_the_reason(image: Any, model: str | None, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        encode_batch([image], PLAIN, model)


def test_padding_rows_are_dropped_and_size_is_height_then_width() -> None:
    [found] = decode_batch(response(), 1)
    assert (found.width, found.height, len(found)) == (640, 480, 2)
    assert found.quads.tolist() == [
        [[0, 1], [2, 3], [4, 5], [6, 7]],
        [[8, 9], [10, 11], [12, 13], [14, 15]],
    ]
    assert found.scores.tolist() == [0.75, 0.5]
    assert found.polygons is None


def test_a_response_without_detections_is_valid() -> None:
    [found] = decode_batch(
        response(
            QUADS=np.zeros((1, 0, 4, 2), np.float32),
            SCORES=np.zeros((1, 0), np.float32),
            COUNT=np.array([[0]], np.int32),
            POINTS=np.zeros((1, 0, 2), np.float32),
            POINT_COUNTS=np.zeros((1, 0), np.int32),
        ),
        1,
        polygons=True,
    )
    assert len(found) == 0
    assert found.quads.shape == (0, 4, 2)
    assert found.polygons == ()


def test_polygons_are_split_by_their_point_counts() -> None:
    [found] = decode_batch(response(), 1, polygons=True)
    assert found.polygons is not None
    assert [polygon.tolist() for polygon in found.polygons] == [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10]]]


def test_the_result_is_writable_and_does_not_keep_the_whole_response() -> None:
    tensors = response()
    tensors["QUADS"].setflags(write=False)
    [found] = decode_batch(tensors, 1)
    found.quads[0, 0, 0] = 99
    assert tensors["QUADS"][0, 0, 0, 0] == 0
    assert found.quads.base is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SCORES": None}, "lacks the output SCORES; it has QUADS, COUNT, SIZE, POINTS, POINT_COUNTS"),
        ({"QUADS": np.zeros((1, 3, 8), np.float32)}, r"QUADS must have shape \(1, N, 4, 2\); got \(1, 3, 8\)"),
        ({"SCORES": np.zeros((1, 2), np.float32)}, r"SCORES must have shape \(1, 3\); got \(1, 2\)"),
        ({"COUNT": np.array([[4]], np.int32)}, "COUNT must be from 0 to the 3 rows of QUADS; got 4"),
        ({"COUNT": np.array([[-1]], np.int32)}, "got -1"),
        ({"POINT_COUNTS": np.array([[6, 1, 0]], np.int32)}, r"at most the 6 rows of POINTS; got \[6, 1\]"),
        ({"POINT_COUNTS": np.array([[-1, 1, 0]], np.int32)}, r"got \[-1, 1\]"),
    ],
)
def test_an_inconsistent_response_is_a_server_error(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ServerError, match=reason):
        decode_batch(response(**changes), 1, polygons=True)

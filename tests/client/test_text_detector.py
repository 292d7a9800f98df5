# SPDX-License-Identifier: Apache-2.0
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.client import InferRequest, InvalidInputError, MockTransport, TextDetector, UnavailableError

URL = "grpc://server:8001"


def one_box(request: InferRequest) -> Mapping[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {
        "QUADS": np.array([[[[1, 2], [11, 2], [11, 7], [1, 7]]]], np.float32),
        "SCORES": np.array([[0.5]], np.float32),
        "COUNT": np.array([[1]], np.int32),
        "SIZE": np.array([[20, 30]], np.int32),
        "POINTS": np.array([[[1, 2], [11, 2], [6, 7]]], np.float32),
        "POINT_COUNTS": np.array([[3]], np.int32),
    }
    return {name: tensors[name] for name in request.outputs}


def test_detect_sends_the_image_and_returns_the_servers_detections() -> None:
    transport = MockTransport(one_box)
    with TextDetector(URL, transport=transport) as detector:
        found = detector.detect(b"jpeg", box_thresh=0.7)
    assert found.to_dict() == {
        "width": 30,
        "height": 20,
        "detections": [{"quad": [[1, 2], [11, 2], [11, 7], [1, 7]], "score": 0.5}],
    }
    [request] = transport.requests
    assert request.array[0, 0] == b"jpeg"
    assert dict(request.parameters) == {"box_thresh": 0.7}


def test_polygons_are_returned_on_request() -> None:
    found = TextDetector(URL, transport=MockTransport(one_box)).detect(b"jpeg", polygons=True)
    assert found.polygons is not None
    assert [polygon.tolist() for polygon in found.polygons] == [[[1, 2], [11, 2], [6, 7]]]


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_any_bytes_like_image_is_accepted(kind: type) -> None:
    transport = MockTransport(one_box)
    TextDetector(URL, transport=transport).detect(kind(b"jpeg"))
    assert transport.requests[0].array[0, 0] == b"jpeg"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_read(kind: type, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"content")
    transport = MockTransport(one_box)
    TextDetector(URL, transport=transport).detect(kind(tmp_path / "a.jpg"))
    assert transport.requests[0].array[0, 0] == b"content"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read the image file '.*none\.jpg': No such file"):
        TextDetector(URL, transport=MockTransport(one_box)).detect(tmp_path / "none.jpg")


def test_pixels_use_the_raw_model_and_a_chosen_model_is_used() -> None:
    transport = MockTransport(one_box)
    TextDetector(URL, transport=transport).detect(np.zeros((20, 30, 3), np.uint8))
    TextDetector(URL, transport=transport, model="ocdnet_fused").detect(b"jpeg")
    assert [request.model for request in transport.requests] == ["ocdnet_raw", "ocdnet_fused"]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"thresh": 1.5}, "'thresh' must be a number from 0 to 1"),
        ({"max_candidates": 2.5}, "'max_candidates' must be a whole number"),
        ({"treshold": 0.5}, "unknown request parameter 'treshold'; known are thresh, box_thresh"),
    ],
)
def test_an_invalid_parameter_is_refused_before_anything_is_sent(overrides: dict[str, Any], reason: str) -> None:
    transport = MockTransport(one_box)
    with pytest.raises(InvalidInputError, match=reason):
        TextDetector(URL, transport=transport).detect(b"jpeg", **overrides)
    assert transport.requests == []


def test_ready_asks_for_the_detectors_model_and_is_false_without_an_answer() -> None:
    asked: list[str] = []

    def ready(model: str) -> bool:
        asked.append(model)
        return model == "ocdnet"

    assert TextDetector(URL, transport=MockTransport(one_box, ready=ready)).ready() is True
    assert TextDetector(URL, model="other", transport=MockTransport(one_box, ready=ready)).ready() is False
    assert asked == ["ocdnet", "other"]

    def silent(model: str) -> bool:
        raise UnavailableError("connection refused")

    assert TextDetector(URL, transport=MockTransport(one_box, ready=silent)).ready() is False


def test_a_closed_detector_refuses_calls_and_closes_only_once() -> None:
    transport = MockTransport(one_box)
    with TextDetector(URL, transport=transport) as detector:
        assert not transport.closed
    assert transport.closed
    transport.closed = False
    detector.close()
    assert not transport.closed
    with pytest.raises(UnavailableError, match=r"TextDetector\('grpc://server:8001'\) is closed; make a new one"):
        detector.detect(b"jpeg")
    assert detector.ready() is False

# SPDX-License-Identifier: Apache-2.0
"""What is accepted as the answer to a canary; tests/integration asks the real server."""

import io
import json
from typing import Any

import pytest
from PIL import Image

from ocdserve.backend.serve.canary import CanaryError, picture, run_canary
from ocdserve.contract import OcdserveError

RIGHT: dict[str, tuple[list[int], list[Any]]] = {
    "QUADS": ([1, 1, 4, 2], [1.0, 2.0, 90.0, 2.0, 90.0, 40.0, -3.5, 40.0]),
    "SCORES": ([1, 1], [0.75]),
    "COUNT": ([1, 1], [1]),
    "SIZE": ([1, 2], [96, 128]),
}
NOTHING_FOUND = {**RIGHT, "QUADS": ([1, 0, 4, 2], []), "SCORES": ([1, 0], []), "COUNT": ([1, 1], [0])}


class Server:
    """In place of RepositoryApi: one answer to every inference."""

    def __init__(self, status: int, answer: str | OSError) -> None:
        self.status, self.answer = status, answer
        self.asked: list[tuple[Any, ...]] = []

    def infer(self, *asked: Any) -> tuple[int, str]:
        self.asked.append(asked)
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.status, self.answer


def answering(tensors: dict[str, tuple[list[int], list[Any]]]) -> Any:
    outputs = [{"name": name, "shape": shape, "data": data} for name, (shape, data) in tensors.items()]
    return Server(200, json.dumps({"outputs": outputs}))


def test_a_right_answer_is_accepted_with_its_text_areas() -> None:
    assert run_canary(answering(RIGHT), "ocdnet_fused") == [[1.0, 2.0, 90.0, 2.0, 90.0, 40.0, -3.5, 40.0]]
    assert run_canary(answering(NOTHING_FOUND), "ocdnet_fused") == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"SIZE": ([1, 2], [128, 96])}, r"SIZE is \[128, 96\] for a picture of height 96 and width 128"),
        ({"SCORES": ([1, 2], [0.5, 0.5])}, r"SCORES has shape \[1, 2\] and 2 values where COUNT is \[1\]"),
        ({"QUADS": ([1, 0, 4, 2], [])}, r"QUADS has shape \[1, 0, 4, 2\] and 0 values where COUNT is \[1\]"),
        ({"COUNT": ([1, 1], [2])}, r"where COUNT is \[2\]"),
        ({"QUADS": ([1, 1, 4, 2], [float("nan")] * 8)}, "QUADS has coordinates that are no finite numbers"),
        ({"SCORES": ([1, 1], [1.25])}, "SCORES has values outside of 0 to 1"),
        ({"SCORES": ([1, 1], [float("nan")])}, "SCORES has values outside of 0 to 1"),
        ({"SCORES": ([1, 1], [None])}, "the answer is malformed: TypeError"),
        ({"COUNT": ([1, 0], [])}, "the answer is malformed: IndexError"),
    ],
)
def test_an_answer_that_cannot_be_right_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CanaryError, match=f"canary of ocdnet_next: .*{message}") as caught:
        run_canary(answering({**RIGHT, **wrong}), "ocdnet", under="ocdnet_next")
    assert caught.value.cause == "wrong" and isinstance(caught.value, OcdserveError)


@pytest.mark.parametrize("text", ["", "null", "[]", '{"outputs": 1}', '{"outputs": [{"name": "QUADS"}]}'])
def test_a_malformed_answer_is_refused(text: str) -> None:
    server: Any = Server(200, text)
    with pytest.raises(CanaryError, match="canary of ocdnet: the answer is malformed: "):
        run_canary(server, "ocdnet")


def test_overload_silence_and_errors_are_distinguished() -> None:
    for status, answer, cause in (
        (503, "queue full", "busy"),
        (500, "Stub process 'ocdnet_0_0' is not healthy", "wrong"),
        (0, TimeoutError("timed out"), "silent"),
        (0, ConnectionRefusedError("refused"), "silent"),
    ):
        server: Any = Server(status, answer)
        with pytest.raises(CanaryError, match="canary of ocdnet") as caught:
            run_canary(server, "ocdnet")
        assert caught.value.cause == cause


def test_the_request_is_a_picture_in_the_input_of_the_model() -> None:
    encoded, pixels = picture()
    image = Image.open(io.BytesIO(encoded))
    assert (image.size, image.mode, image.tobytes()) == ((128, 96), "RGB", pixels)
    for model, name, shape, size in (
        ("ocdnet", "IMAGE", [1, 1], 4 + len(encoded)),
        ("ocdnet_raw", "PIXELS", [1, 96, 128, 3], 96 * 128 * 3),
    ):
        server = answering(RIGHT)
        run_canary(server, model, timeout_s=2.5)
        ((asked, header, data, timeout_s),) = server.asked
        request = json.loads(header)
        assert (asked, timeout_s, len(data)) == (model, 2.5, size)
        assert (request["inputs"][0]["name"], request["inputs"][0]["shape"]) == (name, shape)
        assert request["parameters"] == {"timeout": 2_500_000}

# SPDX-License-Identifier: Apache-2.0
"""A canary inference: whether a served model answers a request as it should."""

import functools
import http.client
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ocdserve.backend.serve.process.metrics import CANARY_ID
from ocdserve.backend.serve.repository_api import RepositoryApi
from ocdserve.contract import ASKED_MODELS, MODELS, READING_MODELS, UnavailableError

# Far above what a request takes on a busy machine: what does not answer in this time hangs.
CANARY_TIMEOUT_S = 30.0
_WIDTH, _HEIGHT = 128, 96
_OUTPUTS = ("QUADS", "SCORES", "COUNT", "SIZE")
_MORE_OF_READING = ("TEXTS", "TEXT_SCORES")

Cause = Literal["busy", "silent", "wrong"]


class CanaryError(UnavailableError):
    """A canary inference failed.

    Attributes:
        cause: "busy": the server shed it, because its queue is full or the deadline came first;
            "silent": no answer came in time, or no connection; "wrong": an error, or an answer that cannot be right.
    """

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


def canary_models(repository: Path) -> tuple[str, ...]:
    """The models of a repository that answer with detections, so that a canary can be sent to them."""
    return tuple(name for name in ASKED_MODELS if (repository / name / "config.pbtxt").is_file())


def run_canary(
    api: RepositoryApi, model: str, timeout_s: float = CANARY_TIMEOUT_S, under: str | None = None
) -> list[list[float]]:
    """Send one inference of a small drawn word to a model of `ASKED_MODELS` and check the answer.

    The answer must be well-formed: the picture's size, as many quads and scores, and texts of a model that reads, as
    COUNT says, finite coordinates, scores from 0 to 1. No text has to be found in it, because a network may be trained
    for something else.

    Args:
        api: The server.
        model: Name of the model.
        timeout_s: How long to wait for the answer, in seconds; also the deadline that the models see.
        under: Name under which it is served; None: its own.

    Returns:
        The corners of each text area, x and y in turns, clockwise from the top left, in pixels of the picture.

    Raises:
        CanaryError: See `CanaryError.cause`.
    """
    name = under or model
    encoded, pixels = picture()
    if MODELS[model].inputs[0].name == "IMAGE":
        data = len(encoded).to_bytes(4, "little") + encoded
        tensor: dict[str, Any] = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES"}
    else:
        data = pixels
        tensor = {"name": "PIXELS", "shape": [1, _HEIGHT, _WIDTH, 3], "datatype": "UINT8"}
    header = {
        "id": CANARY_ID,
        "parameters": {"timeout": int(timeout_s * 1e6)},
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}],
        "outputs": [{"name": output} for output in (*_OUTPUTS, *(_MORE_OF_READING if model in READING_MODELS else ()))],
    }
    try:
        status, answer = api.infer(name, json.dumps(header).encode(), data, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        raise CanaryError(f"canary of {name}: no answer within {timeout_s:g} s ({error!r})", "silent") from error
    if status != 200:
        reason = answer.strip()[:300] or f"HTTP status {status}"
        raise CanaryError(f"canary of {name}: {reason}", "busy" if status == 503 else "wrong")
    try:
        tensors = {output["name"]: (output["shape"], output["data"]) for output in json.loads(answer)["outputs"]}
        count, corners, problem = tensors["COUNT"][1][0], tensors["QUADS"][1], _problem(tensors)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CanaryError(f"canary of {name}: the answer is malformed: {error!r}", "wrong") from error
    if problem:
        raise CanaryError(f"canary of {name}: {problem}", "wrong")
    return [corners[8 * index : 8 * index + 8] for index in range(int(count))]


@functools.cache
def picture() -> tuple[bytes, bytes]:
    """The canary's picture, a black word on white: as a PNG, and as RGB pixels."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    font = ImageFont.load_default(28)
    ImageDraw.Draw(image).text((_WIDTH / 2, _HEIGHT / 2), "canary", "black", font, "mm")
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue(), image.tobytes()


def _problem(tensors: Mapping[str, tuple[list[int], list[float]]]) -> str | None:
    """What cannot be right in an answer, given as shape and flat values of each output."""
    count, size = tensors["COUNT"][1], tensors["SIZE"][1]
    if size != [_HEIGHT, _WIDTH]:
        return f"SIZE is {size} for a picture of height {_HEIGHT} and width {_WIDTH}"
    for name, dims in (("QUADS", [4, 2]), *((name, []) for name in ("SCORES", *_MORE_OF_READING) if name in tensors)):
        shape, values = tensors[name]
        if shape != [1, *count, *dims] or len(values) != math.prod(shape):
            return f"{name} has shape {shape} and {len(values)} values where COUNT is {count}"
    if not all(math.isfinite(value) for value in tensors["QUADS"][1]):
        return "QUADS has coordinates that are no finite numbers"
    for name in ("SCORES", "TEXT_SCORES"):
        if name in tensors and not all(0.0 <= value <= 1.0 for value in tensors[name][1]):
            return f"{name} has values outside of 0 to 1"
    return None

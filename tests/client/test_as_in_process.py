# SPDX-License-Identifier: Apache-2.0
"""Lines that a client cuts out are read as in process: texts, scores and words to the last bit."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ocdserve.client import Detections, InferRequest, MockTransport, Reading, TextReader
from ocdserve.contract import ReadingParameters
from ocdserve.results.reading.lines import LineImage

pytest.importorskip("ocdserve.backend", reason="the server's packages are not installed")
if TYPE_CHECKING:
    from ocdserve.backend import Reader

TEXTS = ("Green tea", "42", "vertical", "upside down", "4.20")


@pytest.fixture(scope="module")
def page() -> tuple[NDArray[np.uint8], Detections]:
    """A page turned by 180 degrees; its texts in slanted and in upright quads, one a column."""
    picture, quads = Image.new("RGB", (420, 330), "white"), []
    for index, text in enumerate(TEXTS):
        font = ImageFont.load_default(20 + 8 * index)
        right, bottom = font.getbbox(text)[2:]
        line = Image.new("RGB", (int(right) + 16, int(bottom) + 8), "white")
        ImageDraw.Draw(line).text((8, 4), text, "black", font=font)
        if index == 2:
            line = line.rotate(-90, expand=True)
        place = (10, 10 + 55 * index) if index != 2 else (330, 20)
        picture.paste(line, place)
        x1, y1, x2, y2 = *place, place[0] + line.width, place[1] + line.height
        quads.append([[x1, y1 + 0.4 * index], [x2, y1], [x2 - 0.7, y2], [x1, y2 - 0.3]])
    turned = np.array([[420, 330]]) - np.array(quads, np.float32)[:, [2, 3, 0, 1]]
    scores = np.linspace(0.9, 0.5, len(quads), dtype=np.float32)
    return np.ascontiguousarray(np.asarray(picture)[::-1, ::-1]), Detections(
        turned.astype(np.float32), scores, 420, 330
    )


def served(reader: "Reader") -> Any:
    def answer(request: InferRequest) -> Mapping[str, NDArray[Any]]:
        parameters = ReadingParameters.parse(request.parameters)
        lines = []
        for crop, (height, width) in zip(request.array[0], request.more["CROP_SIZES"][0].tolist(), strict=True):
            quad = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
            lines.append(LineImage((height, width), quad, False, np.eye(3), crop[:height, :width]))
        found = Detections(np.stack([line.quad for line in lines]), np.zeros(len(lines), np.float32), 1, 1)
        read = reader.recogniser.read_lines(lines, parameters.direction)
        everything = ReadingParameters(words=True, min_text_score=0)
        reading = reader.recogniser.reading(found, lines, read, everything)
        words = [word for line in reading.words or () for word in line]
        tensors: dict[str, Any] = {
            "TEXTS": [
                text if score >= 0.5 else "" for text, score in zip(reading.texts, reading.text_scores, strict=True)
            ],
            "TEXT_SCORES": reading.text_scores,
            "WORD_TEXTS": [word.text for word in words],
            "WORD_SCORES": np.array([word.score for word in words], np.float32),
            "WORD_QUADS": np.array([word.quad for word in words], np.float32).reshape(-1, 4, 2),
            "WORD_COUNTS": np.array([len(line) for line in reading.words or ()], np.int32),
        }
        for name in ("TEXTS", "WORD_TEXTS"):
            tensors[name] = np.array([text.encode() for text in tensors[name]], np.object_)
        return {name: tensors[name][np.newaxis] for name in request.outputs}

    return answer


def values(reading: Reading) -> dict[str, Any]:
    content = {
        one.name: getattr(reading, one.name) for one in fields(Reading) if one.name not in ("latency_ms", "words")
    }
    bits = {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in content.items()}
    words = [[(word.text, word.score, word.quad.tobytes()) for word in line] for line in reading.words or ()]
    return bits | {"words": words}


@pytest.mark.parametrize("direction", [True, False])
def test_lines_are_read_as_in_process(
    reader: "Reader", page: tuple[NDArray[np.uint8], Detections], direction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One line a request: what a line reads depends on its page, and not on its request.
    monkeypatch.setattr("ocdserve.client._sansio.lines._MOST_LINES", 1)
    with TextReader("grpc://h:1", transport=MockTransport(served(reader))) as client:
        there = client.recognise(*page, words=True, direction=direction, concurrency=1)
    here = reader.recognise(*page, words=True, direction=direction)
    assert values(there) == values(here)
    if direction:
        assert here.texts == TEXTS

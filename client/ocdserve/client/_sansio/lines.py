# SPDX-License-Identifier: Apache-2.0
"""Reading of text that has been detected, as steps: lines into requests of bounded size, answers into a `Reading`."""

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._sansio.calls import CallOptions, identity
from ocdserve.client._sansio.machine import RequestMachine
from ocdserve.client._sansio.steps import Steps
from ocdserve.client._wire.texts import decode_texts, encode_lines
from ocdserve.contract import TURN_BELOW, ReadingParameters
from ocdserve.results.detections import Detections
from ocdserve.results.images import Loaded
from ocdserve.results.pictures import check_size, pixels_of
from ocdserve.results.reading import Line, Reading
from ocdserve.results.reading.direction import Direction, from_their_text
from ocdserve.results.reading.lines import LinePlan, rectify

# Of the default recogniser, in pixels; servers scale the lines for others.
_HEIGHT = 48
# One request has at most so many lines, and lines of so many bytes, padding included.
_MOST_LINES, _MOST_BYTES = 64, 2 << 20


class Part(NamedTuple):
    """The lines of one request.

    Attributes:
        indices: intp (M,), of the detections.
        upside_down: Whether the lines are turned by 180 degrees.
    """

    indices: NDArray[np.intp]
    upside_down: bool


class LineCall:
    """Reading of detected text: the lines are cut out here, because an image may be larger than a server takes.

    Which lines are upside down is a vote of all of them, and so decided here as well.
    """

    def __init__(self, image: Loaded, found: Detections, options: CallOptions[Reading], begin: float) -> None:
        """Decode the image.

        Args:
            image: Encoded, pixels or a Pillow image.
            found: The detections of the image.
            options: Of the call.
            begin: When the call began, in seconds of `time.monotonic`.

        Raises:
            InvalidInputError: The image is not valid, or its size is not that of the detections.
            UnavailableError: It must be decoded and Pillow is not installed.
        """
        parameters = ReadingParameters(**vars(options.parameters))
        self._pixels = pixels_of(image, parameters.page or found.page)
        check_size(found, self._pixels.shape[1], self._pixels.shape[0])
        # Without the texts of a Reading, which may be read once more.
        self._found = Detections(**{field.name: getattr(found, field.name) for field in fields(Detections)})
        self._options, self._parameters, self._begin = options, parameters, begin
        self._places = LinePlan.of(found.quads, _HEIGHT, (found.height, found.width)).places
        self._upright: dict[int, Line] = {}
        self._turned: dict[int, Line] = {}
        self._direction: Direction | None = None

    def next_parts(self) -> list[Part]:
        """The requests to be made next; `add` takes their answers. None: all is known."""
        if len(self._upright) < len(self._found):
            return self._parts(range(len(self._found)), False)
        if not self._parameters.direction:
            return []
        if self._direction is None:
            scores = [self._upright[index].text_score for index in range(len(self._found))]
            self._direction = Direction(scores, self._places, TURN_BELOW)
        return self._parts(self._direction.next_lines(), True)

    def cut(self, part: Part) -> list[NDArray[np.uint8]]:
        """The lines of one request, uint8 (48, w, 3) RGB."""
        lines = rectify(self._pixels, self._found.quads[part.indices], _HEIGHT)
        return [line.as_read(part.upside_down) for line in lines]

    def ask(self, machine: RequestMachine, part: Part, lines: Sequence[NDArray[np.uint8]]) -> Steps[Reading]:
        """Read the lines of one request; the text is "" where it reads worse than `min_text_score`."""
        parameters = replace(self._parameters, direction=False)
        request = encode_lines(lines, parameters, **identity(self._options))
        tensors = yield from machine.infer(request, self._options.task.remedy)
        texts = decode_texts(tensors, (1, len(lines)), 0, len(lines), parameters.words)
        return Reading(**vars(self._found.take(part.indices)), **texts)

    def add(self, parts: Sequence[Part], answers: Sequence[Reading]) -> None:
        """Take the answers to the requests of `next_parts`."""
        for part, answer in zip(parts, answers, strict=True):
            read = self._turned if part.upside_down else self._upright
            read.update(zip(part.indices.tolist(), answer, strict=True))
            if part.upside_down and self._direction is not None:
                self._direction.add(part.indices.tolist(), answer.text_scores.tolist())

    def reading(self) -> Reading:
        """The reading of the image, when all is known."""
        upside_down = self._direction.turned() if self._direction else [False] * len(self._found)
        lines = [self._line(index, is_turned) for index, is_turned in enumerate(upside_down)]
        known: dict[str, Any] = {
            "quads": from_their_text(self._found.quads, self._places, [line.text for line in lines], upside_down),
            "latency_ms": (time.monotonic() - self._begin) * 1000,
            "request_id": self._options.request_id,
        }
        reading = Reading(
            **vars(self._found) | known,
            texts=tuple(line.text for line in lines),
            text_scores=np.array([line.text_score for line in lines], np.float32),
            words=tuple(line.words or () for line in lines) if self._parameters.words else None,
        )
        if self._parameters.min_text_score == 0:
            return reading
        return reading.take(np.array([line.text != "" for line in lines], np.bool_))

    def _line(self, index: int, upside_down: bool) -> Line:
        """What a line reads, with its words in source pixels."""
        line, place = (self._turned if upside_down else self._upright)[index], self._places[index]
        words = [word._replace(quad=place.to_source(word.quad, upside_down)) for word in line.words or ()]
        return line._replace(words=tuple(words))

    def _parts(self, indices: Sequence[int], upside_down: bool) -> list[Part]:
        """Lines of similar widths share a request, because all are padded to the widest."""
        parts: list[list[int]] = []
        for index in sorted(indices, key=lambda index: self._places[index].size[1]):
            size = self._places[index].size[1] * _HEIGHT * 3
            if not parts or len(parts[-1]) == _MOST_LINES or (len(parts[-1]) + 1) * size > _MOST_BYTES:
                parts.append([])
            parts[-1].append(index)
        return [Part(np.array(part, np.intp), upside_down) for part in parts]

# SPDX-License-Identifier: Apache-2.0
"""Reading of text that has been detected, as steps: lines into requests of bounded size, answers into a `Reading`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._sansio.calls import CallOptions, identified, infer
from ocdserve.client._sansio.machine import RequestMachine
from ocdserve.client._sansio.steps import Steps
from ocdserve.client._wire.codec import encode_lines
from ocdserve.client._wire.texts import decode_texts
from ocdserve.contract import ReadingParameters
from ocdserve.results.detections import Detections
from ocdserve.results.images import Loaded
from ocdserve.results.pictures import check_size, pixels_of
from ocdserve.results.reading import Reading
from ocdserve.results.reading.lines import LineImage, LinePlan, rectify

# Of the default recogniser, in pixels; servers scale the lines for others.
_HEIGHT = 48
# One request has at most so many lines, and lines of so many bytes, padding included.
_MOST_LINES, _MOST_BYTES = 64, 2 << 20


@dataclass(frozen=True, eq=False)
class LineCall:
    """Reading of detected text: the lines are cut out here, because an image may be larger than a server takes.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        found: The detections of the image.
        options: Of the call.
        parameters: Of reading.
        begin: When the call began, in seconds of `time.monotonic`.
    """

    pixels: NDArray[np.uint8]
    found: Detections
    options: CallOptions[Reading]
    parameters: ReadingParameters
    begin: float

    @classmethod
    def of(cls, image: Loaded, found: Detections, options: CallOptions[Reading], begin: float) -> "LineCall":
        """Decode the image.

        Raises:
            InvalidInputError: It is not valid, or its size is not that of the detections.
            UnavailableError: It must be decoded and Pillow is not installed.
        """
        parameters = ReadingParameters(**vars(options.parameters))
        pixels = pixels_of(image, parameters.page or found.page)
        check_size(found, pixels.shape[1], pixels.shape[0])
        return cls(pixels, found, options, parameters, begin)

    def parts(self) -> list[NDArray[np.intp]]:
        """Indices of the lines of each request; lines of similar widths share one, as all are padded to the widest."""
        widths = LinePlan.of(self.found.quads, _HEIGHT, (self.found.height, self.found.width)).lines["width"]
        parts: list[list[int]] = []
        for index in np.argsort(widths, kind="stable").tolist():
            size = int(widths[index]) * _HEIGHT * 3
            if not parts or len(parts[-1]) == _MOST_LINES or (len(parts[-1]) + 1) * size > _MOST_BYTES:
                parts.append([])
            parts[-1].append(index)
        return [np.array(part, np.intp) for part in parts]

    def cut(self, part: NDArray[np.intp]) -> list[LineImage]:
        """The lines of one request."""
        return rectify(self.pixels, self.found.quads[part], _HEIGHT)

    def ask(self, machine: RequestMachine, part: NDArray[np.intp], lines: Sequence[LineImage]) -> Steps[Reading]:
        """Read the lines of one request; the text is "" where it reads worse than `min_text_score`."""
        request = identified(encode_lines([line.pixels for line in lines], self.parameters), self.options)
        tensors = yield from infer(machine, request, self.options.task)
        texts = decode_texts(tensors, (1, len(lines)), 0, len(lines), self.parameters.words)
        read = Reading(**vars(self.found.take(part)), **texts)
        if read.words is None:
            return read
        placed = tuple(
            tuple(word._replace(quad=line.to_source(word.quad)) for word in words)
            for words, line in zip(read.words, lines, strict=True)
        )
        return replace(read, words=placed)

    def assembled(self, parts: Sequence[NDArray[np.intp]], read: Sequence[Reading]) -> Reading:
        """The reading of the image, from the answers to the requests."""
        lines = {
            index: line
            for part, answer in zip(parts, read, strict=True)
            for index, line in zip(part, answer, strict=True)
        }
        ordered = [lines[index] for index in sorted(lines)]
        known = {"latency_ms": (time.monotonic() - self.begin) * 1000, "request_id": self.options.request_id}
        reading = Reading(
            **vars(self.found) | known,
            texts=tuple(line.text for line in ordered),
            text_scores=np.array([line.text_score for line in ordered], np.float32),
            words=tuple(line.words or () for line in ordered) if self.parameters.words else None,
        )
        if self.parameters.min_text_score == 0:
            return reading
        return reading.take(np.array([line.text != "" for line in ordered], np.bool_))

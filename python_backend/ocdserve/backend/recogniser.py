# SPDX-License-Identifier: Apache-2.0
"""The recogniser in process: rectify, network, decode; from quads to texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.protocols import RecogniserNetwork
from ocdserve.backend.network.recogniser import for_lines, load_recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.stages import ctc
from ocdserve.backend.stages.rectify import LineImage, LinePlace, rectify
from ocdserve.contract import ReadingParameters, UnavailableError
from ocdserve.results.detections import Detections
from ocdserve.results.images import for_each
from ocdserve.results.pictures import check_size
from ocdserve.results.reading import Reading, Word
from ocdserve.results.reading.direction import Direction, from_their_text


@dataclass(frozen=True)
class ReadLine:
    """What a line reads.

    Attributes:
        line: Its text and characters.
        pitch: Width of a time step in pixels of the line.
        upside_down: Whether it was read turned by 180 degrees.
    """

    line: ctc.Line
    pitch: float
    upside_down: bool = False

    @property
    def text(self) -> str:
        """Its text without spaces at its ends."""
        return self.line.text.strip()

    @property
    def score(self) -> float:
        """Mean probability of its characters, 0 to 1; 0 without any text."""
        return self.line.score


class Recogniser:
    """Reads lines of text in this process; the served models call the same methods. Thread-safe.

    Args:
        bundle: The recogniser's contract.
        network: Its compiled network; None if only the other stages are used.
    """

    def __init__(self, bundle: RecogniserBundle, network: RecogniserNetwork | None) -> None:
        self.spec = bundle.spec
        self._network = network
        # The network's mean: what it was trained to see beside a line.
        self._padding = np.uint8(round(sum(self.spec.network.mean) / len(self.spec.network.mean)))

    @classmethod
    def load(
        cls,
        bundle: Path | str | None = None,
        runtime: str | None = None,
        threads: int | None = None,
        device: int = 0,
    ) -> "Recogniser":
        """Load a recogniser's bundle folder (None: the default one) into a runtime (None: see `RuntimeOptions`).

        Raises:
            InvalidInputError: The bundle or an option is not valid.
            UnavailableError: The runtime or the default network is not installed.
        """
        opened = RecogniserBundle.load(bundle)
        options = RuntimeOptions(runtime, threads, device=device)
        return cls(opened, load_recogniser(opened, for_lines(options)))

    def recognise(self, pixels: NDArray[np.uint8], found: Detections, parameters: ReadingParameters) -> Reading:
        """Read the detected text of one image; see `recognise_all`."""
        return self.recognise_all([pixels], [found], parameters)[0]

    def recognise_all(
        self, images: Sequence[NDArray[np.uint8]], found: Sequence[Detections], parameters: ReadingParameters
    ) -> list[Reading]:
        """Read the detected text of several images; a text does not depend on the others.

        Args:
            images: uint8 (H, W, 3) RGB each.
            found: The detections of each image.
            parameters: Replace the recogniser's own.

        Returns:
            Each image's detections with their texts, without those that read worse than `min_text_score`.

        Raises:
            InvalidInputError: An image's size is not that of its detections.
            UnavailableError: The recogniser has no network, or it fails.
        """
        cut = for_each(lambda pair: self.cut(*pair), list(zip(images, found, strict=True)))
        read = self.read_pages(cut, parameters.direction)
        return [self.reading(*page, parameters) for page in zip(found, cut, read, strict=True)]

    def cut(self, pixels: NDArray[np.uint8], found: Detections) -> list[LineImage]:
        """Stage 1: an image to the lines of its detections, which do not need the image any more.

        Args:
            pixels: uint8 (H, W, 3) RGB.
            found: Its detections.

        Raises:
            InvalidInputError: The image's size is not that of the detections.
        """
        check_size(found, pixels.shape[1], pixels.shape[0])
        return rectify(pixels, found.quads, self.spec.height, self.spec.widths.largest)

    def read_lines(self, lines: Sequence[LineImage], direction: bool = True) -> list[ReadLine]:
        """Read the lines of one page; see `read_pages`."""
        return self.read_pages([lines], direction)[0]

    def read_pages(self, pages: Sequence[Sequence[LineImage]], direction: bool = True) -> list[list[ReadLine]]:
        """Stage 2: the lines of several pages to what they read.

        Args:
            pages: The lines of each page, of the recogniser's height.
            direction: Whether lines may be upside down, see `ocdserve.results.reading.direction`; only there a line's
                text depends on the others of its page.

        Raises:
            UnavailableError: The recogniser has no network, or it fails.
        """

        def read(chosen: Sequence[Sequence[int]], upside_down: bool) -> list[list[ReadLine]]:
            return self._read(
                [
                    [lines[index].as_read(upside_down) for index in indices]
                    for lines, indices in zip(pages, chosen, strict=True)
                ]
            )

        return self._read_upright(pages, read, direction)

    def reading(
        self, found: Detections, lines: Sequence[LinePlace], read: Sequence[ReadLine], parameters: ReadingParameters
    ) -> Reading:
        """Stage 3: an image's detections with their texts, without those that read worse than `min_text_score`.

        Quads then begin at the text's own top left, so that a turned page is read from its own top.

        Args:
            found: The detections.
            lines: Where the line of each lies, of `cut`.
            read: What each line reads, of `read_lines`.
            parameters: Replace the recogniser's own.
        """
        words = None
        if parameters.words:
            words = tuple(_words(line, each) for line, each in zip(lines, read, strict=True))
        detected = {field.name: getattr(found, field.name) for field in fields(Detections)}
        texts = tuple(each.text for each in read)
        detected["quads"] = from_their_text(found.quads, lines, texts, [each.upside_down for each in read])
        reading = Reading(
            **detected,
            texts=texts,
            text_scores=np.array([each.score for each in read], np.float32),
            words=words,
        )
        least = self.spec.min_text_score if parameters.min_text_score is None else parameters.min_text_score
        return reading.take(reading.text_scores >= np.float32(least))

    def _read_upright(
        self,
        pages: Sequence[Sequence[LinePlace]],
        read: Callable[[Sequence[Sequence[int]], bool], list[list[ReadLine]]],
        direction: bool,
    ) -> list[list[ReadLine]]:
        """What the lines of pages read, the right way up.

        Args:
            pages: Where the lines of each page lie.
            read: Reads chosen lines of each page, by their indices, as they are or turned by 180 degrees.
            direction: Whether lines may be upside down.
        """
        found = read([range(len(lines)) for lines in pages], False)
        if not direction:
            return found
        states = [
            Direction([line.score for line in each], lines, self.spec.turn_below)
            for each, lines in zip(found, pages, strict=True)
        ]
        turned: list[dict[int, ReadLine]] = [{} for _ in pages]
        while any(wanted := [state.next_lines() for state in states]):
            for state, known, indices, lines in zip(states, turned, wanted, read(wanted, True), strict=True):
                state.add(indices, [line.score for line in lines])
                known.update(zip(indices, lines, strict=True))
        return [
            [
                replace(known[index], upside_down=True) if is_turned else line
                for index, (line, is_turned) in enumerate(zip(each, state.turned(), strict=True))
            ]
            for each, known, state in zip(found, turned, states, strict=True)
        ]

    def _read(self, pages: Sequence[Sequence[NDArray[np.uint8]]]) -> list[list[ReadLine]]:
        """What lines read, as they are."""
        lines = [line for page in pages for line in page]
        if not lines:
            return [[] for _ in pages]
        if self._network is None:
            raise UnavailableError("this recogniser was made without a network; give it one to read")
        fitted = [self.fitted(line) for line in lines]
        # The widest first, so that lines of one width follow each other: OpenVINO prepares its layers anew where the
        # width changes, 5 % of the time of a receipt's lines.
        order = sorted(range(len(lines)), key=lambda index: -fitted[index].shape[1])
        steps = dict(zip(order, self._network.infer([fitted[index] for index in order]), strict=True))
        read = iter(self._decoded(line.shape[1], steps[index]) for index, line in enumerate(lines))
        return [[next(read) for _ in page] for page in pages]

    def _decoded(self, width: int, steps: ctc.Steps) -> ReadLine:
        """What a line of that width reads."""
        fitted = self.spec.widths.fitted(width)
        # Of a line that was scaled a step is as much wider, or narrower.
        pitch = (width if self._is_scaled(width, fitted) else fitted) / max(1, len(steps.classes))
        return ReadLine(ctc.greedy(*steps, self.spec.characters, self.spec.network.blank), pitch)

    def fitted(self, line: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A line as the network takes it: padded, or scaled."""
        height, width = line.shape[:2]
        target = self.spec.widths.fitted(width)
        if self._is_scaled(width, target):
            method = cv2.INTER_AREA if width > target else cv2.INTER_LINEAR
            scaled: NDArray[np.uint8] = np.asarray(cv2.resize(line, (target, height), interpolation=method))
            return scaled
        padded = np.full((height, target, 3), self._padding, np.uint8)
        padded[:, :width] = line
        return padded

    def _is_scaled(self, width: int, target: int) -> bool:
        return width > target or self.spec.widths.fit == "stretch"


def _words(line: LinePlace, read: ReadLine) -> tuple[Word, ...]:
    height, width = line.size
    found = []
    for text, score, corners in ctc.words(read.line, read.pitch, width, height):
        # As the wire has them, so that a client that cuts the lines out places the words alike.
        corners = corners.astype(np.float32)
        found.append(Word(text, float(np.float32(score)), line.to_source(corners, read.upside_down)))
    return tuple(found)

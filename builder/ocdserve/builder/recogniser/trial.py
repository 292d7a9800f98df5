# SPDX-License-Identifier: Apache-2.0
"""The trial of a recogniser: drawn lines that it must read."""

from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray

from ocdserve.backend.evaluation.reading import edit_distance
from ocdserve.backend.network.protocols import RecogniserNetwork
from ocdserve.backend.network.rewrite.fold_recogniser import LINES, PROBABILITIES, fold_recogniser
from ocdserve.backend.recogniser import Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.backend.stages.ctc import Steps, best_steps
from ocdserve.backend.stages.rectify import LineImage, rectify
from ocdserve.builder.graph.execute import cpu_session

# The first that a recogniser has all letters of is drawn, whatever it was trained on.
_DRAWN = (
    ("Text 25", "Page 8 of 9", "Sum 163.40"),
    ("TEXT 25", "PAGE 8 OF 9", "SUM 16340"),
    ("text 25", "page 8 of 9", "sum 16340"),
    ("Text", "Page of", "Sum"),
    ("TEXT", "PAGE OF", "SUM"),
    ("text", "page of", "sum"),
    ("258", "1049", "16340"),
)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# A network that reads photographs may misread some of the letters.
_MOST_ERRORS = 0.5


class GraphRecogniser:
    """A network that is still a graph; a `RecogniserNetwork`.

    Args:
        model: In normal form, in any precision that ONNX Runtime executes.
        spec: How it is served.
        threads: Cores; None is all.
    """

    def __init__(self, model: onnx.ModelProto, spec: RecogniserSpec, threads: int | None = None) -> None:
        self._session = cpu_session(fold_recogniser(model, spec.network, reduced=False), threads)
        self._spec = spec

    def infer(self, lines: Sequence[NDArray[np.uint8]]) -> list[Steps]:
        """See `RecogniserNetwork.infer`."""
        return [self._steps(line) for line in lines]

    def _steps(self, line: NDArray[np.uint8]) -> Steps:
        scores = self._session.run([PROBABILITIES], {LINES: line[None]})[0][0]
        return best_steps(scores, self._spec)


def drawn_texts(characters: Collection[str]) -> tuple[str, ...]:
    """Texts in Latin letters or digits that consist of these characters and spaces; none if there are not enough."""
    known = {*characters, " "}
    return next((texts for texts in _DRAWN if known.issuperset("".join(texts))), ())


def drawn_line(text: str, height: int) -> NDArray[np.uint8]:
    """Black text on white, uint8 (height, w, 3)."""
    # The font's capitals are 21 pixels high at scale 1.
    scale, thickness = 0.6 * height / 21, max(1, round(height / 20))
    (across, _), _ = cv2.getTextSize(text, _FONT, scale, thickness)
    pixels = np.full((height, across + height // 2, 3), 255, np.uint8)
    origin = (height // 4, round(0.76 * height))
    cv2.putText(pixels, text, origin, _FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
    return pixels


def whole_line(pixels: NDArray[np.uint8]) -> LineImage:
    """A picture of a line, uint8 (height, w, 3), as one that was cut out."""
    height, width = pixels.shape[:2]
    quad = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], np.float32)
    return rectify(pixels, quad, height, width)[0]


def recogniser_of(spec: RecogniserSpec, network: RecogniserNetwork | None) -> Recogniser:
    """A recogniser that is not a bundle yet."""
    return Recogniser(RecogniserBundle(spec, Path(spec.model)), network)


def fault(recogniser: Recogniser) -> str | None:
    """What is wrong with what a recogniser reads in drawn lines; None: nothing, or none can be drawn."""
    spec = recogniser.spec
    texts = drawn_texts(spec.characters)
    if not texts:
        return None
    lines = [whole_line(drawn_line(text, spec.height)) for text in texts]
    read = [line.text for line in recogniser.read_lines(lines, direction=False)]
    # A network may have learnt neither spaces nor small letters.
    pairs = [[text.replace(" ", "").casefold() for text in pair] for pair in zip(texts, read, strict=True)]
    errors = sum(edit_distance(wanted, found) for wanted, found in pairs)
    if errors <= _MOST_ERRORS * sum(len(wanted) for wanted, _ in pairs):
        return None
    shown = ", ".join(f"{text!r} as {found[:20]!r}" for text, found in zip(texts, read, strict=True))
    return f"it misreads more than half of the letters of drawn lines, black on white: {shown}"

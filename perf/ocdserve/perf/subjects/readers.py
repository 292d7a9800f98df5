# SPDX-License-Identifier: Apache-2.0
"""Programs that read text, to compare: ours and others with their default settings and the same or larger networks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Reader
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.subjects.rapidocr import rapidocr


class ReadText(NamedTuple):
    """What was read in an image.

    Attributes:
        quads: float32 (N, 4, 2) in pixels of the source image.
        texts: What each reads.
    """

    quads: NDArray[Any]
    texts: Sequence[str]


Read = Callable[[bytes], ReadText]


def _load_ours(threads: int, detector: str = "default", recogniser: str = "default") -> Read:
    reader = Reader.load(detector, recogniser, threads=threads)

    def read(encoded: bytes) -> ReadText:
        found = reader.read(encoded)
        return ReadText(found.quads, found.texts)

    return read


def _load_rapidocr(threads: int, engine: str = "onnxruntime") -> Read:
    """RapidOCR as its users call it: its own networks, detection, direction and recognition."""
    reader = rapidocr(threads, engine)

    def read(encoded: bytes) -> ReadText:
        found = reader(encoded)
        if found.boxes is None or found.txts is None:
            return ReadText(np.empty((0, 4, 2), np.float32), ())
        return ReadText(np.asarray(found.boxes, np.float32), found.txts)

    return read


def _load_faster_paddle(threads: int) -> Read:
    """faster-paddle with the networks of our size; its boxes are upright."""
    engine = import_module("faster_paddle").OcrEngine(model_size="small", threads=threads)

    def read(encoded: bytes) -> ReadText:
        found = list(engine.ocr(encoded)["bounds"].values())
        boxes = np.array([(*each["topLeftCoord"], *each["bottomRightCoord"]) for each in found], np.float32)
        # The corners of a box from its left, top, right and bottom.
        return ReadText(
            boxes.reshape(-1, 4)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]], [str(each["text"]) for each in found]
        )

    return read


# By name, ours first. The fast recogniser reads in bfloat16 where the processor has it, as OpenVINO does by default;
# the fast detector looks at less than half the pixels.
READERS: Mapping[str, Callable[[int], Read]] = {
    OURS: _load_ours,
    f"{OURS}-bf16": partial(_load_ours, recogniser="fast"),
    f"{OURS}-fast": partial(_load_ours, detector="fast", recogniser="fast"),
    "RapidOCR": _load_rapidocr,
    "RapidOCR+OpenVINO": partial(_load_rapidocr, engine="openvino"),
    "faster-paddle": _load_faster_paddle,
}

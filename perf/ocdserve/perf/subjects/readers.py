# SPDX-License-Identifier: Apache-2.0
"""Programs that read text, to compare: ours and others with their default settings and the same or larger networks."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from ocdserve.backend import Reader
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.subjects import READ_ALWAYS
from ocdserve.perf.subjects.peers import ReadText, load_peer
from ocdserve.perf.subjects.rapidocr import rapidocr

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


# By name, ours first. The fast recogniser reads in bfloat16 where the processor has it, as OpenVINO does by default;
# the fast detector looks at less than half the pixels.
READERS: Mapping[str, Callable[[int], Read]] = {
    OURS: _load_ours,
    f"{OURS}-bf16": partial(_load_ours, recogniser="fast"),
    f"{OURS}-fast": partial(_load_ours, detector="fast", recogniser="fast"),
    "RapidOCR": _load_rapidocr,
    "RapidOCR+OpenVINO": partial(_load_rapidocr, engine="openvino"),
    **{name: partial(load_peer, name) for name in READ_ALWAYS},
}

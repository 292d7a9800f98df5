# SPDX-License-Identifier: Apache-2.0
"""Text detectors to compare: ours and others, most of which run the same network file."""

from collections.abc import Mapping
from functools import partial

from ocdserve.backend import Detector
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.subjects.competitor import Competitor, Detect, Load
from ocdserve.perf.subjects.onnxtr import load_onnxtr, load_onnxtr_own_network
from ocdserve.perf.subjects.opencv import load_opencv
from ocdserve.perf.subjects.rapidocr import load_rapidocr
from ocdserve.perf.subjects.tao import load_tao_style

__all__ = ["COMPETITORS", "Competitor", "Detect", "Load"]


def _load_ours(threads: int, bundle: str | None = None) -> Detect:
    detector = Detector.load(bundle, threads=threads)
    return lambda encoded: detector.detect(encoded).quads


# By name, ours first; `fast` is the same network on less than half the pixels.
COMPETITORS: Mapping[str, Load] = {
    OURS: _load_ours,
    f"{OURS}-fast": partial(_load_ours, bundle="fast"),
    "RapidOCR": load_rapidocr,
    "RapidOCR+OpenVINO": partial(load_rapidocr, engine="openvino"),
    "TAO-style": load_tao_style,
    "plain": partial(load_tao_style, stretch=False),
    "OpenCV": load_opencv,
    "OnnxTR": load_onnxtr,
    "OnnxTR+own-network": load_onnxtr_own_network,
}

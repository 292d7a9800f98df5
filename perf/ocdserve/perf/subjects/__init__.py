# SPDX-License-Identifier: Apache-2.0
"""Text detectors to compare: ours and others, most of which run the same network file."""

from collections.abc import Mapping
from functools import partial

from ocdserve.backend import Detector
from ocdserve.backend.spec.bundle import BUILT_IN
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.subjects.competitor import Competitor, Detect, Load
from ocdserve.perf.subjects.onnxtr import load_onnxtr, load_onnxtr_own_network
from ocdserve.perf.subjects.opencv import load_opencv
from ocdserve.perf.subjects.peer_worker import PEERS
from ocdserve.perf.subjects.peers import load_peer_detector
from ocdserve.perf.subjects.rapidocr import load_rapidocr
from ocdserve.perf.subjects.tao import load_tao_style

__all__ = ["COMPETITORS", "READ_ALWAYS", "Competitor", "Detect", "Load", "licence_of"]


def _load_ours(threads: int, bundle: str | None = None) -> Detect:
    detector = Detector.load(bundle, threads=threads)
    return lambda encoded: detector.detect(encoded).quads


# By name, ours first: the bundle of no name, and all other built-in ones.
COMPETITORS: Mapping[str, Load] = {
    OURS: _load_ours,
    **{f"{OURS}-{name}": partial(_load_ours, bundle=name) for name in BUILT_IN if name != "default"},
    "RapidOCR": load_rapidocr,
    "RapidOCR+OpenVINO": partial(load_rapidocr, engine="openvino"),
    **{name: partial(load_peer_detector, name) for name in PEERS},
    "TAO-style": load_tao_style,
    "plain": partial(load_tao_style, stretch=False),
    "OpenCV": load_opencv,
    "OnnxTR": load_onnxtr,
    "OnnxTR+own-network": load_onnxtr_own_network,
}
# Those whose detection cannot be called apart from their recognition.
READ_ALWAYS = ("faster-paddle", "faster-paddle-tiny")
# As the packages' metadata and files say; all others, ours and the networks of PaddleOCR are under Apache-2.0.
LICENCES: Mapping[str, str] = {
    "faster-paddle": "MIT",
    "faster-paddle-tiny": "MIT",
    "rapidocrlite+Indra": "Apache-2.0; weights: OpenRAIL-M, modified: no competing products, no large companies",
}


def licence_of(name: str) -> str:
    """Licence of a detector or reader, by the name of its series."""
    return LICENCES.get(name, "Apache-2.0")

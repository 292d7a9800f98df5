# SPDX-License-Identifier: Apache-2.0
"""Other text detectors, to be measured beside ours; most execute the same network file."""

from ocdserve.perf.subjects.competitor import Detect, Peer
from ocdserve.perf.subjects.onnxtr import OnnxTr, OnnxTrOwnNetwork
from ocdserve.perf.subjects.opencv import OpenCvDb
from ocdserve.perf.subjects.ours import Ours, OursFast
from ocdserve.perf.subjects.rapidocr import RapidOcr, RapidOcrOpenVino
from ocdserve.perf.subjects.tao import PlainOurSize, PlainTao

__all__ = ["PEERS", "Detect", "Ours", "Peer"]

# Ours first.
PEERS: tuple[type[Peer], ...] = (
    Ours,
    OursFast,
    RapidOcr,
    RapidOcrOpenVino,
    PlainTao,
    PlainOurSize,
    OpenCvDb,
    OnnxTr,
    OnnxTrOwnNetwork,
)

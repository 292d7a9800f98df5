# SPDX-License-Identifier: Apache-2.0
"""Other text detectors, to be measured beside ours; most execute the same network file."""

from ocdserve.perf.peers.onnxtr import OnnxTr, OnnxTrOwnNetwork
from ocdserve.perf.peers.opencv import OpenCvDb
from ocdserve.perf.peers.ours import Ours, OursFast
from ocdserve.perf.peers.peer import Detect, Peer
from ocdserve.perf.peers.rapidocr import RapidOcr, RapidOcrOpenVino
from ocdserve.perf.peers.tao import PlainOurSize, PlainTao

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

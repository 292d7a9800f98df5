# SPDX-License-Identifier: Apache-2.0
"""Text detectors to compare with ours; most run the same network file."""

from ocdserve.perf.subjects.competitor import Competitor, Detect
from ocdserve.perf.subjects.onnxtr import OnnxTr, OnnxTrOwnNetwork
from ocdserve.perf.subjects.opencv import OpenCvDb
from ocdserve.perf.subjects.ours import Ours, OursFast
from ocdserve.perf.subjects.rapidocr import RapidOcr, RapidOcrOpenVino
from ocdserve.perf.subjects.tao import TaoStyle, TaoStyleOurSize

__all__ = ["COMPETITORS", "Competitor", "Detect", "Ours"]

# Ours first.
COMPETITORS: tuple[type[Competitor], ...] = (
    Ours,
    OursFast,
    RapidOcr,
    RapidOcrOpenVino,
    TaoStyle,
    TaoStyleOurSize,
    OpenCvDb,
    OnnxTr,
    OnnxTrOwnNetwork,
)

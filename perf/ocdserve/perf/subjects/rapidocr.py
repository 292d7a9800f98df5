# SPDX-License-Identifier: Apache-2.0
"""RapidOCR with two of its inference engines."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.bundle import Bundle
from ocdserve.perf.subjects.competitor import Competitor, Detect


class RapidOcr(Competitor):
    """RapidOCR as its users call it: bytes in, default settings, without classification and recognition.

    It still crops each box, as it would for recognition.
    """

    name: ClassVar[str] = "RapidOCR"
    engine: ClassVar[str] = "onnxruntime"

    def _load(self) -> Detect:
        from rapidocr import EngineType, RapidOCR

        detector: Any = RapidOCR(
            params={
                # The same file for all detectors; nothing is downloaded.
                "Det.model_path": str(Bundle.load().model_path),
                "Det.engine_type": EngineType(self.engine),
                "Global.use_cls": False,
                "Global.use_rec": False,
                "Global.log_level": "critical",
                "EngineConfig.onnxruntime.intra_op_num_threads": self.threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "EngineConfig.openvino.inference_num_threads": self.threads,
            }
        )

        def detect(encoded: bytes) -> NDArray[Any]:
            boxes = detector(encoded).boxes
            return np.empty((0, 4, 2), np.float32) if boxes is None else np.asarray(boxes, np.float32)

        return detect


class RapidOcrOpenVino(RapidOcr):
    """RapidOCR with OpenVINO."""

    name: ClassVar[str] = "RapidOCR+OpenVINO"
    engine: ClassVar[str] = "openvino"

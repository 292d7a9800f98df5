# SPDX-License-Identifier: Apache-2.0
"""RapidOCR with two of its inference engines."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.bundle import Bundle
from ocdserve.perf.subjects.competitor import Detect


def rapidocr(threads: int, engine: str, **settings: Any) -> Any:
    """RapidOCR with one engine for all its networks, which are in its package; nothing is downloaded."""
    from rapidocr import EngineType, RapidOCR

    return RapidOCR(
        params={
            **{f"{network}.engine_type": EngineType(engine) for network in ("Det", "Cls", "Rec")},
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "EngineConfig.openvino.inference_num_threads": threads,
            **settings,
        }
    )


def load_rapidocr(threads: int, engine: str = "onnxruntime") -> Detect:
    """RapidOCR as its users call it: bytes in, default settings, without classification and recognition.

    It still crops each box, as it would for recognition.
    """
    # The same file for all detectors.
    ours = {"Det.model_path": str(Bundle.load().model_path)}
    detector = rapidocr(threads, engine, **ours, **{"Global.use_cls": False, "Global.use_rec": False})

    def detect(encoded: bytes) -> NDArray[Any]:
        boxes = detector(encoded).boxes
        return np.empty((0, 4, 2), np.float32) if boxes is None else np.asarray(boxes, np.float32)

    return detect

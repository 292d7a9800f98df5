# SPDX-License-Identifier: Apache-2.0
"""OnnxTR's detection predictor (docTR's in ONNX Runtime), with our network and with its own."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import UnavailableError
from ocdserve.perf.subjects.competitor import Detect
from ocdserve.perf.subjects.networks import without_sigmoid

# Side in pixels of the square that OnnxTR pads all pages to.
_SIDE = 1024


def load_onnxtr(threads: int) -> Detect:
    """OnnxTR's preprocessing, engine and post-processing (rotated boxes), with our network and thresholds.

    Pages are scaled to fit 1024 x 1024 pixels and padded, as for OnnxTR's own networks. It applies the sigmoid itself,
    so the network's own is removed.
    """
    from onnxtr.models import detection_predictor
    from onnxtr.models.detection import DBNet

    bundle = Bundle.load()
    network, params = bundle.spec.network, bundle.spec.postprocess
    with TemporaryDirectory(prefix="ocdserve-onnxtr-") as folder:
        file = Path(folder, "logits.onnx")
        file.write_bytes(without_sigmoid(bundle.model_path, _SIDE))
        model = DBNet(
            str(file),
            _engine_config(threads),
            bin_thresh=params.thresh,
            box_thresh=params.box_thresh,
            assume_straight_pages=False,
            cfg={
                "input_shape": (3, _SIDE, _SIDE),
                "mean": tuple(value / 255 for value in network.mean),
                "std": tuple(value / 255 for value in network.std),
            },
        )
    return _detect(detection_predictor(model, assume_straight_pages=False), rgb=network.color == "RGB")


def load_onnxtr_own_network(threads: int) -> Detect:
    """OnnxTR's default detector, where its weights are on this machine; nothing is downloaded."""
    from onnxtr.models import detection_predictor
    from onnxtr.models.detection.models.fast import default_cfgs

    weights = Path(default_cfgs["fast_base"]["url"]).name
    cache = Path(os.environ.get("ONNXTR_CACHE_DIR", Path.home() / ".cache" / "onnxtr")) / "models" / weights
    if not cache.is_file():
        raise UnavailableError(
            f"its weights {weights} are not here; onnxtr.models.detection_predictor() downloads them"
        )
    predictor = detection_predictor(assume_straight_pages=False, engine_cfg=_engine_config(threads))
    return _detect(predictor, rgb=True)


def _detect(predictor: Any, rgb: bool) -> Detect:
    from onnxtr.io.image import read_img_as_numpy

    def detect(encoded: bytes) -> NDArray[Any]:
        page = read_img_as_numpy(encoded, rgb_output=rgb)
        (found,) = predictor([page])
        height, width = page.shape[:2]
        quads: NDArray[Any] = np.asarray(found[:, :4] * (width, height), np.float32).reshape(-1, 4, 2)
        return quads

    return detect


def _engine_config(threads: int) -> Any:
    from onnxtr.models.engine import EngineConfig

    options = EngineConfig().session_options
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return EngineConfig(providers=["CPUExecutionProvider"], session_options=options)

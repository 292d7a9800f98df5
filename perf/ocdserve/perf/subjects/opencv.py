# SPDX-License-Identifier: Apache-2.0
"""OpenCV's detector for DB networks, `cv2.dnn.TextDetectionModel_DB`."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.resize import Frame
from ocdserve.contract import InvalidInputError
from ocdserve.perf.subjects.competitor import Detect
from ocdserve.perf.subjects.networks import with_flat_map


def load_opencv(threads: int) -> Detect:
    """OpenCV's network, normalisation and post-processing, with the sizes, thresholds and unclip ratio of ours.

    It silently finds nothing in maps of another shape than (height, width), so the network's output is squeezed.
    It runs on the threads of `cv2.setNumThreads`, not on `threads`. It does not dilate the map.
    """
    bundle = Bundle.load()
    network, params = bundle.spec.network, bundle.spec.postprocess
    policy = replace(bundle.spec.resize, tiles=False)
    if len(set(network.std)) > 1 or policy.kind == "letterbox":
        raise InvalidInputError("OpenCV scales all channels by one number and stretches images")
    file = np.frombuffer(with_flat_map(bundle.model_path), np.uint8)
    model: Any = cv2.dnn.TextDetectionModel_DB(cv2.dnn.readNetFromONNX(file))
    model.setBinaryThreshold(params.thresh)
    model.setPolygonThreshold(params.box_thresh)
    model.setUnclipRatio(params.unclip_ratio)
    model.setMaxCandidates(params.max_candidates)
    model.setInputScale((1 / network.std[0],) * 3)
    model.setInputMean(network.mean)
    model.setInputSwapRB(network.color == "RGB")

    def detect(encoded: bytes) -> NDArray[Any]:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError("OpenCV cannot decode the image")
        height, width = Frame.of(image.shape[0], image.shape[1], policy).network
        model.setInputSize((width, height))
        quads, _ = model.detect(image)
        return np.asarray(quads, np.float32).reshape(-1, 4, 2)

    # Some networks load but fail to run.
    model.setInputSize((64, 64))
    model.detect(np.zeros((64, 64, 3), np.uint8))
    return detect

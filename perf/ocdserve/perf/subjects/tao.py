# SPDX-License-Identifier: Apache-2.0
"""The pipeline that NVIDIA TAO describes for OCDNet, as straightforward Python: one image at a time.

OpenCV decodes to BGR and resizes 32-bit float pixels, bilinear, to 1280 x 736 whatever the aspect; NumPy subtracts the
mean and divides; ONNX Runtime runs the network; a loop over the first 1,000 contours, in OpenCV's order, applies TAO's
rules, and boxes are truncated to whole source pixels. Network, mean and divisor, thresholds and unclip ratio are those
of the default detector, so the pipelines differ in how they work and not in what they look for. TAO does not dilate.
"""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.perf.subjects.baseline import baseline_postprocess
from ocdserve.perf.subjects.competitor import Detect


def load_tao_style(threads: int, stretch: bool = True) -> Detect:
    """With `stretch` at TAO's fixed size of 1280 x 736, otherwise with the default detector's resize policy."""
    import onnxruntime

    bundle = Bundle.load()
    network = bundle.spec.network
    policy = ResizePolicy(kind="fixed", width=1280, height=736) if stretch else replace(bundle.spec.resize, tiles=False)
    params = replace(bundle.spec.postprocess, mode="tao", dilation=False)
    mean, std = np.array(network.mean, np.float32), np.array(network.std, np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(bundle.model_path, options, providers=["CPUExecutionProvider"])
    input_name = session.get_inputs()[0].name

    def detect(encoded: bytes) -> NDArray[Any]:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError("OpenCV cannot decode the image")
        if network.color == "RGB":
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        frame = Frame.of(image.shape[0], image.shape[1], policy)
        resized = cv2.resize(image.astype(np.float32), frame.network[::-1])
        normalised = (resized - mean) / std
        tensor = np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])
        probability = session.run(None, {input_name: tensor})[0][0, 0]
        return baseline_postprocess(probability, frame, params).quads

    return detect

# SPDX-License-Identifier: Apache-2.0
"""Executing graphs that are being built, in ONNX Runtime on the CPU."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ocdserve.backend.network.rewrite.fold import INPUT, OUTPUT


class GraphNetwork:
    """A folded network (`ocdserve.backend.network.rewrite.fold.fold`) that is still a graph; a `Network`.

    Args:
        model: Folded network.
        threads: Cores; None: all that there are.
        faithful: Switch off every optimisation that could take rounding steps out of the graph.
    """

    def __init__(self, model: onnx.ModelProto, threads: int | None = None, faithful: bool = False) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = threads or 0
        if faithful:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        """See `ocdserve.backend.network.protocols.Network.infer`."""
        return [self.infer_batch(image[None])[0] for image in images]

    def infer_batch(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Maps (N, h, w) of images uint8 (N, h, w, 3)."""
        maps: NDArray[Any] = self._session.run([OUTPUT], {INPUT: images})[0]
        return maps


def tensor_shapes(model: onnx.ModelProto, names: Sequence[str], pixels: NDArray[np.uint8]) -> dict[str, list[int]]:
    """Shapes of tensors of a folded network, by executing it.

    Args:
        model: Folded network.
        names: Tensors.
        pixels: uint8 (h, w, 3), an image of the size that is asked for.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    outputs = [f"ocdserve/shape/{index}" for index in range(len(names))]
    for name, output in zip(names, outputs, strict=True):
        probe.graph.node.append(onnx.helper.make_node("Shape", [name], [output]))
        probe.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.INT64, [None]))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(probe.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    values = session.run(outputs, {INPUT: pixels[None]})
    return {name: [int(size) for size in value] for name, value in zip(names, values, strict=True)}

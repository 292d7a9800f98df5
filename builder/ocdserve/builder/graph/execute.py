# SPDX-License-Identifier: Apache-2.0
"""Execution of graphs under construction, in ONNX Runtime on the CPU."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ocdserve.backend.network.rewrite.fold import INPUT, OUTPUT
from ocdserve.backend.spec.detector_spec import NetworkSpec


def cpu_session(model: onnx.ModelProto, threads: int | None = None, arena: bool = True) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        model: Network.
        threads: Cores; None is all.
        arena: Keep memory for reuse.
    """
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads or 0
    settings.enable_cpu_mem_arena = settings.enable_mem_pattern = arena
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def normalised(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], network: NetworkSpec) -> NDArray[np.float32]:
    """RGB images of one size as a network takes them that is not folded, float32 (N, 3, H, W)."""
    pixels = np.asarray(images)
    channels = pixels[..., ::-1] if network.color == "BGR" else pixels
    scaled = (channels - np.array(network.mean, np.float32)) / np.array(network.std, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def with_outputs(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], outputs: Iterable[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """The network with more nodes, and with these outputs instead of its own."""
    result = copy.deepcopy(model)
    result.graph.node.extend(nodes)
    del result.graph.output[:]
    result.graph.output.extend(outputs)
    return result


class GraphNetwork:
    """A folded network (`ocdserve.backend.network.rewrite.fold.fold`) that is still a graph; a `Network`.

    Args:
        model: Folded network.
        threads: Cores; None is all.
    """

    def __init__(self, model: onnx.ModelProto, threads: int | None = None) -> None:
        self._session = cpu_session(model, threads)

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        """See `ocdserve.backend.network.protocols.Network.infer`."""
        return [self.infer_batch(image[None])[0] for image in images]

    def infer_batch(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Maps (N, h, w) of images uint8 (N, h, w, 3)."""
        maps: NDArray[Any] = self._session.run([OUTPUT], {INPUT: images})[0]
        return maps


def tensor_shapes(model: onnx.ModelProto, names: Sequence[str], pixels: NDArray[np.uint8]) -> dict[str, list[int]]:
    """Shapes of tensors of a folded network, found by executing it.

    Args:
        model: Folded network.
        names: Tensors.
        pixels: Image of the reference size, uint8 (h, w, 3).
    """
    outputs = [f"ocdserve/shape/{index}" for index in range(len(names))]
    nodes = [helper.make_node("Shape", [name], [output]) for name, output in zip(names, outputs, strict=True)]
    described = [helper.make_tensor_value_info(output, TensorProto.INT64, [None]) for output in outputs]
    session = cpu_session(with_outputs(model, nodes, described))
    values = session.run(outputs, {session.get_inputs()[0].name: pixels[None]})
    return {name: [int(size) for size in value] for name, value in zip(names, values, strict=True)}

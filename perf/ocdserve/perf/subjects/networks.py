# SPDX-License-Identifier: Apache-2.0
"""Our network file in plain ONNX Runtime, and with the output that other detectors expect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import InvalidInputError

# Squeeze takes its axes as an input since this opset.
_SQUEEZE_INPUT = 13


def without_sigmoid(model: Path, side: int) -> bytes:
    """Our network without its last sigmoid, for squares of `side` pixels: its output are logits.

    Raises:
        InvalidInputError: The network does not end with a sigmoid.
    """
    network = onnx.load(model)
    producers = {name: node for node in network.graph.node for name in node.output}
    node = producers[network.graph.output[0].name]
    while node.op_type == "Identity":
        node = producers[node.input[0]]
    if node.op_type != "Sigmoid":
        raise InvalidInputError(f"the network must end with a sigmoid; {model.name} ends with {node.op_type}")
    network.graph.output[0].name = node.input[0]
    for dimension in network.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = side
    return bytes(network.SerializeToString())


def with_flat_map(model: Path) -> bytes:
    """Our network for one image, whose output has the shape (height, width)."""
    network = onnx.load(model)
    output = network.graph.output[0]
    (opset,) = (entry.version for entry in network.opset_import if entry.domain in ("", "ai.onnx"))
    name = f"{output.name}_flat"
    if opset < _SQUEEZE_INPUT:
        node = helper.make_node("Squeeze", [output.name], [name], axes=[0, 1])
    else:
        axes = numpy_helper.from_array(np.array([0, 1], np.int64), f"{name}_axes")
        network.graph.initializer.append(axes)
        node = helper.make_node("Squeeze", [output.name, axes.name], [name])
    network.graph.node.append(node)
    output.name = name
    del output.type.tensor_type.shape.dim[:2]
    return bytes(network.SerializeToString())


def plain_onnxruntime(bundle: Bundle, threads: int, page: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
    """Executes a bundle's file as it is, for one page, with all of ONNX Runtime's optimisations and its defaults.

    Args:
        bundle: Its network takes float32 (N, 3, H, W).
        threads: For the network.
        page: RGB pixels (H, W, 3), which are normalised once, not in each call.

    Returns:
        A function that returns the probability map (1, 1, H, W).
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(bundle.model_path), settings, providers=["CPUExecutionProvider"])
    network = bundle.spec.network
    ordered = page[..., ::-1] if network.color == "BGR" else page
    normalised = (ordered - np.array(network.mean, np.float32)) / np.array(network.std, np.float32)
    inputs: dict[str, Any] = {
        network.input or session.get_inputs()[0].name: normalised.transpose(2, 0, 1)[None].astype(np.float32)
    }
    outputs = [network.output or session.get_outputs()[0].name]

    def execute() -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(outputs, inputs)[0]
        return found

    return execute

# SPDX-License-Identifier: Apache-2.0
"""Simplification of an exported graph, without a change of its result.

Constants are folded, identities dropped, and per-channel arithmetic after a convolution (an added bias, a factor, a
batch normalisation) is merged into its weights: quantisation must see the effective weights, and nothing may stand
between convolution and activation.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

_CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Simplified:
    """A simplified network.

    Attributes:
        model: The network; inputs and outputs keep their names.
        aliases: Removed tensors, and the tensor with the same values by name of each. Calibration caches made for the
            network as exported may use either name.
    """

    model: onnx.ModelProto
    aliases: dict[str, str]


def simplify(model: onnx.ModelProto) -> Simplified:
    """Fold constants, drop identities, merge per-channel arithmetic into convolutions."""
    graph = gs.import_onnx(_fold_constants(model))
    _name_nodes(graph)
    aliases = _drop_identities(graph)
    while any([_merge_next(graph, node) for node in graph.nodes if node.op in _CONVOLUTIONS]):
        graph.cleanup()
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    result = gs.export_onnx(graph)
    result.ir_version = model.ir_version
    return Simplified(result, aliases)


def _fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    # polygraphy reports every missing optional package on standard output, and may install them.
    from polygraphy.backend.onnx import fold_constants
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        folded: onnx.ModelProto = fold_constants(copy.deepcopy(model), allow_onnxruntime_shape_inference=False)
    return folded


def _name_nodes(graph: gs.Graph) -> None:
    """Give every node a unique name, which reports and precision choices refer to."""
    taken = {node.name for node in graph.nodes}
    seen: set[str] = set()
    for node in graph.nodes:
        if not node.name or node.name in seen:
            stem = node.name or f"{node.op}:{node.outputs[0].name}"
            number, name = 2, stem
            while name in taken:
                name, number = f"{stem}_{number}", number + 1
            node.name = name
            taken.add(name)
        seen.add(node.name)


def _drop_identities(graph: gs.Graph) -> dict[str, str]:
    aliases: dict[str, str] = {}
    results = {id(tensor) for tensor in graph.outputs}
    for node in list(graph.nodes):
        if node.op != "Identity":
            continue
        source, copy = node.inputs[0], node.outputs[0]
        if id(copy) not in results:
            for consumer in list(copy.outputs):
                consumer.inputs = [source if tensor is copy else tensor for tensor in consumer.inputs]
            kept, gone = source, copy
        elif source.inputs and id(source) not in results:
            # The graph's output keeps its name: the node before now computes it.
            producer = source.inputs[0]
            for consumer in [consumer for consumer in source.outputs if consumer is not node]:
                consumer.inputs = [copy if tensor is source else tensor for tensor in consumer.inputs]
            producer.outputs = [copy if tensor is source else tensor for tensor in producer.outputs]
            kept, gone = copy, source
        else:
            continue
        node.inputs.clear()
        if id(copy) not in results:
            node.outputs.clear()
        else:
            copy.inputs = [producer]
        aliases[gone.name] = kept.name
    return {name: _resolved(aliases, name) for name in aliases}


def _resolved(aliases: dict[str, str], name: str) -> str:
    while name in aliases:
        name = aliases[name]
    return name


def _merge_next(graph: gs.Graph, node: gs.Node) -> bool:
    """Merge the node after a convolution into it if it is per-channel arithmetic; returns whether it was."""
    output = node.outputs[0]
    weights = node.inputs[1]
    followers = output.outputs
    if len(followers) != 1 or not isinstance(weights, gs.Constant) or any(output is item for item in graph.outputs):
        return False
    group = node.attrs.get("group", 1)
    if node.op == "ConvTranspose" and group != 1:
        return False
    channels = weights.shape[0] if node.op == "Conv" else weights.shape[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not isinstance(bias, gs.Constant):
        return False
    affine = _affine(followers[0], output, channels)
    if affine is None:
        return False
    factor, shift = affine
    along = (-1, 1, 1, 1) if node.op == "Conv" else (1, -1, 1, 1)
    kind = weights.values.dtype
    old_bias = np.zeros(channels) if bias is None else bias.values.astype(np.float64)
    node.inputs = [
        node.inputs[0],
        gs.Constant(f"{node.name}.weight", (weights.values * factor.reshape(along)).astype(kind)),
        gs.Constant(f"{node.name}.bias", (old_bias * factor + shift).astype(kind)),
    ]
    last = followers[0]
    result = last.outputs[0]
    last.outputs.clear()
    node.outputs = [result]
    return True


def _affine(node: gs.Node, source: gs.Tensor, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Factor and shift per channel, float64 (channels,) each, of a node that computes only that; else None."""
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op == "BatchNormalization" and node.inputs[0] is source and len(node.outputs) == 1:
        if not all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:]):
            return None
        gamma, beta, mean, variance = (tensor.values.astype(np.float64) for tensor in node.inputs[1:])
        factor = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return factor, beta - mean * factor
    merge: dict[str, Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]] = {
        "Add": lambda value: (ones, value),
        "Mul": lambda value: (value, zeros),
    }
    if node.op not in merge or len(node.inputs) != 2:
        return None
    other = node.inputs[1] if node.inputs[0] is source else node.inputs[0]
    if not isinstance(other, gs.Constant):
        return None
    value = other.values.astype(np.float64)
    # Right-aligned broadcasting against N x C x H x W: only the channel axis may differ from 1, and no axis may be
    # added in front.
    shape = (1,) * (4 - value.ndim) + value.shape
    if len(shape) != 4 or shape[0] != 1 or shape[2:] != (1, 1) or shape[1] not in (1, channels):
        return None
    return merge[node.op](np.broadcast_to(value.reshape(-1), (channels,)))

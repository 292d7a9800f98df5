# SPDX-License-Identifier: Apache-2.0
"""Explicit quantisation: placement of QuantizeLinear and DequantizeLinear, and their insertion into the graph.

The placement is the one that TensorRT fuses into INT8 kernels:

- a convolution's input (one scale per tensor) and its weights (one scale per output channel), symmetric; never its
  output or bias, and nothing between a convolution and its activation;
- at a residual addition whose sum is quantised, the input that does not come from a convolution, so that
  convolution, addition and activation are one kernel;
- one scale for all tensors of a concatenation.
"""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ocdserve.contract import InvalidInputError

Kind = Literal["convolution", "depthwise", "stem", "transposed", "pooled", "last", "residual"]
Format = Literal["int8", "fp8"]

# Kinds excluded from quantisation: sensitive with little arithmetic (stem, depthwise, last), without fast kernels
# (transposed), or of a single pixel (pooled: the gates of squeeze-and-excitation).
SENSITIVE: tuple[Kind, ...] = ("stem", "depthwise", "transposed", "pooled", "last")

# The largest value of the 8-bit format: scale = largest magnitude / this.
LARGEST = {"int8": 127.0, "fp8": 448.0}
_ELEMENT = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}

_LARGEST_OPENVINO_WEIGHT = 63.0
# OpenVINO 2026.4 moves the scale of a quantised convolution without bias behind a following GlobalAveragePool, where it
# is lost: on a processor without VNNI the mean was 1e-5 of its value. A bias keeps the scale in place; this one is too
# small to have an effect, and zeros would be dropped.
_NO_BIAS = 1e-20

_CONVOLUTIONS = ("Conv", "ConvTranspose")
# Activations that may directly follow a convolution.
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh")
_STEM_CHANNELS = 4


@dataclass(frozen=True)
class Layer:
    """A layer that can be quantised.

    Attributes:
        name: Name of the node, a convolution or a residual addition.
        kind: Kind of layer.
        tensor: Activation that is quantised.
        macs: Multiplications for one image of the reference size; 0 for an addition.
    """

    name: str
    kind: Kind
    tensor: str
    macs: int


def layers(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> tuple[Layer, ...]:
    """All layers of a network that can be quantised, in the graph's order.

    Args:
        model: Simplified network (`ocdserve.builder.graph.simplify`).
        shapes: Shape of the inputs and outputs of its convolutions, for one image of the reference size.
    """
    graph = gs.import_onnx(model)
    found = []
    for node in graph.nodes:
        if node.op in _CONVOLUTIONS and isinstance(node.inputs[1], gs.Constant):
            source = node.inputs[0].name
            found.append(Layer(node.name, _kind(node, shapes[source]), source, _macs(node, shapes)))
        elif node.op == "Add":
            skip = _skip_input(node)
            if skip is not None:
                found.append(Layer(node.name, "residual", skip.name, 0))
    return tuple(found)


def share(chosen: Iterable[Layer], everything: Iterable[Layer]) -> float:
    """Fraction of the multiplications of `everything` that `chosen` has."""
    total = sum(layer.macs for layer in everything)
    return sum(layer.macs for layer in chosen) / total if total else 0.0


def placement(
    model: onnx.ModelProto,
    candidates: Iterable[Layer],
    keep: Collection[str] = (),
    force: Collection[str] = (),
) -> tuple[Layer, ...]:
    """The layers that are quantised: all but the `SENSITIVE` kinds.

    Args:
        model: The network of the candidates.
        candidates: From `layers`.
        keep: Names of layers to exclude.
        force: Names of layers to quantise although their kind is excluded.

    Raises:
        InvalidInputError: `keep` names a layer that the network does not have.
    """
    candidates = tuple(candidates)
    unknown = sorted(set(keep) - {layer.name for layer in candidates})
    if unknown:
        raise InvalidInputError(
            f"the network has no layers {', '.join(unknown[:5])} that could be kept; `ocdserve build --explain` "
            "lists the names"
        )
    open_ = [
        layer for layer in candidates if layer.name not in keep and (layer.kind not in SENSITIVE or layer.name in force)
    ]
    convolutions = [layer for layer in open_ if layer.kind != "residual"]
    # A skip input is quantised only if the sum is too, otherwise nothing would run in 8 bits.
    quantised = {layer.tensor for layer in convolutions}
    sums = {node.name: _after_activation(node) for node in gs.import_onnx(model).nodes if node.op == "Add"}
    return tuple(layer for layer in open_ if layer.kind != "residual" or sums[layer.name] & quantised)


def equal_scales(model: onnx.ModelProto, scales: Mapping[str, float]) -> dict[str, float]:
    """The scales, raised to the largest among the tensors of each concatenation."""
    result = dict(scales)
    for node in model.graph.node:
        if node.op_type == "Concat" and node.output[0] in result:
            joined = [name for name in (*node.input, *node.output) if name in result]
            largest = max(result[name] for name in joined)
            result.update(dict.fromkeys(joined, largest))
    return result


def quantise(
    model: onnx.ModelProto,
    chosen: Collection[Layer],
    scales: Mapping[str, float],
    number_format: Format = "int8",
    openvino: bool = False,
) -> onnx.ModelProto:
    """Insert QuantizeLinear and DequantizeLinear around the chosen layers.

    Weights are stored in 8 bits with one scale per output channel (axis 0), followed by DequantizeLinear.

    Args:
        model: Simplified network, opset 19 or later.
        chosen: Layers to quantise.
        scales: Scale of each of their tensors: largest magnitude / 127 (int8) or / 448 (fp8 E4M3).
        number_format: The 8-bit format.
        openvino: Write a form that OpenVINO computes equally on every processor, int8 only: activations are uint8 with
            the zero point 128, which is the same grid; weights have 7 bits (at most 63), because processors without
            VNNI add two products in 16 bits, which would saturate; every quantised convolution has a bias, see
            `_NO_BIAS`.

    Raises:
        InvalidInputError: A scale is missing or not positive.
    """
    scales = equal_scales(model, _checked_scales({layer.tensor for layer in chosen}, scales))
    result = copy.deepcopy(model)
    graph = result.graph
    element, zero = (TensorProto.UINT8, 128) if openvino else (_ELEMENT[number_format], 0)
    pairs = {name: _activation_pair(graph, name, scale, element, zero) for name, scale in sorted(scales.items())}
    largest = _LARGEST_OPENVINO_WEIGHT if openvino else LARGEST[number_format]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    tensors = {layer.name: layer.tensor for layer in chosen}
    weight_nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        tensor = tensors.get(node.name)
        if tensor is None:
            continue
        node.input[:] = [f"{tensor}/dequantised" if source == tensor else source for source in node.input]
        if node.op_type in _CONVOLUTIONS:
            weights = onnx.numpy_helper.to_array(constants[node.input[1]])
            weight_nodes.append(_weight_node(graph, node.name, weights, number_format, largest))
            node.input[1] = weight_nodes[-1].output[0]
            if openvino and len(node.input) == 2:
                node.input.append(_no_bias(graph, node))
    _replace_nodes(graph, _in_order(graph, pairs, weight_nodes))
    return result


def _checked_scales(tensors: Collection[str], scales: Mapping[str, float]) -> dict[str, float]:
    """The scales of these tensors, exact in FP16."""
    bad = sorted(name for name in tensors if not (np.isfinite(scales.get(name, np.nan)) and scales[name] > 0))
    if bad:
        raise InvalidInputError(
            f"{len(bad)} tensors have no scale that is a positive number, the first are {', '.join(bad[:3])}; "
            "calibrate with this network's own images"
        )
    return {name: float(_exact_in_float16(np.float32(scales[name]))) for name in tensors}


def _in_order(
    graph: onnx.GraphProto, pairs: Mapping[str, list[onnx.NodeProto]], weight_nodes: list[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """All nodes, each pair after the node that produces its tensor."""
    producers = {output for node in graph.node for output in node.output}
    ordered = [node for name, pair in pairs.items() if name not in producers for node in pair] + weight_nodes
    for node in graph.node:
        ordered.append(node)
        for output in node.output:
            ordered.extend(pairs.get(output, ()))
    return ordered


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replace the graph's nodes, and drop the constants that none of the new ones reads."""
    read = {source for node in nodes for source in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    # Copies: emptying a graph's list would empty the messages that are still in it.
    fresh = onnx.GraphProto(node=nodes, initializer=constants)
    del graph.node[:]
    del graph.initializer[:]
    graph.MergeFrom(fresh)


def _activation_pair(graph: onnx.GraphProto, name: str, scale: float, element: int, zero: int) -> list[onnx.NodeProto]:
    constants = [f"{name}/scale", f"{name}/zero"]
    graph.initializer.append(helper.make_tensor(constants[0], TensorProto.FLOAT, [], [scale]))
    graph.initializer.append(helper.make_tensor(constants[1], element, [], [zero]))
    return [
        helper.make_node("QuantizeLinear", [name, *constants], [f"{name}/quantised"], name=f"{name}/quantise"),
        helper.make_node(
            "DequantizeLinear",
            [f"{name}/quantised", *constants],
            [f"{name}/dequantised"],
            name=f"{name}/dequantise",
        ),
    ]


def _weight_node(
    graph: onnx.GraphProto, node: str, weights: NDArray[np.float32], number_format: Format, largest: float
) -> onnx.NodeProto:
    magnitudes = np.abs(weights).reshape(len(weights), -1).max(axis=1).astype(np.float64)
    scale = _exact_in_float16(np.where(magnitudes > 0, magnitudes / largest, 1.0).astype(np.float32))
    levels = weights / scale.reshape(-1, *[1] * (weights.ndim - 1))
    names = [f"{node}.weight/{part}" for part in ("quantised", "scale", "zero")]
    if number_format == "int8":
        whole = np.clip(np.rint(levels), -largest, largest).astype(np.int8)
        graph.initializer.append(onnx.numpy_helper.from_array(whole, names[0]))
    else:
        flat = levels.astype(np.float32).ravel()
        graph.initializer.append(helper.make_tensor(names[0], _ELEMENT[number_format], weights.shape, flat))
    graph.initializer.append(onnx.numpy_helper.from_array(scale, names[1]))
    graph.initializer.append(helper.make_tensor(names[2], _ELEMENT[number_format], [len(scale)], [0] * len(scale)))
    return helper.make_node(
        "DequantizeLinear", names, [f"{node}.weight/dequantised"], name=f"{node}.weight/dequantise", axis=0
    )


def _exact_in_float16(scale: Any) -> Any:
    """Round scales below 2^-14, where FP16 is subnormal, up to the next FP16 number.

    Otherwise they would lose bits in FP16, DequantizeLinear would stay FP32, and the cast between it and the
    convolution would keep TensorRT from an INT8 convolution. For larger scales the rounding error is below their own
    uncertainty.
    """
    return np.where(scale < 2.0**-14, np.ceil(scale * 2.0**24) / 2.0**24, scale).astype(np.float32)


def _no_bias(graph: onnx.GraphProto, node: onnx.NodeProto) -> str:
    weights = next(tensor for tensor in graph.initializer if tensor.name == f"{node.name}.weight/quantised")
    group = next((item.i for item in node.attribute if item.name == "group"), 1)
    channels = weights.dims[0] if node.op_type == "Conv" else weights.dims[1] * group
    graph.initializer.append(onnx.numpy_helper.from_array(np.full(channels, _NO_BIAS, np.float32), f"{node.name}.bias"))
    return f"{node.name}.bias"


def _kind(node: gs.Node, input_shape: Sequence[int]) -> Kind:
    channels = input_shape[1]
    group = node.attrs.get("group", 1)
    if node.op == "ConvTranspose":
        return "transposed"
    if channels <= _STEM_CHANNELS:
        return "stem"
    if group > 1 and group == channels:
        return "depthwise"
    if tuple(input_shape[2:]) == (1, 1):
        return "pooled"
    if _makes_probability(node):
        return "last"
    return "convolution"


def _makes_probability(node: gs.Node) -> bool:
    """Whether a convolution has one channel, which only a sigmoid reads."""
    followers = node.outputs[0].outputs
    return node.inputs[1].shape[0] == 1 and [item.op for item in followers] == ["Sigmoid"]


def _macs(node: gs.Node, shapes: Mapping[str, Sequence[int]]) -> int:
    """Multiplications for one image: weights times output pixels or, if transposed, input pixels."""
    weights = node.inputs[1].shape
    pixels = shapes[node.inputs[0].name if node.op == "ConvTranspose" else node.outputs[0].name][2:]
    return int(np.prod(weights) * np.prod(pixels))


def _skip_input(node: gs.Node) -> gs.Tensor | None:
    """The input of a residual addition that is not a convolution's output; None for other additions."""
    first, second = node.inputs
    if isinstance(first, gs.Constant) or isinstance(second, gs.Constant) or first is second:
        return None
    from_convolution = [_ends_convolution(tensor) for tensor in (first, second)]
    if not any(from_convolution):
        return None
    return first if from_convolution[1] else second


def _ends_convolution(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a convolution's output with a single reader, so that both can be one kernel."""
    return len(tensor.outputs) == 1 and bool(tensor.inputs) and tensor.inputs[0].op == "Conv"


def _after_activation(node: gs.Node) -> set[str]:
    """Names of a node's output, and of the outputs of activations directly after it."""
    names = {node.outputs[0].name}
    for follower in node.outputs[0].outputs:
        if follower.op in _ACTIVATIONS:
            names.add(follower.outputs[0].name)
    return names

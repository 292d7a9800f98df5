# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a graph compute in FP16.

TensorRT 11 derives every precision from the graph's types. `float16_write` applies a plan as types, or as an FP32 graph
that rounds the same tensors.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from ocdserve.backend.network.rewrite.graph_reader import attributes_of
from ocdserve.builder.graph.tensor_types import (
    OPSET,
    allows_float16,
    constant_tensors,
    element_types,
    formal_types,
    node_key,
    node_name,
    opset_of,
    pinned_names,
    schema_of,
    subgraphs,
)
from ocdserve.contract import InvalidInputError

FLOAT16_MAX = 65504.0
# Twice the relative rounding error of a normal number; larger errors come from subnormals.
_MAX_ROUNDING_ERROR = 2.0**-10

# Operators that select values of their input, so that rounding commutes with them: they have their input's type.
_LAYOUT = frozenset(
    {"DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze"}
    | {"Tile", "Transpose", "Unsqueeze"}
)
MOVING = _LAYOUT | {"Concat", "MaxPool", "Relu"}
_NORMALISING = frozenset({"Add", "Cast", "Div", "Mul", "Sub"})
_QUANTISING_OUTPUT = frozenset({"Add", "Cast", "Ceil", "Clip", "Div", "Floor", "Mul", "Round", "Sub"})
_POSITIONS = frozenset({"ConstantOfShape", "NonZero", "Range", "Shape", "Size"})
# Inputs that may have another type than the node, and whose values need FP32.
_FLOAT32_INPUTS = {"BatchNormalization": (1, 2, 3, 4), "Resize": (1, 2)}
# A bias is added to a far larger sum: its loss in subnormals does not matter.
_BIASES = {"Conv": 2, "ConvTranspose": 2, "DeformConv": 3, "Gemm": 2}


@dataclass(frozen=True)
class Float16Plan:
    """Which nodes of a graph compute in FP16.

    Nodes without a name are identified by their first output.

    Attributes:
        model: The FP32 graph, with all constants as initialisers and no Identity after them.
        nodes: For each node that computes in FP16, by first output: indices of its FP16 inputs.
        made: Outputs of these nodes.
        read: FP32 tensors that these nodes read, constants included.
    """

    model: onnx.ModelProto
    nodes: Mapping[str, tuple[int, ...]]
    made: frozenset[str]
    read: frozenset[str]


def float16_plan(model: onnx.ModelProto, keep_float32: Collection[str] = ()) -> Float16Plan:
    """Decide which nodes compute in FP16: all with float tensors, except

    - the nodes in `keep_float32`, and unknown operators, subgraphs and operators without an FP16 form;
    - normalisation before the network, and the conversion of the map to integers after it;
    - arithmetic of shapes and positions, and GridSample: the eleven bits of FP16 are too few for a coordinate, and
      TensorRT requires the image to have the type of the grid;
    - nodes with a constant that FP16 cannot hold: beyond 65504, or so small that it loses bits;
    - nodes that only move or select values of an FP32 tensor (Identity, Transpose, Relu, MaxPool...), and integer
      results of FP32 tensors, as of QuantizeLinear after the normalisation.

    Args:
        model: FP32 network of opset 19 or later, with or without QuantizeLinear and DequantizeLinear.
        keep_float32: Nodes that stay FP32.

    Raises:
        InvalidInputError: The opset is too old, or a node in `keep_float32` does not exist.
    """
    opset = opset_of(model)
    if opset < OPSET:
        raise InvalidInputError(
            f"FP16 needs opset {OPSET}, where DequantizeLinear can return FP16; got opset {opset}. "
            "Convert the network with onnx.version_converter first."
        )
    unknown = sorted(set(keep_float32) - {node_name(node) for node in model.graph.node})
    if unknown:
        raise InvalidInputError(f"keep_float32: the network has no nodes called {', '.join(unknown[:5])}")
    return _Planner(_tidied(model), opset, frozenset(keep_float32)).plan()


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constant nodes as initialisers, without Identity between a constant and its readers or Cast from FP32 to FP32."""
    result = copy.deepcopy(model)
    graph = result.graph
    types = element_types(result)
    needed = pinned_names(graph)
    constants = constant_tensors(graph)
    names: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        if node.op_type == "Cast" and types.get(node.input[0]) == types.get(node.output[0]) == TensorProto.FLOAT:
            node.op_type = "Identity"
            del node.attribute[:]
        value = _constant_value(node)
        if value is not None:
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            constants[node.output[0]] = graph.initializer[-1]
        elif node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in needed:
            names[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _constant_value(node: onnx.NodeProto) -> NDArray[Any] | None:
    if node.op_type != "Constant":
        return None
    attributes = attributes_of(node)
    if "value" in attributes:
        return numpy_helper.to_array(attributes["value"])
    value = attributes.get("value_float", attributes.get("value_floats"))
    return None if value is None else np.array(value, np.float32)


def _fits_float16(values: NDArray[Any], each: bool, is_bias: bool) -> bool:
    """Whether FP16 can hold a constant: no value is beyond its range and, except in a bias, none loses bits.

    Small values next to large ones may vanish: the error is relative to the whole tensor, or to each value if `each`.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if np.abs(finite).max(initial=0.0) > FLOAT16_MAX:
        return False
    errors, sizes = np.abs(finite - finite.astype(np.float16)), np.abs(finite)
    if not each:
        errors, sizes = np.sqrt(np.square(errors).sum(keepdims=True)), np.sqrt(np.square(sizes).sum(keepdims=True))
    return is_bias or not (errors > _MAX_ROUNDING_ERROR * sizes).any()


class _Planner:
    """Decides node by node, in the graph's order."""

    def __init__(self, model: onnx.ModelProto, opset: int, named: frozenset[str]) -> None:
        self._model = model
        self._opset = opset
        self._named = named
        self._types = element_types(model)
        self._constants = constant_tensors(model.graph)
        self._front = self._normalisation()
        self._tail = self._output_quantisation()
        self._positions = self._position_tensors()

    def plan(self) -> Float16Plan:
        can = {node_key(node): self._can_compute(node) for node in self._model.graph.node}
        readers: dict[str, list[bool]] = {}
        for node in self._model.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(can[node_key(node)])
        nodes: dict[str, tuple[int, ...]] = {}
        made: set[str] = set()
        read: set[str] = set()
        for node in self._model.graph.node:
            if not can[node_key(node)] or not self._floats([*node.input, *node.output]):
                continue
            indices = self._float16_inputs(node) or ()
            inputs = [node.input[index] for index in indices]
            moved = [name in made for name in inputs if name not in self._constants]
            if self._follows_float32(node, moved, readers.get(node.output[0], [])):
                continue
            nodes[node_key(node)] = indices
            made.update(self._floats(node.output))
            read.update(name for name in inputs if name not in made)
        return Float16Plan(self._model, nodes, frozenset(made), frozenset(read))

    def _follows_float32(self, node: onnx.NodeProto, moved: list[bool], readers: list[bool]) -> bool:
        """Whether a node that can compute in FP16 stays FP32 because of its neighbours.

        Args:
            node: The node.
            moved: For each of its variable inputs that FP16 is possible for, whether an FP16 node makes it.
            readers: For each node that reads its output, whether it can compute in FP16.
        """
        if not self._floats(node.output) and not (moved and all(moved)):
            return True
        if node.op_type in MOVING and moved and not any(moved):
            return True
        return node.op_type == "DequantizeLinear" and bool(readers) and not any(readers)

    def _can_compute(self, node: onnx.NodeProto) -> bool:
        """Whether a node can compute in FP16, regardless of its neighbours."""
        if node_name(node) in self._named or any(subgraphs(node)) or node.op_type == "GridSample":
            return False
        if node_key(node) in self._front | self._tail or self._positions.intersection(self._floats(node.output)):
            return False
        inputs = self._float16_inputs(node)
        return inputs is not None and self._constants_fit(node, inputs)

    def _float16_inputs(self, node: onnx.NodeProto) -> tuple[int, ...] | None:
        """Indices of the inputs that are FP16 if the node computes in FP16; None if it cannot."""
        schema = schema_of(node, self._opset)
        if schema is None or any(name and name not in self._types for name in node.output):
            return None
        parameters = formal_types(schema, "inputs", len(node.input))
        fixed = _FLOAT32_INPUTS.get(node.op_type, ())
        inputs = tuple(
            index
            for index, name in enumerate(node.input)
            if self._floats([name]) and index not in fixed and allows_float16(schema, parameters[index])
        )
        results = zip(node.output, formal_types(schema, "outputs", len(node.output)), strict=True)
        followed = {parameters[index] for index in inputs}
        follows = all(parameter in followed for name, parameter in results if self._floats([name]))
        return inputs if inputs and follows else None

    def _constants_fit(self, node: onnx.NodeProto, inputs: tuple[int, ...]) -> bool:
        scales, bias = node.op_type in ("QuantizeLinear", "DequantizeLinear"), _BIASES.get(node.op_type)
        constants = {
            index: self._constants[node.input[index]] for index in inputs if node.input[index] in self._constants
        }
        return all(
            _fits_float16(numpy_helper.to_array(tensor), each=scales, is_bias=index == bias)
            for index, tensor in constants.items()
        )

    def _floats(self, names: Collection[str]) -> list[str]:
        return [name for name in names if name and self._types.get(name) == TensorProto.FLOAT]

    def _variable(self, node: onnx.NodeProto) -> list[str]:
        return [name for name in node.input if name and name not in self._constants]

    def _normalisation(self) -> set[str]:
        """Nodes between the graph's inputs and the first one that is not arithmetic with constants."""
        reached = {value.name for value in self._model.graph.input}
        keys = set()
        for node in self._model.graph.node:
            inputs = self._variable(node)
            if node.op_type in _LAYOUT | _NORMALISING and len(inputs) == 1 and inputs[0] in reached:
                reached.update(node.output)
                keys.add(node_key(node))
        return keys

    def _output_quantisation(self) -> set[str]:
        """Nodes that compute an integer output of the graph by arithmetic with constants."""
        outputs = [value.name for value in self._model.graph.output]
        wanted = set(outputs).difference(self._floats(outputs))
        keys = set()
        for node in reversed(self._model.graph.node):
            inputs = self._variable(node)
            if node.op_type in _QUANTISING_OUTPUT and len(inputs) == 1 and wanted.intersection(node.output):
                wanted.update(inputs)
                keys.add(node_key(node))
        return keys

    def _position_tensors(self) -> set[str]:
        """Tensors that depend on shapes and constants only."""
        names: set[str] = set()
        for node in self._model.graph.node:
            inputs = self._variable(node)
            if node.op_type in _POSITIONS or (inputs and names.issuperset(inputs)):
                names.update(node.output)
        return names

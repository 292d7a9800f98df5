# SPDX-License-Identifier: Apache-2.0
"""An ONNX network as a trainable PyTorch module, and its weights back in the same ONNX."""

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from ocdserve.backend.network.rewrite.graph_reader import GraphReader, attributes_of
from ocdserve.builder.graph.deformable import coordinate_nodes
from ocdserve.builder.graph.tensor_types import node_name
from ocdserve.builder.train.graph_layers import LAYERS, WEIGHT_INPUTS
from ocdserve.builder.train.graph_operators import OPERATORS, UnsupportedNodeError, padded
from ocdserve.contract import InvalidInputError

# By operator: the inputs that are trained where they are constants. Of arithmetic only vectors are: a scalar is part of
# a formula, a map holds positions.
_TRAINED = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "BatchNormalization": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
}
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
# What only moves values, so that a sigmoid before it may as well come after it.
_MOVES = ("Identity", "Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Concat")

_EPSILON = 1e-6
# Element types of the short forms of `Constant`.
_KINDS = {"value_float": np.float32, "value_floats": np.float32}


@dataclass(frozen=True)
class _Step:
    """A node as it is executed.

    Attributes:
        node: Its name, for messages.
        operator: Its type.
        inputs: Names of its inputs, "" where one is omitted.
        outputs: Names of its outputs.
        attributes: Its attributes, and the number of its `outputs`.
        layer: Key of the layer with its weights, or None.
        last: Tensors that no later step reads.
    """

    node: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    layer: str | None
    last: tuple[str, ...]


class GraphModule(nn.Module):
    """A DB network, any that `ocdserve.builder.graph.describe` accepts, executed node by node.

    Convolutions, linear layers and batch normalisations are PyTorch's own modules in `layers`, where tools that look
    for these find them; other weights are in `vectors`. Scalars and maps of positions are constants.

    Args:
        model: float32 network with one image N x 3 x H x W as input and one probability map N x 1 x H x W as output.

    Raises:
        InvalidInputError: An operator has no form in PyTorch here; the message names its nodes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        model = self.model = _unshared(model)
        self.layers = nn.ModuleDict()
        self.vectors = nn.ParameterDict()
        self.constants = nn.Module()
        # Of tensors of the graph: the key of a vector or constant; of weights, their name in `state_dict`, and whether
        # they are transposed there.
        self._vector_keys: dict[str, str] = {}
        self._constant_keys: dict[str, str] = {}
        self._homes: dict[str, tuple[str, bool]] = {}
        values = {name: np.array(numpy_helper.to_array(tensor)) for name, tensor in _tensors(model)}
        (self.input,) = (value.name for value in model.graph.input if value.name not in values)
        (self.output,) = (value.name for value in model.graph.output)
        self._steps = self._compiled(model, values)
        self._sigmoid = _last_sigmoid(model.graph)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: float32 (N, 3, H, W), normalised.

        Returns:
            (N, 1, H, W): logits of the probability in training mode, else the probability.
        """
        values = {self.input: x}
        for step in self._steps:
            try:
                self._run(step, values)
            except UnsupportedNodeError as error:
                raise InvalidInputError(f"node {step.node!r}, {step.operator}, cannot be trained: {error}") from error
        result = values[self.output]
        return torch.logit(result, eps=_EPSILON) if self.training and self._sigmoid is None else result

    def _run(self, step: _Step, values: dict[str, Tensor]) -> None:
        inputs = [self._value(name, values) for name in step.inputs]
        results: Any
        if self.training and step.outputs[0] == self._sigmoid:
            results = inputs[0]
        elif step.layer is not None:
            x, *others = inputs
            assert x is not None
            results = self.layers[step.layer](padded(x, step.attributes) if step.operator == "Conv" else x, *others)
        else:
            results = OPERATORS[step.operator](inputs, step.attributes)
        values.update(zip(step.outputs, results if isinstance(results, tuple) else (results,), strict=False))
        for name in step.last:
            values.pop(name, None)

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Tensor | None:
        if not name:
            return None
        if name in self._vector_keys:
            return self.vectors[self._vector_keys[name]]
        if name in self._constant_keys:
            return getattr(self.constants, self._constant_keys[name])
        return values[name]

    def _compiled(self, model: onnx.ModelProto, values: dict[str, NDArray[Any]]) -> tuple[_Step, ...]:
        """The steps of the graph; their weights become parameters, their constants buffers."""
        graph = model.graph
        known = {*OPERATORS, *LAYERS, "Constant"}
        unknown = [f"{node_name(node)!r} ({node.op_type})" for node in graph.node if node.op_type not in known]
        if unknown:
            raise InvalidInputError(
                f"the network cannot be trained: {', '.join(unknown[:5])} "
                f"{'has' if len(unknown) == 1 else 'have'} no form in PyTorch here. Train where it was made, or export "
                "it in FP32 with plain operators."
            )
        positions = coordinate_nodes(model)
        copies = _copies(graph, values)
        nodes = [node for node in graph.node if node.op_type != "Constant" and node.output[0] not in copies]
        reads = [tuple(copies.get(name, name) for name in node.input) for node in nodes]
        last_reader = {name: index for index, inputs in enumerate(reads) for name in inputs if name}
        last_reader.pop(self.output, None)
        steps = []
        for index, (node, inputs) in enumerate(zip(nodes, reads, strict=True)):
            attributes = {**attributes_of(node), "outputs": len(node.output)}
            trained = _trained(node, inputs, values) if node_name(node) not in positions else ()
            layer = self._add_layer(node, inputs, attributes, values)
            if layer is not None:
                inputs = tuple(name for at, name in enumerate(inputs) if at not in _weight_inputs(node))
            for name in inputs:
                if name in values:
                    self._add_value(name, values[name], name in trained)
            last = tuple(name for name in {*inputs} if last_reader.get(name) == index and name not in values)
            steps.append(_Step(node_name(node), node.op_type, inputs, tuple(node.output), attributes, layer, last))
        return tuple(steps)

    def _add_layer(
        self,
        node: onnx.NodeProto,
        inputs: tuple[str, ...],
        attributes: dict[str, Any],
        values: Mapping[str, NDArray[Any]],
    ) -> str | None:
        """Make the layer of a node with weights; None: it has none, and is an operator."""
        if node.op_type not in LAYERS:
            return None
        sources = [inputs[at] for at in _weight_inputs(node) if at < len(inputs)]
        weights = [values.get(name) for name in sources]
        if any(weight is None for name, weight in zip(sources, weights, strict=True) if name):
            if node.op_type in OPERATORS:
                return None
            raise InvalidInputError(
                f"the weights of node {node_name(node)!r} ({node.op_type}) are computed in the graph, as where it is "
                "quantised: give the export in FP32"
            )
        made = LAYERS[node.op_type](weights, attributes)
        if made is None:
            return None
        layer, names = made
        key = _key(node_name(node), self.layers)
        self.layers[key] = layer
        for source, (name, is_transposed) in zip(sources, names, strict=False):
            if source:
                self._homes[source] = f"layers.{key}.{name}", is_transposed
        return key

    def _add_value(self, name: str, value: NDArray[Any], is_trained: bool) -> None:
        tensor = torch.from_numpy(np.array(value, np.float32 if value.dtype.kind == "f" else None))
        if name in self._vector_keys or name in self._constant_keys:
            return
        if is_trained:
            key = self._vector_keys[name] = _key(name, self.vectors)
            self.vectors[key] = nn.Parameter(tensor)
            self._homes[name] = f"vectors.{key}", False
            return
        key = self._constant_keys[name] = f"constant{len(self._constant_keys)}"
        if value.dtype.kind == "f":
            self.constants.register_buffer(key, tensor, persistent=False)
        else:
            setattr(self.constants, key, tensor)


def write_back(module: GraphModule) -> onnx.ModelProto:
    """The module's ONNX with the module's weights; all else is as it was, to the byte.

    Channels that were removed from the module's layers are removed from the ONNX too.
    """
    result = onnx.ModelProto()
    result.CopyFrom(module.model)
    state = module.state_dict()
    is_smaller = False
    for name, tensor in _tensors(result):
        if name not in module._homes:
            continue
        key, is_transposed = module._homes[name]
        before, values = numpy_helper.to_array(tensor), state[key].detach().cpu()
        after = np.ascontiguousarray((values.T if is_transposed else values).numpy(), before.dtype)
        if not np.array_equal(before, after):
            is_smaller |= before.shape != after.shape
            for field in ("float_data", "double_data", "int32_data", "dims"):
                tensor.ClearField(field)
            tensor.dims.extend(after.shape)
            tensor.raw_data = numpy_helper.from_array(after).raw_data
    if is_smaller:
        del result.graph.value_info[:]
        groups = {
            step.outputs[0]: getattr(module.layers[step.layer], "groups", 1) for step in module._steps if step.layer
        }
        for node in result.graph.node:
            for attribute in node.attribute:
                if attribute.name == "group":
                    attribute.i = groups[node.output[0]]
    return result


def _tensors(model: onnx.ModelProto) -> list[tuple[str, onnx.TensorProto]]:
    """Constants of a graph by name, of its `Constant` nodes too."""
    found = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            (attribute,) = node.attribute
            value = helper.get_attribute_value(attribute)
            tensor = (
                value
                if attribute.name == "value"
                else numpy_helper.from_array(np.array(value, _KINDS.get(attribute.name)))
            )
            found.append((node.output[0], tensor))
    return found


def _weight_inputs(node: onnx.NodeProto) -> Sequence[int]:
    return WEIGHT_INPUTS.get(node.op_type, range(1, len(node.input)))


def _copies(graph: onnx.GraphProto, constants: Container[str]) -> dict[str, str]:
    """Outputs of Identity nodes whose input is a constant, and that constant."""
    reader = GraphReader(graph)
    sources = {node.output[0]: reader.source(node.input[0]) for node in graph.node if node.op_type == "Identity"}
    return {name: source for name, source in sources.items() if source in constants}


def _unshared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a constant for each of the layers that share one; without such layers the model itself.

    Exporters merge tensors that are equal by chance, such as a bias and a mean of zeros.
    """
    tensors = dict(_tensors(model))
    copies = _copies(model.graph, tensors)
    uses = Counter(copies.get(name, name) for node in model.graph.node for name in node.input)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        for at in _weight_inputs(node) if node.op_type in LAYERS else ():
            source = copies.get(node.input[at], node.input[at]) if at < len(node.input) else ""
            if source in tensors and uses[source] - sum(copy == source for copy in copies.values()) > 1:
                own = result.graph.initializer.add()
                own.CopyFrom(tensors[source])
                own.name = node.input[at] = f"{source}/{node.output[0]}/{at}"
    return result if len(result.graph.initializer) > len(model.graph.initializer) else model


def _trained(node: onnx.NodeProto, inputs: tuple[str, ...], values: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    """Inputs of a node that are weights."""
    constants = [name if name in values and values[name].dtype.kind == "f" else "" for name in inputs]
    if node.op_type in _ARITHMETIC:
        return tuple(name for name in constants if name and sum(size > 1 for size in values[name].shape) == 1)
    return tuple(constants[index] for index in _TRAINED.get(node.op_type, ()) if index < len(constants))


def _last_sigmoid(graph: onnx.GraphProto) -> str | None:
    """Output of the sigmoid that makes the probabilities, if nothing else reads it; None: something else makes them."""
    producers = {name: node for node in graph.node for name in node.output}
    readers = [name for node in graph.node for name in node.input]
    (name,) = (value.name for value in graph.output)
    while (node := producers.get(name)) is not None:
        if node.op_type == "Sigmoid":
            return name
        if node.op_type not in _MOVES or (node.op_type == "Concat" and len(node.input) > 1):
            return None
        name = node.input[0]
        if readers.count(name) > 1:
            return None
    return None


def _key(name: str, taken: Any) -> str:
    """A key for PyTorch, which takes no dots."""
    key = base = re.sub(r"\W+", "_", name).strip("_") or "unnamed"
    number = 1
    while key in taken:
        number += 1
        key = f"{base}_{number}"
    return key

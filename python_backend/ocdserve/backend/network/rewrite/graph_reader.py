# SPDX-License-Identifier: Apache-2.0
"""Following an ONNX graph backwards, from a tensor to its producer, and copying it with other nodes."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ocdserve.backend.network.rewrite.structure import used_tensors


class GraphReader:
    """Follows a graph from its tensors backwards, through Identity nodes."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._producers = {name: node for node in graph.node for name in node.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}

    def source(self, name: str) -> str:
        """The tensor that this one is a copy of, or the tensor itself."""
        node = self._producers.get(name)
        while node is not None and node.op_type == "Identity":
            name = node.input[0]
            node = self._producers.get(name)
        return name

    def node(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node that produces a tensor, if it is of this kind."""
        node = self._producers.get(self.source(name))
        return node if node is not None and node.op_type == kind else None

    def constant(self, name: str) -> NDArray[np.float32] | None:
        """A float32 constant's value."""
        tensor = self._constants.get(self.source(name))
        value = None if tensor is None else numpy_helper.to_array(tensor)
        return value if value is not None and value.dtype == np.float32 else None


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name; strings are bytes."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def with_nodes(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], constants: Iterable[onnx.TensorProto]
) -> onnx.ModelProto:
    """A copy of a model with these nodes instead of its own, and more constants."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(constants)
    return result


def without_unused_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model without the nodes that no output depends on, in any order; ONNX Runtime executes them."""
    nodes = model.graph.node
    producers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needed: set[int] = set()
    waiting = [value.name for value in model.graph.output]
    while waiting:
        index = producers.get(waiting.pop())
        if index is not None and index not in needed:
            needed.add(index)
            waiting.extend(used_tensors(nodes[index]))
    return with_nodes(model, [nodes[index] for index in sorted(needed)], ())

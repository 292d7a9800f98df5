# SPDX-License-Identifier: Apache-2.0
"""Weights that a file holds as float16, at half the size, as the float32 that all later steps work with."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ocdserve.backend.network.rewrite.graph_reader import attributes_of, with_nodes
from ocdserve.backend.network.rewrite.structure import used_tensors


def with_wide_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with float32 constants in place of casts of float16 constants; these keep the casts' names.

    Args:
        model: A network that `check_structure` accepts.
    """
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in ends}
    halves = {name: tensor for name, tensor in constants.items() if tensor.data_type == TensorProto.FLOAT16}
    wide, nodes = [], []
    for node in model.graph.node:
        is_cast = node.op_type == "Cast" and node.input[0] in halves and node.output[0] not in ends
        if is_cast and attributes_of(node)["to"] == TensorProto.FLOAT:
            value = numpy_helper.to_array(halves[node.input[0]]).astype(np.float32)
            wide.append(numpy_helper.from_array(value, node.output[0]))
        else:
            nodes.append(node)
    if not wide:
        return model
    result = with_nodes(model, nodes, wide)
    unused = halves.keys() - {name for node in nodes for name in used_tensors(node)}
    kept = [tensor for tensor in result.graph.initializer if tensor.name not in unused]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result

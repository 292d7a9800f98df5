# SPDX-License-Identifier: Apache-2.0
"""Names, constants and element types of a graph's tensors, and the types that operators allow."""

from collections.abc import Iterator
from typing import Literal

import onnx

# The first opset with DeformConv, and with float16 and float8 in QuantizeLinear.
OPSET = 19


def opset_of(model: onnx.ModelProto) -> int:
    """Version of ONNX's own operators; 0 if the model imports none."""
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)


def node_name(node: onnx.NodeProto) -> str:
    """Name of a node, for users: its own, or that of its first output."""
    return node.name or node_key(node)


def node_key(node: onnx.NodeProto) -> str:
    """Identifier of a node in plans: its first output, which is unique in a graph."""
    return next(filter(None, node.output), "")


def constant_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    inputs = {value.name for value in graph.input}
    return {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}


def pinned_names(graph: onnx.GraphProto) -> set[str]:
    """Tensors that must keep name and type: the graph's outputs and inputs of subgraphs."""
    inner = [sub for node in graph.node for sub in subgraphs(node)]
    names = {value.name for value in graph.output}
    for sub in inner:
        names |= pinned_names(sub) | {name for node in sub.node for name in node.input}
    return names


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def schema_of(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, opset, "" if node.domain == "ai.onnx" else node.domain)
    except onnx.defs.SchemaError:
        return None


def formal_types(schema: onnx.defs.OpSchema, kind: Literal["inputs", "outputs"], count: int) -> list[str]:
    """Type parameter of each of `count` inputs or outputs; the last formal one may repeat."""
    formal = getattr(schema, kind)
    return [formal[min(index, len(formal) - 1)].type_str for index in range(count)] if formal else []


def allows_float16(schema: onnx.defs.OpSchema, parameter: str) -> bool:
    """Whether a type parameter may be FP16; a fixed type such as `tensor(float)` is not one."""
    return any(
        item.type_param_str == parameter and "tensor(float16)" in item.allowed_type_strs
        for item in schema.type_constraints
    )


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all tensors; after operators unknown to onnx, the type of their first typed input."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    opset = opset_of(model)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        if value.type.tensor_type.elem_type:
            types[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        schema = schema_of(node, opset)
        typed = [types.get(name, 0) for name in node.input]
        inputs = formal_types(schema, "inputs", len(typed)) if schema else [""] * len(typed)
        outputs = formal_types(schema, "outputs", len(node.output)) if schema else [""] * len(node.output)
        cast = next((item.i for item in node.attribute if item.name == "to" and node.op_type == "Cast"), 0)
        for name, parameter in zip(node.output, outputs, strict=True):
            same = (kind for kind, other in zip(typed, inputs, strict=True) if kind and other == parameter)
            kind = cast or next(same, 0)
            if name and kind:
                types.setdefault(name, kind)
    return types

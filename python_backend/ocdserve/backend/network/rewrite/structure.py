# SPDX-License-Identifier: Apache-2.0
"""Whether a graph can be loaded in bounded time and memory: runtimes hang on cycles, and on far too many nodes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ocdserve.backend.spec.onnx_files import tensors_of
from ocdserve.contract import InvalidInputError

# Networks of text detectors have some hundred; transformers, quantised, some thousand.
MOST_NODES = 10_000
# Of one tensor, for a picture of this side: networks need some megabytes there.
_MOST_BYTES = 4 * 2**30
_SIDE = 128

_STANDARD = ("", "ai.onnx")

_Functions = Mapping[tuple[str, str], onnx.FunctionProto]


def check_structure(model: onnx.ModelProto) -> None:
    """Refuse a network that no runtime may be given.

    Raises:
        InvalidInputError: It has a cycle, a Loop, too many nodes, or a tensor that is malformed or of gigabytes.
    """
    opset = max((item.version for item in model.opset_import if item.domain in _STANDARD), default=1)
    functions = {(function.domain, function.name): function for function in model.functions}
    try:
        _count(model.graph.node, functions, {})
        for nodes in (model.graph.node, *(function.node for function in model.functions)):
            _check_order(nodes)
            _check_nodes(nodes, opset)
    except RecursionError as error:
        raise InvalidInputError("its functions or branches are nested too deeply") from error
    _check_tensors(model)
    _check_sizes(model)


def _count(nodes: Iterable[onnx.NodeProto], functions: _Functions, counted: dict[tuple[str, str], int | None]) -> int:
    """Number of nodes once functions are expanded; `counted` holds those of functions, None while it is counted."""
    total = 0
    for node in nodes:
        if node.op_type == "Loop" and node.domain in _STANDARD:
            raise InvalidInputError("it has a Loop, which may never end; export it without (torch: not as a script)")
        total += 1 + sum(_count(graph.node, functions, counted) for graph in _branches(node))
        key = (node.domain, node.op_type)
        if key in functions:
            if key not in counted:
                counted[key] = None
                counted[key] = _count(functions[key].node, functions, counted)
            inner = counted[key]
            if inner is None:
                raise InvalidInputError(f"its function {node.op_type!r} calls itself")
            total += inner
        if total > MOST_NODES:
            break
    if total > MOST_NODES:
        raise InvalidInputError(f"it has more than {MOST_NODES} nodes; no text detector needs as many")
    return total


def _check_order(nodes: Iterable[onnx.NodeProto]) -> None:
    """Refuse nodes of which none can be the first; any order is accepted."""
    waiting = list(nodes)
    for node in waiting:
        for graph in _branches(node):
            _check_order(graph.node)
    own = {name for node in waiting for name in node.output if name}
    missing = [{name for name in used_tensors(node) if name in own} for node in waiting]
    users: dict[str, list[int]] = defaultdict(list)
    for index, names in enumerate(missing):
        for name in names:
            users[name].append(index)
    ready = [index for index, names in enumerate(missing) if not names]
    done = 0
    while ready:
        done += 1
        for name in waiting[ready.pop()].output:
            for user in users.pop(name, ()):
                missing[user].discard(name)
                if not missing[user]:
                    ready.append(user)
    if done < len(waiting):
        stuck = next(node for node, left in zip(waiting, missing, strict=True) if left)
        raise InvalidInputError(f"it has nodes that wait for each other, such as {stuck.op_type} of {stuck.output[:1]}")


def _check_nodes(nodes: Iterable[onnx.NodeProto], opset: int) -> None:
    """Refuse standard nodes with too few or too many inputs or outputs, or without an attribute."""
    for node in nodes:
        for graph in _branches(node):
            _check_nodes(graph.node, opset)
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "") if node.domain in _STANDARD else None
        except (onnx.defs.SchemaError, TypeError):  # unknown, or no text: the runtime says so
            continue
        if schema and not (
            schema.min_input <= len(node.input) <= schema.max_input
            and schema.min_output <= len(node.output) <= schema.max_output
        ):
            raise InvalidInputError(
                f"its node {node.op_type} of {list(node.output)[:1]} has {len(node.input)} inputs and "
                f"{len(node.output)} outputs, which are too few or too many"
            )
        given = {attribute.name for attribute in node.attribute}
        absent = (
            [name for name, item in schema.attributes.items() if item.required and name not in given] if schema else []
        )
        if absent:
            raise InvalidInputError(
                f"its node {node.op_type} of {list(node.output)[:1]} lacks the attribute {absent[0]}"
            )


def used_tensors(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that a node takes, those that its branches take from outside included."""
    yield from node.input
    for graph in _branches(node):
        inside = {name for inner in graph.node for name in inner.output}
        inside |= {value.name for value in (*graph.input, *graph.initializer)}
        used = {name for inner in graph.node for name in used_tensors(inner)} | {value.name for value in graph.output}
        yield from used - inside


def _branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_tensors(model: onnx.ModelProto) -> None:
    """Refuse tensors whose data does not fit their shape, which NumPy says and some runtimes do not."""
    for tensor in tensors_of(model):
        try:
            numpy_helper.to_array(tensor)
        except Exception as error:  # of many types
            raise InvalidInputError(f"its tensor {tensor.name!r} is malformed: {error}") from error


def _check_sizes(model: onnx.ModelProto) -> None:
    """Refuse a tensor of gigabytes, as far as shapes can be inferred for a small picture."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in sized.graph.input:
        if value.name not in constants:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.dim_value = dim.dim_value or (_SIDE if axis else 1)
    try:
        graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"a name in it is no text ({error})") from error
    except (onnx.shape_inference.InferenceError, ValueError):  # the runtime says what is wrong; ValueError: over 2 GB
        return
    for value in (*graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        try:
            kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        except KeyError:  # it has none
            continue
        sides = [dim.dim_value for dim in tensor.shape.dim]
        if all(side > 0 for side in sides) and kind.itemsize * int(np.prod(sides, dtype=object)) > _MOST_BYTES:
            raise InvalidInputError(
                f"its tensor {value.name!r} has {' x '.join(map(str, sides))} values of {kind} for a picture of "
                f"{_SIDE} x {_SIDE} pixels; at most {_MOST_BYTES >> 30} GiB are computed"
            )

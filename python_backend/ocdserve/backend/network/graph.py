# SPDX-License-Identifier: Apache-2.0
"""Folding pre- and post-arithmetic into the network's graph.

The folded network takes uint8 RGB pixels (N, H, W, 3) and gives the probability map (N, H, W) as uint8 (255
times the probability, rounded) or float32. All runtimes compile this one graph, so none repeats the
normalisation, and a quarter of the bytes cross the borders between processes.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from ocdserve.backend.bundle import NetworkSpec
from ocdserve.backend.network import MapType
from ocdserve.backend.network.head import rewrite_head
from ocdserve.contract import InvalidInputError

INPUT = "ocdserve_pixels"
OUTPUT = "ocdserve_map"


def folded_network(model_path: Path, spec: NetworkSpec, map_type: MapType = "uint8") -> bytes:
    """Serialised ONNX of the network between pixels and map.

    Args:
        model_path: An exported DB network: float32 N x 3 x H x W in, N x 1 x H x W probability out.
        spec: Tensor names, colour order and normalisation.
        map_type: What the map is made of.

    Raises:
        InvalidInputError: The file is no ONNX network of this kind; the message says what was expected.
    """
    model = _load(model_path)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    source = _pick([value for value in graph.input if value.name not in constants], spec.input, "network.input")
    target = _pick(list(graph.output), spec.output, "network.output")
    shape = source.type.tensor_type.shape.dim
    if source.type.tensor_type.elem_type != TensorProto.FLOAT or len(shape) != 4 or shape[1].dim_value not in (0, 3):
        raise InvalidInputError(
            f"{model_path.name}: input {source.name!r} must be float32 N x 3 x H x W; got "
            f"{TensorProto.DataType.Name(source.type.tensor_type.elem_type)} "
            f"{[dim.dim_value or dim.dim_param or '?' for dim in shape]}"
        )
    result = target.type.tensor_type
    if result.elem_type != TensorProto.FLOAT or (
        result.HasField("shape") and (len(result.shape.dim) != 4 or result.shape.dim[1].dim_value not in (0, 1))
    ):
        raise InvalidInputError(
            f"{model_path.name}: output {target.name!r} must be float32 N x 1 x H x W; got "
            f"{TensorProto.DataType.Name(result.elem_type)} "
            f"{[dim.dim_value or dim.dim_param or '?' for dim in result.shape.dim]}"
        )
    prefixed = rewrite_head(compose.add_prefix_graph(graph, "network/"), f"network/{target.name}")
    height, width = (dim.dim_value or name for dim, name in zip(shape[2:], ("height", "width"), strict=True))
    pixels = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", height, width, 3])
    element = TensorProto.UINT8 if map_type == "uint8" else TensorProto.FLOAT
    probability = helper.make_tensor_value_info(OUTPUT, element, ["batch", height, width])
    before, constants_before = _before(f"network/{source.name}", spec)
    after, constants_after = _after(f"network/{target.name}", map_type)
    folded = helper.make_graph(
        [*before, *prefixed.node, *after],
        "ocdserve",
        [pixels],
        [probability],
        [*prefixed.initializer, *constants_before, *constants_after],
    )
    del model.graph.node[:]
    model.graph.CopyFrom(folded)
    serialised: bytes = model.SerializeToString()
    return serialised


def _before(target: str, spec: NetworkSpec) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    mean = np.array(spec.mean, np.float32).reshape(1, 3, 1, 1)
    scale = (1.0 / np.array(spec.std, np.float64)).astype(np.float32).reshape(1, 3, 1, 1)
    constants = [numpy_helper.from_array(mean, "ocdserve/mean"), numpy_helper.from_array(scale, "ocdserve/scale")]
    nodes = []
    ordered = INPUT
    if spec.color == "BGR":
        constants.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "ocdserve/bgr"))
        ordered = "ocdserve/ordered"
        nodes.append(helper.make_node("Gather", [INPUT, "ocdserve/bgr"], [ordered], axis=3))
    nodes += [
        helper.make_node("Cast", [ordered], ["ocdserve/float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["ocdserve/float"], ["ocdserve/planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["ocdserve/planes", "ocdserve/mean"], ["ocdserve/centred"]),
        helper.make_node("Mul", ["ocdserve/centred", "ocdserve/scale"], [target]),
    ]
    return nodes, constants


def _after(source: str, map_type: MapType) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    constants = [numpy_helper.from_array(np.array(0, np.int64), "ocdserve/first")]
    if map_type == "float32":
        return [helper.make_node("Gather", [source, "ocdserve/first"], [OUTPUT], axis=1)], constants
    constants.append(numpy_helper.from_array(np.array(255, np.float32), "ocdserve/255"))
    nodes = [
        helper.make_node("Gather", [source, "ocdserve/first"], ["ocdserve/probability"], axis=1),
        helper.make_node("Mul", ["ocdserve/probability", "ocdserve/255"], ["ocdserve/levels"]),
        helper.make_node("Round", ["ocdserve/levels"], ["ocdserve/rounded"]),
        helper.make_node("Cast", ["ocdserve/rounded"], [OUTPUT], to=TensorProto.UINT8),
    ]
    return nodes, constants


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf and onnx raise various types for a damaged file
        raise InvalidInputError(f"{path} is no readable ONNX file: {error}") from error
    if not model.graph.output:
        raise InvalidInputError(f"{path} is no ONNX network: it has no outputs")
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if opset < 11:
        raise InvalidInputError(f"{path}: opset {opset} is too old, export with opset 11 or later")
    return model


def _pick(values: list[onnx.ValueInfoProto], name: str | None, field: str) -> onnx.ValueInfoProto:
    names = [value.name for value in values]
    if name is None and len(values) == 1:
        return values[0]
    if name not in names:
        raise InvalidInputError(f"{field} must be one of the network's tensors {names}; got {name!r}")
    return values[names.index(name)]

# SPDX-License-Identifier: Apache-2.0
"""Folding normalisation and layout into the network's graph.

The folded network takes uint8 RGB pixels (N, H, W, 3) and returns the probability map (N, H, W) as uint8 (255
times the probability, rounded) or float32. All runtimes compile this one graph, so none repeats the
normalisation, and a quarter of the bytes pass between processes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from ocdserve.backend.network.options import MapType, PixelType
from ocdserve.backend.network.rewrite.concatenation import split_concatenations
from ocdserve.backend.network.rewrite.gates import average_before_widening, merge_residual_gates
from ocdserve.backend.network.rewrite.graph_reader import without_unused_nodes
from ocdserve.backend.network.rewrite.head import rewrite_head
from ocdserve.backend.network.rewrite.structure import check_structure
from ocdserve.backend.network.rewrite.wide_weights import with_wide_weights
from ocdserve.backend.spec.detector_spec import NetworkSpec
from ocdserve.contract import MAP, NETWORK_IMAGE, InvalidInputError

# Named as the served model's tensors, so that an engine of the folded network can replace the model.
INPUT = NETWORK_IMAGE.name
OUTPUT = MAP.name
# Prefix of the network's own nodes and tensors in the folded graph.
PREFIX = "network/"

Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto]
_ON_A_CPU: Sequence[Rewrite] = (split_concatenations, merge_residual_gates)
# What runtimes take beyond `fold`, in this order; those of a GPU take nothing. Each gains where it is named: those of
# both with and without AVX-512, see docs/decisions/0094, the last in OpenVINO, see 0092.
REWRITES: Mapping[str, Sequence[Rewrite]] = {
    "openvino": (*_ON_A_CPU, average_before_widening),
    "onnxruntime": _ON_A_CPU,
}

_ELEMENTS = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}


def folded_network(
    model_path: Path,
    spec: NetworkSpec,
    map_type: MapType = "uint8",
    pixel_type: PixelType = "uint8",
    rewrites: Sequence[Rewrite] = (),
) -> bytes:
    """Serialised ONNX of the network in a file between pixels and map, as a runtime compiles it.

    Args:
        model_path: The file.
        spec: See `fold`.
        map_type: Type of the map.
        pixel_type: Type of the pixels, 0 to 255.
        rewrites: What the runtime takes besides, see `REWRITES`.

    Raises:
        InvalidInputError: The file is not an ONNX network of this kind, it is folded with another type of map, or its
            shapes contradict each other.
    """
    model = load_onnx(model_path)
    if spec.folded:
        ends = (model.graph.input[0], "takes", "pixels", pixel_type), (model.graph.output[0], "gives", "maps", map_type)
        for value, verb, what, wanted in ends:
            element = value.type.tensor_type.elem_type
            if element != _ELEMENTS[wanted]:
                name = TensorProto.DataType.Name(element)
                raise InvalidInputError(
                    f"{model_path.name} was folded at build time and {verb} {name} {what}; "
                    f"got a request for {wanted}. Build the bundle without folding."
                )
    try:
        model = model if spec.folded else fold(model, spec, map_type, pixel_type)
        for rewrite in rewrites:
            model = rewrite(model)
    except InvalidInputError as error:
        raise InvalidInputError(f"{model_path.name}: {error}") from error
    except onnx.shape_inference.InferenceError as error:
        raise InvalidInputError(f"{model_path.name}: its shapes contradict each other: {error}") from error
    # Rewriting leaves the replaced nodes, whose tensors calibration reads.
    content: bytes = without_unused_nodes(model).SerializeToString()
    return content


def fold(
    model: onnx.ModelProto, spec: NetworkSpec, map_type: MapType = "uint8", pixel_type: PixelType = "uint8"
) -> onnx.ModelProto:
    """The network with normalisation and layout folded in.

    Args:
        model: A DB network: float32 N x 3 x H x W in, N x 1 x H x W probability out.
        spec: Tensor names, colour order and normalisation.
        map_type: Type of the map.
        pixel_type: Type of the pixels, 0 to 255.

    Raises:
        InvalidInputError: The network is not of this kind; the message says what was expected.
    """
    source, target = network_ends(model, spec)
    shape = source.type.tensor_type.shape.dim
    prefixed = rewrite_head(prefixed_graph(model), f"{PREFIX}{target.name}")
    batch, height, width = (
        dim.dim_value or name for dim, name in zip((shape[0], *shape[2:]), ("batch", "height", "width"), strict=True)
    )
    pixels = helper.make_tensor_value_info(INPUT, _ELEMENTS[pixel_type], [batch, height, width, 3])
    probability = helper.make_tensor_value_info(OUTPUT, _ELEMENTS[map_type], [batch, height, width])
    before, constants_before = normalisation(INPUT, f"{PREFIX}{source.name}", spec)
    after, constants_after = _after(f"{PREFIX}{target.name}", map_type)
    content = helper.make_graph(
        [*before, *prefixed.node, *after],
        "ocdserve",
        [pixels],
        [probability],
        [*prefixed.initializer, *constants_before, *constants_after],
    )
    return helper.make_model(content, ir_version=model.ir_version, opset_imports=model.opset_import)


def network_ends(model: onnx.ModelProto, spec: NetworkSpec) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """Image input and probability output of a DB network.

    Raises:
        InvalidInputError: There are none of the right type and shape; the message says what was expected.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    source = pick([value for value in graph.input if value.name not in constants], spec.input, "network.input")
    target = pick(list(graph.output), spec.output, "network.output")
    shape = source.type.tensor_type.shape.dim
    if source.type.tensor_type.elem_type != TensorProto.FLOAT or len(shape) != 4 or shape[1].dim_value not in (0, 3):
        raise InvalidInputError(f"input {source.name!r} must be float32 N x 3 x H x W; got {described(source)}")
    result = target.type.tensor_type
    if result.elem_type != TensorProto.FLOAT or (
        result.HasField("shape") and (len(result.shape.dim) != 4 or result.shape.dim[1].dim_value not in (0, 1))
    ):
        raise InvalidInputError(f"output {target.name!r} must be float32 N x 1 x H x W; got {described(target)}")
    return source, target


def described(value: onnx.ValueInfoProto) -> str:
    """Type and shape of a tensor, for messages."""
    tensor = value.type.tensor_type
    sizes = [dim.dim_value or dim.dim_param or "?" for dim in tensor.shape.dim]
    known = TensorProto.DataType.keys()
    return f"{known[tensor.elem_type] if tensor.elem_type < len(known) else tensor.elem_type} {sizes}"


def prefixed_graph(model: onnx.ModelProto) -> onnx.GraphProto:
    """The network's graph with `PREFIX` before all names.

    Raises:
        InvalidInputError: A name is not UTF-8.
    """
    try:
        renamed: onnx.GraphProto = compose.add_prefix_graph(model.graph, PREFIX)
    except TypeError as error:  # protobuf returns what is no UTF-8 as bytes
        raise InvalidInputError(f"a name in it is no text ({error})") from error
    return renamed


def normalisation(pixels: str, target: str, spec: NetworkSpec) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants from RGB pixels (N, H, W, 3) of a tensor to the network's input, `target`."""
    mean = np.array(spec.mean, np.float32).reshape(1, 3, 1, 1)
    scale = (1.0 / np.array(spec.std, np.float64)).astype(np.float32).reshape(1, 3, 1, 1)
    constants = [numpy_helper.from_array(mean, "ocdserve/mean"), numpy_helper.from_array(scale, "ocdserve/scale")]
    # The cast comes first: TensorRT does nothing else with uint8.
    nodes = [helper.make_node("Cast", [pixels], ["ocdserve/float"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Transpose", ["ocdserve/float"], ["ocdserve/planes"], perm=[0, 3, 1, 2]))
    ordered = "ocdserve/planes"
    if spec.color == "BGR":
        # Of whole planes: ONNX Runtime copies the last axis number by number.
        constants.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "ocdserve/bgr"))
        ordered = "ocdserve/ordered"
        nodes.append(helper.make_node("Gather", ["ocdserve/planes", "ocdserve/bgr"], [ordered], axis=1))
    nodes += [
        helper.make_node("Sub", [ordered, "ocdserve/mean"], ["ocdserve/centred"]),
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


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, external data too; weights that it holds as float16 become float32.

    Raises:
        InvalidInputError: The file is damaged, no network, of an opset before 11, or its graph cannot be loaded in
            bounded time and memory.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf and onnx raise various types for a damaged file
        raise InvalidInputError(f"{path} is no readable ONNX file: {error}") from error
    if not model.graph.output:
        raise InvalidInputError(f"{path} is no ONNX network: it has no outputs")
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if opset < 11:
        raise InvalidInputError(f"{path}: opset {opset} is too old, export with opset 11 or later")
    try:
        check_structure(model)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from error
    return with_wide_weights(model)


def pick(values: list[onnx.ValueInfoProto], name: str | None, field: str) -> onnx.ValueInfoProto:
    """The tensor of a name; None is the only one.

    Raises:
        InvalidInputError: There is none of that name, or None and several; the message names the field of the spec.
    """
    names = [value.name for value in values]
    if name is None and len(values) == 1:
        return values[0]
    if name not in names:
        raise InvalidInputError(f"{field} must be one of the network's tensors {names}; got {name!r}")
    return values[names.index(name)]

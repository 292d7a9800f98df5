# SPDX-License-Identifier: Apache-2.0
"""Modulated deformable convolutions (DCNv2): from the exporters' custom node to operators of the runtimes.

Zhu et al., "Deformable ConvNets v2": every tap of the kernel samples the image at its position plus an offset (y, x) in
pixels, bilinearly with zero padding, and the sample is multiplied by a mask. NVIDIA's TAO exports it as
`ModulatedDeformConv2d`, mmcv and mmdeploy as `MMCVModulatedDeformConv2d`; ONNX has `DeformConv` since opset 19, with
the same order of offsets. ONNX Runtime executes the latter, TensorRT's parser maps it to its plugin; OpenVINO and
TensorRT-RTX support neither, but GridSample.

Order in a build: `import_deformable` first, because onnx's version converter rejects the custom node; then
`lower_deformable`, before weights are quantised and batch normalisations are merged into convolutions.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper, shape_inference, version_converter

from ocdserve.backend.network.rewrite.graph_reader import attributes_of
from ocdserve.builder.graph.tensor_types import OPSET, opset_of
from ocdserve.contract import InvalidInputError

Form = Literal["onnx", "standard", "plugin"]

_CUSTOM_OPS = ("ModulatedDeformConv2d", "MMCVModulatedDeformConv2d")
_CUSTOM_DOMAIN = "ocdserve.deformable"
_SAMPLING = "/deformable_sampling/"
_COLUMNS = "/deformable_columns/"


def import_deformable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every custom deformable convolution by ONNX's `DeformConv`; nodes and tensors keep their names.

    A custom node has the inputs x, offset, mask, weight and optionally bias, and the attributes `stride`, `padding` and
    `dilation` as one number or (height, width), `group` or `groups`, `deformable_group` or `deform_groups`. A model
    with such nodes is converted to opset 19 if it is older; others are copied unchanged.

    Raises:
        InvalidInputError: A node is malformed, or the model cannot be converted to opset 19.
    """
    result = copy.deepcopy(model)
    custom = [node for node in result.graph.node if node.op_type in _CUSTOM_OPS]
    if not custom:
        return result
    for node in custom:
        node.CopyFrom(_as_deform_conv(node))
        node.domain = _CUSTOM_DOMAIN  # the version converter leaves other domains alone
    result = _raise_opset(result)
    for node in result.graph.node:
        if node.domain == _CUSTOM_DOMAIN:
            node.domain = ""
    used = {node.domain for node in result.graph.node} | {"", "ai.onnx"}
    opsets = [item for item in result.opset_import if item.domain in used]
    del result.opset_import[:]
    result.opset_import.extend(opsets)
    # Exporters note generated symbols after a node that they do not know; these would override inferred sizes.
    del result.graph.value_info[:]
    for node in _graph(result).nodes:
        if node.op == "DeformConv":
            _Layer.read(node)
    return result


def lower_deformable(model: onnx.ModelProto, form: Form) -> onnx.ModelProto:
    """Rewrite every `DeformConv` for a runtime; the layer's node and output keep their names.

    Args:
        model: float32 network, opset 19 or later, see `import_deformable`.
        form: "onnx" keeps `DeformConv`. "standard" is a GridSample of all taps and a 1 x 1 `Conv` with the name of the
            original; height and width may be dynamic, otherwise the coordinates are constants. "plugin" is the node
            of TensorRT's plugin `ModulatedDeformConv2d`, version 2 (since April 2025).

    Raises:
        InvalidInputError: A node is malformed, its weights are not float32 constants, or unsupported by the plugin.
    """
    if form not in get_args(Form):
        raise InvalidInputError(f"form must be one of {', '.join(get_args(Form))}; got {form!r}")
    if form == "onnx" or all(node.op_type != "DeformConv" for node in model.graph.node):
        return copy.deepcopy(model)
    graph = _graph(model)
    for node in list(graph.nodes):
        if node.op == "DeformConv":
            layer = _Layer.read(node)
            _write_plugin(layer) if form == "plugin" else _Standard(graph, layer).write()
    result: onnx.ModelProto = gs.export_onnx(graph.cleanup().toposort())
    result.ir_version = model.ir_version
    return result


def coordinate_nodes(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the nodes that must stay float32 when the rest becomes float16: sampling coordinates and GridSample.

    Near the border of a map 320 pixels wide, float16 coordinates are 0.08 pixels apart.
    """
    return frozenset(node.name for node in model.graph.node if _SAMPLING in node.name)


def layer_of(node: str) -> str:
    """Name of the layer of a node; nodes of a lowered `DeformConv` belong to the original."""
    return node.partition(_SAMPLING)[0].partition(_COLUMNS)[0]


@dataclass(frozen=True)
class _Layer:
    """A validated `DeformConv`. Tensors are onnx-graphsurgeon's; pairs are (height, width)."""

    node: Any
    x: Any
    offset: Any
    mask: Any | None
    bias: Any | None
    weight: NDArray[np.float32]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    group: int
    offset_group: int

    @property
    def name(self) -> str:
        return str(self.node.name or self.node.outputs[0].name)

    @property
    def kernel(self) -> tuple[int, int]:
        return cast(tuple[int, int], self.weight.shape[2:])

    @property
    def taps(self) -> int:
        return int(np.prod(self.kernel))

    @property
    def channels(self) -> int:
        return self.weight.shape[1] * self.group

    def input_size(self, axis: int) -> int | None:
        """Height (axis 0) or width (axis 1) of the input, None if dynamic."""
        size = self.x.shape[2 + axis] if self.x.shape else None
        return size if isinstance(size, int) else None

    def output_size(self, axis: int) -> int | None:
        size = self.input_size(axis)
        if size is None:
            return None
        extent = self.dilations[axis] * (self.kernel[axis] - 1) + 1
        return (size + self.pads[axis] + self.pads[axis + 2] - extent) // self.strides[axis] + 1

    @classmethod
    def read(cls, node: Any) -> "_Layer":
        missing = [gs.Variable.empty() for _ in range(5 - len(node.inputs))]
        x, weight, offset, bias, mask = list(node.inputs) + missing
        layer = cls(
            node,
            x,
            offset,
            None if mask.is_empty() else mask,
            None if bias.is_empty() else bias,
            _constant(weight, node),
            tuple(node.attrs.get("strides", (1, 1))),
            tuple(node.attrs.get("pads", (0, 0, 0, 0))),
            tuple(node.attrs.get("dilations", (1, 1))),
            node.attrs.get("group", 1),
            node.attrs.get("offset_group", 1),
        )
        layer._check()
        return layer

    def _check(self) -> None:
        outputs, group, offset_group = self.weight.shape[0], self.group, self.offset_group
        if min(group, offset_group) < 1 or outputs % group or self.channels % offset_group:
            raise self.error(
                f"{outputs} output and {self.channels} input channels must be multiples of their groups; "
                f"got group={group}, offset_group={offset_group}"
            )
        size = (self.output_size(0), self.output_size(1))
        self._check_shape("x", self.x, (None, self.channels, None, None))
        self._check_shape("offset", self.offset, (None, 2 * offset_group * self.taps, *size))
        if self.mask is not None:
            self._check_shape("mask", self.mask, (None, offset_group * self.taps, *size))

    def _check_shape(self, role: str, tensor: Any, expected: tuple[int | None, ...]) -> None:
        actual = tensor.shape
        if actual is not None and (
            len(actual) != len(expected)
            or any(a != e for a, e in zip(actual, expected, strict=True) if isinstance(a, int) and e is not None)
        ):
            raise self.error(
                f"{role} must be {[dim or '?' for dim in expected]} for weights {list(self.weight.shape)}, "
                f"strides {self.strides}, pads {self.pads}, dilations {self.dilations}; got {list(actual)}"
            )

    def error(self, message: str) -> InvalidInputError:
        return InvalidInputError(f"deformable convolution {self.name!r}: {message}")


def _as_deform_conv(node: onnx.NodeProto) -> onnx.NodeProto:
    where = f"{node.op_type} {node.name or node.output[0]!r}"
    inputs = list(node.input)
    if len(inputs) not in (4, 5) or not all(inputs[:4]) or len(node.output) != 1:
        raise InvalidInputError(
            f"{where} must take x, offset, mask, weight and perhaps bias, and have one output; "
            f"got inputs {inputs} and outputs {list(node.output)}"
        )
    x, offset, mask, weight, *bias = inputs
    values = attributes_of(node)

    def numbers(count: int, default: int, *names: str) -> list[int]:
        value = next((values[name] for name in names if name in values), default)
        result = list(value) if isinstance(value, list) else [value]
        result = result * count if len(result) == 1 else result
        low = 0 if "padding" in names else 1
        if len(result) != count or not all(isinstance(number, int) and number >= low for number in result):
            raise InvalidInputError(
                f"{where}: {names[0]} must be {count} whole number(s) of at least {low}; got {value!r}"
            )
        return result

    return helper.make_node(
        "DeformConv",
        [x, weight, offset, *(bias or [""]), mask],
        list(node.output),
        node.name,
        strides=numbers(2, 1, "stride"),
        pads=numbers(2, 0, "padding") * 2,
        dilations=numbers(2, 1, "dilation"),
        group=numbers(1, 1, "group", "groups")[0],
        offset_group=numbers(1, 1, "deformable_group", "deform_groups")[0],
    )


def _raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = opset_of(model)
    if opset >= OPSET:
        return model
    model.opset_import.append(helper.make_opsetid(_CUSTOM_DOMAIN, 1))
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises various types
        raise InvalidInputError(
            f"the network cannot be converted from opset {opset} to {OPSET}, where DeformConv begins; export it with "
            f"a later opset: {' '.join(str(error).split())[:300]}"
        ) from error


def _graph(model: onnx.ModelProto) -> gs.Graph:
    return gs.import_onnx(shape_inference.infer_shapes(model))


def _constant(tensor: Any, node: Any) -> NDArray[np.float32]:
    if tensor.inputs and tensor.inputs[0].op == "Constant":
        tensor = tensor.inputs[0].attrs["value"]
    if not isinstance(tensor, gs.Constant) or tensor.dtype != np.float32 or len(tensor.shape) != 4:
        raise InvalidInputError(
            f"deformable convolution {node.name or node.outputs[0].name!r}: the weight must be a float32 constant "
            f"(O, C / group, height, width); got {tensor}. Fold constants first, and quantise or convert to float16 "
            "afterwards."
        )
    return cast(NDArray[np.float32], tensor.values)


def _write_plugin(layer: _Layer) -> None:
    """Rewrite as TensorRT's plugin `ModulatedDeformConv2d`, which the parser finds by name."""
    pairs = {"stride": layer.strides, "padding": layer.pads[:2], "dilation": layer.dilations}
    # TensorRT's parser writes pairs as (height, width); the plugin passes the first to its kernel as the width.
    if (
        layer.mask is None
        or layer.pads[:2] != layer.pads[2:]
        or any(first != second for first, second in pairs.values())
    ):
        raise layer.error(
            "TensorRT's plugin needs a mask, and strides, pads and dilations that are equal in all directions; got "
            f"mask {layer.mask is not None}, strides {layer.strides}, pads {layer.pads}, dilations {layer.dilations}. "
            "Use the form 'standard'."
        )
    node = layer.node
    inputs = [layer.x, layer.offset, layer.mask, node.inputs[1], layer.bias]
    node.op, node.domain = "ModulatedDeformConv2d", "trt.plugins"
    node.inputs = [tensor for tensor in inputs if tensor is not None]
    node.attrs = {name: list(pair) for name, pair in pairs.items()}
    node.attrs |= {"group": layer.group, "deformable_group": layer.offset_group}
    node.attrs |= {"plugin_version": "2", "plugin_namespace": ""}


class _Standard:
    """A layer in standard operators: K taps of C channels become C * K channels, G offset groups a larger batch.

    A GridSample coordinate g (align_corners=0) lies at pixel ((g + 1) * size - 1) / 2. A tap at pixel
    p = row * stride - pad + tap * dilation with an offset therefore has
    g = offset * (2 / size) + (2 * p + 1) / size - 1, a product and a sum with tensors of one row or column.
    """

    def __init__(self, graph: gs.Graph, layer: _Layer) -> None:
        self._graph = graph
        self._layer = layer

    def write(self) -> None:
        layer = self._layer
        taps, channels = layer.taps, layer.channels
        offset = self._fold(_SAMPLING, "offset", layer.offset, 2 * taps)
        y, x = (self._coordinates(offset, axis) for axis in (0, 1))
        grid = self._add("Concat", _SAMPLING + "grid", x, y, axis=3)
        image = self._fold(_COLUMNS, "image", layer.x, channels // layer.offset_group)
        columns = self._add(
            "GridSample", _SAMPLING + "sample", image, grid, align_corners=0, padding_mode="zeros"
        )  # (N * G, C / G, K, H * W); the mode is the default: "bilinear", called "linear" since opset 20
        if layer.mask is not None:
            mask = self._fold(_COLUMNS, "mask", layer.mask, taps)
            mask = self._reshape(_COLUMNS + "mask_row", mask, [0, 1, taps, -1])
            columns = self._add("Mul", _COLUMNS + "masked", columns, mask)
        columns = self._add("Reshape", _COLUMNS + "image_of_taps", columns, self._columns_shape())
        weight = layer.weight.reshape(len(layer.weight), -1, 1, 1)
        layer.node.op = "Conv"
        layer.node.inputs = [columns, self._constant("/weight", weight), *([] if layer.bias is None else [layer.bias])]
        layer.node.attrs = {"kernel_shape": [1, 1], "group": layer.group}

    def _coordinates(self, offset: Any, axis: int) -> Any:
        """Grid coordinates (N * G, K, H * W, 1) of the rows (axis 0) or columns (axis 1)."""
        role = _SAMPLING + "yx"[axis]
        bounds = [
            self._constant(f"{role}_{i}", np.array([v])) for i, v in enumerate((axis, 2 * self._layer.taps, 1, 2))
        ]
        pixels = self._add("Slice", f"{role}_offset", offset, *bounds)
        scale, base = self._axis(role, offset, axis)
        scaled = self._add("Mul", f"{role}_scaled", pixels, scale)
        return self._reshape(f"{role}_column", self._add("Add", f"{role}_moved", scaled, base), [0, 0, -1, 1])

    def _axis(self, role: str, offset: Any, axis: int) -> tuple[Any, Any]:
        """Scale (one number) and base (1, K, H, 1) or (1, K, 1, W) of the formula above."""
        layer = self._layer
        tap = np.indices(layer.kernel)[axis].reshape(1, -1, 1, 1)
        tap_ends = (2.0 * (tap * layer.dilations[axis] - layer.pads[axis]) + 1.0).astype(np.float32)
        step = 2.0 * layer.strides[axis]
        size, count = layer.input_size(axis), layer.output_size(axis)
        if size is not None and count is not None:
            steps = (step * np.arange(count)).reshape((-1, 1) if axis == 0 else (-1,))
            base = (steps + tap_ends) / size - 1.0
            return (
                self._constant(f"{role}_scale", np.array(2.0 / size, np.float32)),
                self._constant(f"{role}_base", base.astype(np.float32)),
            )
        length = self._add("Shape", f"{role}_length", layer.x, start=2 + axis, end=3 + axis)
        size_ = self._add("Cast", f"{role}_size", length, to=TensorProto.FLOAT)
        steps_ = self._steps(role, offset, axis, step)
        ends = self._add("Add", f"{role}_ends", steps_, self._constant(f"{role}_tap_ends", tap_ends))
        relative = self._add("Div", f"{role}_relative", ends, size_)
        one, two = (self._constant(f"{role}_{n}", np.array(v, np.float32)) for n, v in (("one", 1), ("two", 2)))
        return self._add("Div", f"{role}_scale", two, size_), self._add("Sub", f"{role}_base", relative, one)

    def _steps(self, role: str, offset: Any, axis: int, step: float) -> Any:
        """0, step, 2 * step ...: as many as the output has rows (H, 1) or columns (W)."""
        count = self._add("Shape", f"{role}_count", offset, start=2 + axis, end=3 + axis)
        limits = [self._constant(f"{role}_{n}", np.array(v)) for n, v in (("first", 0), ("increment", 1))]
        numbers = self._add("Range", f"{role}_range", limits[0], self._add("Squeeze", f"{role}_end", count), limits[1])
        floats = self._add("Cast", f"{role}_float", numbers, to=TensorProto.FLOAT)
        steps = self._add("Mul", f"{role}_steps", floats, self._constant(f"{role}_step", np.array(step, np.float32)))
        return self._reshape(f"{role}_rows", steps, [-1, 1]) if axis == 0 else steps

    def _columns_shape(self) -> Any:
        """-1, C * K, H, W."""
        layer = self._layer
        size = [layer.output_size(axis) for axis in (0, 1)]
        channels = layer.channels * layer.taps
        if None not in size:
            return self._constant(_COLUMNS + "shape", np.array([-1, channels, *size]))
        spatial = self._add("Shape", _COLUMNS + "size", layer.offset, start=2, end=4)
        head = self._constant(_COLUMNS + "channels", np.array([-1, channels]))
        return self._add("Concat", _COLUMNS + "shape", head, spatial, axis=0)

    def _fold(self, part: str, role: str, tensor: Any, channels: int) -> Any:
        """(N, G * channels, H, W) to (N * G, channels, H, W)."""
        if self._layer.offset_group == 1:
            return tensor
        return self._reshape(f"{part}{role}_groups", tensor, [-1, channels, 0, 0])

    def _reshape(self, role: str, tensor: Any, shape: list[int]) -> Any:
        return self._add("Reshape", role, tensor, self._constant(f"{role}_shape", np.array(shape)))

    def _constant(self, role: str, values: NDArray[Any]) -> Any:
        return gs.Constant(self._layer.node.outputs[0].name + role, values)

    def _add(self, op: str, role: str, *inputs: Any, **attributes: Any) -> Any:
        output = gs.Variable(self._layer.node.outputs[0].name + role)
        self._graph.nodes.append(gs.Node(op, self._layer.name + role, attributes, list(inputs), [output]))
        return output

# SPDX-License-Identifier: Apache-2.0
"""What exports of DB networks differ in at both ends, and the nodes that bring it to the normal form."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ocdserve.backend.spec.detector_spec import Color, DetectorSpec, NetworkSpec
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.contract import InvalidInputError, not_one_of

Layout = Literal["nchw", "nhwc"]
Values = Literal["probability", "logits", "levels"]
_Triple = tuple[float, float, float]
_Network = TypeVar("_Network", bound=NetworkSpec)

_OURS = "ocdserve/ends/"
# Sigmoids of runtimes overshoot in the last digit.
_OVERSHOOT = 1e-6
# Logits of background are far below zero; levels of 0 to 255 are far above one, noise of a bad map is neither.
_SURE_LOGIT, _SURE_LEVEL = -1.0, 2.0
_SCALES = (1, 2, 4)
_RESIZE = re.compile(r"(fixed|letterbox):(\d+)x(\d+)|(short_side|long_side):(\d+)")


@dataclass(frozen=True)
class ExportOptions:
    """What an export differs in, where it cannot be recognised or is recognised wrongly; None is as recognised.

    Attributes:
        output: Output tensor with the map, for networks of several.
        layout: Order of the input's dimensions.
        values: What the map holds: probabilities, logits (a sigmoid is added), or levels from 0 to 255.
        color: Order of the channels, instead of the preset's, like the following.
        scale: Multiplies pixels of 0 to 255 first; given alone, nothing else is done to them.
        mean: Subtracted from the product, by network channel.
        std: Divides the difference, by network channel.
        resize: How an image gets its network size: `fixed:WIDTHxHEIGHT`, `letterbox:WIDTHxHEIGHT`,
            `short_side:PIXELS` or `long_side:PIXELS`.

    Raises:
        InvalidInputError: A field is not valid; the message names the option of `ocdserve build`.
    """

    output: str | None = None
    layout: Layout | None = None
    values: Values | None = None
    color: Color | None = None
    scale: float | None = None
    mean: _Triple | None = None
    std: _Triple | None = None
    resize: str | None = None

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--input-layout", self.layout, get_args(Layout)),
            ("--output-values", self.values, get_args(Values)),
            ("--color", self.color, get_args(Color)),
        ):
            if value is not None and value not in known:
                raise not_one_of(option, value, known)
        for option, numbers in (("--mean", self.mean), ("--std", self.std)):
            if numbers is not None and not (np.shape(numbers) == (3,) and np.isfinite(numbers).all()):
                raise InvalidInputError(f"{option} must be three numbers, one per channel; got {numbers}")
        if self.std is not None and min(self.std) <= 0:
            raise InvalidInputError(f"--std must be positive, it divides; got {self.std}")
        if self.scale is not None and not (np.isfinite(self.scale) and self.scale > 0):
            raise InvalidInputError(f"--scale must be positive, it multiplies pixels; got {self.scale}")
        if self.std is not None and max(self.std) < 1 and self.scale is None:
            raise InvalidInputError(
                f"--mean and --std are for pixels of 0 to 255; std {self.std} looks like one for 0 to 1: give "
                "--scale 0.00392156862745098 (1 / 255) too, or multiply both by 255"
            )

    def applied(self, spec: DetectorSpec) -> DetectorSpec:
        """The specification with these options instead of its own."""
        network = self.applied_to(replace(spec.network, output=self.output or spec.network.output))
        return replace(spec, network=network, resize=_resized(spec.resize, self.resize))

    def applied_to(self, network: _Network) -> _Network:
        """What a network expects of its pixels, with these options instead of its own."""
        scale = self.scale or 1.0
        mean, std = self.mean, self.std
        if self.scale is not None:
            mean, std = mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0)
        return replace(
            network,
            color=self.color or network.color,
            mean=(mean[0] / scale, mean[1] / scale, mean[2] / scale) if mean else network.mean,
            std=(std[0] / scale, std[1] / scale, std[2] / scale) if std else network.std,
        )


@dataclass(frozen=True)
class MapForm:
    """Form of a network's map, found from its values for an image of known size.

    Attributes:
        channel_axis: 1 or 3; None for N x H x W.
        channels: The map is the first of them.
        scale: Input pixels per pixel of the map.
        values: What it holds.
    """

    channel_axis: int | None
    channels: int
    scale: int
    values: Values = "probability"

    def notes(self) -> Iterator[str]:
        """What is done to the map, one sentence each."""
        if self.channel_axis != 1:
            yield f"the map is {'N x H x W' if self.channel_axis is None else 'N x H x W x C'}: made N x 1 x H x W"
        if self.channels > 1:
            yield f"the output has {self.channels} channels: the first is taken"
        if self.values != "probability":
            yield {"logits": "the output holds logits: a sigmoid was added", "levels": "the map was divided by 255"}[
                self.values
            ]
        if self.scale > 1:
            yield f"the map has 1/{self.scale} of the image's sides: it is interpolated"

    def probabilities(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """What the added nodes compute, in NumPy: (N, h, w) of the network's output."""
        maps = raw if self.channel_axis is None else np.take(raw, 0, self.channel_axis)
        maps = maps.astype(np.float32)
        if self.values == "logits":
            maps = (1 / (1 + np.exp(-maps.astype(np.float64)))).astype(np.float32)
        elif self.values == "levels":
            maps = maps / np.float32(255)
        if self.scale == 1:
            return maps
        size = maps.shape[2] * self.scale, maps.shape[1] * self.scale
        return np.stack([cv2.resize(item, size, interpolation=cv2.INTER_LINEAR) for item in maps])


def _resized(policy: ResizePolicy, text: str | None) -> ResizePolicy:
    if text is None:
        return policy
    found = _RESIZE.fullmatch(text)
    if found is None:
        raise InvalidInputError(
            "--resize must be fixed:WIDTHxHEIGHT, letterbox:WIDTHxHEIGHT, short_side:PIXELS or long_side:PIXELS; got "
            f"{text!r}"
        )
    kind, width, height, side_kind, side = found.groups()
    try:
        if kind:
            return replace(policy, kind=kind, width=int(width), height=int(height))  # type: ignore[arg-type]
        return replace(policy, kind=side_kind, side=int(side))  # type: ignore[arg-type]
    except InvalidInputError as error:
        raise InvalidInputError(f"--resize {text}: {error}") from error


def form_of(raw: NDArray[Any], height: int, width: int) -> MapForm:
    """Recognise the form of a map by its shape; `with_values` says what it holds.

    Args:
        raw: The network's output for N images.
        height: Of the images, pixels.
        width: Of the images, pixels.

    Raises:
        InvalidInputError: The output is no map of the images.
    """
    for scale in _SCALES:
        size = height // scale, width // scale
        if raw.ndim == 3 and raw.shape[1:] == size:
            return MapForm(None, 1, scale)
        for axis, sides in ((1, raw.shape[2:]), (3, raw.shape[1:3])):
            if raw.ndim == 4 and sides == size and raw.shape[axis] in (1, 2, 3):
                return MapForm(axis, raw.shape[axis], scale)
    raise InvalidInputError(
        f"the output must have the input's height and width, 1/2 or 1/4 of them, and 1 to 3 channels; got "
        f"{list(raw.shape)} for {len(raw)} images of {height} x {width} (height x width). If another output is the "
        "map, name it with --output-tensor."
    )


def with_values(form: MapForm, raw: NDArray[Any], values: Values | None) -> MapForm:
    """The form with what the map holds: as recognised, or as given.

    Raises:
        InvalidInputError: The map is not finite, or what it holds is uncertain.
    """
    maps = raw if form.channel_axis is None else np.take(raw, 0, form.channel_axis)
    broken = 1 - float(np.isfinite(maps).mean())
    if broken:
        raise InvalidInputError(
            f"the network returns values that are not finite (NaN or infinite) in {broken:.1%} of the map: its "
            "weights are damaged or overflow, or its pixels need another --mean and --std"
        )
    return replace(form, values=values or _values(maps))


def _values(maps: NDArray[Any]) -> Values:
    low, high = float(maps.min()), float(maps.max())
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT and maps.dtype != np.uint8:
        return "probability"
    if maps.dtype == np.uint8 or (low >= -_OVERSHOOT and _SURE_LEVEL < high <= 255 * (1 + _OVERSHOOT)):
        return "levels"
    if low < _SURE_LOGIT:
        return "logits"
    raise InvalidInputError(
        f"the output holds values from {low:.3g} to {high:.3g}, which are neither surely probabilities (0 to 1) nor "
        "logits nor levels (0 to 255): name what they are with --output-values"
    )


def check_range(maps: NDArray[np.float32]) -> None:
    """Raise InvalidInputError unless all values are probabilities."""
    low, high = float(maps.min()), float(maps.max())
    if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        raise InvalidInputError(
            f"the output must be probabilities from 0 to 1; got {low:.3g} to {high:.3g}. Name what it holds with "
            "--output-values."
        )


def with_map(model: onnx.ModelProto, name: str, form: MapForm) -> tuple[onnx.ModelProto, str]:
    """The network with its output in normal form, float32 N x 1 x H x W probabilities, and that output's name."""
    result = copy.deepcopy(model)
    element = next(value for value in model.graph.output if value.name == name).type.tensor_type.elem_type
    steps: list[tuple[str, dict[str, Any], NDArray[Any] | None]] = []
    if element != TensorProto.FLOAT:
        steps.append(("Cast", {"to": TensorProto.FLOAT}, None))
    if form.channel_axis is None:
        steps.append(("Unsqueeze", {}, np.array([1], np.int64)))
    elif form.channel_axis == 3:
        steps.append(("Transpose", {"perm": [0, 3, 1, 2]}, None))
    if form.channels > 1:
        steps.append(("Gather", {"axis": 1}, np.array([0], np.int64)))
    if form.values == "logits":
        steps.append(("Sigmoid", {}, None))
    elif form.values == "levels":
        steps.append(("Div", {}, np.array(255, np.float32)))
    if form.scale > 1:
        attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        steps.append(("Resize", attributes, np.array([1, 1, form.scale, form.scale], np.float32)))
    for index, (operation, attributes, constant) in enumerate(steps):
        inputs, output = [name], f"{_OURS}{operation.lower()}"
        if constant is not None:
            result.graph.initializer.append(numpy_helper.from_array(constant, f"{_OURS}constant_{index}"))
            inputs += [""] * (operation == "Resize") + [f"{_OURS}constant_{index}"]
        result.graph.node.append(helper.make_node(operation, inputs, [output], output, **attributes))
        name = output
    if steps:
        del result.graph.output[:]
        described = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, "height", "width"])
        result.graph.output.append(described)
    return result, name


def image_layouts(source: onnx.ValueInfoProto, wanted: Layout | None) -> tuple[Layout, ...]:
    """The layouts to try for an image input: one, unless its shape does not say which.

    Raises:
        InvalidInputError: It takes no images of three channels.
    """
    tensor = source.type.tensor_type
    sizes = [dim.dim_value for dim in tensor.shape.dim]
    known = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
    what = (
        f"{TensorProto.DataType.Name(tensor.elem_type)} {[d.dim_value or d.dim_param or '?' for d in tensor.shape.dim]}"
    )
    if tensor.elem_type not in known:
        raise InvalidInputError(f"input {source.name!r} must be float32, float16 or uint8; got {what}")
    if tensor.HasField("shape") and len(sizes) != 4:
        raise InvalidInputError(f"input {source.name!r} must be float32 N x 3 x H x W, or N x H x W x 3; got {what}")
    if not sizes or not (sizes[1] or sizes[3]):
        return (wanted,) if wanted else ("nchw", "nhwc")
    layout: Layout = "nhwc" if sizes[3] == 3 and sizes[1] != 3 else "nchw"
    channels = sizes[1 if (wanted or layout) == "nchw" else 3]
    if channels not in (0, 3):
        raise InvalidInputError(
            f"input {source.name!r} must take 3 channels, float32 N x 3 x H x W or N x H x W x 3; got {what}"
            + (f", which is not --input-layout {wanted}" if wanted else "")
        )
    return (wanted or layout,)


def graph_input(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    """An input by name."""
    found: onnx.ValueInfoProto = next(value for value in model.graph.input if value.name == name)
    return found


def with_image(model: onnx.ModelProto, name: str, layout: Layout) -> tuple[onnx.ModelProto, str]:
    """The network with a float32 N x 3 x H x W input, and that input's name."""
    result = copy.deepcopy(model)
    source = graph_input(result, name)
    element = source.type.tensor_type.elem_type
    readers = [node for node in result.graph.node if name in node.input]
    nodes: list[tuple[str, dict[str, Any]]] = []
    if layout == "nhwc":
        nodes.append(("Transpose", {"perm": [0, 2, 3, 1]}))
    # A network that casts its pixels takes any type; TensorRT has no other use for uint8.
    if element == TensorProto.UINT8 and any(node.op_type != "Cast" for node in readers):
        nodes.append(("Cast", {"to": TensorProto.UINT8}))
    source.type.tensor_type.elem_type = TensorProto.FLOAT
    if not nodes:
        return result, name
    image = read = f"{_OURS}image"
    for index, (operation, attributes) in enumerate(nodes):
        output = name if index == len(nodes) - 1 else f"{_OURS}pixels_{index}"
        node = helper.make_node(operation, [read], [output], f"{_OURS}before_{operation.lower()}", **attributes)
        result.graph.node.insert(index, node)
        read = output
    shape = [dim.dim_value or dim.dim_param for dim in source.type.tensor_type.shape.dim] or ["n", "h", "w", "c"]
    if layout == "nhwc":
        shape = [shape[0], 3, shape[1], shape[2]]
    source.CopyFrom(helper.make_tensor_value_info(image, TensorProto.FLOAT, shape))
    return result, image


def to_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with every FP16 tensor as FP32."""
    result = copy.deepcopy(model)
    _widen(result.graph)
    return result


def _widen(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.HasField("g"):
                _widen(attribute.g)
            for inner in attribute.graphs:
                _widen(inner)
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))

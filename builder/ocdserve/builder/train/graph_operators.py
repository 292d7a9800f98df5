# SPDX-License-Identifier: Apache-2.0
"""ONNX operators in PyTorch, for training: each takes its inputs (None where omitted) and its node's attributes.

Sizes are int64 tensors on the CPU, whatever device the network is on: they are read back as Python numbers anyway.
Semantics: https://onnx.ai/onnx/operators/ (opset 19).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]
Inputs = Sequence[Tensor | None]
Operator = Callable[[Inputs, Attributes], Any]


class UnsupportedNodeError(Exception):
    """An attribute or a form of an operator that has no equivalent here."""


def numbers(value: Tensor | None) -> list[int]:
    """A tensor of whole numbers as Python's."""
    return [] if value is None else [int(number) for number in value.reshape(-1).tolist()]


def same_pads(sizes: Sequence[int], attributes: Attributes) -> list[int]:
    """Begin and end of every spatial axis that `pads` or `auto_pad` add, in PyTorch's order: last axis first."""
    axes, kernel = len(sizes), attributes["kernel_shape"]
    mode = attributes.get("auto_pad", b"NOTSET")
    pads = list(attributes.get("pads", [0] * 2 * axes))
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        strides, dilations = attributes.get("strides", [1] * axes), attributes.get("dilations", [1] * axes)
        for axis, (size, side, stride, dilation) in enumerate(zip(sizes, kernel, strides, dilations, strict=True)):
            extra = max((-(-size // stride) - 1) * stride + (side - 1) * dilation + 1 - size, 0)
            less, more = extra // 2, extra - extra // 2
            pads[axis], pads[axis + axes] = (less, more) if mode == b"SAME_UPPER" else (more, less)
    return [pad for axis in reversed(range(axes)) for pad in (pads[axis], pads[axis + axes])]


def padded(x: Tensor, attributes: Attributes, value: float = 0.0) -> Tensor:
    """An image (N, C, H, W) with what `pads` or `auto_pad` of a convolution or a pooling add."""
    pads = same_pads(x.shape[2:], attributes)
    return functional.pad(x, pads, value=value) if any(pads) else x


def _pair(attributes: Attributes, name: str, default: int = 1) -> tuple[int, int]:
    return tuple(attributes.get(name, (default, default)))


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = padded(_first(inputs), attributes, float("-inf"))
    ceil = bool(attributes.get("ceil_mode", 0))
    strides, dilations = _pair(attributes, "strides"), _pair(attributes, "dilations")
    return functional.max_pool2d(x, attributes["kernel_shape"], strides, 0, dilations, ceil)


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _first(inputs)
    bottom, top, right, left = same_pads(x.shape[2:], attributes)[::-1]
    counts_padding = bool(attributes.get("count_include_pad", 0))
    ceil, strides = bool(attributes.get("ceil_mode", 0)), _pair(attributes, "strides")
    if (top, left) == (bottom, right):
        padding = (top, left)
    elif counts_padding:
        x, padding = padded(x, attributes), (0, 0)
    else:
        raise UnsupportedNodeError("its padding differs between the sides and does not count")
    return functional.avg_pool2d(x, attributes["kernel_shape"], strides, padding, ceil, counts_padding)


def _reduction(reduce: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def run(inputs: Inputs, attributes: Attributes) -> Tensor:
        x = _first(inputs)
        axes = list(attributes.get("axes", ())) or numbers(inputs[1] if len(inputs) > 1 else None)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return x
        return reduce(x, axes or list(range(x.ndim)), bool(attributes.get("keepdims", 1)))

    return run


def _resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _first(inputs)
    scales = inputs[2] if len(inputs) > 2 else None
    target = numbers(inputs[3]) if len(inputs) > 3 else []
    if not target:
        if scales is None:
            raise UnsupportedNodeError("it has neither scales nor sizes")
        target = [int(size * scale) for size, scale in zip(x.shape, scales.tolist(), strict=True)]
    if list(x.shape[:2]) != target[:2]:
        raise UnsupportedNodeError("it resizes more than height and width")
    mode = attributes.get("mode", b"nearest").decode()
    coordinates = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    rounding = attributes.get("nearest_mode", b"round_prefer_floor").decode()
    by_mode: dict[tuple[str, str, str], dict[str, Any]] = {
        ("nearest", "asymmetric", "floor"): {"mode": "nearest"},
        ("nearest", "half_pixel", "round_prefer_floor"): {"mode": "nearest-exact"},
        ("nearest", "half_pixel", "round_prefer_ceil"): {"mode": "nearest-exact"},
        ("linear", "half_pixel", rounding): {"mode": "bilinear", "align_corners": False},
        ("linear", "align_corners", rounding): {"mode": "bilinear", "align_corners": True},
    }
    found = by_mode.get((mode, coordinates.removeprefix("pytorch_"), rounding))
    if found is None:
        raise UnsupportedNodeError(f"its mode is {mode}, {coordinates}, {rounding}")
    return functional.interpolate(x, tuple(target[2:]), **found)


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _first(inputs)
    starts, ends = numbers(inputs[1]), numbers(inputs[2])
    axes = numbers(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
    steps = numbers(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    parts = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise UnsupportedNodeError(f"its step is {step}")
        parts[axis] = slice(start, end, step)
    return x[tuple(parts)]


def _split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    x, axis = _first(inputs), attributes.get("axis", 0)
    sizes = list(attributes.get("split", ())) or numbers(inputs[1] if len(inputs) > 1 else None)
    count = attributes.get("num_outputs", attributes["outputs"])
    return x.split(sizes or -(-x.shape[axis] // count), axis)


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, pads = _first(inputs), numbers(inputs[1])
    axes = numbers(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(x.ndim))
    both = dict(zip((axis % x.ndim for axis in axes), zip(pads, pads[len(axes) :], strict=False), strict=True))
    widths = [pad for axis in reversed(range(x.ndim)) for pad in both.get(axis, (0, 0))]
    mode = attributes.get("mode", b"constant").decode()
    if mode == "constant":
        value = inputs[2] if len(inputs) > 2 else None
        return functional.pad(x, widths, value=0.0 if value is None else float(value))
    while widths[-2:] == [0, 0]:
        del widths[-2:]
    return functional.pad(x, widths, mode={"edge": "replicate"}.get(mode, mode))


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, shape = _first(inputs), numbers(inputs[1])
    if not attributes.get("allowzero", 0):
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return x.reshape(shape)


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _first(inputs)
    axes = list(attributes.get("axes", ())) or numbers(inputs[1] if len(inputs) > 1 else None)
    return x.squeeze(tuple(axes)) if axes else x.squeeze()


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _first(inputs)
    axes = list(attributes.get("axes", ())) or numbers(inputs[1])
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, index, axis = _first(inputs), inputs[1], attributes.get("axis", 0)
    assert index is not None
    axis %= x.ndim
    flat = (index.reshape(-1) % x.shape[axis]).to(x.device)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    sizes = list(_first(inputs).shape)
    return torch.tensor(sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))], dtype=torch.int64)


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = attributes.get("value")
    filled = np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value)
    return torch.from_numpy(filled.copy()).expand(numbers(inputs[0])).clone()


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    return _first(inputs).to(torch.from_numpy(np.zeros(0, dtype)).dtype)


def _div(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, y = inputs
    assert x is not None and y is not None
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() or y.is_floating_point() else "trunc")


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    low, high = (inputs[index] if len(inputs) > index else None for index in (1, 2))
    low = attributes.get("min") if low is None else low
    high = attributes.get("max") if high is None else high
    return _first(inputs) if low is None and high is None else torch.clamp(_first(inputs), low, high)


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axis = _first(inputs), attributes.get("axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _softmax(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.softmax(_first(inputs), attributes.get("axis", -1))


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, bias = (*inputs, None)[:3]
    assert x is not None
    shape = x.shape[attributes.get("axis", -1) % x.ndim :]
    return functional.layer_norm(x, shape, scale, bias, attributes.get("epsilon", 1e-5))


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b, c = (*inputs, None)[:3]
    assert a is not None and b is not None
    product = (a.T if attributes.get("transA", 0) else a) @ (b.T if attributes.get("transB", 0) else b)
    product = attributes.get("alpha", 1.0) * product
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _depth_to_space(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, block = _first(inputs), attributes["blocksize"]
    if attributes.get("mode", b"DCR") == b"CRD":
        return functional.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _grid_sample(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, grid = inputs
    mode = attributes.get("mode", b"linear").decode()
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    padding = attributes.get("padding_mode", b"zeros").decode()
    return functional.grid_sample(x, grid, mode, padding, bool(attributes.get("align_corners", 0)))


def _first(inputs: Inputs) -> Tensor:
    first = inputs[0]
    assert first is not None
    return first


def _unary(run: Callable[..., Tensor], **defaults: float) -> Operator:
    """An operator of one input; `defaults` are attributes that PyTorch takes in this order."""
    return lambda inputs, attributes: run(
        _first(inputs), *(attributes.get(name, default) for name, default in defaults.items())
    )


def _plain(run: Callable[..., Tensor]) -> Operator:
    """An operator whose inputs PyTorch takes in ONNX's order."""
    return lambda inputs, attributes: run(*inputs)


def _folded(run: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs."""

    def fold(inputs: Inputs, attributes: Attributes) -> Tensor:
        result = _first(inputs)
        for other in inputs[1:]:
            assert other is not None
            result = run(result, other)
        return result

    return fold


OPERATORS: dict[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat(list(inputs), attributes["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Cos": _unary(torch.cos),
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Dropout": _unary(lambda x: x),
    "Elu": _unary(functional.elu, alpha=1.0),
    "Equal": _plain(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": lambda inputs, attributes: _first(inputs).expand(
        torch.broadcast_shapes(_first(inputs).shape, tuple(numbers(inputs[1])))
    ),
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _unary(lambda x: x.mean((2, 3), keepdim=True)),
    "GlobalMaxPool": _unary(lambda x: x.amax((2, 3), keepdim=True)),
    "Greater": _plain(torch.gt),
    "GridSample": _grid_sample,
    "HardSigmoid": _unary(lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1), alpha=0.2, beta=0.5),
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _unary(functional.leaky_relu, alpha=0.01),
    "Less": _plain(torch.lt),
    "Log": _unary(torch.log),
    "MatMul": _plain(torch.matmul),
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _folded(torch.minimum),
    "Mul": _plain(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Pad": _pad,
    "Pow": _plain(torch.pow),
    "PRelu": _plain(lambda x, slope: torch.where(x < 0, slope * x, x)),
    "Range": _plain(lambda start, end, step: torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _unary(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Sin": _unary(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": _unary(functional.softplus),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _unary(torch.tanh),
    "Tile": lambda inputs, attributes: _first(inputs).repeat(numbers(inputs[1])),
    "Transpose": lambda inputs, attributes: _first(inputs).permute(
        attributes.get("perm", tuple(reversed(range(_first(inputs).ndim))))
    ),
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}

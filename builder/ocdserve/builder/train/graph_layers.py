# SPDX-License-Identifier: Apache-2.0
"""ONNX nodes with weights as PyTorch's own layers, where tools that look for these find them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ocdserve.builder.train.networks.deform import TAPS, DeformConv2d
from ocdserve.contract import InvalidInputError

# What a node reads besides the image, in its order; None where it is omitted.
Weights = list[NDArray[Any] | None]
# A layer, and for each of these the name that it has there, and whether it is transposed there.
Made = tuple[nn.Module, tuple[tuple[str, bool], ...]] | None
Maker = Callable[[Weights, dict[str, Any]], Made]
_WEIGHT_AND_BIAS = (("weight", False), ("bias", False))
_TRANSPOSED_DEFAULTS = (("output_padding", (0, 0)), ("dilations", (1, 1)))


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the export, in training too: a few crops have none to offer."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        """Stay in inference mode."""
        super().train(False)
        return self


def _convolution(weights: Weights, attributes: dict[str, Any]) -> Made:
    weight, bias = (*weights, None)[:2]
    assert weight is not None
    _check_image(weight)
    attributes["kernel_shape"] = list(weight.shape[2:])
    group = attributes.get("group", 1)
    strides, dilations = (tuple(attributes.get(name, (1, 1))) for name in ("strides", "dilations"))
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    padding = (0, 0)
    if (top, left) == (bottom, right) and attributes.get("auto_pad", b"NOTSET") == b"NOTSET":
        padding = (top, left)
        attributes["pads"] = [0, 0, 0, 0]
    layer = nn.Conv2d(
        weight.shape[1] * group, weight.shape[0], weight.shape[2:], strides, padding, dilations, group, bias is not None
    )
    return _filled(layer, weight, bias), _WEIGHT_AND_BIAS


def _transposed_convolution(weights: Weights, attributes: dict[str, Any]) -> Made:
    weight, bias = (*weights, None)[:2]
    assert weight is not None
    _check_image(weight)
    group = attributes.get("group", 1)
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise InvalidInputError("a transposed convolution pads one side more than the other, which PyTorch cannot")
    more, dilations = (tuple(attributes.get(name, default)) for name, default in _TRANSPOSED_DEFAULTS)
    layer = nn.ConvTranspose2d(
        weight.shape[0],
        weight.shape[1] * group,
        weight.shape[2:],
        tuple(attributes.get("strides", (1, 1))),
        (top, left),
        more,
        group,
        bias is not None,
        dilations,
    )
    return _filled(layer, weight, bias), _WEIGHT_AND_BIAS


def _batch_norm(weights: Weights, attributes: dict[str, Any]) -> Made:
    gamma, beta, mean, variance = weights
    assert gamma is not None and mean is not None and variance is not None
    layer = FrozenBatchNorm2d(len(gamma), attributes.get("epsilon", 1e-5))
    layer.running_mean.copy_(torch.from_numpy(mean))
    layer.running_var.copy_(torch.from_numpy(variance))
    return _filled(layer, gamma, beta), (*_WEIGHT_AND_BIAS, ("running_mean", False), ("running_var", False))


def _linear(weights: Weights, attributes: dict[str, Any]) -> Made:
    """A product with a matrix of weights, by MatMul or by a Gemm without factors."""
    weight, bias = (*weights, None)[:2]
    if weight is None or weight.ndim != 2 or attributes.get("transA", 0):
        return None
    if (attributes.get("alpha", 1.0), attributes.get("beta", 1.0)) != (1.0, 1.0):
        return None
    if bias is not None and bias.shape != (weight.shape[0 if attributes.get("transB", 0) else 1],):
        return None
    is_transposed = not attributes.get("transB", 0)
    matrix = weight.T if is_transposed else weight
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None)
    return _filled(layer, matrix, bias), (("weight", is_transposed), ("bias", False))


class BiasedDeformConv2d(DeformConv2d):
    """A deformable convolution with a bias, and with or without factors of its taps."""

    def __init__(self, inputs: int, outputs: int, stride: int, has_bias: bool) -> None:
        super().__init__(inputs, outputs, stride)
        self.bias = nn.Parameter(torch.zeros(outputs)) if has_bias else None

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `DeformConv2d.forward`."""
        if mask is None:
            mask = offset.new_ones(offset.shape[0], TAPS, *offset.shape[2:])
        result = super().forward(x, offset, mask)
        return result if self.bias is None else result + self.bias[:, None, None]


def _deformable(weights: Weights, attributes: dict[str, Any]) -> Made:
    weight, bias = (*weights, None)[:2]
    assert weight is not None
    stride = attributes.get("strides", [1, 1])
    others = [attributes.get(name, [1, 1]) for name in ("dilations", "pads")] + [
        [attributes.get(name, 1)] for name in ("group", "offset_group")
    ]
    if weight.shape[2:] != (3, 3) or stride[0] != stride[1] or any(set(value) != {1} for value in others):
        raise InvalidInputError(
            "a deformable convolution must be 3 x 3 of padding 1 and dilation 1 in one group; got a kernel of "
            f"{weight.shape[2:]}, strides {stride}, dilations, pads, group and offset_group {others}"
        )
    layer = BiasedDeformConv2d(weight.shape[1], weight.shape[0], stride[0], bias is not None)
    return _filled(layer, weight, bias), _WEIGHT_AND_BIAS


def _filled(layer: Any, weight: NDArray[Any], bias: NDArray[Any] | None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight, np.float32)))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias, np.float32)))
    return layer


def _check_image(weight: NDArray[Any]) -> None:
    if weight.ndim != 4:
        raise InvalidInputError(f"a convolution must be one of images, its weights of 4 axes; got {weight.ndim}")


# By operator: the layer of a node with these weights; None where it stays an operator. Padding that becomes the layer's
# is taken out of the attributes.
LAYERS: dict[str, Maker] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "BatchNormalization": _batch_norm,
    "MatMul": _linear,
    "Gemm": _linear,
    "DeformConv": _deformable,
}
# Where a node's inputs are not one image and then weights: the indices of its weights.
WEIGHT_INPUTS = {"DeformConv": (1, 3)}

# SPDX-License-Identifier: Apache-2.0
"""What FP16 does to the tensors of an FP32 network, judged by their largest magnitudes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx

from ocdserve.builder.graph.float16_plan import FLOAT16_MAX, Float16Plan, float16_plan
from ocdserve.builder.graph.tensor_types import node_key, node_name
from ocdserve.contract import InvalidInputError

# Below 2^-17 the largest value has fewer than eight significant bits: subnormals are 2^-24 apart.
FLOAT16_VANISHING = 2.0**-17


@dataclass(frozen=True)
class TensorRange:
    """A tensor's largest magnitude; `headroom` is 65504 / amax, the factor that it may still grow by."""

    tensor: str
    amax: float
    headroom: float
    verdict: Literal["fits", "overflows", "vanishes"]


@dataclass(frozen=True)
class Float16Limits:
    """Effect of FP16 on the tensors of a network.

    Attributes:
        tensors: All measured tensors, least headroom first. "vanishes" is informational: the largest value is below
            2^-17, where FP16 has fewer than eight significant bits.
        keep_float32: Nodes to keep in FP32, because they write or read a tensor that overflows.
    """

    tensors: tuple[TensorRange, ...]
    keep_float32: tuple[str, ...]


def float_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Tensors that are FP16 somewhere in `to_float16(model)`, without constants, for `overflowing`."""
    return _measured(float16_plan(model))


def overflowing(amax: Mapping[str, float], model: onnx.ModelProto, margin: float = 4.0) -> Float16Limits:
    """Find tensors of an FP32 network that overflow in FP16, by their largest magnitudes.

    Args:
        amax: Largest magnitude of each of `float_tensors(model)` on the calibration images; others are ignored.
        model: The FP32 network.
        margin: Factor by which a tensor may exceed its magnitude on the calibration images, at least 1. Two spare bits
            by default: maxima on one half of forty photographs were at most 2.1 times those on the other half.

    Raises:
        InvalidInputError: A tensor was not measured, or the margin is below 1.
    """
    if not margin >= 1:
        raise InvalidInputError(f"margin must be at least 1; got {margin}")
    plan = float16_plan(model)
    names = _measured(plan)
    missing = [name for name in names if name not in amax]
    if missing:
        raise InvalidInputError(
            f"amax must have every tensor of float_tensors(model); {len(missing)} are missing, {missing[0]!r} first"
        )
    ranges = sorted((_range(name, float(amax[name]), margin) for name in names), key=lambda item: item.headroom)
    wide = {item.tensor for item in ranges if item.verdict == "overflows"}
    keep = [
        node_name(node)
        for node in plan.model.graph.node
        if node_key(node) in plan.nodes and wide.intersection([*node.input, *node.output])
    ]
    return Float16Limits(tuple(ranges), tuple(keep))


def _measured(plan: Float16Plan) -> tuple[str, ...]:
    constants = {tensor.name for tensor in plan.model.graph.initializer}
    names = dict.fromkeys(value.name for value in plan.model.graph.input)
    names |= dict.fromkeys(name for node in plan.model.graph.node for name in node.output)
    return tuple(name for name in names if name in plan.made | (plan.read - constants))


def _range(name: str, amax: float, margin: float) -> TensorRange:
    headroom = FLOAT16_MAX / amax if amax else math.inf
    if not (math.isfinite(amax) and headroom >= margin):
        return TensorRange(name, amax, headroom if math.isfinite(amax) else 0.0, "overflows")
    return TensorRange(name, amax, headroom, "vanishes" if 0 < amax < FLOAT16_VANISHING else "fits")

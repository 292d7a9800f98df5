# SPDX-License-Identifier: Apache-2.0
"""The precision of a network's layers: which are quantised, with which scales, and which FP16 cannot hold."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Protocol, TypeVar

import onnx

from ocdserve.backend.network.rewrite.fold import PREFIX, load_onnx
from ocdserve.builder.accuracy.search import fewest_excluded
from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.builder.calibration.calibrate import CalibrationOptions, calibrate, measure_extremes
from ocdserve.builder.config import BuildConfig
from ocdserve.builder.graph.deformable import coordinate_nodes, layer_of
from ocdserve.builder.graph.execute import tensor_shapes
from ocdserve.builder.graph.float16_limits import float_tensors, overflowing
from ocdserve.builder.graph.float16_write import rounded_float16, to_float16
from ocdserve.builder.graph.layer_rules import Pinned, pin
from ocdserve.builder.graph.quantise import LARGEST, Format, Layer, layers, placement, quantise
from ocdserve.builder.state import BuildState, GateError

# Tensors of least headroom in the report.
_NAMED_TENSORS = 10


def pinned_layers(config: BuildConfig, model: onnx.ModelProto) -> Pinned:
    """The layers that the configuration pins to a precision."""
    if not config.layers:
        return Pinned({}, frozenset(), ())
    exported = [node.name for node in load_onnx(config.onnx).graph.node]
    return pin(config.layers, [node.name for node in model.graph.node], exported)


def choose_precisions(state: BuildState) -> None:
    """Find the layers to quantise and calibrate them, and the nodes that stay FP32 in FP16."""
    if state.config.is_quantised:
        state.candidates = _layers(state)
    if state.has_float16:
        _check_float16(state)
    if not state.config.is_quantised:
        return
    precisions = state.pinned.precisions
    names = {layer.name for layer in state.candidates} & precisions.keys()
    keep = {*state.config.keep, *(name for name in names if precisions[name] != "int8")}
    force = {name for name in names & state.pinned.named if precisions[name] == "int8"}
    state.chosen = placement(state.model, state.candidates, keep, force=force)
    _calibrate(state)


def typed(state: BuildState, chosen: tuple[Layer, ...], rounding: bool = False) -> onnx.ModelProto:
    """The network in its final types or, with `rounding`, an FP32 graph that rounds like them."""
    model = state.model
    if chosen:
        kind: Format = "fp8" if state.config.precision == "fp8-experimental" else "int8"
        model = quantise(model, chosen, state.scales, kind, openvino=state.config.runtime in (None, "openvino"))
    if state.has_float16:
        model = (rounded_float16 if rounding else to_float16)(model, state.keep_float32)
    return model


class _Figures(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


_Comparison = TypeVar("_Comparison", bound=_Figures)


def judged(
    state: BuildState,
    judge: Callable[[tuple[Layer, ...]], _Comparison],
    passes: Callable[[_Comparison], bool],
    measure: Callable[[], None],
    refusal: Callable[[_Comparison], str],
) -> _Comparison:
    """Run the gate and, if it fails, exclude as few layers from quantisation as it takes to pass.

    Args:
        state: The build; after an exclusion it has the layers that are left.
        judge: Compares a network in which the given layers are quantised with FP32.
        passes: The gate.
        measure: Measures the sensitivity of the layers, if that was not done.
        refusal: Why a network does not pass.

    Returns:
        The figures of the network that is chosen.

    Raises:
        GateError: No network passes, and the build wants one that does.
    """
    comparison = judge(state.chosen)
    if passes(comparison) or not state.config.gate_refuses:
        return comparison
    found = _excluding(state, judge, passes, measure)
    if found is None:
        raise GateError(refusal(comparison))
    return found


def _excluding(
    state: BuildState,
    judge: Callable[[tuple[Layer, ...]], _Comparison],
    passes: Callable[[_Comparison], bool],
    measure: Callable[[], None],
) -> _Comparison | None:
    """The figures of the first network that passes; None if none does, or the search is not wanted."""
    if not (state.config.is_quantised and state.config.search):
        return None
    if not state.sensitivity:
        measure()
    remaining, trials = fewest_excluded(state.chosen, state.sensitivity, judge, passes)
    state.trials = [{"kept": excluded, **tried.to_dict()} for excluded, tried in trials]
    passing = [tried for _, tried in trials if passes(tried)]
    if not remaining or not passing:
        return None
    excluded = len(state.chosen) - len(remaining)
    state.notes.append(f"{excluded} layers were excluded from quantisation so that the gate passes")
    state.chosen = remaining
    return passing[-1]


def _check_float16(state: BuildState) -> None:
    """Keep nodes in FP32 whose values FP16 cannot hold."""
    pinned = {name for name, precision in state.pinned.precisions.items() if precision == "fp32"}
    state.keep_float32 = coordinate_nodes(state.model) | pinned
    if not state.images.calibration:
        state.notes.append("FP16 ranges were not checked: there are no calibration images")
        return
    names = float_tensors(state.model)
    network, images = state.measured()
    # With those that are quantised, so that the calibration need not read the images again.
    tensors = dict.fromkeys([*names, *(layer.tensor for layer in state.candidates)])
    found = measure_extremes(network, [PREFIX + name for name in tensors], images, _options(state), state.progress)
    state.extremes = found
    limits = overflowing({name: found[PREFIX + name].amax for name in names}, state.model)
    state.headroom = [asdict(item) for item in limits.tensors[:_NAMED_TENSORS]]
    state.keep_float32 |= frozenset(limits.keep_float32)
    if limits.keep_float32:
        state.notes.append(f"{len(limits.keep_float32)} nodes stay FP32, FP16 cannot hold their values")


def _layers(state: BuildState) -> tuple[Layer, ...]:
    convolutions = [node for node in state.model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    names = list(dict.fromkeys(name for node in convolutions for name in (node.input[0], node.output[0])))
    shapes = tensor_shapes(state.folded(state.model), [PREFIX + name for name in names], state.reference_pixels())
    return layers(state.model, {name: shapes[PREFIX + name] for name in names})


def _options(state: BuildState) -> CalibrationOptions:
    return replace(state.config.calibration, threads=state.config.threads)


def _calibrate(state: BuildState) -> None:
    """Compute scales of all tensors that can be quantised, so that one cache serves every choice of layers."""
    tensors = list(dict.fromkeys(layer.tensor for layer in state.candidates))
    path = state.config.data.calibration_cache
    if path is not None:
        cache = CalibrationCache.load(path)
        # A cache made for the network as exported may use names that the normal form has replaced.
        renamed = {state.aliases.get(name, name): scale for name, scale in cache.scales.items()}
        cache = replace(cache, scales={**renamed, **cache.scales})
        # Other tools calibrate a deformable convolution as one node: ranges of its inner tensors are missing.
        missing = (layer for layer in state.chosen if layer.tensor not in cache.scales)
        inside = {layer.name for layer in missing if layer_of(layer.tensor) != layer.tensor}
        if inside:
            state.chosen = tuple(layer for layer in state.chosen if layer.name not in inside)
            state.notes.append(
                f"{len(inside)} deformable convolutions stay in the higher precision: {path.name} has no "
                "ranges for them"
            )
        needed = {layer.tensor for layer in state.chosen}
        cache.check_bound_to(state.sha256, sorted(needed), state.config.data.force)
        state.notes.append(f"scales from {path.name}, header {cache.header}")
        if cache.onnx_sha256 not in (None, state.sha256):
            state.notes.append(f"these scales were made for another network (SHA-256 {cache.onnx_sha256}), as forced")
    else:
        network, images = state.measured()
        names = [PREFIX + name for name in tensors]
        found = calibrate(network, names, images, _options(state), state.progress, state.extremes)
        ranges = {name.removeprefix(PREFIX): value for name, value in found.ranges.items()}
        cache = replace(found, ranges=ranges).to_cache(state.sha256, state.images.sha256())
    state.cache = replace(cache, onnx_sha256=state.sha256)
    unit = LARGEST["int8"] / (LARGEST["fp8"] if state.config.precision == "fp8-experimental" else LARGEST["int8"])
    state.scales = {name: scale * unit for name, scale in cache.scales.items()}

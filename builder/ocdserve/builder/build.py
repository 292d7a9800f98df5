# SPDX-License-Identifier: Apache-2.0
"""The build: describe, calibrate, quantise, build the engine, judge, and write the bundle in one step."""

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ocdserve.backend import Bundle
from ocdserve.backend.device.probe import gpu_count, missing
from ocdserve.backend.files import draft_folder, install_folder
from ocdserve.backend.network.host_network import HostNetwork
from ocdserve.backend.network.load import load_network, open_gpu_with_network
from ocdserve.backend.network.options import RUNTIMES, RuntimeOptions
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.network.rewrite.fold import PREFIX, fold, load_onnx
from ocdserve.builder.accuracy.gate import Comparison, Reference, accepted_failure, compare, make_reference, refusal
from ocdserve.builder.accuracy.plot import plot_sensitivity
from ocdserve.builder.accuracy.search import fewest_excluded, measure_sensitivity
from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.builder.calibration.calibrate import CalibrationOptions, calibrate, measure_extremes
from ocdserve.builder.calibration.images import pick_images
from ocdserve.builder.calibration.inputs import LanczosImages, ServingImages
from ocdserve.builder.config import BuildConfig
from ocdserve.builder.engine.build import Engine, build_engine
from ocdserve.builder.engine.options import ShapeProfile, profile_of
from ocdserve.builder.engine.store import EngineKey, EngineStore
from ocdserve.builder.engine.targets import can_execute
from ocdserve.builder.graph.deformable import coordinate_nodes, layer_of, lower_deformable
from ocdserve.builder.graph.describe import Description, describe, network_size
from ocdserve.builder.graph.execute import GraphNetwork, tensor_shapes
from ocdserve.builder.graph.float16_limits import float_tensors, overflowing
from ocdserve.builder.graph.float16_write import rounded_float16, to_float16
from ocdserve.builder.graph.layer_rules import Pinned, pin
from ocdserve.builder.graph.quantise import LARGEST, Format, Layer, layers, placement, quantise
from ocdserve.builder.graph.trial import FINDS_NOTHING, TRIAL_SIZE, fault
from ocdserve.builder.progress import SILENT, Progress
from ocdserve.builder.report import build_report, text_sha256
from ocdserve.builder.state import BuildState, GateError
from ocdserve.contract import InvalidInputError

_MODEL, _ENGINE, _CACHE, _REPORT, _PLOT = "model.onnx", "model.plan", "calibration.cache", "report.json", "damage.png"
# Images to measure the sensitivity of single layers on, and tensors of least headroom in the report.
_SENSITIVITY_IMAGES = 2
_NAMED_TENSORS = 10


def build(config: BuildConfig, progress: Progress = SILENT) -> Bundle:
    """Build a bundle; a build that fails or is interrupted leaves nothing at `config.output`.

    Raises:
        InvalidInputError: The network cannot be served, or data is missing or malformed; the message says what was
            expected.
        UnavailableError: The runtime is not installed, or this machine lacks the GPU that it needs.
        GateError: The result loses more accuracy than the limits allow.
    """
    images = pick_images(config.data, needed=config.needs_images, judged=config.gate or config.explain)
    if config.gate and config.precision != "fp32" and not images.evaluation:
        raise InvalidInputError(
            "the accuracy gate needs images: set --evaluate-data, or skip it with --no-gate at your own risk"
        )
    description = describe(config.onnx, config.preset, config.name, config.detector, config.export)
    found_fault = None if description.finds_text else FINDS_NOTHING
    if found_fault and config.trial:
        raise InvalidInputError(_unfit(config, found_fault))
    if config.engine_runtime is not None:
        # Fails early if the engine cannot be built on this machine.
        EngineKey.of(b"", config.engine_runtime, _profile(config, description), config.engine, config.precision)
    # Only ONNX Runtime has ONNX's deformable convolution.
    model = lower_deformable(description.model, "onnx" if config.runtime == "onnxruntime" else "standard")
    state = BuildState(config, progress, description, images, model, list(description.notes), _pinned(config, model))
    state.notes += [*images.notes(), *state.pinned.notes]
    if found_fault:
        state.notes.append(f"not fit to serve: {found_fault}")
    reference = _reference(state)
    with tempfile.TemporaryDirectory(prefix="ocdserve-build-") as scratch:
        _choose_types(state, reference, Path(scratch))
        comparison = _judged(state, reference, Path(scratch)) if reference is not None and config.gate else None
        if config.precision != "fp32" and not found_fault and not (comparison and comparison.boxes_fp32):
            _try_types(state, Path(scratch))
    return _written(state, comparison, reference)


def _unfit(config: BuildConfig, found_fault: str) -> str:
    return (
        f"{config.onnx.name} is not fit to serve: {found_fault}, with the normalisation and thresholds of the preset. "
        "Check --preset, --color, --mean, --std and --output-tensor; --no-trial writes the bundle all the same, for a "
        "network that reads something else. Nothing was written."
    )


def _try_types(state: BuildState, scratch: Path) -> None:
    """Run the network in its final types on the trial pages, where no gate has judged it."""
    found_fault = fault(_network(state, state.chosen, scratch), state.spec, state.description.size or TRIAL_SIZE)
    if found_fault is None:
        return
    text = f"in {state.config.precision} the network is not fit to serve, though it is in FP32: {found_fault}"
    if state.config.trial:
        raise GateError(f"{text}. Calibrate with more typical images or exclude layers (--keep). Nothing was written.")
    state.notes.append(text)


def _reference(state: BuildState) -> Reference | None:
    if not state.images.evaluation:
        return None
    bundle = Bundle(state.spec, state.config.onnx)
    network = GraphNetwork(state.folded(state.description.model), state.config.threads)
    return make_reference(bundle, network, state.images.evaluation, state.progress)


def _pinned(config: BuildConfig, model: onnx.ModelProto) -> Pinned:
    if not config.layers:
        return Pinned({}, frozenset(), ())
    exported = [node.name for node in load_onnx(config.onnx).graph.node]
    return pin(config.layers, [node.name for node in model.graph.node], exported)


def _choose_types(state: BuildState, reference: Reference | None, scratch: Path) -> None:
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
    if state.config.explain and reference is not None:
        _measure_sensitivity(state, reference, scratch)


def _check_float16(state: BuildState) -> None:
    """Keep nodes in FP32 whose values FP16 cannot hold."""
    pinned = {name for name, precision in state.pinned.precisions.items() if precision == "fp32"}
    state.keep_float32 = coordinate_nodes(state.model) | pinned
    if not state.images.calibration:
        state.notes.append("FP16 ranges were not checked: there are no calibration images")
        return
    names = float_tensors(state.model)
    network, images = _measured(state)
    # With those that are quantised, so that the calibration need not read the images again.
    tensors = dict.fromkeys([*names, *(layer.tensor for layer in state.candidates)])
    found = measure_extremes(network, [PREFIX + name for name in tensors], images, _options(state), state.progress)
    state.extremes = found
    limits = overflowing({name: found[PREFIX + name].amax for name in names}, state.model)
    state.headroom = [asdict(item) for item in limits.tensors[:_NAMED_TENSORS]]
    state.keep_float32 |= frozenset(limits.keep_float32)
    if limits.keep_float32:
        state.notes.append(f"{len(limits.keep_float32)} nodes stay FP32, FP16 cannot hold their values")


def _measured(state: BuildState) -> tuple[onnx.ModelProto, Sequence[NDArray[np.uint8]]]:
    """The network and the images to measure ranges with."""
    paths = state.images.calibration
    if state.config.calibration.images == "tao":
        network = fold(state.model, replace(state.spec.network, color="RGB"), "float32")
        return network, LanczosImages(paths, *network_size(state.spec))
    return state.folded(state.model), ServingImages(paths, state.spec)


def _layers(state: BuildState) -> tuple[Layer, ...]:
    convolutions = [node for node in state.model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    names = list(dict.fromkeys(name for node in convolutions for name in (node.input[0], node.output[0])))
    pixels = np.zeros((*network_size(state.spec), 3), np.uint8)
    shapes = tensor_shapes(state.folded(state.model), [PREFIX + name for name in names], pixels)
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
        renamed = {state.description.aliases.get(name, name): scale for name, scale in cache.scales.items()}
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
        cache.check_bound_to(state.description.sha256, sorted(needed), state.config.data.force)
        state.notes.append(f"scales from {path.name}, header {cache.header}")
        if cache.onnx_sha256 not in (None, state.description.sha256):
            state.notes.append(f"these scales were made for another network (SHA-256 {cache.onnx_sha256}), as forced")
    else:
        network, images = _measured(state)
        names = [PREFIX + name for name in tensors]
        found = calibrate(network, names, images, _options(state), state.progress, state.extremes)
        ranges = {name.removeprefix(PREFIX): value for name, value in found.ranges.items()}
        cache = replace(found, ranges=ranges).to_cache(state.description.sha256, state.images.sha256())
    state.cache = replace(cache, onnx_sha256=state.description.sha256)
    unit = LARGEST["int8"] / (LARGEST["fp8"] if state.config.precision == "fp8-experimental" else LARGEST["int8"])
    state.scales = {name: scale * unit for name, scale in cache.scales.items()}


def _typed(state: BuildState, chosen: tuple[Layer, ...], rounding: bool = False) -> onnx.ModelProto:
    """The network in its final types or, with `rounding`, an FP32 graph that rounds like them."""
    model = state.model
    if chosen:
        kind: Format = "fp8" if state.config.precision == "fp8-experimental" else "int8"
        model = quantise(model, chosen, state.scales, kind, openvino=state.config.runtime in (None, "openvino"))
    if state.has_float16:
        model = (rounded_float16 if rounding else to_float16)(model, state.keep_float32)
    return model


def _network(state: BuildState, chosen: tuple[Layer, ...], scratch: Path) -> Network:
    """The network for the gate: in the CPU runtime itself, or a graph that rounds as a GPU does."""
    if state.rounds_like_target:
        return GraphNetwork(state.folded(_typed(state, chosen, rounding=True)), state.config.threads)
    path = scratch / _MODEL
    onnx.save(_typed(state, chosen), str(path))
    options = RuntimeOptions(state.config.runtime, state.config.threads, map_type="float32")
    return load_network(Bundle(replace(state.spec, model=_MODEL), path), options)


def _judge(state: BuildState, reference: Reference, scratch: Path, progress: Progress) -> Callable[..., Comparison]:
    return lambda chosen: compare(reference, _network(state, chosen, scratch), progress)


def _measure_sensitivity(state: BuildState, reference: Reference, scratch: Path) -> None:
    judge = _judge(state, reference.first(_SENSITIVITY_IMAGES), scratch, SILENT)
    state.sensitivity = measure_sensitivity(state.chosen, judge, state.progress)


def _judged(state: BuildState, reference: Reference, scratch: Path) -> Comparison:
    """Run the gate and, if it fails, the search for layers to exclude."""
    limits = state.config.gate_limits
    judge = _judge(state, reference, scratch, state.progress)
    comparison = judge(state.chosen)
    if comparison.passes(limits) or not state.config.gate_refuses:
        return comparison
    if state.config.is_quantised and state.config.search:
        if not state.sensitivity:
            _measure_sensitivity(state, reference, scratch)
        remaining, trials = fewest_excluded(state.chosen, state.sensitivity, judge, lambda found: found.passes(limits))
        state.trials = [{"kept": excluded, **tried.to_dict()} for excluded, tried in trials]
        passing = [tried for _, tried in trials if tried.passes(limits)]
        if remaining and passing:
            excluded = len(state.chosen) - len(remaining)
            state.notes.append(f"{excluded} layers were excluded from quantisation so that the gate passes")
            state.chosen = remaining
            return passing[-1]
    raise GateError(refusal(state.config.precision, comparison, limits, state.sensitivity))


def _profile(config: BuildConfig, description: Description) -> ShapeProfile:
    batch = config.engine.max_batch if description.batch is None else description.batch
    smallest, typical = min(config.engine.min_batch, batch), min(config.engine.opt_batch or batch, batch)
    return profile_of(description.spec.resize, max_batch=batch, opt_batch=typical, min_batch=smallest)


def _written(state: BuildState, comparison: Comparison | None, reference: Reference | None) -> Bundle:
    config = state.config
    typed = _typed(state, state.chosen)
    executed_by = "ONNX Runtime, rounding as the target does" if state.rounds_like_target else "the target"
    engine, details = _engine(state, typed)
    spec = replace(
        state.spec,
        model=_MODEL,
        precision=config.precision,
        runtime=config.runtime,
        engine=_ENGINE if engine else None,
        network=replace(state.spec.network, folded=config.fold),
    )
    with draft_folder(config.output.parent, f".{config.output.name}-") as draft:
        onnx.save(fold(typed, state.spec.network) if config.fold else typed, str(draft / _MODEL))
        (draft / "detector.json").write_text(spec.to_json(), "utf-8")
        if engine is not None:
            (draft / _ENGINE).write_bytes(engine.plan)
            if comparison and reference and can_execute(details["runtime"], details["targets"]):
                comparison = _judged_engine(state, Bundle(spec, draft / _MODEL), reference)
                executed_by = "the target"
            elif comparison and gpu_count() and (lacks := missing(modules=[RUNTIMES[details["runtime"]].module])):
                state.notes.append(
                    "the gate judged a graph that rounds as the engine does, not the engine itself: "
                    f"{'; '.join(lacks)}. Install ocdserve[gpu]."
                )
        if state.cache is not None:
            state.cache.save(draft / _CACHE)
        if state.sensitivity:
            plot_sensitivity(state.sensitivity, {layer.name for layer in state.chosen}, draft / _PLOT)
        state.notes += _findings(state, comparison)
        report = build_report(state, typed, comparison, executed_by, details or None)
        (draft / _REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        Bundle(spec, draft / _MODEL).write_manifest()
        install_folder(draft, config.output)
    return Bundle.load(config.output)


def _findings(state: BuildState, comparison: Comparison | None) -> list[str]:
    """What the gate found, or that it did not run, one sentence each."""
    limits = state.config.gate_limits
    if comparison is None:
        return [] if state.config.precision == "fp32" else ["the accuracy was not compared with FP32's"]
    failure = [] if comparison.passes(limits) else [accepted_failure(comparison, limits)]
    shared = ["judged on the images of the calibration, for lack of others"] if state.images.is_shared else []
    return [*failure, *shared, *comparison.warnings(limits)]


def _judged_engine(state: BuildState, bundle: Bundle, reference: Reference) -> Comparison:
    """Run the gate on the engine, executed by the code that will serve it."""
    with closing(HostNetwork(*open_gpu_with_network(bundle, RuntimeOptions()))) as network:
        comparison = compare(reference, network, state.progress, "accuracy gate on the engine")
    limits = state.config.gate_limits
    if not comparison.passes(limits) and state.config.gate_refuses:
        raise GateError(refusal(state.config.precision, comparison, limits, state.sensitivity))
    return comparison


def _engine(state: BuildState, typed: onnx.ModelProto) -> tuple[Engine | None, dict[str, Any]]:
    """The engine, reused from the store or built and stored, and its part of the report; None and {} for the CPU."""
    config, runtime = state.config, state.config.engine_runtime
    if runtime is None:
        return None, {}
    folded = fold(typed, state.spec.network)
    profile = _profile(config, state.description)
    cache_sha256 = None if state.cache is None else text_sha256(state.cache)
    key = EngineKey.of(folded, runtime, profile, config.engine, config.precision, cache_sha256)
    store = EngineStore(config.engine.store)
    engine = store.get(key)
    reused = engine is not None
    if engine is None:
        engine = build_engine(folded, runtime, profile, config.engine, state.progress)
        store.put(key, engine)
    return engine, {
        **asdict(key),
        "profile": asdict(engine.profile),
        "bytes": len(engine.plan),
        "build_s": round(engine.build_s, 2),
        "reused": reused,
        "warnings": engine.warnings,
    }

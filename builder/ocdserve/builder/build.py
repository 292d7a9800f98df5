# SPDX-License-Identifier: Apache-2.0
"""The build: describe, calibrate, quantise, build the engine, judge, and write the bundle in one step."""

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
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
from ocdserve.backend.network.rewrite.fold import fold
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.builder.accuracy.gate import Comparison, Reference, accepted_failure, compare, make_reference, refusal
from ocdserve.builder.accuracy.plot import plot_sensitivity
from ocdserve.builder.accuracy.search import measure_sensitivity
from ocdserve.builder.calibration.images import pick_images
from ocdserve.builder.calibration.inputs import LanczosImages, ServingImages
from ocdserve.builder.config import BuildConfig
from ocdserve.builder.engine.build import Engine
from ocdserve.builder.engine.options import ShapeProfile, profile_of
from ocdserve.builder.engine.store import EngineKey
from ocdserve.builder.engine.targets import can_execute
from ocdserve.builder.graph.deformable import lower_deformable
from ocdserve.builder.graph.describe import Description, describe, network_size
from ocdserve.builder.graph.execute import GraphNetwork
from ocdserve.builder.graph.quantise import Layer
from ocdserve.builder.graph.trial import FINDS_NOTHING, TRIAL_SIZE, fault
from ocdserve.builder.precision import choose_precisions, judged, pinned_layers, typed
from ocdserve.builder.progress import SILENT, Progress
from ocdserve.builder.report import build_report, engine_of
from ocdserve.builder.state import BuildState, GateError
from ocdserve.contract import InvalidInputError

_MODEL, _ENGINE, _CACHE, _REPORT, _PLOT = "model.onnx", "model.plan", "calibration.cache", "report.json", "damage.png"
# Images to measure the sensitivity of single layers on.
_SENSITIVITY_IMAGES = 2


@dataclass
class _State(BuildState):
    """Of a detector."""

    description: Description = field(kw_only=True)

    @property
    def spec(self) -> DetectorSpec:
        return self.description.spec

    @property
    def precision(self) -> str:
        """That of the bundle: bf16, a way to compute an FP32 network on a CPU, stays if such a network is built."""
        keeps = (self.spec.precision, self.config.precision, self.config.engine_runtime) == ("bf16", "fp32", None)
        return "bf16" if keeps else self.config.precision

    def folded(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return fold(model, self.spec.network, "float32")

    def measured(self) -> tuple[onnx.ModelProto, Sequence[NDArray[np.uint8]]]:
        paths = self.images.calibration
        if self.config.calibration.images == "tao":
            network = fold(self.model, replace(self.spec.network, color="RGB"), "float32")
            return network, LanczosImages(paths, *network_size(self.spec))
        return self.folded(self.model), ServingImages(paths, self.spec)

    def reference_pixels(self) -> NDArray[np.uint8]:
        return np.zeros((*network_size(self.spec), 3), np.uint8)


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
    pinned = pinned_layers(config, model)
    notes = [*description.notes, *images.notes(), *pinned.notes]
    hashed, aliases = description.sha256, description.aliases
    state = _State(config, progress, images, hashed, aliases, model, notes, pinned, description=description)
    if found_fault:
        state.notes.append(f"not fit to serve: {found_fault}")
    reference = _reference(state)
    with tempfile.TemporaryDirectory(prefix="ocdserve-build-") as scratch:
        choose_precisions(state)
        if config.is_quantised and config.explain and reference is not None:
            _measure_sensitivity(state, reference, Path(scratch))
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


def _try_types(state: _State, scratch: Path) -> None:
    """Run the network in its final types on the trial pages, where no gate has judged it."""
    found_fault = fault(_network(state, state.chosen, scratch), state.spec, state.description.size or TRIAL_SIZE)
    if found_fault is None:
        return
    text = f"in {state.config.precision} the network is not fit to serve, though it is in FP32: {found_fault}"
    if state.config.trial:
        raise GateError(f"{text}. Calibrate with more typical images or exclude layers (--keep). Nothing was written.")
    state.notes.append(text)


def _reference(state: _State) -> Reference | None:
    if not state.images.evaluation:
        return None
    bundle = Bundle(state.spec, state.config.onnx)
    network = GraphNetwork(state.folded(state.description.model), state.config.threads)
    return make_reference(bundle, network, state.images.evaluation, state.progress)


def _network(state: _State, chosen: tuple[Layer, ...], scratch: Path) -> Network:
    """The network for the gate: in the CPU runtime itself, or a graph that rounds as a GPU does."""
    if state.rounds_like_target:
        return GraphNetwork(state.folded(typed(state, chosen, rounding=True)), state.config.threads)
    path = scratch / _MODEL
    onnx.save(typed(state, chosen), str(path))
    options = RuntimeOptions(state.config.runtime, state.config.threads, map_type="float32")
    return load_network(Bundle(replace(state.spec, model=_MODEL, precision=state.precision), path), options)


def _judge(state: _State, reference: Reference, scratch: Path, progress: Progress) -> Callable[..., Comparison]:
    return lambda chosen: compare(reference, _network(state, chosen, scratch), progress)


def _measure_sensitivity(state: _State, reference: Reference, scratch: Path) -> None:
    judge = _judge(state, reference.first(_SENSITIVITY_IMAGES), scratch, SILENT)
    state.sensitivity = measure_sensitivity(state.chosen, lambda chosen: judge(chosen).map_error, state.progress)


def _judged(state: _State, reference: Reference, scratch: Path) -> Comparison:
    """Run the gate and, if it fails, the search for layers to exclude."""
    limits = state.config.gate_limits
    return judged(
        state,
        _judge(state, reference, scratch, state.progress),
        lambda tried: tried.passes(limits),
        lambda: _measure_sensitivity(state, reference, scratch),
        lambda tried: refusal(state.config.precision, tried, limits, state.sensitivity),
    )


def _profile(config: BuildConfig, description: Description) -> ShapeProfile:
    batch = config.engine.max_batch if description.batch is None else description.batch
    smallest, typical = min(config.engine.min_batch, batch), min(config.engine.opt_batch or batch, batch)
    return profile_of(description.spec.resize, max_batch=batch, opt_batch=typical, min_batch=smallest)


def _written(state: _State, comparison: Comparison | None, reference: Reference | None) -> Bundle:
    config = state.config
    final = typed(state, state.chosen)
    executed_by = "ONNX Runtime, rounding as the target does" if state.rounds_like_target else "the target"
    engine, details = _engine(state, final)
    spec = replace(
        state.spec,
        model=_MODEL,
        precision=state.precision,
        runtime=config.runtime,
        engine=_ENGINE if engine else None,
        network=replace(state.spec.network, folded=config.fold),
    )
    with draft_folder(config.output.parent, f".{config.output.name}-") as draft:
        onnx.save(fold(final, state.spec.network) if config.fold else final, str(draft / _MODEL))
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
        gate = _gate_record(state, comparison, executed_by)
        report = build_report(state, final, gate, details or None)
        (draft / _REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        Bundle(spec, draft / _MODEL).write_manifest()
        install_folder(draft, config.output)
    return Bundle.load(config.output)


def _findings(state: _State, comparison: Comparison | None) -> list[str]:
    """What the gate found, or that it did not run, one sentence each."""
    limits = state.config.gate_limits
    if comparison is None:
        return [] if state.config.precision == "fp32" else ["the accuracy was not compared with FP32's"]
    failure = [] if comparison.passes(limits) else [accepted_failure(comparison, limits)]
    shared = ["judged on the images of the calibration, for lack of others"] if state.images.is_shared else []
    return [*failure, *shared, *comparison.warnings(limits)]


def _judged_engine(state: _State, bundle: Bundle, reference: Reference) -> Comparison:
    """Run the gate on the engine, executed by the code that will serve it."""
    with closing(HostNetwork(*open_gpu_with_network(bundle, RuntimeOptions()))) as network:
        comparison = compare(reference, network, state.progress, "accuracy gate on the engine")
    limits = state.config.gate_limits
    if not comparison.passes(limits) and state.config.gate_refuses:
        raise GateError(refusal(state.config.precision, comparison, limits, state.sensitivity))
    return comparison


def _gate_record(state: _State, comparison: Comparison | None, executed: str) -> dict[str, Any] | None:
    """The gate's part of the report; `executed` is what ran the network for it."""
    if comparison is None:
        return None
    limits = state.config.gate_limits
    certain = {"is_certain": comparison.is_certain(limits)}
    figures = {**comparison.to_dict(), **certain, "trials": state.trials}
    return {"executed_by": executed, "limits": asdict(limits), **figures}


def _engine(state: _State, final: onnx.ModelProto) -> tuple[Engine | None, dict[str, Any]]:
    """The engine, reused from the store or built and stored, and its part of the report; None and {} for the CPU."""
    runtime = state.config.engine_runtime
    if runtime is None:
        return None, {}
    return engine_of(state, fold(final, state.spec.network), _profile(state.config, state.description), runtime)

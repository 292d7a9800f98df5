# SPDX-License-Identifier: Apache-2.0
"""A recogniser's build: describe, calibrate, quantise, build the engine, judge, and write the bundle in one step."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ocdserve.backend.files import draft_folder, install_folder
from ocdserve.backend.network.load import load_device_recogniser
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.recogniser import load_recogniser
from ocdserve.backend.network.rewrite.fold_recogniser import fold_recogniser
from ocdserve.backend.recogniser import Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import SPEC_FILE, RecogniserSpec
from ocdserve.builder.accuracy.plot import plot_sensitivity
from ocdserve.builder.accuracy.search import measure_sensitivity
from ocdserve.builder.calibration.images import pick_images
from ocdserve.builder.engine.build import Engine
from ocdserve.builder.engine.options import ShapeProfile
from ocdserve.builder.engine.store import EngineKey
from ocdserve.builder.engine.targets import can_execute
from ocdserve.builder.graph.quantise import Layer
from ocdserve.builder.precision import choose_precisions, judged, pinned_layers, typed
from ocdserve.builder.progress import SILENT, Progress
from ocdserve.builder.recogniser.config import RecogniserBuildConfig
from ocdserve.builder.recogniser.describe import RecogniserDescription, describe_recogniser
from ocdserve.builder.recogniser.gate import (
    ReadingComparison,
    ReadingReference,
    compare_reading,
    make_reading_reference,
    reading_refusal,
)
from ocdserve.builder.recogniser.lines import CALIBRATION_LINES, cut_pages, labels_of, typical_line
from ocdserve.builder.recogniser.trial import GraphRecogniser, fault, recogniser_of
from ocdserve.builder.report import build_report, engine_of
from ocdserve.builder.state import BuildState, GateError
from ocdserve.contract import InvalidInputError

_MODEL, _ENGINE, _CACHE, _REPORT, _PLOT = "model.onnx", "model.plan", "calibration.cache", "report.json", "damage.png"
_SENSITIVITY_IMAGES = 2


@dataclass
class _State(BuildState):
    """Of a recogniser.

    Attributes:
        lines: To calibrate with, uint8 (height, w, 3) each, as the network takes them.
    """

    config: RecogniserBuildConfig
    description: RecogniserDescription = field(kw_only=True)
    lines: tuple[NDArray[np.uint8], ...] = field(kw_only=True)

    @property
    def spec(self) -> RecogniserSpec:
        return self.description.spec

    def folded(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return fold_recogniser(model, self.spec.network, reduced=False)

    def measured(self) -> tuple[onnx.ModelProto, Sequence[NDArray[np.uint8]]]:
        return self.folded(self.model), self.lines

    def reference_pixels(self) -> NDArray[np.uint8]:
        return np.zeros((*typical_line(self.spec), 3), np.uint8)


def build_recogniser(config: RecogniserBuildConfig, progress: Progress = SILENT) -> RecogniserBundle:
    """Build a recogniser's bundle; a build that fails or is interrupted leaves nothing at `config.output`.

    Raises:
        InvalidInputError: The network cannot be served, or data is missing or malformed; the message says what was
            expected.
        UnavailableError: The runtime is not installed, or this machine lacks the GPU that it needs.
        GateError: The result reads worse than the limits allow.
    """
    images = pick_images(config.data, needed=config.needs_images, judged=config.gate or config.explain)
    if config.gate and config.precision != "fp32" and not images.evaluation:
        raise InvalidInputError(
            "the gate on reading needs images: set --evaluate-data, or skip it with --no-gate at your own risk"
        )
    description = describe_recogniser(config)
    if description.fault and config.trial:
        raise InvalidInputError(
            f"{config.onnx.name} is not fit to serve: {description.fault}. Check --characters, --color, --mean, --std, "
            "--height and --output-tensor; --no-trial writes the bundle all the same, for a network that reads "
            "something else. Nothing was written."
        )
    if config.engine_runtime is not None:
        if description.spec.widths.fit == "stretch":
            raise InvalidInputError(
                f"lines are stretched for {config.onnx.name}, which only runtimes of the CPU are served with: drop "
                "--runtime, or say --resize pad if it has learnt from padded lines"
            )
        # Fails early if the engine cannot be built on this machine.
        EngineKey.of(b"", config.engine_runtime, _profile(config, description), config.engine, config.precision)
    pinned = pinned_layers(config, description.model)
    state = _State(
        config,
        progress,
        images,
        description.sha256,
        description.aliases,
        description.model,
        [*description.notes, *images.notes(), *pinned.notes],
        pinned,
        description=description,
        lines=_calibration_lines(config, description.spec, images.calibration, progress),
    )
    if description.fault:
        state.notes.append(f"not fit to serve: {description.fault}")
    reference = _reference(state)
    with tempfile.TemporaryDirectory(prefix="ocdserve-build-") as scratch:
        choose_precisions(state)
        if config.is_quantised and config.explain and reference is not None:
            _measure_sensitivity(state, reference, Path(scratch))
        comparison = _judged(state, reference, Path(scratch)) if reference is not None and config.gate else None
        if config.precision != "fp32" and not description.fault and not (comparison and comparison.lines):
            _try_types(state, Path(scratch))
    return _written(state, comparison, reference)


def _calibration_lines(
    config: RecogniserBuildConfig, spec: RecogniserSpec, paths: Sequence[Path], progress: Progress
) -> tuple[NDArray[np.uint8], ...]:
    """Lines of the calibration images, as the network takes them.

    Raises:
        InvalidInputError: There are images, but no line in them.
    """
    if not paths:
        return ()
    most = max(1, CALIBRATION_LINES // len(paths))
    pages = cut_pages(labels_of(config.data, paths), spec, config.threads, progress, most)
    recogniser = recogniser_of(spec, None)
    lines = tuple(recogniser.fitted(line.pixels) for page in pages for line in page.lines)
    if not lines:
        raise InvalidInputError(
            f"the {len(paths)} calibration images hold no text: neither their labels nor the default detector find "
            "any. Name others by --calibration-images."
        )
    return lines


def _reference(state: _State) -> ReadingReference | None:
    if not state.images.evaluation:
        return None
    pages = cut_pages(state.images.evaluation, state.spec, state.config.threads, state.progress)
    network = GraphRecogniser(state.description.model, state.spec, state.config.threads)
    return make_reading_reference(recogniser_of(state.spec, network), pages, state.progress)


def _candidate(state: _State, chosen: tuple[Layer, ...], scratch: Path) -> Recogniser:
    """The recogniser for the gate: in the CPU runtime itself, or a graph that rounds as a GPU does."""
    if state.rounds_like_target:
        rounding = GraphRecogniser(typed(state, chosen, rounding=True), state.spec, state.config.threads)
        return recogniser_of(state.spec, rounding)
    path = scratch / _MODEL
    onnx.save(typed(state, chosen), str(path))
    options = RuntimeOptions(state.config.runtime, state.config.threads)
    bundle = RecogniserBundle(replace(state.spec, model=_MODEL), path)
    return Recogniser(bundle, load_recogniser(bundle, options))


def _judge(
    state: _State, reference: ReadingReference, scratch: Path, progress: Progress
) -> Callable[[tuple[Layer, ...]], ReadingComparison]:
    return lambda chosen: compare_reading(reference, _candidate(state, chosen, scratch), progress)


def _measure_sensitivity(state: _State, reference: ReadingReference, scratch: Path) -> None:
    judge = _judge(state, reference.first(_SENSITIVITY_IMAGES), scratch, SILENT)
    state.sensitivity = measure_sensitivity(state.chosen, lambda chosen: judge(chosen).score_error, state.progress)


def _judged(state: _State, reference: ReadingReference, scratch: Path) -> ReadingComparison:
    """Run the gate and, if it fails, the search for layers to exclude."""
    limits = state.config.most_lost
    return judged(
        state,
        _judge(state, reference, scratch, state.progress),
        lambda tried: tried.passes(limits),
        lambda: _measure_sensitivity(state, reference, scratch),
        lambda tried: reading_refusal(state.config.precision, tried, limits, state.sensitivity),
    )


def _try_types(state: _State, scratch: Path) -> None:
    """Read the drawn lines with the network in its final types, where no gate has judged it."""
    found_fault = fault(_candidate(state, state.chosen, scratch))
    if found_fault is None:
        return
    text = f"in {state.config.precision} the network is not fit to serve, though it is in FP32: {found_fault}"
    if state.config.trial:
        raise GateError(f"{text}. Calibrate with more typical images or exclude layers (--keep). Nothing was written.")
    state.notes.append(text)


def _profile(config: RecogniserBuildConfig, description: RecogniserDescription) -> ShapeProfile:
    """The shapes of an engine: every width that a line may get; tuned for one of usual length."""
    spec, engine = description.spec, config.engine
    most = engine.max_batch if description.batch is None else description.batch
    least, usual = min(engine.min_batch, most), min(engine.opt_batch or most, most)
    narrow, wide = spec.widths.fitted(1), spec.widths.largest
    return ShapeProfile((least, spec.height, narrow), (usual, *typical_line(spec)), (most, spec.height, wide))


def _written(
    state: _State, comparison: ReadingComparison | None, reference: ReadingReference | None
) -> RecogniserBundle:
    config = state.config
    final = typed(state, state.chosen)
    engine, details = _engine(state, final)
    spec = replace(
        state.spec,
        model=_MODEL,
        precision=config.precision,
        runtime=config.runtime,
        engine=_ENGINE if engine else None,
        network=replace(state.spec.network, folded=config.fold),
    )
    executed_by = "ONNX Runtime, rounding as the target does" if state.rounds_like_target else "the target"
    with draft_folder(config.output.parent, f".{config.output.name}-") as draft:
        onnx.save(state.folded(final) if config.fold else final, str(draft / _MODEL))
        (draft / SPEC_FILE).write_text(spec.to_json(), "utf-8")
        if engine is not None:
            (draft / _ENGINE).write_bytes(engine.plan)
            if comparison and reference and can_execute(details["runtime"], details["targets"]):
                comparison = _judged_engine(state, RecogniserBundle(spec, draft / _MODEL), reference)
                executed_by = "the target"
        if state.cache is not None:
            state.cache.save(draft / _CACHE)
        if state.sensitivity:
            plot_sensitivity(state.sensitivity, {layer.name for layer in state.chosen}, draft / _PLOT)
        state.notes += _findings(state, comparison)
        report = build_report(state, final, _gate_record(state, comparison, executed_by), details or None)
        (draft / _REPORT).write_text(json.dumps({"kind": spec.kind, **report}, indent=2) + "\n", "utf-8")
        RecogniserBundle(spec, draft / _MODEL).write_manifest()
        install_folder(draft, config.output)
    return RecogniserBundle.load(config.output)


def _judged_engine(state: _State, bundle: RecogniserBundle, reference: ReadingReference) -> ReadingComparison:
    """Run the gate on the engine, executed by the code that will serve it."""
    with open_on_gpu(bundle) as recogniser:
        comparison = compare_reading(reference, recogniser, state.progress, "gate on reading, the engine")
    limits = state.config.most_lost
    if not comparison.passes(limits) and state.config.gate_refuses:
        raise GateError(reading_refusal(state.config.precision, comparison, limits, state.sensitivity))
    return comparison


@contextmanager
def open_on_gpu(bundle: RecogniserBundle) -> Iterator[Recogniser]:
    """A recogniser on the first GPU for the duration of the `with` block.

    Raises:
        UnavailableError: Something is not installed; the message lists what.
    """
    # Imported here: builds for the CPU start faster without it.
    from ocdserve.backend.device.cuda import open_device
    from ocdserve.backend.gpu.recogniser import GpuRecogniser

    with closing(open_device(0)) as device:
        network = load_device_recogniser(bundle, RuntimeOptions(), device)
        with closing(GpuRecogniser(bundle, device, network)) as recogniser:
            yield recogniser


def _gate_record(state: _State, comparison: ReadingComparison | None, executed_by: str) -> dict[str, Any] | None:
    """The gate's part of the report; `executed_by` is what ran the network for it."""
    if comparison is None:
        return None
    limits = state.config.most_lost
    certain = {"is_certain": comparison.is_certain(limits), "trials": state.trials}
    return {"executed_by": executed_by, "limits": asdict(limits), **comparison.to_dict(), **certain}


def _findings(state: _State, comparison: ReadingComparison | None) -> list[str]:
    """What the gate found, or that it did not run, one sentence each."""
    limits = state.config.most_lost
    if comparison is None:
        return [] if state.config.precision == "fp32" else ["what it reads was not compared with FP32"]
    failure = [] if comparison.passes(limits) else [f"the network reads worse than allowed: {comparison.rule(limits)}"]
    shared = ["judged on the images of the calibration, for lack of others"] if state.images.is_shared else []
    return [*failure, *shared, *comparison.warnings(limits)]


def _engine(state: _State, final: onnx.ModelProto) -> tuple[Engine | None, dict[str, Any]]:
    """The engine, and its part of the report; None and {} for the CPU."""
    runtime = state.config.engine_runtime
    if runtime is None:
        return None, {}
    folded = fold_recogniser(final, state.spec.network, space=state.spec.space)
    return engine_of(state, folded, _profile(state.config, state.description), runtime)

# SPDX-License-Identifier: Apache-2.0
"""The build recipe: describe, calibrate, quantise, judge, build the engine, write the bundle in one step."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ocdserve.backend import Bundle
from ocdserve.backend.bundle import DetectorSpec
from ocdserve.backend.network import Network, RuntimeOptions, load_network
from ocdserve.backend.network.graph import PREFIX, fold, load_onnx
from ocdserve.builder.calibrate import ServingImages, calibrate, measure_extremes
from ocdserve.builder.calibration_cache import CalibrationCache
from ocdserve.builder.config import BuildConfig
from ocdserve.builder.deformable import coordinate_nodes, layer_of, lower_deformable
from ocdserve.builder.describe import Description, describe, network_size
from ocdserve.builder.engine import Engine, build_engine
from ocdserve.builder.engine_network import EngineNetwork, can_execute
from ocdserve.builder.engine_options import EngineOptions, profile_of
from ocdserve.builder.engine_store import EngineKey, EngineStore
from ocdserve.builder.execute import GraphNetwork, tensor_shapes
from ocdserve.builder.float16 import float_tensors, overflowing, rounded_float16, to_float16
from ocdserve.builder.gate import Comparison, Reference, compare, make_reference, refusal
from ocdserve.builder.images import Images, pick_images
from ocdserve.builder.lanczos_images import LanczosImages
from ocdserve.builder.layer_rules import Pinned, pin
from ocdserve.builder.plot import plot_damage
from ocdserve.builder.progress import SILENT, Progress
from ocdserve.builder.quantise import LARGEST, Format, Layer, layers, placement, quantise, share
from ocdserve.builder.search import fewest_kept, measure_damage
from ocdserve.contract import InvalidInputError, OcdserveError

_MODEL, _ENGINE, _CACHE, _REPORT, _PLOT = "model.onnx", "model.plan", "calibration.cache", "report.json", "damage.png"
_REPORT_SCHEMA = 2
# Images on which the damage of single layers is measured, and tensors of least headroom that a report names.
_DAMAGE_IMAGES = 2
_NAMED_TENSORS = 10


class GateError(OcdserveError):
    """The network loses more accuracy than the limits allow; nothing was written."""


@dataclass
class _Work:
    """What is known so far of a build, step by step."""

    config: BuildConfig
    progress: Progress
    description: Description
    images: Images
    model: onnx.ModelProto
    notes: list[str]
    pinned: Pinned
    candidates: tuple[Layer, ...] = ()
    chosen: tuple[Layer, ...] = ()
    scales: dict[str, float] = field(default_factory=dict)
    cache: CalibrationCache | None = None
    keep_float32: frozenset[str] = frozenset()
    headroom: list[dict[str, Any]] = field(default_factory=list)
    damage: dict[str, float] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)

    @property
    def spec(self) -> DetectorSpec:
        return self.description.spec

    def folded(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return fold(model, self.spec.network, "float32")

    @property
    def has_float16(self) -> bool:
        """8 bits on a GPU are mixed with FP16; on the CPU nothing computes in FP16, so the rest stays FP32."""
        return self.config.precision == "fp16" or (self.config.is_quantised and self.config.makes_engine)


def build(config: BuildConfig, progress: Progress = SILENT) -> Bundle:
    """Build a bundle; a build that fails or is interrupted leaves nothing at `config.output`.

    Raises:
        InvalidInputError: The network is not one that can be served, or data is missing or malformed; the message says
            what was expected.
        UnavailableError: The runtime is not installed, or needs a GPU that is not there.
        GateError: The result loses more accuracy than the limits allow.
    """
    description = describe(config.onnx, config.preset, config.name, config.detector)
    images = pick_images(
        config.data,
        needed=config.needs_images,
        judged=config.gate or config.explain,
    )
    if config.gate and config.precision != "fp32" and not images.evaluation:
        raise InvalidInputError(
            "the accuracy gate needs images: name --evaluate-data, or go without by --no-gate, at your own risk"
        )
    # Where an engine cannot be built, that is told before the long work.
    options = _engine_options(config, description) if config.makes_engine else None
    if options is not None:
        EngineKey.of(b"", options, config.precision)
    model = _lowered(config, description)
    work = _Work(config, progress, description, images, model, list(description.notes), _pinned(config, model))
    work.notes += work.pinned.notes
    reference = _reference(work)
    with tempfile.TemporaryDirectory(prefix="ocdserve-build-") as scratch:
        _choose_types(work, reference, Path(scratch))
        comparison = _judged(work, reference, Path(scratch)) if reference is not None and config.gate else None
    return _written(work, comparison, reference, options)


def _lowered(config: BuildConfig, description: Description) -> onnx.ModelProto:
    """Deformable convolutions as the runtime takes them; only ONNX Runtime has ONNX's own."""
    return lower_deformable(description.model, "onnx" if config.runtime == "onnxruntime" else "standard")


def _reference(work: _Work) -> Reference | None:
    if not work.images.evaluation:
        return None
    bundle = Bundle(work.spec, work.config.onnx)
    network = GraphNetwork(work.folded(work.description.model), work.config.threads)
    return make_reference(bundle, network, work.images.evaluation, work.progress)


def _pinned(config: BuildConfig, model: onnx.ModelProto) -> Pinned:
    if not config.layers:
        return Pinned({}, frozenset(), ())
    exported = [node.name for node in load_onnx(config.onnx).graph.node]
    return pin(config.layers, [node.name for node in model.graph.node], exported)


def _choose_types(work: _Work, reference: Reference | None, scratch: Path) -> None:
    if work.has_float16:
        _check_float16(work)
    if not work.config.is_quantised:
        return
    work.candidates = _layers(work)
    precisions = work.pinned.precisions
    names = {layer.name for layer in work.candidates} & precisions.keys()
    keep = {*work.config.keep, *(name for name in names if precisions[name] != "int8")}
    force = {name for name in names & work.pinned.named if precisions[name] == "int8"}
    work.chosen = placement(work.model, work.candidates, keep, force=force)
    _calibrate(work)
    if work.config.explain and reference is not None:
        _measure_damage(work, reference, scratch)


def _check_float16(work: _Work) -> None:
    """Nodes whose values FP16 cannot hold stay FP32."""
    pinned = {name for name, precision in work.pinned.precisions.items() if precision == "fp32"}
    work.keep_float32 = coordinate_nodes(work.model) | pinned
    if not work.images.calibration:
        work.notes.append("FP16 ranges were not checked: there are no calibration images")
        return
    names = float_tensors(work.model)
    network, images = _measured(work)
    found = measure_extremes(network, [PREFIX + name for name in names], images, _options(work), work.progress)
    limits = overflowing({name: found[PREFIX + name].amax for name in names}, work.model)
    work.headroom = [asdict(item) for item in limits.tensors[:_NAMED_TENSORS]]
    work.keep_float32 |= frozenset(limits.keep_float32)
    if limits.keep_float32:
        work.notes.append(f"{len(limits.keep_float32)} nodes stay FP32, FP16 cannot hold their values")


def _measured(work: _Work) -> tuple[onnx.ModelProto, Sequence[NDArray[np.uint8]]]:
    """The network and the images that ranges are measured on."""
    paths = work.images.calibration
    if work.config.calibration.images == "tao":
        network = fold(work.model, replace(work.spec.network, color="RGB"), "float32")
        return network, LanczosImages(paths, *network_size(work.spec))
    return work.folded(work.model), ServingImages(paths, work.spec)


def _layers(work: _Work) -> tuple[Layer, ...]:
    convolutions = [node for node in work.model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    names = list(dict.fromkeys(name for node in convolutions for name in (node.input[0], node.output[0])))
    pixels = np.zeros((*network_size(work.spec), 3), np.uint8)
    shapes = tensor_shapes(work.folded(work.model), [PREFIX + name for name in names], pixels)
    return layers(work.model, {name: shapes[PREFIX + name] for name in names})


def _options(work: _Work) -> Any:
    return replace(work.config.calibration, threads=work.config.threads)


def _calibrate(work: _Work) -> None:
    """Scales of all tensors that could be quantised, so that one cache serves every choice of layers."""
    tensors = list(dict.fromkeys(layer.tensor for layer in work.candidates))
    path = work.config.data.calibration_cache
    if path is not None:
        cache = CalibrationCache.load(path)
        # A cache of the network as exported may name tensors that the normal form has under another name.
        renamed = {work.description.aliases.get(name, name): scale for name, scale in cache.scales.items()}
        cache = replace(cache, scales={**renamed, **cache.scales})
        # To whoever else calibrated, a deformable convolution was one node: there are no ranges of what is inside.
        inside = {layer.name for layer in work.chosen if layer.tensor not in cache.scales and _is_inside(layer.tensor)}
        if inside:
            work.chosen = tuple(layer for layer in work.chosen if layer.name not in inside)
            work.notes.append(
                f"{len(inside)} deformable convolutions stay in the higher precision: {path.name} has no "
                "ranges for them"
            )
        needed = {layer.tensor for layer in work.chosen}
        cache.check_bound_to(work.description.sha256, sorted(needed), work.config.data.force)
        work.notes.append(f"scales from {path.name}, header {cache.header}")
        if cache.onnx_sha256 not in (None, work.description.sha256):
            work.notes.append(f"these scales were made for another network (SHA-256 {cache.onnx_sha256}), as forced")
    else:
        network, images = _measured(work)
        found = calibrate(network, [PREFIX + name for name in tensors], images, _options(work), work.progress)
        ranges = {name.removeprefix(PREFIX): value for name, value in found.ranges.items()}
        cache = replace(found, ranges=ranges).to_cache(work.description.sha256, work.images.sha256())
    work.cache = replace(cache, onnx_sha256=work.description.sha256)
    unit = LARGEST["int8"] / (LARGEST["fp8"] if work.config.precision == "fp8-experimental" else LARGEST["int8"])
    work.scales = {name: scale * unit for name, scale in cache.scales.items()}


def _is_inside(tensor: str) -> bool:
    """Whether lowering a deformable convolution made the tensor."""
    return layer_of(tensor) != tensor


def _typed(work: _Work, chosen: tuple[Layer, ...], rounding: bool = False) -> onnx.ModelProto:
    """The network in its types; with `rounding` an FP32 graph that rounds as those types do."""
    model = work.model
    if chosen:
        kind: Format = "fp8" if work.config.precision == "fp8-experimental" else "int8"
        model = quantise(model, chosen, work.scales, kind, openvino=work.config.runtime in (None, "openvino"))
    if work.has_float16:
        model = (rounded_float16 if rounding else to_float16)(model, work.keep_float32)
    return model


def _network(work: _Work, chosen: tuple[Layer, ...], scratch: Path) -> Network:
    """What judges in place of the target: the CPU's runtime itself, or a graph that rounds as a GPU does."""
    if work.has_float16 or work.config.makes_engine:
        return GraphNetwork(work.folded(_typed(work, chosen, rounding=True)), work.config.threads)
    path = scratch / _MODEL
    onnx.save(_typed(work, chosen), str(path))
    options = RuntimeOptions(work.config.runtime, work.config.threads, map_type="float32")
    return load_network(Bundle(replace(work.spec, model=_MODEL), path), options)


def _judge(work: _Work, reference: Reference, scratch: Path, progress: Progress) -> Callable[..., Comparison]:
    return lambda chosen: compare(reference, _network(work, chosen, scratch), progress)


def _measure_damage(work: _Work, reference: Reference, scratch: Path) -> None:
    judge = _judge(work, reference.first(_DAMAGE_IMAGES), scratch, SILENT)
    work.damage = measure_damage(work.chosen, judge, work.progress)


def _judged(work: _Work, reference: Reference, scratch: Path) -> Comparison:
    """The gate, and the search for layers to leave alone where it does not pass."""
    limits = work.config.gate_limits
    judge = _judge(work, reference, scratch, work.progress)
    comparison = judge(work.chosen)
    if comparison.passes(limits):
        return comparison
    if work.config.is_quantised and work.config.search:
        if not work.damage:
            _measure_damage(work, reference, scratch)
        remaining, trials = fewest_kept(work.chosen, work.damage, judge, lambda found: found.passes(limits))
        work.trials = [{"kept": trial.kept, **trial.comparison.to_dict()} for trial in trials]
        passing = [trial.comparison for trial in trials if trial.comparison.passes(limits)]
        if remaining and passing:
            kept = len(work.chosen) - len(remaining)
            work.notes.append(f"{kept} layers were left in the higher precision so that the gate passes")
            work.chosen = remaining
            return passing[-1]
    raise GateError(refusal(work.config.precision, comparison, limits, work.damage))


def _engine_options(config: BuildConfig, description: Description) -> EngineOptions:
    settings = config.engine
    batch = settings.max_batch if description.batch is None else description.batch
    return EngineOptions(
        "tensorrt" if config.runtime == "tensorrt" else "tensorrt-rtx",
        profile_of(description.spec.resize, batch, min(settings.opt_batch, batch), min(settings.min_batch, batch)),
        settings.architectures,
        settings.workspace_bytes,
        settings.optimization_level,
        settings.hardware_compatibility,
        settings.version_compatible,
        settings.timing_cache,
    )


def _written(
    work: _Work, comparison: Comparison | None, reference: Reference | None, options: EngineOptions | None
) -> Bundle:
    config = work.config
    typed = _typed(work, work.chosen)
    executed = "ONNX Runtime, rounding as the target does" if work.has_float16 or config.makes_engine else "the target"
    engine: Engine | None = None
    engine_report: dict[str, Any] | None = None
    if options is not None:
        engine, engine_report = _engine(work, fold(typed, work.spec.network), options)
        if comparison is not None and reference is not None and can_execute(options.runtime):
            network = EngineNetwork(engine.plan, options.runtime)
            comparison = compare(reference, network, work.progress, "accuracy gate on the engine")
            executed = "the target"
            if not comparison.passes(config.gate_limits):
                raise GateError(refusal(config.precision, comparison, config.gate_limits, work.damage))
    spec = replace(
        work.spec,
        model=_MODEL,
        precision=config.precision,
        runtime=config.runtime,
        engine=_ENGINE if engine else None,
        network=replace(work.spec.network, folded=config.fold),
    )
    with _draft(config.output) as draft:
        onnx.save(fold(typed, work.spec.network) if config.fold else typed, str(draft / _MODEL))
        (draft / "detector.json").write_text(spec.to_json(), "utf-8")
        if engine is not None:
            (draft / _ENGINE).write_bytes(engine.plan)
        if work.cache is not None:
            work.cache.save(draft / _CACHE)
        if work.damage:
            plot_damage(work.damage, {layer.name for layer in work.chosen}, draft / _PLOT)
        report = _report(work, typed, comparison, executed, engine_report)
        (draft / _REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return Bundle.load(config.output)


def _engine(work: _Work, folded: onnx.ModelProto, options: EngineOptions) -> tuple[Engine, dict[str, Any]]:
    """The engine, from the store or built and put there, and what the report says of it."""
    cache_sha256 = None if work.cache is None else _text_sha256(work.cache)
    key = EngineKey.of(folded, options, work.config.precision, cache_sha256)
    store = EngineStore(work.config.engine.store)
    engine = store.get(key)
    reused = engine is not None
    if engine is None:
        engine = build_engine(folded, options, work.progress)
        store.put(key, engine)
    return engine, {
        **asdict(key),
        "profile": asdict(engine.profile),
        "bytes": len(engine.plan),
        "build_s": round(engine.build_s, 2),
        "reused": reused,
        "warnings": engine.warnings,
    }


@contextmanager
def _draft(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` in one step, when all of it is written to the disk."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield draft
        for path in draft.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        draft.chmod(0o755)
        os.rename(draft, output)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _precision(work: _Work, layer: Layer, is_chosen: bool) -> str:
    if is_chosen:
        return work.config.precision
    return "fp16" if work.has_float16 and layer.name not in work.keep_float32 else "fp32"


def _text_sha256(cache: CalibrationCache) -> str:
    return hashlib.sha256(cache.to_text().encode()).hexdigest()


def _report(
    work: _Work, typed: onnx.ModelProto, comparison: Comparison | None, executed: str, engine: dict[str, Any] | None
) -> dict[str, Any]:
    config = work.config
    packages = ("ocdserve", "numpy", "onnx", "onnxruntime", "openvino", "onnx-graphsurgeon", "polygraphy")
    chosen = {layer.name for layer in work.chosen}
    rest = "fp16" if work.has_float16 else "fp32"
    gate = None
    if comparison is not None:
        figures = comparison.to_dict()
        gate = {"executed_by": executed, "limits": asdict(config.gate_limits), **figures, "trials": work.trials}
    calibration = None
    if work.cache is not None:
        calibration = {
            "method": work.cache.method,
            "images_sha256": work.cache.images_sha256,
            "cache_sha256": _text_sha256(work.cache),
        }
    return {
        "schema_version": _REPORT_SCHEMA,
        "onnx": config.onnx.name,
        "onnx_sha256": work.description.sha256,
        "preset": config.preset,
        "precision": config.precision,
        "runtime": config.runtime,
        "rest_precision": rest,
        "notes": work.notes,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "machine": platform.machine(),
        "images": work.images.record(),
        "calibration": calibration,
        "quantised_macs": share(work.chosen, work.candidates),
        "layers": [
            {
                **asdict(layer),
                "precision": _precision(work, layer, layer.name in chosen),
                "damage": work.damage.get(layer.name),
            }
            for layer in work.candidates
        ],
        "kept_float32": sorted(work.keep_float32) if work.has_float16 else [],
        "least_headroom": work.headroom,
        "gate": gate,
        "engine": engine,
        "nodes": len(typed.graph.node),
    }

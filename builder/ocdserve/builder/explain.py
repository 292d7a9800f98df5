# SPDX-License-Identifier: Apache-2.0
"""Explain a bundle: the precision of each layer, and its effect on the accuracy."""

import json
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import onnx

from ocdserve.backend import Bundle
from ocdserve.backend.device.probe import gpu_count
from ocdserve.backend.network.rewrite.fold import INPUT, fold, load_onnx
from ocdserve.backend.network.rewrite.fold_recogniser import LINES, fold_recogniser
from ocdserve.backend.spec.bundle import AnyBundle
from ocdserve.builder.engine.layers import built_layers, describe_layers, inspect_engine, layer_times
from ocdserve.builder.engine.options import EngineRuntime
from ocdserve.builder.graph.describe import network_size
from ocdserve.builder.recogniser.lines import typical_line
from ocdserve.contract import InvalidInputError, UnavailableError


def explain(bundle: AnyBundle[Any]) -> str:
    """The layers that can be quantised and, for engines, the types and times of every layer, as text.

    Times and types as built need the GPU; elsewhere the requested types are shown.

    Raises:
        InvalidInputError: The bundle has no report.
    """
    report = json.loads(read_report(bundle))
    rest = f", the rest in {report['rest_precision']}" if report["layers"] else ""
    title = f"{report['onnx']} in {report['precision']}{rest}"
    return "\n".join([title, *summary(report), *_layers(report), *_requested(bundle)])


def read_report(bundle: AnyBundle[Any]) -> str:
    """The report of the bundle's build, as JSON text.

    Raises:
        InvalidInputError: The bundle has none.
    """
    path = bundle.model_path.with_name("report.json")
    if not path.is_file():
        raise InvalidInputError(f"{path.parent} holds no report.json with the details of its build; build it again")
    return path.read_text("utf-8")


def summary(report: dict[str, Any]) -> Iterator[str]:
    """The notes of a report and the share of its multiplications in 8 bits, one line each."""
    yield from (f"- {note}" for note in report["notes"])
    if report["layers"]:
        yield f"- {report['quantised_macs']:.1%} of the convolutions' multiplications in 8 bits"


def _layers(report: dict[str, Any]) -> Iterator[str]:
    if not report["layers"]:
        return
    total = sum(layer["macs"] for layer in report["layers"])
    measured = any(layer["damage"] is not None for layer in report["layers"])
    damage = " score error alone" if report.get("kind") == "recogniser" else " map error alone"
    if not measured:
        yield "- the sensitivity of single layers was not measured; build with --explain to measure it"
    yield ""
    yield f"{'layer':<44}{'kind':<13}{'MACs':>7}  {'precision':<10}" + measured * damage
    for layer in report["layers"]:
        error = "" if layer["damage"] is None else f"{layer['damage']:>{len(damage)}.6f}"
        share = layer["macs"] / total if total else 0
        yield f"{layer['name'][:43]:<44}{layer['kind']:<13}{share:>7.1%}  {layer['precision']:<10}{error}".rstrip()


def _requested(bundle: AnyBundle[Any]) -> Iterator[str]:
    """Types as the runtime's parser reads them; on a GPU, types and times of the engine itself."""
    runtime = next((name for name in get_args(EngineRuntime) if name == bundle.spec.runtime), None)
    if runtime is None:
        return
    yield ""
    # polygraphy, which measures the times, executes engines of TensorRT only.
    if bundle.engine_path is not None and runtime == "tensorrt" and gpu_count():
        yield from _built(bundle, bundle.engine_path.read_bytes(), runtime)
        return
    try:
        rows = describe_layers(_folded(bundle), runtime)
    except UnavailableError as error:
        yield f"the types requested of {runtime} are not known here: {error}"
        return
    yield f"requested of {runtime} (an engine's own types need a GPU):"
    yield f"{'layer':<60}{'kind':<22}{'precision'}"
    for row in rows:
        yield f"{row.name[:59]:<60}{row.kind:<22}{row.precision}"


def _built(bundle: AnyBundle[Any], plan: bytes, runtime: EngineRuntime) -> Iterator[str]:
    is_detector = isinstance(bundle, Bundle)
    height, width = network_size(bundle.spec) if is_detector else typical_line(bundle.spec)
    times = layer_times(plan, np.zeros((height, width, 3), np.uint8), INPUT if is_detector else LINES)
    yield f"{runtime}, layers as built, and their times for one image of {width} x {height} pixels:"
    yield f"{'ms':>8}  {'kind':<22}{'layer':<60}formats"
    for layer in built_layers(inspect_engine(plan, runtime), times):
        time = "" if layer.time_ms is None else f"{layer.time_ms:.4f}"
        yield f"{time:>8}  {layer.kind[:21]:<22}{layer.name[:59]:<60}{layer.formats}".rstrip()


def _folded(bundle: AnyBundle[Any]) -> onnx.ModelProto:
    model = load_onnx(bundle.model_path)
    folds = fold if isinstance(bundle, Bundle) else fold_recogniser
    return model if bundle.spec.network.folded else folds(model, bundle.spec.network)

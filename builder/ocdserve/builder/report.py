# SPDX-License-Identifier: Apache-2.0
"""The build report, `report.json`."""

import hashlib
import importlib.metadata
import platform
from dataclasses import asdict
from typing import Any

import onnx

from ocdserve.backend.network.options import CPU_RUNTIMES, RUNTIMES
from ocdserve.builder.accuracy.gate import Comparison
from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.builder.graph.quantise import Layer, share
from ocdserve.builder.state import BuildState

_REPORT_SCHEMA = 2


def _precision(state: BuildState, layer: Layer, is_chosen: bool) -> str:
    if is_chosen:
        return state.config.precision
    return "fp16" if state.has_float16 and layer.name not in state.keep_float32 else "fp32"


def text_sha256(cache: CalibrationCache) -> str:
    """Hash of a cache as it is written, hexadecimal."""
    return hashlib.sha256(cache.to_text().encode()).hexdigest()


def build_report(
    state: BuildState,
    typed: onnx.ModelProto,
    comparison: Comparison | None,
    executed: str,
    engine: dict[str, Any] | None,
) -> dict[str, Any]:
    """The report of a build.

    Args:
        state: The finished build.
        typed: Network in its final types.
        comparison: Figures of the gate, if it ran.
        executed: What ran the network for the gate.
        engine: Description of the engine, if there is one.
    """
    config = state.config
    runtimes = (RUNTIMES[name].distributions[0] for name in CPU_RUNTIMES)
    packages = ("ocdserve", "numpy", "onnx", *runtimes, "onnx-graphsurgeon", "polygraphy")
    chosen = {layer.name for layer in state.chosen}
    rest = "fp16" if state.has_float16 else "fp32"
    gate = None
    if comparison is not None:
        figures = comparison.to_dict()
        limits = config.gate_limits
        certain = {"is_certain": comparison.is_certain(limits)}
        gate = {"executed_by": executed, "limits": asdict(limits), **figures, **certain, "trials": state.trials}
    calibration = None
    if state.cache is not None:
        calibration = {
            "method": state.cache.method,
            "images_sha256": state.cache.images_sha256,
            "cache_sha256": text_sha256(state.cache),
        }
    return {
        "schema_version": _REPORT_SCHEMA,
        "onnx": config.onnx.name,
        "onnx_sha256": state.description.sha256,
        "preset": config.preset,
        "precision": config.precision,
        "runtime": config.runtime,
        "rest_precision": rest,
        "notes": state.notes,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "machine": platform.machine(),
        "images": state.images.record(),
        "calibration": calibration,
        "quantised_macs": share(state.chosen, state.candidates),
        "layers": [
            {
                **asdict(layer),
                "precision": _precision(state, layer, layer.name in chosen),
                "damage": state.sensitivity.get(layer.name),
            }
            for layer in state.candidates
        ],
        "kept_float32": sorted(state.keep_float32) if state.has_float16 else [],
        "least_headroom": state.headroom,
        "gate": gate,
        "engine": engine,
        "nodes": len(typed.graph.node),
    }

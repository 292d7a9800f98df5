# SPDX-License-Identifier: Apache-2.0
"""What a build writes next to the network: the engine, and the report `report.json`."""

import importlib.metadata
import platform
from dataclasses import asdict
from typing import Any

import onnx

from ocdserve.backend.network.options import CPU_RUNTIMES, RUNTIMES
from ocdserve.builder.engine.build import Engine, build_engine
from ocdserve.builder.engine.options import EngineRuntime, ShapeProfile
from ocdserve.builder.engine.store import EngineKey, EngineStore
from ocdserve.builder.graph.quantise import Layer, share
from ocdserve.builder.state import BuildState

_REPORT_SCHEMA = 2


def _precision(state: BuildState, layer: Layer, is_chosen: bool) -> str:
    if is_chosen:
        return state.config.precision
    return "fp16" if state.has_float16 and layer.name not in state.keep_float32 else "fp32"


def build_report(
    state: BuildState,
    final: onnx.ModelProto,
    gate: dict[str, Any] | None,
    engine: dict[str, Any] | None,
) -> dict[str, Any]:
    """The report of a build.

    Args:
        state: The finished build.
        final: Network in its final types.
        gate: Limits and figures of the gate, if it ran.
        engine: Description of the engine, if there is one.
    """
    config = state.config
    runtimes = (RUNTIMES[name].distributions[0] for name in CPU_RUNTIMES)
    packages = ("ocdserve", "numpy", "onnx", *runtimes, "onnx-graphsurgeon", "polygraphy")
    chosen = {layer.name for layer in state.chosen}
    rest = "fp16" if state.has_float16 else "fp32"
    calibration = None
    if state.cache is not None:
        calibration = {
            "method": state.cache.method,
            "images_sha256": state.cache.images_sha256,
            "cache_sha256": state.cache.sha256(),
        }
    return {
        "schema_version": _REPORT_SCHEMA,
        "onnx": config.onnx.name,
        "onnx_sha256": state.sha256,
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
        "nodes": len(final.graph.node),
    }


def engine_of(
    state: BuildState, folded: onnx.ModelProto, profile: ShapeProfile, runtime: EngineRuntime
) -> tuple[Engine, dict[str, Any]]:
    """The engine, reused from the store or built and stored, and its part of the report.

    Args:
        state: The build.
        folded: Network in its final types, from uint8 pixels.
        profile: Input shapes.
        runtime: What the engine is for.

    Raises:
        InvalidInputError: As `build_engine`, and so the following.
        UnavailableError: The runtime is not installed, or this machine lacks the GPU that it needs.
    """
    config = state.config
    cache_sha256 = None if state.cache is None else state.cache.sha256()
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

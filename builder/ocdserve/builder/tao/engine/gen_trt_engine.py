# SPDX-License-Identifier: Apache-2.0
"""The action `gen_trt_engine`: build an engine, or a quantised ONNX, from an exported OCDNet.

The file is written to the path in the spec, and next to it a bundle (`x.engine`: the folder `x.bundle`) with the graph
of the same types, the calibration and a report, for `ocdserve serve --bundle`.
"""

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ocdserve.backend import Bundle
from ocdserve.backend.files import draft_folder, write_atomically
from ocdserve.builder import build
from ocdserve.builder.explain import explain
from ocdserve.builder.tao.actions import ActionResult, Context
from ocdserve.builder.tao.engine.calibration import Plan, plan_calibration
from ocdserve.builder.tao.engine.engine_request import (
    batch_sizes,
    build_config,
    checked_engine,
    checked_onnx,
    chosen_runtime,
    ignored_keys,
    is_quantised,
    use_gpu,
)
from ocdserve.builder.tao.inputs.artifact import bundle_folder, exporter_note
from ocdserve.builder.tao.spec import Spec
from ocdserve.contract import InvalidInputError

_QUANTISED = "{} is quantised already (Q/DQ): its 8-bit layers and their scales are taken as they are"


def run(spec: Spec, context: Context) -> ActionResult:
    """Build.

    Raises:
        InvalidInputError: The spec is contradictory, or does not fit the ONNX or the images.
        UnavailableError: The runtime is not installed, or needs a GPU that is not there.
        GateError: `ocdserve.evaluation_dir` is set, and the network loses too much there.
    """
    settings = spec.gen_trt_engine
    use_gpu(settings.gpu_id)
    runtime = chosen_runtime(spec.ocdserve.runtime)
    onnx_file = checked_onnx(Path(settings.onnx_file))
    engine = checked_engine(Path(settings.trt_engine), onnx_file)
    batches = batch_sizes(settings, onnx_file)
    quantised = is_quantised(onnx_file)
    plan = Plan() if quantised else plan_calibration(spec)
    notes = [_QUANTISED.format(onnx_file.name)] if quantised else []
    foreign = exporter_note(onnx_file)
    notes += [foreign] if foreign else []
    for warning in (*notes, *plan.warnings, *ignored_keys(spec, runtime)):
        context.warn(warning)
    context.say(
        f"{settings.tensorrt.data_type} for {runtime}, {settings.width} x {settings.height} pixels, batch "
        f"{' / '.join(map(str, batches))} (min / opt / max)"
    )
    context.status.write("RUNNING", f"Building for {runtime}.")
    with ExitStack() as stack:
        try:
            draft = stack.enter_context(draft_folder(engine.parent, f".{engine.name}-"))
        except OSError as error:
            raise InvalidInputError(
                f"gen_trt_engine.trt_engine: {str(engine.parent)!r} cannot be written: {error.strerror}"
            ) from error
        config = build_config(spec, runtime, onnx_file, draft / "bundle", batches, plan)
        bundle = build(config, context.progress)
        report = json.loads(bundle.model_path.with_name("report.json").read_text("utf-8"))
        _report(bundle, report, context, settings.verbose)
        cache = bundle.model_path.with_name("calibration.cache")
        if plan.save is not None and cache.is_file():
            write_atomically(plan.save, cache.read_bytes())
        principal = bundle.engine_path or bundle.model_path
        file = draft / "file"
        shutil.copyfile(principal, file)
        target = bundle_folder(engine)
        if target.exists():
            os.rename(target, draft / "replaced")
        os.rename(bundle.model_path.parent, target)
        os.replace(file, engine)
    return _result(engine, runtime, report)


def _report(bundle: Bundle, report: dict[str, Any], context: Context, verbose: bool) -> None:
    for note in report["notes"]:
        context.say(f"- {note}")
    gate = report["gate"]
    if gate is not None:
        context.say(
            f"- judged on {gate['images']} images: box agreement with FP32 {gate['agreement']:.4f} (95 %: "
            f"{gate['agreement_interval'][0]:.4f} to {gate['agreement_interval'][1]:.4f}), matches lost "
            f"{gate['matches_lost']}, won {gate['matches_won']}"
        )
    if verbose:
        context.say(explain(bundle))
        for warning in (report["engine"] or {}).get("warnings", ()):
            context.warn(warning)


def _result(engine: Path, runtime: str, report: dict[str, Any]) -> ActionResult:
    built = report["engine"]
    kpi: dict[str, float | int | str | None] = {
        "runtime": runtime,
        "precision": report["precision"],
        "bytes": engine.stat().st_size,
        "quantised_macs": report["quantised_macs"],
    }
    if built is not None:
        kpi |= {"build_s": built["build_s"], "runtime_version": built["runtime_version"]}
    if report["gate"] is not None:
        kpi |= {name: report["gate"][name] for name in ("agreement", "hmean", "hmean_fp32") if name in report["gate"]}
    what = f"{runtime} engine" if built is not None else f"ONNX for {runtime}"
    return ActionResult(f"wrote the {what} {engine}, and its bundle {bundle_folder(engine)}", kpi)

# SPDX-License-Identifier: Apache-2.0
"""Make a bundle, the folder that serve, detect and read take, from an exported ONNX network.

Below FP32 the network is compared with its FP32 original on photographs: a detector by hmean if they have ground truth,
otherwise by the agreement of the boxes; a recogniser by what it reads. A network that loses more than the limits allow
is refused, and nothing is written.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ocdserve.cli import whole_number
from ocdserve.cli.completion import completes
from ocdserve.contract import InvalidInputError, UnavailableError, install_command, not_one_of

if TYPE_CHECKING:
    from ocdserve.backend import Bundle
    from ocdserve.backend.spec.bundle import RecogniserBundle
    from ocdserve.builder import (
        BuildConfig,
        EngineConfig,
        ExportOptions,
        GateLimits,
        Progress,
        ReadingLimits,
        RecogniserBuildConfig,
    )

_Limits = TypeVar("_Limits", bound="GateLimits | ReadingLimits")


# Declared by the builder, which may not be installed.
_PRECISIONS = ("fp32", "fp16", "int8", "fp8-experimental")
_KINDS = ("detector", "recogniser")
# Options of one kind of network.
_ONLY_DETECTOR = ("preset", "max_hmean_loss")
_ONLY_RECOGNISER = ("characters", "height", "max_cer_loss", "max_exact_loss")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from ocdserve.backend.network.options import BUILD_RUNTIMES
    from ocdserve.backend.spec.bundle import BUILT_IN
    from ocdserve.backend.spec.presets import PRESETS

    add = parser.add_argument
    built_in = f"{_either(BUILT_IN)}; of recognisers default"
    add("--onnx", metavar="FILE", type=Path, help=f"exported network, or a built-in one ({built_in})")
    kind = add("--kind", metavar="KIND", help="detector or recogniser (default: recognised, where certain)")
    completes(kind, _KINDS)
    add("--output", metavar="DIR", type=Path, required=True, help="bundle to write, a new folder")
    preset = add("--preset", metavar="NAME", help=f"{_either(PRESETS)} (default: by the tensors' names)")
    completes(preset, PRESETS)
    add("--name", help="name of the network (default: the file's)")
    precision = add("--precision", default="fp32", help=f"{_either(_PRECISIONS)} (default: fp32)")
    completes(precision, _PRECISIONS)
    runtime = add(
        "--runtime",
        metavar="NAME",
        help=f"what will run the network: {', '.join(BUILD_RUNTIMES)} (default: any on the CPU)",
    )
    completes(runtime, BUILD_RUNTIMES)
    add("--fold", action="store_true", help="store the ONNX with uint8 pixels in, and of a detector a uint8 map out")
    add("--threads", metavar="N", type=whole_number(1), help="cores for the work on the CPU (default: all)")
    add("--explain", action="store_true", help="describe every layer; without --onnx: of the bundle at --output")
    add("--json", metavar="FILE", help="write the report to FILE; - for stdout, instead of the text")
    add("--no-trial", action="store_true", help="write the bundle even if the network finds or reads no drawn text")
    _add_export(parser.add_argument_group("what the export differs in (default: the preset's, or recognised)"))
    _add_data(parser.add_argument_group("images and calibration"))
    _add_gate(parser.add_argument_group("accuracy gate"))
    _add_engine(parser.add_argument_group("engines (tensorrt, tensorrt-rtx)"))


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def _add_export(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--output-tensor", metavar="NAME", help="output with the map or the scores, of several")
    group.add_argument(
        "--output-values", metavar="KIND", help="probability, logits (what is missing is added) or levels (0-255)"
    )
    group.add_argument("--input-layout", metavar="NAME", help="nchw or nhwc")
    group.add_argument("--color", metavar="ORDER", help="RGB or BGR")
    group.add_argument("--scale", metavar="X", type=float, help="multiplies pixels of 0 to 255, before mean and std")
    group.add_argument("--mean", metavar="A,B,C", type=_three, help="subtracted from them, by network channel")
    group.add_argument("--std", metavar="A,B,C", type=_three, help="divides the difference, by network channel")
    group.add_argument(
        "--resize",
        metavar="POLICY",
        help="fixed:WIDTHxHEIGHT, letterbox:WIDTHxHEIGHT, short_side:PIXELS or long_side:PIXELS; of a recogniser pad "
        "or stretch",
    )
    group.add_argument(
        "--characters", metavar="FILE", type=Path, help="a recogniser's, one a line (default: those in its file)"
    )
    group.add_argument("--height", metavar="PIXELS", type=whole_number(1), help="of a recogniser's lines")


def _three(text: str) -> tuple[float, ...]:
    values = tuple(float(value) for value in text.split(","))
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"must be three numbers with commas, one per channel; got {text!r}")
    return values


def _add_data(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--calibration-images", metavar="DIR", type=Path, help="photographs (default: some of --evaluate-data)")
    add(
        "--calibration-count",
        metavar="N",
        type=int,
        default=20,
        help="how many, at most half of a folder that also serves for evaluation (default: 20)",
    )
    add("--seed", metavar="N", type=int, default=0, help="seed of the choice (default: 0)")
    add("--calibration-method", metavar="NAME", default="minmax", help="minmax, percentile, mse, entropy")
    add("--percentile", metavar="P", type=float, default=99.999, help="for that method (default: 99.999)")
    add("--calibration-cache", metavar="FILE", type=Path, help="scales of an earlier calibration")
    add("--force", action="store_true", help="use a cache that was made for another network")


def _add_gate(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--evaluate-data", metavar="PATH", type=Path, help="labelled images as of evaluate, or photographs only")
    add("--max-hmean-loss", metavar="POINTS", type=float, help="default: 0.1 (fp16), 0.5 (int8)")
    add("--max-cer-loss", metavar="POINTS", type=float, help="of a recogniser; default: 0.1 (fp16), 0.5 (int8)")
    add("--max-exact-loss", metavar="POINTS", type=float, help="of its exact lines; default: 0.5 (fp16), 1 (int8)")
    add("--min-agreement", metavar="SHARE", type=float, help="default: 0.99 (fp16), 0.95 (int8)")
    add("--keep", metavar="LAYER", action="append", default=[], help="exclude a layer from quantisation")
    add("--no-search", action="store_true", help="do not search for layers to exclude")
    add("--no-gate", action="store_true", help="write the bundle without checking its accuracy")


def _add_engine(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--arch", metavar="SM", action="append", help="GPU architecture such as sm_89 (default: this machine's)")
    add("--max-batch", metavar="N", type=int, help="largest batch (default: 8 images, or 32 lines)")
    add("--workspace", metavar="SIZE", help="such as 2GiB or 512MB (default: no limit)")
    add("--optimization-level", metavar="N", type=int, default=3, help="0 to 5 (default: 3)")
    add("--hardware-compatibility", default="none", help="same_compute_capability or ampere_plus")
    add("--version-compatible", action="store_true", help="loads in later releases as well")
    add("--timing-cache", metavar="FILE", type=Path, help="kernel times, read and extended")
    add("--engine-store", metavar="DIR", type=Path, help="engines to reuse (default: the user's cache)")


def run(args: argparse.Namespace) -> int:
    """Build or explain a bundle, and print how to use it."""
    try:
        from ocdserve.builder import SILENT, GateError, TerminalProgress
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"building needs the package {error.name}. Run {install_command('ocdserve[builder]')}."
        ) from error
    bundle: Bundle | RecogniserBundle
    if args.onnx is None:
        if not args.explain:
            raise InvalidInputError("--onnx must name an exported network; without it, --explain describes a bundle")
        bundle = _opened(args.output)
    else:
        try:
            bundle = _built(args, SILENT if args.json == "-" else TerminalProgress(sys.stderr))
        except GateError as error:
            # A table, which the one-line error message of the command line would flatten.
            print(f"ocdserve build: {error}", file=sys.stderr)
            return 1
    from ocdserve.backend.files import write_atomically
    from ocdserve.builder.explain import explain, read_report

    if args.json:
        report = read_report(bundle)
        if args.json == "-":
            print(report, end="")
            return 0
        write_atomically(Path(args.json), report.encode())
    if args.explain:
        print(explain(bundle))
    if args.onnx is not None:
        _print_summary(args.output, bundle)
    return 0


def _opened(folder: Path) -> "Bundle | RecogniserBundle":
    from ocdserve.backend.spec.bundle import Bundle, RecogniserBundle

    is_recogniser = (folder / RecogniserBundle.spec_file).is_file()
    return RecogniserBundle.load(folder) if is_recogniser else Bundle.load(folder)


def _built(args: argparse.Namespace, progress: "Progress") -> "Bundle | RecogniserBundle":
    from ocdserve.backend.spec.bundle import Bundle, RecogniserBundle
    from ocdserve.builder import build, build_recogniser

    if args.kind not in (None, *_KINDS):
        raise not_one_of("--kind", args.kind, _KINDS)
    built_in = None
    if args.kind == "recogniser" and args.onnx == Path("default"):
        args.onnx = RecogniserBundle.load().model_path
    elif args.kind != "recogniser" and str(args.onnx) in Bundle.built_in:
        built_in = Bundle.load(args.onnx)
        args.onnx, args.name = built_in.model_path, args.name or built_in.spec.name
    kind = args.kind or _recognised_kind(args.onnx)
    others = _ONLY_DETECTOR if kind == "recogniser" else _ONLY_RECOGNISER
    for name in others:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            other = next(item for item in _KINDS if item != kind)
            raise InvalidInputError(
                f"{option} is for a {other}, and {args.onnx.name} is taken for a {kind}. Drop {option}, or name --kind "
                f"{other}."
            )
    if kind == "recogniser":
        return build_recogniser(_recogniser_config(args), progress)
    return build(_config(args, built_in), progress)


def _recognised_kind(path: Path) -> str:
    """The kind of an exported network; a detector, whose build says what is wrong, where it is not certain."""
    from ocdserve.backend.network.rewrite.fold import load_onnx
    from ocdserve.builder.recogniser.ends import is_recogniser

    return "recogniser" if path.is_file() and is_recogniser(load_onnx(path)) else "detector"


def _export(args: argparse.Namespace) -> "ExportOptions":
    from ocdserve.builder import ExportOptions

    return ExportOptions(
        output=args.output_tensor,
        layout=args.input_layout,
        values=args.output_values,
        color=args.color,
        scale=args.scale,
        mean=args.mean,
        std=args.std,
        resize=args.resize,
    )


def _config(args: argparse.Namespace, built_in: "Bundle | None") -> "BuildConfig":
    from ocdserve.builder import BuildConfig, EngineConfig
    from ocdserve.builder.config import DEFAULT_LIMITS

    limits = _changed(DEFAULT_LIMITS.get(args.precision), hmean_loss=args.max_hmean_loss, agreement=args.min_agreement)
    detector = built_in.spec if built_in and args.preset is None else None
    return BuildConfig(**_shared(args, EngineConfig()), preset=args.preset, detector=detector, limits=limits)


def _recogniser_config(args: argparse.Namespace) -> "RecogniserBuildConfig":
    from ocdserve.builder import RecogniserBuildConfig
    from ocdserve.builder.recogniser.config import DEFAULT_READING_LIMITS, LINES_ENGINE

    given = {"cer": args.max_cer_loss, "exact": args.max_exact_loss, "agreement": args.min_agreement}
    return RecogniserBuildConfig(
        **_shared(args, LINES_ENGINE),
        characters=args.characters,
        height=args.height,
        reading_limits=_changed(DEFAULT_READING_LIMITS.get(args.precision), **given),
    )


def _changed(limits: "_Limits | None", **given: float | None) -> "_Limits | None":
    """The limits with those that were given; None if none was, or there are none for the precision."""
    changed = {name: value for name, value in given.items() if value is not None}
    return replace(limits, **changed) if limits and changed else None  # type: ignore[arg-type]  # one of two classes


def _shared(args: argparse.Namespace, engine: "EngineConfig") -> dict[str, Any]:
    """What builds of all kinds of networks take; `engine` is the kind's default."""
    from ocdserve.builder import CalibrationOptions, DataConfig
    from ocdserve.builder.engine.options import parse_bytes

    return {
        "onnx": args.onnx,
        "output": args.output,
        "export": _export(args),
        "trial": not args.no_trial,
        "name": args.name,
        "precision": args.precision,
        "runtime": args.runtime,
        "data": DataConfig(
            calibration_images=args.calibration_images,
            calibration_count=args.calibration_count,
            seed=args.seed,
            calibration_cache=args.calibration_cache,
            force=args.force,
            evaluation=args.evaluate_data,
        ),
        "calibration": CalibrationOptions(args.calibration_method, args.percentile),
        "gate": not args.no_gate,
        "keep": tuple(args.keep),
        "search": not args.no_search,
        "explain": args.explain,
        "fold": args.fold,
        "engine": replace(
            engine,
            architectures=tuple(args.arch or ("current",)),
            max_batch=engine.max_batch if args.max_batch is None else args.max_batch,
            workspace_bytes=parse_bytes(args.workspace) if args.workspace else None,
            optimization_level=args.optimization_level,
            hardware_compatibility=args.hardware_compatibility,
            version_compatible=args.version_compatible,
            timing_cache=args.timing_cache,
            store=args.engine_store,
        ),
        "threads": args.threads,
    }


def _print_summary(output: Path, bundle: "Bundle | RecogniserBundle") -> None:
    from ocdserve.builder.explain import read_report, summary

    report = json.loads(read_report(bundle))
    for line in summary(report):
        print(line)
    is_recogniser = bundle.kind == "recogniser"
    if report["gate"] is not None:
        print((_reading_line if is_recogniser else _gate_line)(report["gate"]))
    print(f"wrote the bundle {output}")
    option = "recogniser" if is_recogniser else "bundle"
    if bundle.spec.engine is None:
        print(f"serve it:  ocdserve serve --{option} {output}")
    else:
        print(f"serve it on its GPU:  ocdserve serve --gpu --{option} {output}")
        print(f"or its ONNX on the CPU:  ocdserve serve --{option} {output} --runtime onnxruntime")


def _gate_line(gate: dict[str, Any]) -> str:
    loss = ""
    if gate["hmean_loss"] is not None:
        low, high = gate["hmean_loss_interval"]
        loss = f"hmean {gate['hmean_fp32']:.4f} -> {gate['hmean']:.4f} (95 %: {low:.2f} to {high:.2f} points lost), "
    return (
        f"- gate passed on {gate['images']} images ({gate['executed_by']}): {loss}matches lost "
        f"{gate['matches_lost']}, won {gate['matches_won']}, box agreement {gate['agreement']:.4f}, map error "
        f"{gate['map_error']:.6f}"
    )


def _reading_line(gate: dict[str, Any]) -> str:
    loss = ""
    if gate["cer_loss"] is not None:
        low, high = gate["cer_loss_interval"]
        loss = (
            f"CER {gate['cer_fp32']:.4f} -> {gate['cer']:.4f} (95 %: {low:.2f} to {high:.2f} points lost), exact lines "
            f"{gate['exact_fp32']:.4f} -> {gate['exact']:.4f} (lost {gate['lines_lost']}, won {gate['lines_won']}), "
        )
    return (
        f"- gate on reading passed on {gate['lines']} lines of {gate['images']} images ({gate['executed_by']}): {loss}"
        f"{gate['agreement']:.1%} of the lines as in FP32"
    )

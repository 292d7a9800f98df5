# SPDX-License-Identifier: Apache-2.0
"""Train a detector further on your own pictures, in minutes on a CPU, and write a bundle if it is better.

A fifth of the pictures is held aside. Nothing is written unless the new detector finds more in these, and has not
forgotten other pictures: in every step it is trained to stay as it was on drawn pages and on those of --keep-data.
"""

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocdserve.cli import whole_number
from ocdserve.cli.completion import completes
from ocdserve.cli.tuning import add_bundle_argument
from ocdserve.contract import UnavailableError, install_command

if TYPE_CHECKING:
    from ocdserve.builder.train.finetune.options import FineTuneOptions

# Declared by the schedule, which may not be installed.
_STEPS = 160


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from ocdserve.backend.spec.bundle import Bundle
    from ocdserve.backend.spec.presets import PRESETS

    add = parser.add_argument
    add(
        "--data",
        metavar="PATH",
        type=Path,
        required=True,
        help="labelled pictures: a folder with img/ and gt/, or COCO, Label Studio's or labelme's JSON; with "
        "--self-distil a folder of pictures",
    )
    add("--output", metavar="DIR", type=Path, required=True, help="bundle to write, a new folder")
    add_bundle_argument(parser, "train, or an exported ONNX network; default: default")
    preset = add("--preset", metavar="NAME", help="of an ONNX network (default: by the tensors' names)")
    completes(preset, PRESETS)
    add("--self-distil", action="store_true", help="without labels: learn what the teacher finds")
    teacher = add(
        "--teacher",
        metavar="DIR",
        type=Path,
        help="detector that teaches, corrected by the labels (default: the default detector for fast and lite, else "
        "itself at a larger size)",
    )
    completes(teacher, Bundle.built_in, folders=True)
    add(
        "--keep-data",
        metavar="PATH",
        type=Path,
        help="other pictures, labelled or not, on which it is to stay as it is",
    )
    add("--name", help="name of the new detector (default: the old one's and -finetuned)")
    add("--steps", metavar="N", type=whole_number(1), default=_STEPS, help=f"of training (default: {_STEPS})")
    add(
        "--most-lost",
        metavar="POINTS",
        type=float,
        default=1.0,
        help="largest loss of hmean on other pictures (default: 1)",
    )
    add("--seed", metavar="N", type=int, default=0, help="of all that is random (default: 0)")
    add("--threads", metavar="N", type=whole_number(1), help="cores (default: all)")
    add("--json", metavar="FILE", help="write the report to FILE; - for stdout, instead of the text")


def run(args: argparse.Namespace) -> int:
    """Fine-tune, and print how to use the bundle."""
    try:
        from ocdserve.builder.progress import SILENT, TerminalProgress
        from ocdserve.builder.state import GateError
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"fine-tuning needs the package {error.name}. Run {install_command('ocdserve[builder,train]')}."
        ) from error
    from ocdserve.backend.files import write_atomically
    from ocdserve.builder.train.prerequisites import check_prerequisites

    check_prerequisites(lambda text: print(f"ocdserve finetune: {text}", file=sys.stderr))
    from ocdserve.builder.train.finetune.run import finetune

    # SIGTERM removes what is half written too, like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        bundle = finetune(_options(args), SILENT if args.json == "-" else TerminalProgress(sys.stderr))
    except GateError as error:
        # A table, which the one-line error message of the command line would flatten.
        print(f"ocdserve finetune: {error}", file=sys.stderr)
        return 1
    report = json.loads((args.output / "report.json").read_text("utf-8"))["finetuning"]
    if args.json == "-":
        print(json.dumps(report))
        return 0
    if args.json:
        write_atomically(Path(args.json), f"{json.dumps(report)}\n".encode())
    _print_summary(report)
    print(f"wrote the bundle {args.output}, {bundle.spec.name}; its report.html shows pictures")
    print(f"serve it:  ocdserve serve --bundle {args.output}")
    return 0


def _print_summary(report: Mapping[str, Any]) -> None:
    for name, change in (("held-aside pictures", report["held_aside"]), *report["forgetting"].items()):
        before, after = (change[when]["hmean"] for when in ("before", "after"))
        low, high = change["gain_interval"]
        print(
            f"- {name} ({change['pictures']}): hmean {before:.4f} -> {after:.4f}, "
            f"gain {change['gain']:+.2f} points (95 %: {low:+.2f} to {high:+.2f})"
        )


def _options(args: argparse.Namespace) -> "FineTuneOptions":
    from ocdserve.builder.train.finetune.options import FineTuneOptions, Schedule

    return FineTuneOptions(
        data=args.data,
        output=args.output,
        bundle=args.bundle,
        preset=args.preset,
        self_distil=args.self_distil,
        teacher=args.teacher,
        keep_data=args.keep_data,
        name=args.name,
        seed=args.seed,
        threads=args.threads,
        schedule=Schedule(steps=args.steps),
        most_lost=args.most_lost,
    )

# SPDX-License-Identifier: Apache-2.0
"""Options of a published repository that `ocdserve publish` and `serve` share, and the file that holds some of them."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ocdserve.cli.completion import completes
from ocdserve.contract import InvalidInputError, Limits, UsageError

if TYPE_CHECKING:
    from ocdserve.backend.publish.tuning import Tuning

_LIMITS = fields(Limits)
SHAPING_OPTIONS = (
    *(
        "decoder",
        "runtime",
        "threads",
        "streams",
        "instances",
        "queue_size",
        "queue_delay_us",
        "queue_time_ms",
        "tuning",
    ),
    *(item.name for item in _LIMITS),
)


def add_bundle_argument(parser: "argparse._ActionsContainer", verb: str) -> None:
    """Declare --bundle; `verb` is what the command does with it."""
    from ocdserve.backend.spec.bundle import BUILT_IN, IN_FLOAT32, Bundle

    bundle = parser.add_argument(
        "--bundle",
        metavar="DIR",
        type=Path,
        help=f"detector to {verb} (a folder, or the built-in {', '.join(BUILT_IN)}; with {IN_FLOAT32} after it, one of "
        "these never computes in bfloat16)",
    )
    completes(bundle, Bundle.built_in, folders=True)


def add_recogniser_argument(parser: "argparse._ActionsContainer", help: str) -> None:
    """Declare --recogniser; `help` is what the command does with it, before the values."""
    from ocdserve.backend.spec.bundle import BUILT_IN_RECOGNISERS

    recogniser = parser.add_argument(
        "--recogniser",
        metavar="DIR",
        type=Path,
        help=f"{help} (a folder, or the built-in {', '.join(BUILT_IN_RECOGNISERS)})",
    )
    completes(recogniser, BUILT_IN_RECOGNISERS, folders=True)


def add_runtime_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare --runtime; `default` is what a bundle gets that was built for none."""
    from ocdserve.backend.network.options import CPU_RUNTIMES, GPU_RUNTIMES, RUNTIMES

    names = f"{' or '.join(CPU_RUNTIMES)}; on a GPU {', '.join(GPU_RUNTIMES)}"
    runtime = parser.add_argument(
        "--runtime", metavar="NAME", help=f"network runtime: {names} (default: the bundle's, else {default})"
    )
    completes(runtime, RUNTIMES)


def add_repository_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --gpu, --require-manifest, --decoder, and what `tuning_of` and `limits_of` read."""
    parser.add_argument("--gpu", action="store_true", help="all stages on the server's GPUs, an instance on each")
    parser.add_argument(
        "--require-manifest", action="store_true", help="refuse a bundle without hashes of its files (manifest.json)"
    )
    decoder = parser.add_argument(
        "--decoder", metavar="NAME", help="with --gpu: cpu (default), gpu (nvImageCodec) or auto"
    )
    completes(decoder, ("cpu", "gpu", "auto"))
    add_runtime_argument(parser, "the server's fastest")
    parser.add_argument("--threads", metavar="N", type=int, help="cores for the network (default: all of the server)")
    parser.add_argument(
        "--streams", metavar="N", type=int, help="images (with --gpu: batches) in the network at a time (default: 1)"
    )
    parser.add_argument(
        "--tuning",
        metavar="FILE",
        type=Path,
        help="file of `ocdserve bench capacity` with values for these; options override it",
    )
    parser.add_argument(
        "--instances", metavar="N", type=int, help="processes of each model with the network (default: 1)"
    )
    parser.add_argument("--queue-size", metavar="N", type=int, help="requests that may wait (default: 256)")
    parser.add_argument(
        "--queue-delay-us", metavar="N", type=int, help="microseconds that requests wait for others (default: 0)"
    )
    parser.add_argument(
        "--queue-time-ms",
        metavar="N",
        type=int,
        help="milliseconds that a request may take when there is a queue; others are refused (default: 1000)",
    )
    limits = parser.add_argument_group("limits of a request, checked before its work; what is over one is refused")
    for item in _LIMITS:
        text = f"{item.metadata['meaning']} (default: {item.default})"
        limits.add_argument(f"--{item.name.replace('_', '-')}", metavar="N", type=int, help=text)


def limits_of(args: argparse.Namespace) -> Limits:
    """The given limits, the others being the default ones.

    Raises:
        UsageError: One is out of its range.
    """
    given = {item.name: value for item in _LIMITS if (value := getattr(args, item.name)) is not None}
    with usage_errors():
        return Limits(**given)


def tuning_of(args: argparse.Namespace) -> "Tuning":
    """The file's values, overridden by the given options.

    Raises:
        UsageError: The file cannot be used, or a value is out of its range.
    """
    from ocdserve.backend.publish.tuning import Tuning

    given = {field.name: value for field in fields(Tuning) if (value := getattr(args, field.name)) is not None}
    with usage_errors():
        return replace(Tuning.load(args.tuning) if args.tuning else Tuning(), **given)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Around the making of options from arguments: a value that is not valid is a usage error."""
    try:
        yield
    except InvalidInputError as error:
        raise UsageError(str(error)) from error

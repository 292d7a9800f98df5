# SPDX-License-Identifier: Apache-2.0
"""Tuning options of `ocdserve publish` and `serve`, and the file that holds them."""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocdserve.backend.publish.tuning import Tuning

__all__ = ["OPTIONS", "add_tuning_arguments", "tuning_of"]

OPTIONS = ("instances", "queue_size", "queue_delay_us", "tuning")


def add_tuning_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `tuning_of` reads in addition to --runtime, --threads and --streams."""
    parser.add_argument(
        "--tuning", metavar="FILE", type=Path, help="take these from a file of `ocdserve bench capacity`; options win"
    )
    parser.add_argument(
        "--instances", metavar="N", type=int, help="processes of each model with the network (default: 1)"
    )
    parser.add_argument("--queue-size", metavar="N", type=int, help="requests that may wait (default: 256)")
    parser.add_argument(
        "--queue-delay-us", metavar="N", type=int, help="microseconds that requests wait for others (default: 0)"
    )


def tuning_of(args: argparse.Namespace) -> "Tuning":
    """The file's values, overridden by the given options.

    Raises:
        InvalidInputError: The file cannot be used, or a value is out of its range.
    """
    from ocdserve.backend.publish.tuning import Tuning

    base = Tuning.load(args.tuning) if args.tuning else Tuning()
    given = {field.name: value for field in fields(Tuning) if (value := getattr(args, field.name)) is not None}
    return replace(base, **given)

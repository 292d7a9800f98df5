# SPDX-License-Identifier: Apache-2.0
"""Make a bundle, the folder that serve, detect and publish take, from an exported ONNX network.

The network is checked and run once before anything is written.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--onnx", metavar="FILE", type=Path, required=True, help="exported DB network")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="bundle to write, a new folder")
    parser.add_argument("--preset", metavar="NAME", default="ocdnet", help="ocdnet, ppocr or dbnet (default: ocdnet)")
    parser.add_argument("--name", help="name of the detector (default: the file's)")


def run(args: argparse.Namespace) -> int:
    """Build and tell how to use it."""
    from ocdserve.builder import BuildConfig, build

    build(BuildConfig(args.onnx, args.output, args.preset, args.name))
    print(f"wrote the bundle {args.output}")
    print(f"serve it:  ocdserve serve --bundle {args.output}")
    return 0

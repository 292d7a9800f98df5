# SPDX-License-Identifier: Apache-2.0
"""Images of docker/Dockerfile are really built, and their containers run as in production, by buildah, podman and runc.

Their base images are made on the spot of Debian and its Python. It needs root and the packages buildah, podman, runc
and mmdebstrap.
"""

import argparse
import importlib
import tempfile
from pathlib import Path

from tests.campaigns.deploy.images import check_tools, made_bases
from tests.campaigns.report import Report

# A module of this folder each, with `run(args, report)`; they run in this order.
PARTS = (
    "sizes",
    "hardened",
    "limits",
    "rollout",
    "kube",
    "environment",
    "alerts",
)
# Those that need no container.
_WITHOUT_CONTAINERS = {"environment"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part (default: all)")
    parser.add_argument("--reuse", action="store_true", help="take the images of an earlier run")


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the campaign."""
    parts = args.part or PARTS
    if len(parts) == 1:
        # A part that is run alone has a result of its own.
        report.name = f"{report.name}-{parts[0]}"
    if set(parts) - _WITHOUT_CONTAINERS:
        check_tools()
        with tempfile.TemporaryDirectory(prefix="ocdserve-deploy-") as name:
            made_bases(Path(name), report, reuse=args.reuse)
    for part in parts:
        report.say(f"part {part}")
        importlib.import_module(f"{__name__}.{part}").run(args, report)

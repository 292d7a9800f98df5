# SPDX-License-Identifier: Apache-2.0
"""Run NVIDIA's perf_analyzer, which is fetched the first time, against a running server.

Its own tables go to stdout. Exit code 1 if it failed.
"""

import argparse
from pathlib import Path

from ocdserve.contract import ENSEMBLE, InvalidInputError
from ocdserve.perf.sections.plan import say, street_jpeg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--url", required=True, help="the server: grpc://HOST:PORT or http://HOST:PORT")
    parser.add_argument("--image", metavar="FILE", type=Path, nargs="+", help="images to send (default: a drawn one)")
    parser.add_argument("--model", metavar="NAME", default=ENSEMBLE, help=f"served model (default: {ENSEMBLE})")
    parser.add_argument(
        "--concurrency", metavar="START[:END[:STEP]]", default="1:4", help="clients (default: %(default)s)"
    )
    parser.add_argument("--args", nargs=argparse.REMAINDER, default=[], help="all that follows goes to perf_analyzer")


def run(args: argparse.Namespace) -> int:
    """Run perf_analyzer; its output goes to ours."""
    from ocdserve.perf.load.perf_analyzer import AnalyzerRun, analyze, levels_of

    analyzer = AnalyzerRun(
        url=args.url,
        images=tuple(_read(path) for path in args.image) if args.image else (street_jpeg(),),
        model=args.model,
        levels=levels_of(args.concurrency),
        arguments=tuple(args.args),
    )
    return 1 if analyze(analyzer, say) else 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read the image file {str(path)!r}: {error.strerror}") from error

# SPDX-License-Identifier: Apache-2.0
"""The choice of a detector on a command line: in this process, or of a server with --url."""

import argparse
import re
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from ocdserve.cli import parameter, resolution, whole_number
from ocdserve.cli.completion import completes
from ocdserve.cli.tuning import add_bundle_argument, add_runtime_argument
from ocdserve.contract import (
    ENSEMBLE,
    FUSED,
    MODELS,
    PARAMETERS,
    RequestParameters,
    UnavailableError,
    UsageError,
    did_you_mean,
)
from ocdserve.results.detections import Detections
from ocdserve.results.pdf import DEFAULT_DPI
from ocdserve.results.pictures import LEAST_SIDE

if TYPE_CHECKING:
    from ocdserve.client import TextDetector

# Of the messages of the C library and of gRPC about a host name without an address.
_UNRESOLVED = "Name or service not known|name resolution|errors resolving|hostname lookup"


class SingleDetector(Protocol):
    """The common interface of `ocdserve.client.TextDetector` and `ocdserve.backend.Detector`."""

    @property
    def detect(self) -> Callable[..., Detections]:
        """Detect the text in one encoded image; keywords are request parameters."""


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `chosen_detector` reads."""
    parser.add_argument("--url", help="ask this server: grpc://HOST:PORT or http://HOST:PORT")
    model = parser.add_argument("--model", metavar="NAME", help="served model (default: ocdnet); only with --url")
    completes(model, (ENSEMBLE, FUSED))
    add_bundle_argument(parser, "load")
    add_runtime_argument(parser, "the fastest")
    parser.add_argument("--threads", metavar="N", type=whole_number(1), help="cores for the network (default: all)")


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options for the size of images, and of the pages of PDF files."""
    parser.add_argument(
        "--max-side",
        metavar="N",
        type=whole_number(LEAST_SIDE),
        help="scale images down to a longer side of N pixels first; boxes are in pixels of the original",
    )
    parser.add_argument(
        "--dpi",
        metavar="N",
        type=resolution,
        default=DEFAULT_DPI,
        help=f"pixels per inch of PDF pages (default: {DEFAULT_DPI:g})",
    )


def add_parameter_arguments(
    parser: argparse.ArgumentParser, stages: Collection[str] = ("decode", "postprocess")
) -> None:
    """Declare an option for each request parameter of these stages."""
    for name, spec in PARAMETERS.items():
        flag = "--" + name.replace("_", "-")
        if spec.stage not in stages:
            continue
        if spec.type is bool:
            parser.add_argument(flag, action="store_true", help=spec.meaning)
        else:
            parser.add_argument(flag, metavar="X", type=parameter(name), help=f"{spec.meaning}; {spec.rule}")


def given_parameters(args: argparse.Namespace) -> dict[str, Any]:
    """The request parameters that the options of `add_parameter_arguments` give."""
    return RequestParameters(**{name: getattr(args, name) for name in PARAMETERS if hasattr(args, name)}).given()


def check_detector_choice(args: argparse.Namespace) -> None:
    """Raise UsageError if options for a server and for this process are mixed."""
    if args.url and (args.bundle or args.runtime):
        raise UsageError("--bundle and --runtime choose the detector of this process; leave them out with --url")
    if args.url and args.threads:
        raise UsageError("--threads is for the network in this process; leave it out with --url")
    if args.model and not args.url:
        raise UsageError("--model names a model of a server; give the server with --url, or leave it out")


def chosen_detector(args: argparse.Namespace, stack: ExitStack) -> SingleDetector:
    """The detector selected by --url, --model, --bundle and --runtime; a client is closed with `stack`.

    Raises:
        UnavailableError: No server with a ready model answers at --url.
    """
    if not args.url:
        from ocdserve.backend import Detector

        more = {} if args.threads is None else {"threads": args.threads}
        in_process: SingleDetector = Detector.load(bundle=args.bundle, runtime=args.runtime, **more)
        return in_process
    from ocdserve.client import TextDetector

    detector = stack.enter_context(TextDetector(args.url, model=args.model))
    if not detector.ready():
        _explain(detector, args.url, args.model or ENSEMBLE)
        raise UnavailableError(
            f"no server with a ready model {args.model or 'ocdnet'!r} answers at {args.url}; "
            "start one with `ocdserve serve`, or correct --url"
        )
    return detector


def _explain(detector: "TextDetector", url: str, model: str) -> None:
    """Raise UnavailableError if the host is unknown, or if a server answers: what it serves instead of the model."""
    reason = str(detector.health().servers[0].reason)
    if re.search(_UNRESOLVED, reason):
        raise UnavailableError(f"the host {urlsplit(url).hostname!r} of --url is unknown; correct it")
    if "the server answered" in reason:
        raise UnavailableError(reason)
    if not reason.endswith("is not ready"):
        return
    ready = [name for name in MODELS if name != model and detector.health(name).ready]
    if ready:
        near = did_you_mean(model, ready)
        raise UnavailableError(f"the server at {url} has no ready model {model!r}{near}; ready are {', '.join(ready)}")

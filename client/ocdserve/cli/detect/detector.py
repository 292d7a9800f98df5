# SPDX-License-Identifier: Apache-2.0
"""The choice of a detector or a reader on a command line: in this process, or of a server with --url."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from ocdserve.cli import parameter, resolution, whole_number
from ocdserve.cli.completion import completes
from ocdserve.cli.tuning import add_bundle_argument, add_runtime_argument
from ocdserve.contract import (
    ENSEMBLE,
    FUSED,
    MODELS,
    OCR,
    PARAMETERS,
    READING_MODELS,
    ParameterSpec,
    RequestParameters,
    UnavailableError,
    UsageError,
    did_you_mean,
)
from ocdserve.results.detections import Detections
from ocdserve.results.pdf import DEFAULT_DPI
from ocdserve.results.pictures import LEAST_SIDE

if TYPE_CHECKING:
    from ocdserve.backend import Reader
    from ocdserve.client import TextDetector, TextReader

# Of the messages of the C library and of gRPC about a host name without an address.
_UNRESOLVED = "Name or service not known|name resolution|errors resolving|hostname lookup"

_Client = TypeVar("_Client", "TextDetector", "TextReader")


class SingleDetector(Protocol):
    """The common interface of `ocdserve.client.TextDetector` and `ocdserve.backend.Detector`."""

    @property
    def detect(self) -> Callable[..., Detections]:
        """Detect the text in one encoded image; keywords are request parameters."""


def add_detector_arguments(parser: argparse.ArgumentParser, models: Sequence[str] = (ENSEMBLE, FUSED)) -> None:
    """Declare the options that `chosen_detector` reads; of `models`, the first is the default."""
    parser.add_argument("--url", help="ask this server: grpc://HOST:PORT or http://HOST:PORT")
    model = parser.add_argument("--model", metavar="NAME", help=f"served model (default: {models[0]}); only with --url")
    completes(model, models)
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


def add_parameter_arguments(parser: argparse.ArgumentParser, specs: Mapping[str, ParameterSpec] = PARAMETERS) -> None:
    """Declare an option for each of these request parameters."""
    for name, spec in specs.items():
        flag = name.replace("_", "-")
        if spec.type is bool and spec.default:
            parser.add_argument(f"--no-{flag}", dest=name, action="store_false", help=f"do not {spec.meaning}")
        elif spec.type is bool:
            parser.add_argument(f"--{flag}", action="store_true", help=spec.meaning)
        else:
            parser.add_argument(f"--{flag}", metavar="X", type=parameter(name), help=f"{spec.meaning}; {spec.rule}")


def given_parameters(args: argparse.Namespace, kind: type[RequestParameters] = RequestParameters) -> dict[str, Any]:
    """The request parameters that the options of `add_parameter_arguments` give."""
    names = [item.name for item in fields(kind)]
    return kind(**{name: getattr(args, name) for name in names if hasattr(args, name)}).given()


def check_detector_choice(args: argparse.Namespace) -> None:
    """Raise UsageError if options for a server and for this process are mixed."""
    if args.url and (args.bundle or args.runtime):
        raise UsageError("--bundle and --runtime choose the detector of this process; leave them out with --url")
    if args.url and getattr(args, "recogniser", None):
        raise UsageError("--recogniser chooses that of this process; leave it out with --url")
    if args.url and args.threads:
        raise UsageError("--threads is for the network in this process; leave it out with --url")
    if args.model and not args.url:
        raise UsageError("--model names a model of a server; give the server with --url, or leave it out")


def chosen_detector(args: argparse.Namespace, stack: ExitStack) -> SingleDetector:
    """The detector selected by --url, --model, --bundle and --runtime; a client is closed with `stack`.

    Raises:
        UnavailableError: No server with a ready model answers at --url.
    """
    if args.url:
        from ocdserve.client import TextDetector

        return _ready(stack.enter_context(TextDetector(args.url, model=args.model)), args, ENSEMBLE)
    from ocdserve.backend import Detector

    in_process: SingleDetector = Detector.load(bundle=args.bundle, runtime=args.runtime, **_threads(args))
    return in_process


def chosen_reader(args: argparse.Namespace, stack: ExitStack) -> "Reader | TextReader":
    """The reader selected as a detector is, and by --recogniser; a client is closed with `stack`.

    Raises:
        UnavailableError: No server with a ready model that reads answers at --url.
    """
    if args.url:
        from ocdserve.client import TextReader

        return _ready(stack.enter_context(TextReader(args.url, model=args.model)), args, OCR)
    from ocdserve.backend import Reader

    return Reader.load(bundle=args.bundle, recogniser=args.recogniser, runtime=args.runtime, **_threads(args))


def _threads(args: argparse.Namespace) -> dict[str, Any]:
    return {} if args.threads is None else {"threads": args.threads}


def _ready(client: _Client, args: argparse.Namespace, usual: str) -> _Client:
    """The client, where its model is ready; `usual` is the model that it has by default."""
    if client.ready():
        return client
    model = args.model or usual
    _explain(client, args.url, model)
    reading = " --recogniser default" if model in READING_MODELS else ""
    raise UnavailableError(
        f"no server with a ready model {model!r} answers at {args.url}; "
        f"start one with `ocdserve serve{reading}`, or correct --url"
    )


def _explain(client: "TextDetector | TextReader", url: str, model: str) -> None:
    """Raise UnavailableError if the host is unknown, or if a server answers: what it serves instead of the model."""
    reason = str(client.health().servers[0].reason)
    if re.search(_UNRESOLVED, reason):
        raise UnavailableError(f"the host {urlsplit(url).hostname!r} of --url is unknown; correct it")
    if "the server answered" in reason:
        raise UnavailableError(reason)
    if "is not ready" not in reason:
        return
    ready = [name for name in MODELS if name != model and client.health(name).ready]
    if ready and model in READING_MODELS and not set(ready) & set(READING_MODELS):
        raise UnavailableError(
            f"the server at {url} detects text but does not read it; "
            "start it with `ocdserve serve --recogniser default`"
        )
    if ready:
        near = did_you_mean(model, ready)
        raise UnavailableError(f"the server at {url} has no ready model {model!r}{near}; ready are {', '.join(ready)}")

# SPDX-License-Identifier: Apache-2.0
"""Start a Triton server in the foreground; Ctrl-C stops it.

Without --repository a model repository is made for the bundle first. A Python process of the server that dies has
its model reloaded, a server that dies is restarted. A second Ctrl-C does not wait for requests in flight. Exit code 3
says that the server, or a model, failed too many times in a row.
"""

import argparse
import re
import signal
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ocdserve.cli import whole_number
from ocdserve.cli.tuning import (
    SHAPING_OPTIONS,
    add_bundle_argument,
    add_recogniser_argument,
    add_repository_arguments,
    limits_of,
    tuning_of,
    usage_errors,
)
from ocdserve.contract import InvalidInputError, OcdserveError, UsageError

if TYPE_CHECKING:
    from ocdserve.backend.serve import TritonServer
    from ocdserve.backend.serve.log_lines import LogWriter
    from ocdserve.backend.serve.public.options import PublicOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ocdserve serve`."""
    source = parser.add_mutually_exclusive_group()
    add_bundle_argument(source, "serve")
    source.add_argument("--repository", type=Path, metavar="DIR", help="serve this Triton model repository as it is")
    add_recogniser_argument(parser, "serve models that read text too, with this recogniser")
    add_repository_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="IPv4 address to bind (default: %(default)s)")
    for kind, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        text = f"port of {kind}, 0 picks a free one (default: %(default)s)"
        parser.add_argument(f"--{kind}-port", type=whole_number(0, 65535), default=port, metavar="N", help=text)
    parser.add_argument(
        "--shared-memory",
        type=Path,
        metavar="FILE",
        help="let clients on this machine send pixels through shared memory: those that send the token written to FILE",
    )
    parser.add_argument(
        "--mps",
        action="store_true",
        help="with models on a GPU: start the daemon of CUDA's Multi-Process Service, so that the work of --instances "
        "overlaps on a GPU, and stop it at the end",
    )
    _add_time_arguments(parser)
    parser.add_argument("--tritonserver", type=Path, metavar="PATH", help="run this Triton installation's binary")
    _add_observation_arguments(parser.add_argument_group("logs and traces"))
    _add_public_arguments(parser.add_argument_group("front door, for clients that are not to be trusted"))
    _add_grpc_arguments(parser.add_argument_group("gRPC connections, as tritonserver's options of these names"))


def _add_time_arguments(parser: argparse.ArgumentParser) -> None:
    from ocdserve.backend.serve.options import LONGEST_LOAD_S, LONGEST_STOP_S

    for name, least, most, default, text in (
        ("ready", 1, LONGEST_LOAD_S, 120, "seconds that the models may take to load"),
        ("drain", 0, LONGEST_STOP_S, 0, "after SIGTERM, seconds to serve on and report that the server is not ready"),
        ("exit", 1, LONGEST_STOP_S, 5, "after that, seconds that requests in flight may take"),
    ):
        parser.add_argument(
            f"--{name}-s" if name == "drain" else f"--{name}-timeout-s",
            type=whole_number(least, most),
            default=default,
            metavar="N",
            help=f"{text} (default: %(default)s)",
        )


def _add_public_arguments(group: "argparse._ArgumentGroup") -> None:
    from ocdserve.backend.serve.public.options import PublicOptions

    text = "start a proxy before Triton on this port of --host (default: 8443); Triton's own are on 127.0.0.1 then"
    group.add_argument("--public", type=whole_number(0, 65535), nargs="?", const=8443, metavar="PORT", help=text)
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM without a password")
    group.add_argument("--no-tls", action="store_true", default=None, help="cleartext, where something else encrypts")
    group.add_argument("--tokens", type=Path, metavar="FILE", help="admit only requests with a token of this file")
    text = "do not serve POST /detect and POST /read, for which an image file is all of the request"
    group.add_argument("--no-uploads", action="store_true", default=None, help=text)
    for item in fields(PublicOptions):
        if item.metadata:
            flag, least, most = f"--{item.name.replace('_', '-')}", item.metadata["least"], item.metadata["most"]
            text = f"{item.metadata['meaning']} (default: {item.default})"
            group.add_argument(flag, type=whole_number(least, most), metavar="N", help=text)


def _public_options(args: argparse.Namespace) -> "PublicOptions | None":
    from ocdserve.backend.serve.public.options import PublicOptions

    names = [item.name for item in fields(PublicOptions) if item.name not in ("host", "port")]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.public is not None:
        with usage_errors():
            return PublicOptions(args.host, args.public, **given)
    if given:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} is of the front door; add --public")
    return None


def _add_observation_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: everything, Triton's log included, as JSON objects on standard error (default: %(default)s)",
    )
    group.add_argument("--log-file", type=Path, metavar="FILE", help="append Triton's log to this file")
    text = "size at which Triton's log is moved to FILE.1, in place of what is there (default: %(default)s)"
    group.add_argument("--log-bytes", type=whole_number(1 << 16, 1 << 40), default=10 << 20, metavar="N", help=text)
    group.add_argument("--otlp", metavar="URL", help="send traces to this OpenTelemetry collector, by OTLP over HTTP")
    text = "trace one of so many requests (default: %(default)s)"
    group.add_argument("--trace-rate", type=whole_number(1, 2**31 - 1), default=1000, metavar="N", help=text)


def _add_grpc_arguments(group: "argparse._ArgumentGroup") -> None:
    from ocdserve.backend.serve.options import GrpcConnections

    for item in fields(GrpcConnections):
        flag, meaning = f"--{item.name.replace('_', '-')}", item.metadata["meaning"]
        if item.metadata["is_flag"]:
            group.add_argument(flag, action="store_true", default=None, help=meaning)
        else:
            group.add_argument(flag, type=whole_number(item.metadata["minimum"]), metavar="N", help=meaning)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit code."""
    from ocdserve.backend.serve.log_lines import Failure, LogWriter

    with LogWriter(args.log_format).installed() as log:
        try:
            return _run(args, log)
        except OcdserveError as error:
            if args.log_format == "text":
                raise
            log.report(Failure(error))
            return 2 if isinstance(error, UsageError) else 1


def _run(args: argparse.Namespace, log: "LogWriter") -> int:
    # SIGTERM while the repository is written must remove it too, like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given = [name for name in ("recogniser", *SHAPING_OPTIONS) if getattr(args, name) is not None]
    if args.repository is not None and (args.gpu or given):
        option = given[0].replace("_", "-") if given else "gpu"
        raise UsageError(f"--{option} shapes a new repository; it does not go with --repository")
    if args.mps and args.repository is None and not args.gpu:
        raise UsageError("--mps is for models on a GPU; add --gpu, or leave it out")
    import shutil

    from ocdserve.backend.serve import ServeOptions, private_directory, serve
    from ocdserve.backend.serve.options import GrpcConnections
    from ocdserve.backend.serve.reload import Source

    public = _public_options(args)
    workspace = private_directory()
    try:
        repository, source = args.repository, Source()
        if repository is None:
            repository = workspace / "repository"
            source = Source(partial(_publish, args, repository), args.bundle, args.recogniser)
            source.restore()
        try:
            options = ServeOptions(
                repository=repository,
                host="127.0.0.1" if public else args.host,
                http_port=args.http_port,
                grpc_port=args.grpc_port,
                metrics_port=args.metrics_port,
                tritonserver=args.tritonserver,
                ready_timeout_s=args.ready_timeout_s,
                drain_s=args.drain_s,
                exit_timeout_s=args.exit_timeout_s,
                log_file=args.log_file,
                log_bytes=args.log_bytes,
                otlp=args.otlp,
                trace_rate=args.trace_rate,
                shared_memory=args.shared_memory,
                mps=args.mps,
                grpc=GrpcConnections(**{item.name: getattr(args, item.name) for item in fields(GrpcConnections)}),
                workspace=workspace,
            )
        except InvalidInputError as error:
            raise UsageError(_in_options(str(error))) from error
        log.know(path.parent.name for path in repository.glob("*/config.pbtxt"))
        return serve(options, partial(_announce, log), log.report, source, public, log.relay)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _in_options(message: str) -> str:
    """The message with the names of the command line instead of the fields of `ServeOptions`."""
    names = r"(?:ServeOptions|GrpcConnections)\.(\w+)|\b(http_port|grpc_port|metrics_port)\b"
    return re.sub(
        names, lambda found: f"--{(found[1] or found[2]).replace('_', '-')}", message.removeprefix("ServeOptions: ")
    )


def _publish(args: argparse.Namespace, target: Path, chosen: Path | None, recogniser: Path | None) -> None:
    from ocdserve.backend.publish.repository import PublishOptions, publish

    tuning = tuning_of(args)
    if args.gpu:
        from ocdserve.backend import Bundle
        from ocdserve.backend.network.load import check_gpu
        from ocdserve.backend.network.options import gpu_runtime

        bundle = Bundle.load(chosen)
        check_gpu(bundle, gpu_runtime(bundle, tuning.runtime))
    more = {
        "recogniser": recogniser,
        "gpu": args.gpu,
        "decoder": args.decoder or "cpu",
        "require_manifest": args.require_manifest,
    }
    with usage_errors():
        options = PublishOptions.tuned(target, chosen, tuning, limits=limits_of(args), **more)
    publish(options)


def _announce(log: "LogWriter", server: "TritonServer") -> None:
    log.report(f"ready: {server.http_url}  {server.grpc_url}  {server.metrics_url}")
    log.report("Ctrl-C stops the server")

# SPDX-License-Identifier: Apache-2.0
"""Serve a playground page: drop a picture, move the thresholds, see the quads, the text, the times and the code.

Reads in this process, or through a running server with --url. The page is served to this machine only (127.0.0.1).
"""

import argparse
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from ocdserve.cli import whole_number
from ocdserve.cli.detect.detector import (
    add_detector_arguments,
    check_detector_choice,
    chosen_detector,
    chosen_reader,
)
from ocdserve.cli.playground import PlayOptions, PlayServer
from ocdserve.cli.tuning import add_recogniser_argument
from ocdserve.client._endpoint import Endpoint
from ocdserve.contract import ENSEMBLE, REQUEST_DEFAULTS
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image
from ocdserve.results.reading import Reading

_CONFIG_TIMEOUT_S = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_detector_arguments(parser)
    add_recogniser_argument(parser, "recogniser to load")
    parser.add_argument(
        "--port",
        metavar="N",
        type=whole_number(0, 65535),
        default=8010,
        help="port (default: %(default)s; 0: a free one)",
    )
    parser.add_argument(
        "--max-mb", metavar="N", type=whole_number(1), default=32, help="largest file in MiB (default: %(default)s)"
    )
    parser.add_argument(
        "--no-pdf", dest="pdf", action="store_false", help="refuse PDF files, which are rendered in this process"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    check_detector_choice(args)
    with ExitStack() as stack:
        detect, read, defaults = _calls(args, stack)
        options = PlayOptions(
            detect,
            read,
            source=args.url or "in process",
            url=args.url,
            port=args.port,
            max_bytes=args.max_mb * 2**20,
            defaults=defaults,
            pdf=args.pdf,
            samples=_samples,
        )
        server = stack.enter_context(PlayServer(options))
        with suppress(KeyboardInterrupt):
            print(f"playground at {server.address} ({options.source}); Ctrl-C stops it", flush=True)
            server.serve_forever()
    return 0


def _calls(
    args: argparse.Namespace, stack: ExitStack
) -> tuple[Callable[..., Detections], Callable[..., Reading] | None, Mapping[str, Any]]:
    """What detects, what reads (None where a server does not), and the defaults of their request parameters."""
    if args.url:
        from ocdserve.client import TextReader

        detector = chosen_detector(args, stack)
        reader = stack.enter_context(TextReader(args.url))
        return detector.detect, reader.read if reader.ready() else None, served_defaults(args.url)
    loaded: Any = chosen_reader(args, stack)
    defaults = loaded.detector.spec.postprocess.request_defaults()
    least = loaded.recogniser.spec.min_text_score
    detect, read = _one_at_a_time(loaded.detector.detect, loaded.read)
    return detect, read, {**defaults, "min_text_score": least}


def _one_at_a_time(*calls: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Serialise calls: the networks in this process use all cores for one image."""
    lock = threading.Lock()

    def locked(call: Callable[..., Any], image: Image, **overrides: Any) -> Any:
        with lock:
            return call(image, **overrides)

    return (partial(locked, call) for call in calls)


def served_defaults(url: str) -> Mapping[str, Any]:
    """Defaults of the bundle that a server serves; empty where it does not say."""
    # Repositories published by older releases do not name them; the page also works without.
    with suppress(Exception):
        defaults: Any = json.loads(_ensemble_config(url)["parameters"][REQUEST_DEFAULTS]["string_value"])
        return dict(defaults)
    return {}


def _ensemble_config(url: str) -> Any:
    """Triton's configuration of the ensemble."""
    endpoint = Endpoint.parse(url)
    if endpoint.is_grpc:
        from tritonclient.grpc import InferenceServerClient

        proxy = [("grpc.enable_http_proxy", int(not endpoint.is_loopback))]
        with InferenceServerClient(endpoint.address, ssl=endpoint.is_encrypted, channel_args=proxy) as client:
            answer = client.get_model_config(ENSEMBLE, as_json=True, client_timeout=_CONFIG_TIMEOUT_S)
            return answer["config"]
    path = f"{url.rstrip('/')}/v2/models/{ENSEMBLE}/config"
    # Without the environment's proxy, as the client's own transport.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(path, timeout=_CONFIG_TIMEOUT_S) as answer:
        return json.load(answer)


def _samples() -> Mapping[str, bytes]:
    from ocdserve.perf.inputs.pictures import demo_pictures

    return {f"{picture.name}.png": picture.png() for picture in demo_pictures()}

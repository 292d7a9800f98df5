# SPDX-License-Identifier: Apache-2.0
"""Serve a playground page: drop a picture, move the thresholds, see the quads, the times and the code.

Detects in this process, or through a running server with --url. The page is served to this machine only (127.0.0.1).
"""

import argparse
import json
import threading
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from ocdserve.cli import whole_number
from ocdserve.cli.detect.detector import add_detector_arguments, check_detector_choice, chosen_detector
from ocdserve.cli.playground import PlayOptions, PlayServer
from ocdserve.client._endpoint import Endpoint
from ocdserve.contract import ENSEMBLE, REQUEST_DEFAULTS
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image

_CONFIG_TIMEOUT_S = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_detector_arguments(parser)
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
        detector: Any = chosen_detector(args, stack)
        options = PlayOptions(
            detect=detector.detect if args.url else _one_at_a_time(detector.detect),
            source=args.url or "in process",
            url=args.url,
            port=args.port,
            max_bytes=args.max_mb * 2**20,
            defaults=served_defaults(args.url) if args.url else detector.spec.postprocess.request_defaults(),
            pdf=args.pdf,
            samples=_samples,
        )
        server = stack.enter_context(PlayServer(options))
        with suppress(KeyboardInterrupt):
            print(f"playground at {server.address} ({options.source}); Ctrl-C stops it", flush=True)
            server.serve_forever()
    return 0


def _one_at_a_time(detect: Callable[..., Detections]) -> Callable[..., Detections]:
    """Serialise detection: the network in this process uses all cores for one image."""
    lock = threading.Lock()

    def locked(image: Image, **overrides: Any) -> Detections:
        with lock:
            return detect(image, **overrides)

    return locked


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

# SPDX-License-Identifier: Apache-2.0
"""Ask a server whether it is healthy, for probes of containers: exit code 0 if it is, 1 and a line of reason if not.

Without --canary it must be ready. With --canary the models that it serves must answer a small inference; a server that
is draining is healthy then, and so is one that refuses the inference because it is overloaded: a probe that restarts
servers must not restart these.
"""

import argparse
import http.client
import time
from urllib.parse import urlsplit

from ocdserve.cli import whole_number
from ocdserve.contract import ASKED_MODELS, UnavailableError, UsageError

_URL = "http://127.0.0.1:8000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "url", nargs="?", default=_URL, metavar="URL", help="of the server's HTTP port (default: %(default)s)"
    )
    parser.add_argument("--canary", action="store_true", help="ask for an inference, which needs ocdserve[images]")
    text = "seconds after which it is not healthy; more than the server's --queue-time-ms (default: %(default)s)"
    parser.add_argument("--timeout-s", type=whole_number(1, 3600), default=10, metavar="N", help=text)


def run(args: argparse.Namespace) -> int:
    """Ask, and print the answer."""
    host, port = _address(args.url)
    deadline = time.monotonic() + args.timeout_s
    if args.canary:
        print(_canaries(host, port, deadline))
        return 0
    status = _status(host, port, "/v2/health/ready", deadline)
    if status != 200:
        raise UnavailableError(f"{args.url} is not ready (HTTP status {status})")
    # Triton's port of the metrics would be ready for ever.
    if _status(host, port, "/v2/health", deadline) == 200:
        raise UnavailableError(
            f"{args.url} is not the server's HTTP port: it answers every path, as the port of the metrics does"
        )
    print(f"{args.url} is ready")
    return 0


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise UsageError(f"URL must be http://HOST:PORT, of the server's HTTP port; got {url!r}")
    return parts.hostname, port


def _left_s(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _status(host: str, port: int, path: str, deadline: float) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=_left_s(deadline))
    try:
        connection.request("GET", path)
        with connection.getresponse() as response:
            response.read()
            return response.status
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"http://{host}:{port} does not answer ({error!r})") from error
    finally:
        connection.close()


def _canaries(host: str, port: int, deadline: float) -> str:
    """Send a canary to each model that is ready; returns a sentence, or raises UnavailableError."""
    from ocdserve.backend.serve.canary import CanaryError, run_canary
    from ocdserve.backend.serve.repository_api import RepositoryApi

    api, said = RepositoryApi(host, port, "", _left_s(deadline)), []
    for model in ASKED_MODELS:
        if _status(host, port, f"/v2/models/{model}/ready", deadline) == 200:
            try:
                run_canary(api, model, _left_s(deadline))
                said.append(f"{model} answers")
            except CanaryError as error:
                if error.cause != "busy":
                    raise
                said.append(f"{model} is busy")
    if not said:
        raise UnavailableError(f"http://{host}:{port} serves none of {', '.join(ASKED_MODELS)}")
    return ", ".join(said)

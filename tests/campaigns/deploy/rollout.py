# SPDX-License-Identifier: Apache-2.0
"""Two servers behind docker/envoy.yaml are replaced, one after the other, under load: no request is lost."""

import argparse
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from ocdserve.backend.serve.process.command import Ports
from ocdserve.backend.serve.public.front_door import envoy_path
from ocdserve.contract import UnavailableError
from tests.campaigns.clients import EIGHT_CLIENTS, HEADERS, Load, Plan, Target
from tests.campaigns.deploy.containers import container
from tests.campaigns.deploy.images import REPOSITORY, built
from tests.campaigns.report import Report
from tests.campaigns.serving import pictures, right_answers

_DRAIN_S = 5
_STOP_S = 60
# Between two health checks of the proxy is a second: how long a new server must be ready before the next one goes.
_SEEN_S = 3.0
_START_S = 20.0


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the part."""
    image, images = built("cpu", args.reuse).name, pictures()
    with ExitStack() as stack:
        places = [Ports(*ports) for ports in zip(*[iter(_free_ports(6))] * 3, strict=True)]
        running = [stack.enter_context(container(image, _command(ports))) for ports in places]
        targets = [each.wait_ready() for each in running]
        right = right_answers(targets[0], images, None)
        codes, stops = [], []
        target = stack.enter_context(_proxy(places))
        with Load(Plan(target, images, right, EIGHT_CLIENTS)) as load:
            time.sleep(_SEEN_S)
            for turn in range(2 if args.short else 4):
                seconds, code = running[turn % 2].stop(_STOP_S)
                stops.append(seconds)
                codes.append(code)
                running[turn % 2] = stack.enter_context(container(image, _command(places[turn % 2])))
                running[turn % 2].wait_ready()
                time.sleep(_SEEN_S)
                report.say(f"server {turn % 2 + 1} replaced, its stop took {seconds:.1f} s")
            tally = load.stop()
    report.table(
        f"{len(codes)} replacements under {len(EIGHT_CLIENTS)} clients", HEADERS, [tally.row()], text_columns=0
    )
    report.answered(tally, 100)
    report.equal("exit codes of the servers", set(codes), {0})
    report.rule(f"each served on for {_DRAIN_S} s", f"at least {min(stops):.1f} s", min(stops) >= _DRAIN_S)


def _command(ports: Ports) -> Sequence[str]:
    named = [f"--{name}-port={getattr(ports, name)}" for name in ("http", "grpc", "metrics")]
    return ["serve", *named, f"--drain-s={_DRAIN_S}"]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in listeners]


@contextmanager
def _proxy(servers: Sequence[Ports]) -> Iterator[Target]:
    """docker/envoy.yaml before servers on this machine, on a port of its own, once it passes requests on."""
    settings = yaml.safe_load((REPOSITORY / "docker" / "envoy.yaml").read_text("utf-8"))
    (port,) = _free_ports(1)
    resources = settings["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    for cluster in resources["clusters"]:
        cluster["load_assignment"]["endpoints"] = [
            {"lb_endpoints": [_endpoint(getattr(ports, cluster["name"]), ports.http) for ports in servers]}
        ]
    with tempfile.TemporaryDirectory(prefix="ocdserve-rollout-") as name:
        path, log = Path(name) / "envoy.json", Path(name) / "log"
        path.write_text(json.dumps(settings))
        command = [envoy_path(), "-c", path, "--concurrency", "2", "--disable-hot-restart", "--log-level", "warning"]
        with log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:
            try:
                target = Target(f"127.0.0.1:{port}", f"127.0.0.1:{port}")
                _wait_passes(target, process, log)
                yield target
            finally:
                process.terminate()


def _endpoint(port: int, health: int) -> object:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"endpoint": {"address": address, "health_check_config": {"port_value": health}}}


def _wait_passes(target: Target, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        connection = target.connection(2.0)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise UnavailableError(f"Envoy does not pass requests on:\n{log.read_text(errors='replace')[-2000:]}")

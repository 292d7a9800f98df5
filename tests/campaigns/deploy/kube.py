# SPDX-License-Identifier: Apache-2.0
"""The chart's Deployment, as Helm writes it, serves and stops under `podman play kube`.

Two things differ from a cluster, because podman 4.3 makes an emptyDir of disk whatever its medium, and this machine may
have no plugins of CNI: /dev/shm is a tmpfs of this machine, and the pod is on its network.
"""

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from ocdserve.contract import UnavailableError
from ocdserve.perf.inputs.image_sets import draw_images
from tests.campaigns.clients import EIGHT_CLIENTS, HEADERS, Load, Plan, Target
from tests.campaigns.deploy.containers import PODMAN, ULIMITS, Container
from tests.campaigns.deploy.hardened import judge_answers, judge_confinement
from tests.campaigns.deploy.images import REPOSITORY, built, output
from tests.campaigns.report import Report
from tests.deploy.prometheus import find_tool

_DRAIN_S = 2
_PICTURES = 20
_START_S = 180.0
_LOAD_S = 5.0


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the part."""
    images = [image.encoded for image in draw_images("mixed", 4 if args.short else _PICTURES, 17).images]
    deployment = _rendered(built("cpu", args.reuse).name)
    pod = deployment["spec"]["template"]["spec"]
    one, grace_s = pod["containers"][0], pod["terminationGracePeriodSeconds"]
    with (
        tempfile.TemporaryDirectory(prefix="ocdserve-kube-") as name,
        _adapted(pod, Path(name) / "shm", report) as ports,
        _played(deployment, ports.values(), Path(name)) as served,
    ):
        _wait_ready(served, one["readinessProbe"]["httpGet"], report)
        target = Target(f"127.0.0.1:{ports['http']}", f"127.0.0.1:{ports['grpc']}")
        judge_confinement(served, report)
        right = judge_answers(target, images, report)
        alive = subprocess.run([*PODMAN, "healthcheck", "run", served.name], capture_output=True, check=False)
        report.equal("exit code of the liveness probe", alive.returncode, 0)
        with Load(Plan(target, images, right, EIGHT_CLIENTS)) as load:
            time.sleep(_LOAD_S)
            seconds, code = served.stop(grace_s)
            tally = load.stop()
    report.table(f"{len(EIGHT_CLIENTS)} clients until it stopped", HEADERS, [tally.row()], text_columns=0)
    report.equal("wrong answers", tally.outcomes()["wrong"], 0)
    report.most("SIGTERM under load", seconds, grace_s, " s")
    report.equal("exit code after SIGTERM", code, 0)


def _rendered(image: str) -> dict[str, Any]:
    """The Deployment of one replica."""
    helm = find_tool("helm")
    if helm is None:
        raise UnavailableError("the part `kube` needs Helm. Run scripts/install_deploy_tools.sh.")
    repository, _, tag = image.rpartition(":")
    values = f"image.repository={repository},image.tag={tag},image.pullPolicy=Never,replicas=1,serve.drainS={_DRAIN_S}"
    chart = str(REPOSITORY / "charts" / "ocdserve")
    text = output(str(helm), "template", "campaign", chart, "--show-only", "templates/deployment.yaml", "--set", values)
    deployment: dict[str, Any] = yaml.safe_load(text)
    return deployment


@contextmanager
def _adapted(pod: dict[str, Any], folder: Path, report: Report) -> Iterator[dict[str, int]]:
    """Change a pod's network and shared memory, for which a tmpfs is mounted until the end of the block.

    Yields:
        Its container's ports by name, which podman refuses of a pod on the host's network.
    """
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0].pop("ports")}
    (shm,) = (volume for volume in pod["volumes"] if volume["emptyDir"].get("medium") == "Memory")
    size = shm["emptyDir"]["sizeLimit"]
    changes = (
        ("network", f"of its own, with ports {ports}", "hostNetwork: true, without ports"),
        (f"volume {shm['name']}", f"emptyDir: {shm.pop('emptyDir')}", f"hostPath: a tmpfs of {size}, mode 1777"),
    )
    pod["hostNetwork"], shm["hostPath"] = True, {"path": str(folder)}
    report.table("Changed of Helm's Deployment", ("of the pod", "Helm", "for podman"), changes, text_columns=3)
    folder.mkdir()
    # Mi and Gi are m and g to the kernel.
    output("mount", "-t", "tmpfs", "-o", f"size={size[:-1].lower()},mode=1777", "tmpfs", str(folder))
    try:
        yield ports
    finally:
        output("umount", str(folder))


@contextmanager
def _played(deployment: dict[str, Any], ports: Iterable[int], folder: Path) -> Iterator[Container]:
    """The container of a Deployment's pod, until the end of the block."""
    file, settings = folder / "deployment.yaml", folder / "containers.conf"
    file.write_text(yaml.safe_dump(deployment), "utf-8")
    settings.write_text(f"[containers]\ndefault_ulimits = {json.dumps(ULIMITS)}\n", "utf-8")
    environment = {**os.environ, "CONTAINERS_CONF": str(settings)}
    play = [*PODMAN, "play", "kube"]
    for port in ports:
        # Another server there would be asked in place of the pod's.
        socket.create_server(("", port)).close()
    try:
        done = subprocess.run([*play, file], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"podman does not take the chart's Deployment:\n{done.stdout}{done.stderr}")
        # It ends with the container's identifier.
        yield Container(done.stdout.split()[-1])
    finally:
        output(*play, "--down", str(file), check=False)


def _wait_ready(served: Container, probe: dict[str, Any], report: Report) -> None:
    """Ask what the readiness probe asks until it is answered well."""
    url, began = f"http://127.0.0.1:{probe['port']}{probe['path']}", time.monotonic()
    while True:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            report.rule(f"ready, by {probe['path']}", f"after {time.monotonic() - began:.0f} s", True)
            return
        if not served.running or time.monotonic() - began > _START_S:
            raise UnavailableError(f"{served.name} is not ready:\n{served.logs()[-2000:]}")
        time.sleep(0.2)

# SPDX-License-Identifier: Apache-2.0
"""Each alert fires for its cause, and none in quiet minutes, on a real Prometheus with the rules of the chart.

Their times are divided by ten, and Prometheus scrapes each second: a minute here is ten of production.
"""

import argparse
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve.process.processes import find_stubs
from ocdserve.client import Retry, TextDetector, Timeout
from ocdserve.contract import Limits, OcdserveError, UnavailableError
from ocdserve.perf.load.memory import process_tree
from tests.campaigns.clients import Target
from tests.campaigns.deploy.containers import Container, Size, container
from tests.campaigns.deploy.images import built
from tests.campaigns.report import Report
from tests.campaigns.serving import Server, pictures, serving, small_bundle
from tests.deploy.prometheus import FILES, Prometheus, faster, find_tool, prometheus

_FASTER = 10
_QUIET_S = 300.0
_FIRES_S = 150.0
_SHM_MIB = 320
_MAX_PIXELS = 200_000
# With this end a file makes the decoder of the published repository fail; while FLAG exists, it never ends.
_BROKEN = b"BROKEN"
_DECODER = f"""
import os, time
from ocdserve.backend import detector

decode = detector.decode_for
def marked(policy, data, *arguments):
    while os.path.exists("FLAG"):
        time.sleep(0.1)
    if data.endswith({_BROKEN!r}):
        raise RuntimeError("a fault")
    return decode(policy, data, *arguments)
detector.decode_for = marked
"""


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the part."""
    with tempfile.TemporaryDirectory(prefix="ocdserve-alerts-") as name:
        folder = Path(name)
        bundle = small_bundle(folder / "bundle").model_path.parent
        repository = publish(PublishOptions(folder / "models", bundle, limits=Limits(max_pixels=_MAX_PIXELS)))
        for model in ("ocdnet_preprocess", "ocdnet_fused"):
            code = repository / model / "1" / "model.py"
            code.write_text(_DECODER.replace("FLAG", str(folder / "hang")) + code.read_text())
        with serving(None, "--repository", str(repository)) as server, watched("\n".join(server.lines())) as watch:
            _quiet(server.target, watch, 20.0 if args.short else _QUIET_S, report)
            _requests(server.target, watch, report)
            _faults(server, watch, folder, report)
    with container(built("cpu", args.reuse).name, size=Size(shm=f"{_SHM_MIB}m")) as served:
        target = served.wait_ready()
        with watched(served.logs()) as watch:
            _overload(target, watch, report)
            _shared_memory(served, watch, report)
            fires(report, watch, "a server that has stopped", "OcdserveDown", act=Once(lambda: served.stop()))


@contextmanager
def watched(log: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the server which has written a log."""
    program, address = find_tool("prometheus"), re.search(r"http://(\S+)/metrics", log)
    if program is None or address is None:
        raise UnavailableError("the part `alerts` needs Prometheus. Run scripts/install_deploy_tools.sh.")
    rules = faster((FILES / "rules.yaml").read_text("utf-8"), _FASTER)
    with (
        tempfile.TemporaryDirectory(prefix="ocdserve-alerts-") as folder,
        prometheus(program, Path(folder), [address[1]], rules) as running,
    ):
        yield running


class Once:
    """Calls a function once."""

    def __init__(self, call: Callable[[], object]) -> None:
        """The first call of this is one of `call`."""
        self._calls = [call]

    def __call__(self) -> None:
        """Call it, if that has not been done."""
        if self._calls:
            self._calls.pop()()


def fires(report: Report, watch: Prometheus, cause: str, *alerts: str, act: Callable[[], object]) -> None:
    """Record that alerts, which do not fire yet, fire while `act` is called again and again."""
    early, began = watch.firing(), time.monotonic()
    seen: set[str] = set()
    while not seen.issuperset(alerts) and time.monotonic() - began < _FIRES_S:
        act()
        time.sleep(0.1)
        seen |= watch.firing()
    for alert in alerts:
        found = "fired before" if alert in early else "fires" if alert in seen else "silent"
        report.rule(f"{cause}: {alert} fires", found, found == "fires")
    more = ", ".join(sorted(seen.difference(alerts))) or "no other"
    report.say(f"{time.monotonic() - began:.0f} s; {more} fired next to it")


def detector(target: Target, model: str | None = None) -> TextDetector:
    """A client that does not repeat what fails."""
    url = f"grpc://{target.grpc}"
    return TextDetector(url, model=model, retry=Retry(attempts=1), timeout=Timeout(total=20))


@contextmanager
def load(target: Target, images: Sequence[bytes], clients: int, pause_s: float) -> Iterator[None]:
    """Clients of both models that send images in turn until the end of the block."""
    ended = threading.Event()

    def send(number: int) -> None:
        with detector(target, ("ocdnet", "ocdnet_fused")[number % 2]) as client:
            while not ended.wait(pause_s):
                number += 1
                with suppress(OcdserveError):
                    client.detect(images[number % len(images)])

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _quiet(target: Target, watch: Prometheus, seconds: float, report: Report) -> None:
    seen: set[str] = set()
    with load(target, pictures(), clients=2, pause_s=0.3):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            seen |= watch.firing()
            time.sleep(1)
    report.equal(f"alerts in {seconds:.0f} s of light load", ", ".join(sorted(seen)), "")


def _requests(target: Target, watch: Prometheus, report: Report) -> None:
    good, stream = pictures()[0], io.BytesIO()
    Image.new("RGB", (_MAX_PIXELS // 100, 101)).save(stream, "PNG")
    cases = (
        ("a fault of the decoder in one of ten requests", "OcdserveErrors", good + _BROKEN),
        ("one of ten images is too large", "OcdserveLimitHits", stream.getvalue()),
    )
    for cause, alert, bad in cases:
        with load(target, [*[good] * 9, bad], clients=2, pause_s=0.05):
            fires(report, watch, cause, alert, act=lambda: None)


def _faults(server: Server, watch: Prometheus, folder: Path, report: Report) -> None:
    reload = [sys.executable, "-m", "ocdserve.cli", "reload", "--pid", str(server.pid)]

    def stubs(model: str) -> list[int]:
        triton = (pid for pid in process_tree(server.pid) if _name(pid) == "tritonserver")
        return [stub.pid for pid in triton for stub in find_stubs(pid) if stub.model == model]

    def end(number: int, model: str) -> None:
        for pid in stubs(model):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    # The network of the repository, which is read again.
    for file in (folder / "models").rglob("*.onnx"):
        file.write_bytes(b"none")
    failed = Once(lambda: subprocess.run(reload, capture_output=True, check=False))
    fires(report, watch, "a reload of a damaged network", "OcdserveReloadFailed", act=failed)
    died = Once(lambda: end(signal.SIGKILL, "ocdnet_preprocess"))
    fires(report, watch, "a process that dies", "OcdserveRestarted", act=died)
    with load(server.target, pictures(), clients=2, pause_s=0.05):
        hung = "a process whose heart beats and that answers nobody"
        fires(report, watch, hung, "OcdserveCanaryFailing", act=(folder / "hang").touch)
    (folder / "hang").unlink()
    dies = "a process that dies whenever it is started"
    fires(report, watch, dies, "OcdserveNotReady", act=lambda: end(signal.SIGKILL, "ocdnet_network"))


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _overload(target: Target, watch: Prometheus, report: Report) -> None:
    with load(target, pictures(), clients=48, pause_s=0.001):
        more = ("OcdserveOverloaded", "OcdserveQueue", "OcdserveSlow")
        fires(report, watch, "48 clients", *more, act=lambda: None)


def _shared_memory(served: Container, watch: Prometheus, report: Report) -> None:
    size = _SHM_MIB * 8 // 10
    fill = Once(lambda: served.exec("sh", "-c", f"head -c {size}M /dev/zero >/dev/shm/filler"))
    fires(report, watch, f"{size} of {_SHM_MIB} MiB of /dev/shm", "OcdserveSharedMemory", act=fill)

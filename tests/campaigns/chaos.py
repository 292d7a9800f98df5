# SPDX-License-Identifier: Apache-2.0
"""Kills and stops every process of a server, fills its disks, removes its files: it says so, and serves again.

A victim is killed or stopped under load. The server is not ready when its readiness, or that of a model, is not
answered with 200 within a second; it serves again when all are and each model gives the right answer. Disks are small
ones in a mount namespace of the campaign's own, which takes root.
"""

import argparse
import contextlib
import ctypes
import http.client
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from ocdserve.backend import Bundle, Detector
from ocdserve.backend.serve.process.processes import ProcessStat, Stub, find_stubs
from ocdserve.client import TextDetector
from ocdserve.contract import FUSED, MODELS
from ocdserve.perf.load.memory import process_tree
from tests.campaigns.clients import HEADERS, Ask, Load, Plan, Target, asker
from tests.campaigns.report import Report
from tests.campaigns.serving import Server, pictures, right_answers, serving, small_bundle

TRITON = "tritonserver"
VICTIMS = (*(name for name, contract in MODELS.items() if not contract.is_ensemble), TRITON)
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
_CLIENTS = (("http", "ocdnet"), ("grpc", "ocdnet"), ("http", FUSED), ("grpc", FUSED))
_READY = ("/v2/health/ready", *(f"/v2/models/{model}/ready" for _, model in _CLIENTS[::2]))
_SILENT_S = 1.0
_NOT_READY_S = 2.5
_AGAIN_S = {name: 12.0 if name == TRITON else 6.0 for name in VICTIMS}
_GONE_S = 6.0
# Requests that wait for a dead process get Triton's error one by one, one per second.
_SLOWEST_S = 20.0
# A victim that dies sooner after its start is taken for one that does not work.
_REST_S = 6.0
_LONGEST_S = 120.0
_PAUSE_S = 0.3
_CLONE_NEWNS = 0x20000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--times", type=int, metavar="N", help="of each kill and stop (default: 5, with --short 1)")


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the campaign."""
    times, count = args.times or (1 if args.short else 5), 300 if args.short else 2000
    with tempfile.TemporaryDirectory() as folder:
        bundle = small_bundle(Path(folder) / "small")
        directory = bundle.model_path.parent
        with serving(directory) as server:
            trial = Trial(server, bundle)
            _kill_and_stop(trial, report, times)
            for protocol in ("grpc",) if args.short else ("grpc", "http"):
                _detect_many(trial, report, protocol, count)
            _remove_files(trial, report)
            _kill_while_loading(trial, report)
            _kill_the_launcher(trial, report)
        with serving(directory) as server:
            _kill_for_ever(server, report)
        if _own_mounts():
            _full_disk(report, bundle)
            _full_shared_memory(report, bundle)
        else:
            report.rule("full disks: the campaign may mount its own", "it may not: run it as root", False)


class Unlimited:
    """Clients that set no limit of time and send images that take long to decode, as long as they get an end."""

    def __init__(self, target: Target) -> None:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        self._asks = [asker(replace(target, timeout_s=None), *client) for client in _CLIENTS]
        self._image = buffer.getvalue()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(ask,), daemon=True) for ask in self._asks]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send no more requests."""
        self._stopping.set()

    def running(self, timeout_s: float) -> int:
        """How many requests have no end after so many seconds."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return sum(thread.is_alive() for thread in self._threads)

    def _ask(self, ask: Ask) -> None:
        while not self._stopping.wait(_PAUSE_S):
            ask(self._image)


class Trial:
    """A server with what it must answer."""

    def __init__(self, server: Server, bundle: Bundle) -> None:
        self.server = server
        self.bundle = bundle
        self.pictures = pictures()
        self.right = right_answers(server.target, self.pictures, bundle, _CLIENTS)

    def load(self) -> Load:
        """All clients, until they are stopped."""
        return Load(Plan(self.server.target, self.pictures, self.right, _CLIENTS))

    def ready(self) -> bool:
        """Whether the server and its models say so, each within a second."""
        for path in _READY:
            connection = self.server.target.connection(_SILENT_S)
            try:
                connection.request("GET", path)
                if connection.getresponse().status != 200:
                    return False
            except (OSError, http.client.HTTPException):
                return False
            finally:
                connection.close()
        return True

    def serves(self) -> bool:
        """Whether it is ready and each model answers rightly."""
        return self.ready() and all(
            asker(self.server.target, protocol, model)(self.pictures[0])[1] in self.right[protocol, model, 0]
            for protocol, model in _CLIENTS[::2]
        )

    def triton(self) -> int | None:
        """Process id of tritonserver; None while there is none."""
        stats = [stat for pid in process_tree(self.server.pid) if (stat := ProcessStat.read(pid))]
        return next((stat.pid for stat in stats if stat.name == TRITON and stat.state != "Z"), None)

    def pid_of(self, victim: str) -> int:
        """Process id of a victim that lives; the newest of a model."""
        triton = self.triton()
        assert triton is not None
        return triton if victim == TRITON else next(s.pid for s in self.stubs()[::-1] if s.model == victim)

    def stubs(self) -> tuple[Stub, ...]:
        """The models' processes."""
        triton = self.triton()
        return find_stubs(triton) if triton is not None else ()

    def outage(self) -> tuple[float, float]:
        """Seconds from now until the server is not ready, and until it serves again."""
        began = time.monotonic()
        not_ready = _seconds_until(lambda: not self.ready(), began)
        return not_ready, _seconds_until(self.serves, began)


def _seconds_until(condition: Callable[[], bool], began: float) -> float:
    while not condition() and time.monotonic() - began < _LONGEST_S:
        time.sleep(0.02)
    return time.monotonic() - began


def _kill_and_stop(trial: Trial, report: Report, times: int) -> None:
    rows = []
    unlimited = Unlimited(trial.server.target)
    with trial.load() as load:
        for victim, number in itertools.product(VICTIMS, SIGNALS):
            outages = []
            for _ in range(times):
                os.kill(trial.pid_of(victim), number)
                outages.append(trial.outage())
                time.sleep(_REST_S)
            not_ready, again = zip(*outages, strict=True)
            rows.append((victim, number.name, median(not_ready), max(not_ready), median(again), max(again)))
            name, limit = f"{number.name} of {victim}", _AGAIN_S[victim]
            report.most(f"{name}, not ready, median of {times}", median(not_ready), _NOT_READY_S, " s")
            report.most(f"{name}, not ready, longest", max(not_ready), 2 * _NOT_READY_S, " s")
            report.most(f"{name}, serving again, median of {times}", median(again), limit, " s")
            report.most(f"{name}, serving again, longest", max(again), 2 * limit, " s")
        tally = load.stop()
    headers = ("victim", "signal", "not ready s", "max s", "again s", "max s")
    report.table(f"Outages, {times} of each", headers, rows, text_columns=2)
    report.table("Requests meanwhile, without retries", HEADERS, [tally.row()], text_columns=0)
    report.equal("wrong answers through kills and stops", tally.outcomes()["wrong"], 0)
    unlimited.stop()
    report.equal("requests without a limit of time that did not end within 60 s", unlimited.running(_LONGEST_S / 2), 0)
    report.most("slowest answer", max(answer.latency_s for answer in tally.answers), _SLOWEST_S, " s")
    ends = sum("Triton was ended by" in line for line in trial.server.lines())
    report.equal("ends of Triton that the campaign did not cause", ends - times, 0)


def _detect_many(trial: Trial, report: Report, protocol: str, count: int) -> None:
    """`detect_many` with default options through six kills and stops."""
    detector = Detector.load(trial.bundle.model_path.parent)
    expected = [detector.detect(picture).quads.tobytes() for picture in trial.pictures]
    victims = [(name, signal.SIGKILL) for name in VICTIMS if name != FUSED]
    victims += [("ocdnet_network", signal.SIGSTOP), (TRITON, signal.SIGSTOP)]
    address = trial.server.target.grpc if protocol == "grpc" else trial.server.target.http
    outcomes: Counter[str] = Counter()
    with TextDetector(f"{protocol}://{address}") as client:
        images = (trial.pictures[index % len(trial.pictures)] for index in range(count))
        for done, outcome in enumerate(client.detect_many(images)):
            if outcome.detections is None:
                outcomes[type(outcome.error).__name__] += 1
            else:
                is_right = outcome.detections.quads.tobytes() == expected[outcome.index % len(expected)]
                outcomes["right" if is_right else "wrong"] += 1
            if victims and done % (count // 7) == count // 7 - 1:
                # The one before may not be back.
                with contextlib.suppress(StopIteration, AssertionError):
                    os.kill(trial.pid_of(victims[0][0]), victims[0][1])
                    victims.pop(0)
    report.equal(f"{protocol}: kills and stops that were left out", len(victims), 0)
    report.equal(
        f"{protocol}: results of {count} images by detect_many through 6 of them", dict(outcomes), {"right": count}
    )
    _seconds_until(trial.serves, time.monotonic())
    time.sleep(_REST_S)


def _remove_files(trial: Trial, report: Report) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"ocdserve-*-{trial.server.pid}-*"):
        # Heartbeats are written meanwhile.
        shutil.rmtree(folder, ignore_errors=True)
    report.most("files removed, serving again", trial.outage()[1], _AGAIN_S[TRITON], " s")
    time.sleep(_REST_S)
    os.kill(trial.pid_of("ocdnet_network"), signal.SIGKILL)
    report.most("a stub killed after that, serving again", trial.outage()[1], _AGAIN_S["ocdnet_network"], " s")
    time.sleep(_REST_S)


def _kill_while_loading(trial: Trial, report: Report) -> None:
    """Kill a model's process five times, each as soon as it is seen."""
    killed: set[int] = set()
    began = last = time.monotonic()
    while len(killed) < 5 and time.monotonic() - began < _LONGEST_S:
        for stub in trial.stubs():
            if stub.model == "ocdnet_network" and stub.pid not in killed:
                os.kill(stub.pid, signal.SIGKILL)
                killed.add(stub.pid)
                last = time.monotonic()
        time.sleep(0.005)
    report.equal("kills while loading", len(killed), 5)
    report.say(f"five kills within {last - began:.1f} s")
    # The last kill may have met its victim in the milliseconds that make Triton wait for it.
    report.most("serving again after the last of them", _seconds_until(trial.serves, last), 2 * _AGAIN_S[TRITON], " s")
    time.sleep(_REST_S)


def _kill_the_launcher(trial: Trial, report: Report) -> None:
    server = trial.server
    pids, began = process_tree(server.pid), time.monotonic()
    server.process.kill()
    server.process.wait()
    mark = f"-{server.pid}-"

    def left() -> list[str]:
        names = [*os.listdir("/dev/shm"), *os.listdir(tempfile.gettempdir())]
        living = [stat for pid in pids if (stat := ProcessStat.read(pid)) and stat.alive]
        return [*(name for name in names if name.startswith("ocdserve-") and mark in name), *map(str, living)]

    report.most("launcher killed, nothing left", _seconds_until(lambda: not left(), began), _GONE_S, " s")


def _kill_for_ever(server: Server, report: Report) -> None:
    """Kill a model's process whenever it is seen, until the launcher gives up."""
    began = time.monotonic()
    while server.process.poll() is None and time.monotonic() - began < 3 * _LONGEST_S:
        tree = process_tree(server.pid)
        triton = next((pid for pid in tree if (stat := ProcessStat.read(pid)) and stat.name == TRITON), None)
        for stub in find_stubs(triton) if triton is not None else ():
            if stub.model == "ocdnet_network":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stub.pid, signal.SIGKILL)
        time.sleep(0.01)
    seconds = time.monotonic() - began
    report.equal("exit code of a server whose model is killed for ever", server.process.poll(), 3)
    said = [line for line in server.lines() if "giving up" in line]
    report.rule("it says why in a line", f"{said} after {seconds:.0f} s", len(said) == 1)


def _own_mounts() -> bool:
    """Give this process mounts of its own; False if it may not."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode == 0


@contextmanager
def _small_disk(folder: Path, mib: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path, left: int = 0) -> None:
    with contextlib.suppress(OSError), (folder / "fill").open("wb", buffering=0) as file:
        while (free := shutil.disk_usage(folder).free - left) > 0:
            file.write(bytes(min(free, 1 << 20)))


def _kills_on_a_full(report: Report, trial: Trial, what: str) -> None:
    report.rule(f"full {what}: right answers", "", trial.serves())
    for victim in ("ocdnet_network", TRITON):
        os.kill(trial.pid_of(victim), signal.SIGKILL)
        report.most(f"full {what}, {victim} killed, serving again", trial.outage()[1], 2 * _AGAIN_S[victim], " s")
        time.sleep(_REST_S)
    report.equal(f"full {what}: exit code after Ctrl-C", trial.server.stop(), 0)


def _full_disk(report: Report, bundle: Bundle) -> None:
    with tempfile.TemporaryDirectory() as name, _small_disk(Path(name), 64):
        folder, environment = Path(name), {"TMPDIR": name}
        log = ("--log-file", str(folder / "server.log"))
        with serving(bundle.model_path.parent, *log, environment=environment) as server:
            trial = Trial(server, bundle)
            _fill(folder)
            _kills_on_a_full(report, trial, "disk")
        (folder / "fill").unlink(missing_ok=True)
        _fill(folder, left=100_000)
        _refused(report, bundle, "disk", name, environment)


def _full_shared_memory(report: Report, bundle: Bundle) -> None:
    with _small_disk(Path("/dev/shm"), 64):
        with serving(bundle.model_path.parent) as server:
            trial = Trial(server, bundle)
            _fill(Path("/dev/shm"))
            _kills_on_a_full(report, trial, "shared memory")
        (Path("/dev/shm") / "fill").unlink(missing_ok=True)
        _fill(Path("/dev/shm"), left=5 << 20)
        _refused(report, bundle, "shared memory", "/dev/shm", {})


def _refused(report: Report, bundle: Bundle, what: str, folder: str, environment: dict[str, str]) -> None:
    """A start without room ends with a line that names the directory, the bytes and the remedy."""
    command = [sys.executable, "-m", "ocdserve.cli", "serve", "--bundle", str(bundle.model_path.parent)]
    ports = [argument for kind in ("http", "grpc", "metrics") for argument in (f"--{kind}-port", "0")]
    done = subprocess.run(
        [*command, *ports],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        timeout=_LONGEST_S,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if "manifest" not in line]
    said = len(lines) == 1 and all(part in lines[0] for part in (folder, "bytes free", "free some, or"))
    found = f"exit code {done.returncode}, {' / '.join(lines)}"
    report.rule(f"start on a full {what}: one line with folder, bytes and remedy", found, done.returncode == 1 and said)

# SPDX-License-Identifier: Apache-2.0
"""The server under test: `ocdserve serve` as a child process, what it is asked, and what its processes hold."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ocdserve.backend import Bundle, Detector
from ocdserve.perf.inputs.pictures import encoded
from ocdserve.perf.load.memory import ProcessMemory, process_tree, read
from ocdserve.perf.load.served import stop
from tests.campaigns.clients import EIGHT_CLIENTS, Target, asker

_WORDS = ("HARBOUR", "Station", "EXIT 24", "Fresh fish", "Library", "OPEN", "Platform 7", "Market")
_READY = re.compile(r"^ocdserve: ready: http://(\S+)\s+grpc://(\S+)", re.MULTILINE)
_START_S = 180.0
_STOP_S = 30.0
_SEGMENTS = Path("/dev/shm")


def small_bundle(folder: Path, side: int = 192) -> Bundle:
    """The default detector at a long side of so many pixels, saved to a folder."""
    default = Bundle.load()
    resize = replace(default.spec.resize, kind="long_side", side=side, largest_side=side, bucket=32, shrink=True)
    return Bundle(replace(default.spec, resize=resize), default.model_path).save(folder)


def pictures() -> tuple[bytes, ...]:
    """Image files with a word or two each; no two have the same answer."""
    font, found = ImageFont.load_default(56), []
    for index, word in enumerate(_WORDS):
        image = Image.new("RGB", (384, 256), (250, 248, 240))
        draw = ImageDraw.Draw(image)
        draw.text((20 + 5 * index, 20 + 9 * index), word, (30, 30, 40), font)
        if index % 2:
            draw.text((40, 180), _WORDS[index - 1], (120, 20, 30), font)
        found.append(encoded(image, "PNG" if index % 2 else "JPEG"))
    return tuple(found)


def right_answers(
    target: Target, images: Sequence[bytes], bundle: Bundle | None, clients: Sequence[tuple[str, str]] = EIGHT_CLIENTS
) -> dict[tuple[str, str, int], tuple[bytes, ...]]:
    """What the server must answer, for `Plan.right`: its answers without load, which agree with those of the
    bundle's detector (None: the default one) here.

    Raises:
        AssertionError: They do not agree, or two pictures have the same answer.
    """
    detector = Detector.load(None if bundle is None else bundle.model_path.parent)
    expected = [detector.detect(image) for image in images]
    assert len({one.quads.tobytes() for one in expected}) == len(images), "two pictures have the same answer"
    right: dict[tuple[str, str, int], tuple[bytes, ...]] = {}
    for protocol, model in dict.fromkeys(clients):
        ask = asker(target, protocol, model)
        for index, image in enumerate(images):
            outcome, body = ask(image)
            assert outcome in ("200", "OK"), f"{protocol} {model}: {outcome} {body[:300]!r}"
            found = expected[index].quads[: len(expected[index])].astype("<f4").tobytes()
            assert len(expected[index]) and found in body, f"{protocol} {model}: not the boxes of picture {index}"
            right[protocol, model, index] = (body,)
    return right


@dataclass(frozen=True)
class Held:
    """What the server's processes hold at one moment.

    Attributes:
        at_s: On the monotonic clock.
        processes: Their memory.
        descriptors: Number of open files by process id.
        segments: Number of its shared memory segments.
    """

    at_s: float
    processes: tuple[ProcessMemory, ...]
    descriptors: Mapping[int, int]
    segments: int

    @property
    def pss_mib(self) -> float:
        """Memory that the processes use together."""
        return sum(process.pss_mib for process in self.processes)


class Server:
    """A running `ocdserve serve`.

    Attributes:
        target: Triton's own addresses.
        pid: Process id of the launcher.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        """Of a process whose output goes to `log`; see `serving`."""
        self.process = process
        self.pid = process.pid
        self._log = log
        self.target = self._wait_ready()

    def lines(self) -> list[str]:
        """What the launcher has said so far."""
        return self._log.read_text(errors="replace").splitlines()

    def restarts(self) -> list[str]:
        """The launcher's lines about processes that died, hung or were started again."""
        said = re.compile(r"died|is ended|starting it again|serves again|giving up|is made again|stuck")
        return [line for line in self.lines() if said.search(line)]

    def held(self) -> Held:
        """What its processes hold now."""
        pids = process_tree(self.pid)
        descriptors = {}
        for pid in pids:
            try:
                descriptors[pid] = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:  # it has ended
                continue
        mark = f"-{self.pid}-"
        segments = sum(name.startswith("ocdserve-") and mark in name for name in os.listdir(_SEGMENTS))
        return Held(time.monotonic(), read(pids), descriptors, segments)

    def stop(self) -> int:
        """Stop it as Ctrl-C does; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _wait_ready(self) -> Target:
        deadline = time.monotonic() + _START_S
        while not (ready := _READY.search("\n".join(self.lines()))):
            assert self.process.poll() is None and time.monotonic() < deadline, "\n".join(self.lines()[-10:])
            time.sleep(0.05)
        return Target(ready[1], ready[2])


@contextmanager
def serving(bundle: Path | None, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Serve a bundle (None: the options name what to serve) on free ports, with more options of `ocdserve serve`."""
    ports = [argument for kind in ("http", "grpc", "metrics") for argument in (f"--{kind}-port", "0")]
    named = [] if bundle is None else ["--bundle", str(bundle)]
    command = [sys.executable, "-m", "ocdserve.cli", "serve", *named, *ports, *options]
    with tempfile.TemporaryDirectory(prefix="ocdserve-campaign-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        try:
            yield Server(process, log)
        finally:
            stop(process, _STOP_S)


class Sampler:
    """Samples what a server holds in a thread of its own, within a `with` block."""

    def __init__(self, server: Server, interval_s: float = 0.5) -> None:
        """The `with` block starts it."""
        self._server = server
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sampler", daemon=True)
        self.samples: list[Held] = []

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def peak_pss_mib(self) -> float:
        """The most memory that the processes used together."""
        return max(sample.pss_mib for sample in self.samples)

    def _watch(self) -> None:
        while True:
            self.samples.append(self._server.held())
            if self._stop.wait(self._interval_s):
                return


def slope_mib_per_minute(samples: Sequence[Held], pid: int) -> float:
    """Slope of a process' resident memory by least squares, in MiB per minute.

    Not of its PSS, which changes with the processes elsewhere that map the same libraries.
    """
    points = [(held.at_s / 60, one.rss_mib) for held in samples for one in held.processes if one.pid == pid]
    minutes, sizes = np.array(points).T
    return float(np.polyfit(minutes - minutes[0], sizes, 1)[0])

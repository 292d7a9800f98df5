# SPDX-License-Identifier: Apache-2.0
"""A server for the duration of a measurement: `ocdserve serve` as a child process, whose tree can be watched."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.publish.tuning import Tuning
from ocdserve.contract import UnavailableError

_READY = re.compile(r"^ocdserve: ready: (http://\S+)\s+(grpc://\S+)", re.MULTILINE)
_POLL_S = 0.05
# Longer than the server's own limit.
_START_S = 180.0
_STOP_S = 20.0


@dataclass(frozen=True)
class Served:
    """A server that is ready.

    Attributes:
        http_url: http://HOST:PORT.
        grpc_url: grpc://HOST:PORT.
        pid: Root of its process tree; None if unknown.
        token: File with the token of its shared memory; None: it asks for none, or none is known.
    """

    http_url: str
    grpc_url: str
    pid: int | None = None
    token: Path | None = None

    def url(self, protocol: str) -> str:
        """The URL of `grpc` or `http`."""
        return self.grpc_url if protocol == "grpc" else self.http_url


@contextmanager
def serving(repository: Path, start_s: float = _START_S, own_session: bool = True) -> Iterator[Served]:
    """Serve a model repository on free ports of this machine; only in the main thread, see `sigterm_interrupts`.

    Args:
        repository: Triton model repository.
        start_s: Seconds that the server may take to become ready.
        own_session: Start it in a session of its own, so that Ctrl-C does not reach it and it is shut down cleanly.
            Otherwise it ends with this process' group.

    Raises:
        UnavailableError: The server did not become ready; the message ends with its last lines of output.
    """
    ports = [argument for kind in ("http", "grpc", "metrics") for argument in (f"--{kind}-port", "0")]
    with (
        sigterm_interrupts(),
        tempfile.TemporaryFile() as log,
        tempfile.TemporaryDirectory(prefix="ocdserve-perf-") as folder,
    ):
        token = Path(folder) / "token"
        served = ["--repository", str(repository.absolute()), "--shared-memory", str(token)]
        process = subprocess.Popen(
            [sys.executable, "-m", "ocdserve.cli", "serve", *served, *ports],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=own_session,
        )
        try:
            http_url, grpc_url = _wait_ready(process, log.fileno(), start_s)
            yield Served(http_url, grpc_url, process.pid, token)
        finally:
            stop(process, _STOP_S)


def stop(process: "subprocess.Popen[bytes]", patience_s: float) -> None:
    """End a server by SIGTERM, or by SIGKILL when that takes longer."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def serving_detector(bundle: Path | None = None, tuning: Tuning | None = None) -> Iterator[Served]:
    """Publish a detector to a temporary repository and serve it; see `serving`.

    Args:
        bundle: Folder of the detector; None for the built-in one.
        tuning: How to serve it; None for the defaults.
    """
    with sigterm_interrupts(), tempfile.TemporaryDirectory(prefix="ocdserve-perf-") as folder:
        options = PublishOptions.tuned(Path(folder) / "repository", bundle, tuning or Tuning())
        with serving(publish(options)) as served:
            yield served


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that child processes and temporary folders are removed."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _wait_ready(process: "subprocess.Popen[bytes]", log: int, start_s: float) -> tuple[str, str]:
    deadline = time.monotonic() + start_s
    while True:
        ended = process.poll() is not None or time.monotonic() > deadline
        text = os.pread(log, 1 << 20, 0).decode(errors="replace")
        if ready := _READY.search(text):
            return ready[1], ready[2]
        if ended:
            lines = " ".join(text.strip().splitlines()[-5:])
            raise UnavailableError(f"the server did not become ready: {lines or 'it wrote nothing'}")
        time.sleep(_POLL_S)

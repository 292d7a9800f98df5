# SPDX-License-Identifier: Apache-2.0
"""A server for the length of a measurement: `ocdserve serve` in processes of its own, all of which can be watched."""

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

from ocdserve.contract import UnavailableError

__all__ = ["Served", "serving"]

_READY = re.compile(r"^ocdserve: ready: (http://\S+)\s+(grpc://\S+)", re.MULTILINE)
_POLL_S = 0.05
# The server itself gives up before.
_START_S = 180.0
_STOP_S = 20.0


@dataclass(frozen=True)
class Served:
    """A server that is ready.

    Attributes:
        http_url: Its HTTP protocol.
        grpc_url: Its gRPC protocol.
        pid: Its first process, whose children are all others; None where it is not known.
    """

    http_url: str
    grpc_url: str
    pid: int | None = None

    def url(self, protocol: str) -> str:
        """The URL of `grpc` or `http`."""
        return self.grpc_url if protocol == "grpc" else self.http_url


@contextmanager
def serving(repository: Path, start_s: float = _START_S, own_session: bool = True) -> Iterator[Served]:
    """Serve a model repository on free ports of this machine.

    Args:
        repository: The repository.
        start_s: Seconds that the server may take to become ready.
        own_session: Start it in a session of its own, so that Ctrl-C does not reach it and it is stopped in order.
            Otherwise it ends with this process' group.

    Raises:
        UnavailableError: The server did not become ready; the message has its last words.
    """
    ports = [argument for kind in ("http", "grpc", "metrics") for argument in (f"--{kind}-port", "0")]
    command = [sys.executable, "-m", "ocdserve.cli", "serve", "--repository", str(repository.absolute()), *ports]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=own_session,
        )
        try:
            http_url, grpc_url = _wait_ready(process, log.fileno(), start_s)
            yield Served(http_url, grpc_url, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(process: "subprocess.Popen[bytes]", log: int, start_s: float) -> tuple[str, str]:
    deadline = time.monotonic() + start_s
    while True:
        ended = process.poll() is not None or time.monotonic() > deadline
        text = os.pread(log, 1 << 20, 0).decode(errors="replace")
        if ready := _READY.search(text):
            return ready[1], ready[2]
        if ended:
            words = " ".join(text.strip().splitlines()[-5:])
            raise UnavailableError(f"the server did not become ready: {words or 'it said nothing'}")
        time.sleep(_POLL_S)

# SPDX-License-Identifier: Apache-2.0
"""Peers that run in environments of their own, because they exclude packages of ours: a process and a pipe for each."""

import json
import os
import select
import subprocess
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import UnavailableError
from ocdserve.perf.subjects import peer_worker
from ocdserve.perf.subjects.competitor import Detect
from ocdserve.perf.subjects.peer_worker import PEERS

# Variable with the folder that holds the environments, and its default, where scripts/install_peers.sh makes them.
_VARIABLE, _FOLDER = "OCDSERVE_PEERS", ".tools/peers"
# Linux's clock of the CPU time of a whole process, in the lowest bits of a clock's number.
_PROCESS_CLOCK = 2
# One that has not answered after so many seconds is killed.
_PATIENCE_S = 300.0

_running: "weakref.WeakSet[PeerProcess]" = weakref.WeakSet()


class ReadText(NamedTuple):
    """What was read in an image.

    Attributes:
        quads: float32 (N, 4, 2) in pixels of the source image.
        texts: What each reads; empty if they were only detected.
    """

    quads: NDArray[Any]
    texts: Sequence[str]


class PeerProcess:
    """A process that answers images as `peer_worker` does; it ends with this object, and with this process.

    Args:
        command: Starts it.

    Raises:
        UnavailableError: It cannot be started, or does not load.
    """

    def __init__(self, command: Sequence[str]) -> None:
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise UnavailableError(f"{command[0]} cannot be started: {error.strerror}") from error
        self._end = weakref.finalize(self, _end, self._process)
        _running.add(self)
        self._line()

    def __call__(self, encoded: bytes) -> ReadText:
        """What it finds in an encoded image.

        Raises:
            UnavailableError: It failed; it has ended then.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(len(encoded).to_bytes(8, "little") + encoded)
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure() from error
        line = self._line()
        return ReadText(np.array(line["quads"], np.float32).reshape(-1, 4, 2), line["texts"])

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU time that all its threads have taken."""
        return time.clock_gettime(~self._process.pid << 3 | _PROCESS_CLOCK)

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], (), (), _PATIENCE_S)[0]:
            self._process.kill()
        text = self._process.stdout.readline()
        if not text:
            raise self._failure()
        line: dict[str, Any] = json.loads(text)
        if "error" in line:
            raise self._failure(line["error"])
        return line

    def _failure(self, reason: str = "") -> UnavailableError:
        _running.discard(self)
        self._end()
        return UnavailableError(reason or f"its process ended with code {self._process.returncode}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """It ends when its input does; one that hangs is killed."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(OSError):  # it may have ended before it took what was written
        process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def cpu_s() -> float:
    """Seconds of CPU time of this process and of all peers' processes that run."""
    return time.process_time() + sum(peer.cpu_s for peer in _running)


def load_peer(name: str, threads: int) -> PeerProcess:
    """Start a peer of `PEERS`.

    Raises:
        UnavailableError: Its environment is not here, or it does not load.
    """
    package, _ = PEERS[name]
    python = Path(os.environ.get(_VARIABLE) or _FOLDER) / package / "bin" / "python"
    if not python.is_file():
        raise UnavailableError(
            f"{python} is not here; scripts/install_peers.sh installs it, and {_VARIABLE} names another folder"
        )
    network = Bundle.load().model_path
    # Isolated, or `import rapidocr` would find the module next to the script.
    return PeerProcess([str(python), "-I", peer_worker.__file__, name, str(threads), str(network)])


def load_peer_detector(name: str, threads: int) -> Detect:
    """The same for its quads alone."""
    peer = load_peer(name, threads)
    return lambda encoded: peer(encoded).quads

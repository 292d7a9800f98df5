# SPDX-License-Identifier: Apache-2.0
"""The launcher's side of the guard: one run of tritonserver."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ocdserve.backend.serve.process import guard
from ocdserve.contract import UnavailableError

# Time for the guard to kill the group and clean up, in addition to the server's own time to stop.
_GUARD_MARGIN_S = 3.0


@dataclass(frozen=True)
class GuardSpec:
    """What the guard starts, and what it removes afterwards.

    Attributes:
        command: The server's argument vector; the first item is an absolute path.
        environment: The server's whole environment.
        directory: Working directory of the server.
        log: File that the server's output is appended to.
        segment_prefix: Start of the names of the shared memory segments that are removed when the server ends.
        workspace: Directory that is removed when the launcher is gone too.
        stop_timeout_s: Time between the request to stop and SIGKILL, in seconds.
        stop_input: Request to stop: what the program reads from standard input when it is started again without
            arguments. Empty: SIGTERM.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    log: Path
    segment_prefix: str
    workspace: Path
    stop_timeout_s: float
    stop_input: str = ""

    def to_json(self) -> str:
        """One line of JSON, as the guard reads it."""
        return json.dumps(asdict(self), default=str)


class GuardedProcess:
    """A running server under its guard."""

    def __init__(self, spec: GuardSpec) -> None:
        """Start it.

        Raises:
            UnavailableError: The server could not be started at all.
        """
        self._spec = spec
        self._finished = False
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._guard.stdin and self._guard.stdout and self._guard.stderr
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(spec.to_json().encode() + b"\n")
            self._guard.stdin.flush()
        answer = self._guard.stdout.readline()
        if not answer:
            reason = self._guard.stderr.read().decode(errors="replace").strip().splitlines()
            self.close()
            self._guard.wait()
            raise UnavailableError(
                f"{spec.command[0]} could not be started: {reason[-1] if reason else 'no reason given'}"
            )
        self.pid = int(answer)

    def exit_status(self) -> int | None:
        """None while it runs; then the server's exit status, 128 + N when signal N ended it."""
        status = self._guard.poll()
        if status is not None:
            self._finish(status)
        return status

    def stop(self) -> None:
        """End the server: the request to stop, then SIGKILL for its whole group; returns when nothing of it is left."""
        self._guard.terminate()
        try:
            self._guard.wait(self._spec.stop_timeout_s + _GUARD_MARGIN_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self._finish(self._guard.returncode)
        self.close()

    def kill(self) -> None:
        """End the server and its stubs at once; the guard then cleans up. Safe to call from a signal handler."""
        if self._guard.poll() is None:
            guard.kill_group(self.pid)

    def close(self) -> None:
        """Close the pipes; the guard treats it as the launcher's death and stops what still runs."""
        for pipe in (self._guard.stdin, self._guard.stdout, self._guard.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _finish(self, status: int) -> None:
        """Do the guard's work, once, if the guard itself was killed."""
        if status < 0 and not self._finished:
            self._finished = True
            guard.kill_group(self.pid)
            guard.remove_segments(self._spec.segment_prefix)

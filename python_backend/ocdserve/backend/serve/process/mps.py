# SPDX-License-Identifier: Apache-2.0
"""CUDA's Multi-Process Service (MPS), with which the work of several processes overlaps on a GPU.

Without it, processes take turns on a GPU (time slices). A process uses MPS if a control daemon listens in
CUDA_MPS_PIPE_DIRECTORY when it initializes CUDA. Source: https://docs.nvidia.com/deploy/mps/latest, and the manual page
of the daemon.
"""

import errno
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from ocdserve.backend.serve.process.guarded import GuardedProcess, GuardSpec
from ocdserve.contract import UnavailableError

PROGRAM = "nvidia-cuda-mps-control"
PIPE_DIRECTORY, LOG_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_DEFAULT_PIPES = "/tmp/nvidia-mps"
_SOCKET, _LONGEST_NAME = "control", "control_privileged"
# Of an address of a UNIX socket, in bytes, without the final zero.
_LONGEST_ADDRESS = 107
_START_S, _POLL_S = 10.0, 0.05
# Its clients have ended by then, unless the launcher was killed: then Triton is being stopped at the same time.
_QUIT, _STOP_S = "quit -t 3\n", 5.0
_LOG_LINES = 3


class MpsDaemon:
    """A control daemon of this launcher's own, with pipes and logs in a folder of its own.

    A guard keeps it: it also ends if the launcher is killed.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], segment_prefix: str) -> None:
        """Find the program; nothing is started.

        Args:
            folder: Folder to make for pipes and logs.
            environment: Environment of the launcher.
            segment_prefix: See `GuardSpec`; a name that no other process has.

        Raises:
            UnavailableError: The program is not installed, or the folder's name is too long.
        """
        program = find_program(environment)
        self._pipes, self._logs = folder / "pipe", folder / "log"
        address = self._pipes / _LONGEST_NAME
        if len(str(address).encode()) > _LONGEST_ADDRESS:
            raise UnavailableError(
                f"--mps: {address} is longer than the {_LONGEST_ADDRESS} bytes that the name of a socket may have; set "
                "TMPDIR to a folder with a shorter name"
            )
        self.environment = {PIPE_DIRECTORY: str(self._pipes), LOG_DIRECTORY: str(self._logs)}
        # The daemon would number the GPUs anew, and its clients, which have the variable too, number those again.
        given = {name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"}
        self._spec = GuardSpec(
            command=[program, "-f"],
            environment={**given, **self.environment},
            directory=folder,
            log=folder / "output",
            segment_prefix=segment_prefix,
            workspace=folder,
            stop_timeout_s=_STOP_S,
            stop_input=_QUIT,
        )
        self._process: GuardedProcess | None = None

    def start(self) -> None:
        """Start it, anew if it runs: after a fatal fault a daemon refuses new clients until all others have ended.

        Raises:
            UnavailableError: It does not start; the message has the end of its log.
        """
        self.stop()
        for folder in (self._pipes, self._logs):
            folder.mkdir(mode=0o700, parents=True)
        self._process = GuardedProcess(self._spec)
        deadline = time.monotonic() + _START_S
        while not _listens(self._pipes):
            if self._process.exit_status() is not None or time.monotonic() > deadline:
                log = self._spec.log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]
                self.stop()
                raise UnavailableError("\n".join([f"--mps: {PROGRAM} does not start:", *(log or ["no output"])]))
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it, once its clients have ended, and remove its folder; again, it does nothing."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        shutil.rmtree(self._spec.workspace, ignore_errors=True)


def daemon_for(folder: Path, environment: Mapping[str, str], segment_prefix: str) -> MpsDaemon | None:
    """A daemon to start; None where the environment names one that runs, which is used as it is.

    Raises:
        UnavailableError: The environment names one that does not run, one that it does not name runs in the default
            place, or see `MpsDaemon`.
    """
    found = running_in(environment)
    named = environment.get(PIPE_DIRECTORY)
    if named and not found:
        raise UnavailableError(
            f"--mps: no MPS daemon listens in {named}, which {PIPE_DIRECTORY} names. Start it there with {PROGRAM} -d, "
            "or unset the variable, and this server starts one of its own"
        )
    if found and not named:
        raise UnavailableError(
            f"--mps: an MPS daemon that this server did not start listens in {found}. Set {PIPE_DIRECTORY}={found} to "
            f"use it, or stop it (echo quit | {PROGRAM}), and this server starts one of its own"
        )
    return None if found else MpsDaemon(folder, environment, segment_prefix)


def find_program(environment: Mapping[str, str]) -> str:
    """The daemon's program on PATH.

    Raises:
        UnavailableError: There is none.
    """
    found = shutil.which(PROGRAM, path=environment.get("PATH"))
    if found is None:
        raise UnavailableError(
            f"--mps: {PROGRAM} is not on PATH. It comes with NVIDIA's driver (Ubuntu: nvidia-compute-utils-580; in a "
            "container with the driver capability compute); install it, or leave --mps out"
        )
    return found


def running_in(environment: Mapping[str, str]) -> Path | None:
    """Where the daemon listens that processes with this environment would use; None if there is none."""
    pipes = Path(environment.get(PIPE_DIRECTORY) or _DEFAULT_PIPES)
    return pipes if _listens(pipes) else None


def sharing(environment: Mapping[str, str], own: MpsDaemon | None, processes: int) -> str:
    """How processes share a GPU, as a sentence; empty where one has it to itself.

    Args:
        environment: Environment of the launcher.
        own: The launcher's own daemon.
        processes: Most processes of one model on a GPU.
    """
    found = running_in(environment)
    if own is not None:
        return "the models' processes share each GPU by MPS, whose daemon this server has started"
    if found is not None:
        return f"the models' processes share each GPU by MPS, whose daemon was there before, in {found}"
    if processes > 1:
        return f"{processes} processes of a model take turns on each GPU (time slices); with --mps their work overlaps"
    return ""


def _listens(pipes: Path) -> bool:
    """Whether a daemon listens in a folder; the file of a dead one stays."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(pipes / _SOCKET))
        except OSError as error:
            # Busy, or not a stream: somebody listens all the same.
            return error.errno in (errno.EAGAIN, errno.EPROTOTYPE)
    return True

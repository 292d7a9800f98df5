# SPDX-License-Identifier: Apache-2.0
"""One Triton server process: start, readiness, state, stop."""

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ocdserve.backend.serve.generations import Generations
from ocdserve.backend.serve.options import ServeOptions
from ocdserve.backend.serve.preflight import check_room
from ocdserve.backend.serve.process.command import (
    Ports,
    Secrets,
    choose_ports,
    gpu_processes,
    gpus_used,
    server_command,
)
from ocdserve.backend.serve.process.guarded import GuardedProcess, GuardSpec
from ocdserve.backend.serve.process.health import DIRECTORY_VARIABLE
from ocdserve.backend.serve.process.metrics import LauncherCounters
from ocdserve.backend.serve.process.mps import MpsDaemon, daemon_for, running_in, sharing
from ocdserve.backend.serve.process.ownership import new_prefix, private_directory, remove_stale, write_secret
from ocdserve.backend.serve.process.processes import LoadWatch, ProcessStat, Stub, find_dead, find_stubs
from ocdserve.backend.serve.process.runtime_dir import Runtime, prepare_runtime
from ocdserve.backend.serve.repository_api import RepositoryApi
from ocdserve.backend.serve.server_log import ServerLog
from ocdserve.contract import UnavailableError

_READY_POLL_S = 0.05
# Triton needs up to a second beyond its own exit timeout.
_STOP_MARGIN_S = 1.0


class LoadStuckError(UnavailableError):
    """Loading failed by a fault of Triton's that another start need not meet.

    A Python process died so early that Triton waits forever for its first message; or Triton 2.51 aborted by an error
    of a lock in the memory that it shares with these processes (2 of about 20 starts on a busy machine).
    """


class TritonServer:
    """A Triton server as a context manager; leaving the block stops it and removes everything it used.

    Triton's repository, trace and logging APIs require a secret that only this object knows, and its shared-memory API
    another, which `ServeOptions.shared_memory` hands on. Triton takes them as arguments, so other users of the same
    machine can read them in /proc unless it is mounted with hidepid.
    """

    def __init__(
        self,
        options: ServeOptions,
        restore: Callable[[], object] | None = None,
        on_log: Callable[[str], object] = lambda line: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            options: What to serve and where.
            restore: Writes the model repository again, for one inside of the workspace, if somebody removed that.
            on_log: Called with each line of Triton's log, in a thread of its own.
        """
        self.options = options
        self._restore = restore
        self._on_log = on_log
        self.counters = LauncherCounters()
        self._secrets = Secrets()
        self.segment_prefix = new_prefix()
        self._workspace: Path | None = None
        self._lock: int | None = None
        self._token_file: Path | None = None
        self._runtime: Runtime | None = None
        self._process: GuardedProcess | None = None
        self._ports: Ports | None = None
        self._log: ServerLog | None = None
        self._served = False
        self._killed = False
        self.gpus = 0
        self._mps: MpsDaemon | None = None
        # How many times Triton was started.
        self.starts = 0
        self._generations: Generations | None = None
        self._stubs: dict[int, Stub] = {}

    def __enter__(self) -> "TritonServer":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def ports(self) -> Ports:
        """The ports in use; known once the server was started, and kept across restarts."""
        if self._ports is None:
            raise UnavailableError("TritonServer: it was not started yet, so it has no ports; call start()")
        return self._ports

    @property
    def http_url(self) -> str:
        """URL of the HTTP protocol for clients on this machine."""
        return f"http://{self._local_host}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """URL of the gRPC protocol for clients on this machine."""
        return f"grpc://{self._local_host}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics for clients on this machine."""
        return f"http://{self._local_host}:{self.ports.metrics}/metrics"

    @property
    def api(self) -> RepositoryApi:
        """Health and model control of this server."""
        return RepositoryApi(self._local_host, self.ports.http, self._secrets.launcher, self.options.ready_timeout_s)

    @property
    def log(self) -> ServerLog:
        """Triton's log."""
        if self._log is None:
            raise UnavailableError("TritonServer: it was not started yet, so it has no log; call start()")
        return self._log

    @property
    def pid(self) -> int | None:
        """Process id of tritonserver; None while none was started."""
        return self._process.pid if self._process else None

    @property
    def shares_faults(self) -> bool:
        """Whether a fatal fault of one process on a GPU is one of all: with MPS its clients get it, Triton included.

        New clients are refused then until all have ended.
        """
        return bool(self.gpus) and (self._mps is not None or running_in(os.environ) is not None)

    @property
    def gpu_sharing(self) -> str:
        """How its processes share a GPU, as a sentence; empty where there is none, or one process to a model."""
        return sharing(os.environ, self._mps, gpu_processes(self.options)) if self.gpus else ""

    @property
    def workspace(self) -> Path:
        """The server's private directory; known once it was started."""
        assert self._workspace
        return self._workspace

    @property
    def generations(self) -> Generations:
        """The models that are served; known once it was started."""
        assert self._generations
        return self._generations

    @property
    def health_directory(self) -> Path:
        """Where the models' processes write a note when they cannot serve any more."""
        return self.workspace / "health"

    def start(self) -> None:
        """Prepare the workspace, check the machine and start the process; returns before models are loaded.

        Raises:
            UnavailableError: Something that the server needs is missing, such as room on a disk, or a port is in use.
        """
        remove_stale()
        self.gpus = gpus_used(self.options)
        self._workspace = self.options.workspace or private_directory(self.segment_prefix)
        check_room(self.options.repository, self._workspace)
        if self.options.mps:
            if not self.gpus:
                raise UnavailableError(f"--mps: no model of {self.options.repository} uses a GPU; leave it out")
            self._mps = daemon_for(self._workspace / "mps", os.environ, f"{self.segment_prefix}mps-")
        self._prepare()
        self._ports = choose_ports(self.options)
        log_file = self.options.log_file
        path = log_file.absolute() if log_file else self._workspace / "server.log"
        self._log = ServerLog(path, self.options.log_bytes, self._on_log)
        self._log.start()
        if self.options.shared_memory:
            token_file = self.options.shared_memory.absolute()
            write_secret(token_file, self._secrets.shared_memory, "the token of the shared memory")
            self._token_file = token_file
        self.launch()

    def _prepare(self) -> None:
        assert self._workspace
        self.health_directory.mkdir(exist_ok=True)
        self._runtime = prepare_runtime(self.options, self._workspace)
        # The Python of another installation may need what the repository brings.
        keep_environment = self.options.tritonserver is not None
        self._generations = Generations(self._workspace / "models", self.options.repository, keep_environment)
        # systemd-tmpfiles leaves a directory alone that is locked, however old its files are.
        self._lock = os.open(self._workspace, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def lost(self) -> bool:
        """Whether somebody removed the files that this server needs, such as a cleaner of temporary directories."""
        return self._runtime is not None and not self._runtime.directory.is_dir()

    def _rebuild(self) -> None:
        assert self._workspace and self._lock is not None
        os.close(self._lock)
        shutil.rmtree(self._workspace, ignore_errors=True)
        self._workspace.mkdir(mode=0o700, parents=True)
        if self._restore:
            self._restore()
        self._prepare()

    def launch(self) -> None:
        """Start the process, for the first time or again; ports and workspace stay.

        Raises:
            UnavailableError: It cannot be started.
        """
        if self.lost():
            self._rebuild()
        assert self._runtime and self._workspace and self._ports and self._log
        if self._process is not None:
            # Usually it has ended; a process that hangs while loading would keep the ports.
            self._process.kill()
            self._process.stop()
        self._served = False
        self._stubs = {}
        # Those of processes that have ended: a new one may have the same id.
        for note in self.health_directory.glob("[!.]*-[1-9]*"):
            note.unlink(missing_ok=True)
        self._log.mark()
        if self._mps:
            self._mps.start()
        with self.generations.lock:
            self.starts += 1
            self.generations.settle()
        options = replace(self.options, repository=self.generations.served)
        self.counters.publish(self.health_directory)
        self._process = GuardedProcess(
            GuardSpec(
                command=server_command(
                    options, self._runtime, self._ports, self.segment_prefix, self._secrets, self.gpus
                ),
                environment={
                    **self._runtime.environment,
                    **(self._mps.environment if self._mps else {}),
                    DIRECTORY_VARIABLE: str(self.health_directory),
                },
                directory=self._runtime.directory,
                log=self._log.path,
                segment_prefix=self.segment_prefix,
                workspace=self._workspace,
                stop_timeout_s=self.options.exit_timeout_s + _STOP_MARGIN_S,
            )
        )
        if self._killed:
            self._process.kill()

    def wait_ready(
        self, progress: Callable[[str], None] | None = None, cancelled: Callable[[], bool] | None = None
    ) -> bool:
        """Wait until every model serves.

        Args:
            progress: Called with a short sentence when a model starts or finishes loading.
            cancelled: Polled; waiting ends when it returns True.

        Returns:
            True when the server is ready, False when the wait was cancelled.

        Raises:
            LoadStuckError: A Python process died in the few milliseconds in which Triton does not notice it, or Triton
                aborted.
            UnavailableError: The server ended, or took longer than `ready_timeout_s`; with the log's errors.
        """
        watch = LoadWatch()
        deadline = time.monotonic() + self.options.ready_timeout_s
        while not (cancelled and cancelled()):
            ready = self.ready()
            stubs = self.stubs()
            for message in self.log.progress() if progress else ():
                progress(message)  # type: ignore[misc]
            if ready:
                self._served = True
                # Messages from loading do not explain a later exit.
                self.log.mark()
                return True
            status = self.exit_status()
            if status is not None:
                # Without room its own log says little.
                check_room(self.options.repository, self.workspace)
                kind = LoadStuckError if status == 128 + signal.SIGABRT else UnavailableError
                raise kind(f"{describe_end(status)} while it loaded its models:\n{self.log.excerpt()}")
            seen = stubs + find_dead(self.pid or 0, self._stubs)
            loading = {stub.model: [other for other in seen if other.model == stub.model] for stub in seen}
            now = time.monotonic()
            # Triton ends with a reason if one refuses to load, once the others have loaded.
            if set(watch.stuck(loading, now)) - self.log.refused():
                raise LoadStuckError("Triton does not notice that a Python process died while it loaded its model")
            if now > deadline:
                raise UnavailableError(
                    f"Triton was not ready within {self.options.ready_timeout_s:g} s; a larger ready_timeout_s gives "
                    f"it longer:\n{self.log.excerpt()}"
                )
            time.sleep(_READY_POLL_S)
        return False

    def ready(self) -> bool:
        """Whether the server reports that it and all its models are ready."""
        return self.api.ready()

    def drain(self) -> None:
        """Report from now on that it is not ready, and serve on, until it is stopped or started again.

        Returns within `drain_s`, even if the server hangs.
        """
        api = RepositoryApi(self._local_host, self.ports.http, self._secrets.launcher, self.options.drain_s)
        with suppress(OSError, UnavailableError), self.generations.broken_model() as name:
            api.load(name)

    def exit_status(self) -> int | None:
        """None while the process runs; then its exit status, 128 + N when signal N ended it."""
        return self._process.exit_status() if self._process else None

    def alive(self) -> bool:
        """Whether the process itself runs; False a moment before `exit_status` knows how it ended."""
        stat = ProcessStat.read(self.pid) if self.pid is not None else None
        return stat is not None and stat.alive

    def stubs(self) -> tuple[Stub, ...]:
        """Look for Python stubs; returns all that this process has had so far, alive or dead."""
        known = self._stubs
        if self.pid is not None:
            # Called by several threads: the dictionary is replaced, never changed.
            known = self._stubs = {**known, **{stub.pid: stub for stub in find_stubs(self.pid)}}
        return tuple(known.values())

    def stop(self) -> None:
        """Stop the server within `exit_timeout_s` and 5 s, in any state; no process, segment or workspace remains."""
        if self._process is not None:
            # Before it is ready there are no requests to finish, and Triton ignores signals while it loads.
            if not self._served:
                self._process.kill()
            self._process.stop()
            self._process = None
        if self._mps is not None:
            self._mps.stop()
        if self._log is not None:
            self._log.stop()
        if self._token_file is not None:
            self._token_file.unlink(missing_ok=True)
            self._token_file = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._workspace is not None:
            shutil.rmtree(self._workspace, ignore_errors=True)
            self._workspace = None

    def kill(self) -> None:
        """End the process at once, without waiting for requests; `stop` still has to be called."""
        self._killed = True
        self.abort()

    def abort(self) -> None:
        """End the process at once, to be launched again."""
        if self._process is not None:
            self._process.kill()

    @property
    def _local_host(self) -> str:
        return "127.0.0.1" if self.options.host == "0.0.0.0" else self.options.host


def describe_end(status: int) -> str:
    """How the process ended, as the beginning of a sentence."""
    if status < 0:
        return f"Triton's guard was ended by signal {-status}"
    if status > 128:
        return f"Triton was ended by signal {status - 128}"
    return f"Triton ended with exit status {status}"

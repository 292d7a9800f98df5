# SPDX-License-Identifier: Apache-2.0
"""The front door's process: start, watch, renew, drain, stop."""

import http.client
import importlib.util
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ocdserve.backend.serve.log_lines import Incident
from ocdserve.backend.serve.process.command import bound
from ocdserve.backend.serve.process.guarded import GuardedProcess, GuardSpec
from ocdserve.backend.serve.process.health import HangWatch
from ocdserve.backend.serve.public.configuration import Places, bootstrap, listeners
from ocdserve.backend.serve.public.options import PublicOptions
from ocdserve.backend.serve.server import TritonServer
from ocdserve.contract import InvalidInputError, UnavailableError, install_command

_POLL_S = 0.1
_CHECK_S = 1.0
_ANSWER_S = 1.0
# Not answering for so long, in its administration, which does no other work, is a hang.
_HANG_S = 5.0
_START_S = 10.0
_PAUSE_S = 1.0
_STOP_S = 1.0
_MOST_WORKERS = 4
_LOG_LINES = 5


class FrontDoor:
    """The proxy before one server; leaving the block stops it."""

    def __init__(self, options: PublicOptions, server: TritonServer, report: Callable[[str], None]) -> None:
        """Find the proxy and a port; nothing is started.

        Raises:
            InvalidInputError: The server itself can be reached from other machines.
            UnavailableError: The proxy is not installed, or the port is in use.
        """
        if not ipaddress.IPv4Address(server.options.host).is_loopback:
            raise InvalidInputError(
                f"ServeOptions.host must be a loopback address behind a front door (got {server.options.host!r})"
            )
        self._binary = envoy_path()
        self._options, self._server, self._report = options, server, report
        with bound(options.host, options.port, "public port") as port:
            self.port = port
        self._process: GuardedProcess | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ocdserve-front-door", daemon=True)
        self._files: dict[Path, tuple[int, int]] = {}
        self._hangs = HangWatch()
        self._checked_at = self._answered_at = 0.0

    def __enter__(self) -> "FrontDoor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def urls(self) -> tuple[str, str]:
        """URLs of HTTP and gRPC."""
        secure = "s" if self._options.tls_cert else ""
        return f"http{secure}://{self._options.host}:{self.port}", f"grpc{secure}://{self._options.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the proxy; None while none was started."""
        return self._process.pid if self._process else None

    def open(self) -> None:
        """Start the proxy of a started server, wait until it serves, and watch it from then on.

        Raises:
            UnavailableError: It does not start.
        """
        self._start()
        self._thread.start()
        tokens = self._options.read_tokens()
        guests = "anybody" if tokens is None else f"the holders of {len(tokens)} tokens"
        self._report(f"open to {guests}: {'  '.join(self.urls)}")

    def drain(self) -> None:
        """Let no new connection in, and tell clients to end theirs; call it before the server is stopped."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_START_S)
        for path in ("/healthcheck/fail", "/drain_listeners"):
            self._administer("POST", path)

    def stop(self) -> None:
        """Stop the proxy; the server has answered by then."""
        self._stopping.set()
        if self._process is not None:
            self._process.stop()
            self._process = None

    @property
    def _places(self) -> Places:
        return Places(self._server.workspace / f"door-{self.port}", self.port, self._server.ports)

    def _start(self) -> None:
        """Start the process, for the first time or again."""
        if self._process is not None:
            self._process.kill()
            self._process.stop()
        places, log = self._places, self._places.folder / "log"
        places.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        places.admin.unlink(missing_ok=True)
        self._files = self._stamps()
        self._write_listeners()
        settings = places.folder / "bootstrap.json"
        _write_private(settings, bootstrap(self._options, places))
        workers = min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
        command = [str(self._binary), "-c", str(settings), "--concurrency", str(workers), "--disable-hot-restart"]
        self._process = GuardedProcess(
            GuardSpec(
                command=[*command, "--log-level", "warning", "--drain-time-s", "5"],
                environment={},
                directory=places.folder,
                log=log,
                segment_prefix=f"{self._server.segment_prefix}door-",
                workspace=self._server.workspace,
                stop_timeout_s=_STOP_S,
            )
        )
        deadline = time.monotonic() + _START_S
        while not self.ready():
            if self._process.exit_status() is not None or time.monotonic() > deadline:
                raise UnavailableError(f"the front door's proxy does not start:\n{_tail(log)}")
            time.sleep(_POLL_S)
        self._answered_at = time.monotonic()

    def ready(self) -> bool:
        """Whether the proxy answers and has read its configuration."""
        return self._administer("GET", "/ready") == 200

    def _watch(self) -> None:
        while not self._stopping.wait(_POLL_S):
            fault = self._fault()
            if fault is None:
                self._renew()
                continue
            self._report(Incident(f"the front door's proxy {fault}; it is started again"))
            try:
                self._start()
                self._report("the front door is open again")
            except UnavailableError as error:
                self._report(Incident(error))
                self._stopping.wait(_PAUSE_S)

    def _fault(self) -> str | None:
        assert self._process
        status = self._process.exit_status()
        if status is not None:
            return f"was ended by signal {status - 128}" if status > 128 else f"ended with exit status {status}"
        now = time.monotonic()
        for reason in self._hangs.hanging(self._server.health_directory, [self._process.pid], now).values():
            return f"hangs ({reason})"
        if now - self._checked_at > _CHECK_S:
            self._checked_at = now
            if self.ready():
                self._answered_at = time.monotonic()
        return f"has not answered for {_HANG_S:g} s" if now - self._answered_at > _HANG_S else None

    def _renew(self) -> None:
        """Read certificate, key and tokens again when one has changed."""
        stamps = self._stamps()
        if stamps == self._files:
            return
        changed = ", ".join(str(path) for path in stamps if stamps[path] != self._files.get(path)) or "a file"
        self._files = stamps
        try:
            self._write_listeners()
            self._report(f"the front door uses {changed} as of now")
        except InvalidInputError as error:
            self._report(Incident(f"the front door goes on as before: {error}"))

    def _stamps(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for path in (self._options.tls_cert, self._options.tls_key, self._options.tokens):
            if path is not None and path.exists():
                stat = path.stat()
                found[path] = (stat.st_mtime_ns, stat.st_ino)
        return found

    def _write_listeners(self) -> None:
        options = self._options
        _write_private(
            self._places.listeners, listeners(options, self._places, options.certificate(), options.read_tokens())
        )

    def _administer(self, method: str, path: str) -> int | None:
        """The status of a request to the proxy's administration; None without an answer."""
        connection = http.client.HTTPConnection("localhost", timeout=_ANSWER_S)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(_ANSWER_S)
            connection.sock.connect(str(self._places.admin))
            connection.request(method, path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def envoy_path() -> Path:
    """The proxy's binary.

    Raises:
        UnavailableError: It is not installed.
    """
    # Not imported: nothing but the place is needed.
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / "_bin" / "envoy"
        if binary.is_file():
            return binary
    raise UnavailableError(
        "--public needs the proxy Envoy, which is not installed in this Python; run "
        f"{install_command('ocdserve[public]')}"
    )


def _write_private(path: Path, content: Any) -> None:
    """Write JSON in one step, readable by this user only."""
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(draft, path)


def _tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    return "\n".join(lines[-_LOG_LINES:]) or "it has written nothing"

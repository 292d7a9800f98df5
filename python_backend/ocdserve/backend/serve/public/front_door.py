# SPDX-License-Identifier: Apache-2.0
"""The front door's processes: start, watch, renew, drain, stop."""

import http.client
import importlib.util
import ipaddress
import json
import math
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType

from ocdserve.backend.cores import core_count
from ocdserve.backend.serve.log_lines import Incident
from ocdserve.backend.serve.process.command import bound
from ocdserve.backend.serve.process.guarded import GuardedProcess, GuardSpec
from ocdserve.backend.serve.process.health import HangWatch
from ocdserve.backend.serve.public.configuration import Places, bootstrap, listeners
from ocdserve.backend.serve.public.envoy import Json
from ocdserve.backend.serve.public.options import PublicOptions
from ocdserve.backend.serve.server import TritonServer
from ocdserve.contract import InvalidInputError, UnavailableError, install_command

_PROXY, _UPLOADS = "proxy", "process for uploads"
_POLL_S = 0.1
_CHECK_S = 1.0
_ANSWER_S = 1.0
# Not answering for so long, in its administration, which does no other work, is a hang.
_HANG_S = 5.0
_START_S = 20.0
_PAUSE_S = 1.0
_STOP_S = 1.0
_MOST_WORKERS = 4
# Longer lines show the configuration, with private key and tokens.
_LOG_LINES, _LOG_LINE = 5, 500
# Files of a process besides those of its connections, of which each has another one to Triton.
_OTHER_FILES = 1024


class FrontDoor:
    """The proxy before one server, and the process for uploads behind it; leaving the block stops them."""

    def __init__(self, options: PublicOptions, server: TritonServer, report: Callable[[str], None]) -> None:
        """Find the proxy and ports; nothing is started.

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
        with bound(options.host, options.port, "public port") as port, bound("127.0.0.1", 0, "upload port") as upload:
            self.port, self._upload_port = port, upload
        _allow_files(2 * options.max_connections + _OTHER_FILES)
        self._start: dict[str, Callable[[], None]] = {_PROXY: self._start_proxy}
        if not options.no_uploads:
            self._start[_UPLOADS] = self._start_uploads
        self._processes: dict[str, GuardedProcess] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ocdserve-front-door", daemon=True)
        self._listeners: Json | None = None
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
    def pids(self) -> tuple[int, ...]:
        """Process ids of the proxy and, if there is one, of the process for uploads."""
        return tuple(process.pid for process in self._processes.values())

    def open(self) -> None:
        """Start the processes of a started server, wait until they serve, and watch them from then on.

        Raises:
            UnavailableError: They do not start.
        """
        for start in self._start.values():
            start()
        host = "127.0.0.1" if self._options.host == "0.0.0.0" else self._options.host
        for name, address in ((_PROXY, (host, self.port)), (_UPLOADS, ("127.0.0.1", self._upload_port))):
            if name in self._processes:
                self._wait(name, partial(_accepts, address))
        self._thread.start()
        tokens = self._options.read_tokens()
        guests = "anybody" if tokens is None else f"the holders of {len(tokens)} tokens"
        self._report(f"open to {guests}: {'  '.join(self.urls)}")

    def send_away(self) -> None:
        """Tell clients to end their connections; new ones are still let in."""
        self._administer("POST", "/healthcheck/fail")

    def drain(self) -> None:
        """Let no new connection in, and tell clients to end theirs; call it before the server is stopped."""
        self._stop_watching()
        self.send_away()
        self._administer("POST", "/drain_listeners")

    def stop(self) -> None:
        """Stop the processes; the server has answered by then."""
        self._stop_watching()
        for process in self._processes.values():
            _end(process)
        self._processes = {}

    def _stop_watching(self) -> None:
        """Until then the thread may start processes."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def ready(self) -> bool:
        """Whether the proxy answers and has read its configuration."""
        return self._administer("GET", "/ready") == 200

    @property
    def _places(self) -> Places:
        folder = self._server.workspace / f"door-{self.port}"
        return Places(folder, self.port, self._server.ports, self._upload_port)

    def _start_proxy(self) -> None:
        places = self._places
        # Not its parents: if the server's workspace was removed, the server makes it again.
        places.folder.mkdir(mode=0o700, exist_ok=True)
        self._write_listeners()
        settings = places.folder / "bootstrap.json"
        _write_private(settings, bootstrap(self._options, places))
        workers = min(core_count(), _MOST_WORKERS)
        command = [str(self._binary), "-c", str(settings), "--concurrency", str(workers), "--disable-hot-restart"]
        self._run(_PROXY, [*command, "--log-level", "warning", "--drain-time-s", "5"])
        self._wait(_PROXY, self.ready)
        self._answered_at = time.monotonic()

    def _start_uploads(self) -> None:
        """Start the process that turns plain uploads into requests; it decodes nothing."""
        command = [sys.executable, "-I", "-m", "ocdserve", "play", "--url", self._server.http_url, "--no-pdf"]
        most_mib = math.ceil(self._options.max_body_bytes / 2**20)
        self._run(_UPLOADS, [*command, "--port", str(self._upload_port), "--max-mb", str(most_mib)])

    def _run(self, name: str, command: list[str]) -> None:
        """Start a process, for the first time or again."""
        if name in self._processes:
            _end(self._processes[name])
        folder = self._places.folder
        self._processes[name] = GuardedProcess(
            GuardSpec(
                command=command,
                environment=dict(os.environ),
                directory=folder,
                log=folder / f"{name}.log",
                segment_prefix=f"{self._server.segment_prefix}door-",
                workspace=self._server.workspace,
                stop_timeout_s=_STOP_S,
            )
        )

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_S
        while not ready():
            if self._processes[name].exit_status() is not None or time.monotonic() > deadline:
                log = (self._places.folder / f"{name}.log").read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]
                shown = [line[:_LOG_LINE] for line in log]
                raise UnavailableError("\n".join([f"the front door's {name} does not start:", *shown]))
            if self._stopping.wait(_POLL_S):
                raise UnavailableError("the front door is being closed")

    def _watch(self) -> None:
        while not self._stopping.wait(_POLL_S):
            hanging = self._hangs.hanging(self._server.health_directory, self.pids, time.monotonic())
            try:
                for name, start in self._start.items():
                    fault = self._fault(name, hanging)
                    if fault is not None:
                        self._report(Incident(f"the front door's {name} {fault}; it is started again"))
                        start()
                        self._report(f"the front door's {name} was started again")
                        self._stopping.wait(_PAUSE_S)
                self._renew()
            except (InvalidInputError, OSError, UnavailableError) as error:
                if not self._stopping.wait(_PAUSE_S):
                    self._report(Incident(error))

    def _fault(self, name: str, hanging: dict[int, str]) -> str | None:
        process = self._processes[name]
        status = process.exit_status()
        if status is not None:
            return f"was ended by signal {status - 128}" if status > 128 else f"ended with exit status {status}"
        if process.pid in hanging:
            return f"hangs ({hanging[process.pid]})"
        if name != _PROXY:
            return None
        if not self._places.folder.is_dir() and self._server.workspace.is_dir():
            return "has lost its files"
        now = time.monotonic()
        if now - self._checked_at > _CHECK_S:
            self._checked_at = now
            # Also that it is not ready, which it says once it sends clients away.
            if self._administer("GET", "/ready") is not None:
                self._answered_at = time.monotonic()
        return f"has not answered for {_HANG_S:g} s" if now - self._answered_at > _HANG_S else None

    def _renew(self) -> None:
        """Read certificate, key and tokens again when one has changed."""
        before, known = self._listeners, self._files
        if self._stamps() == known:
            return
        self._write_listeners()
        if self._listeners != before:
            changed = [str(path) for path, stamp in self._files.items() if stamp != known.get(path)]
            self._report(f"the front door uses {', '.join(changed)} as of now")

    def _stamps(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for path in (self._options.tls_cert, self._options.tls_key, self._options.tokens):
            if path is not None and path.exists():
                stat = path.stat()
                found[path] = (stat.st_mtime_ns, stat.st_ino)
        return found

    def _write_listeners(self) -> None:
        """Write the file of the listener; as it was if certificate or tokens cannot be used any more."""
        places, options = self._places, self._options
        self._files = self._stamps()
        try:
            self._listeners = listeners(options, places, options.certificate(), options.read_tokens())
        except InvalidInputError as error:
            if self._listeners is None:
                raise
            self._report(Incident(f"the front door goes on as before: {error}"))
        _write_private(places.listeners, self._listeners)

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


def _allow_files(wanted: int) -> None:
    """Let this process and those that it starts open so many files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _write_private(path: Path, content: Json) -> None:
    """Write JSON in one step, readable by this user only."""
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(draft, path)


def _accepts(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, _ANSWER_S):
            return True
    except OSError:
        return False


def _end(process: GuardedProcess) -> None:
    # One that hangs would not stop.
    process.kill()
    process.stop()

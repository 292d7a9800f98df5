# SPDX-License-Identifier: Apache-2.0
"""Running a supervised server: in the foreground until a signal, or in a `with` block."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from ocdserve.backend.serve.control import Control
from ocdserve.backend.serve.log_lines import Failure
from ocdserve.backend.serve.options import ServeOptions
from ocdserve.backend.serve.public.front_door import FrontDoor
from ocdserve.backend.serve.public.options import PublicOptions
from ocdserve.backend.serve.reload import Reloader, Source
from ocdserve.backend.serve.server import TritonServer
from ocdserve.backend.serve.supervisor import CrashLoopError, Report, Supervisor
from ocdserve.contract import UnavailableError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Exit codes of `serve`: 1 is that something is missing or does not fit, which another start will not change.
FAILED = 1
CRASH_LOOP = 3
_POLL_S = 0.05
# `timeout` and some shells send one signal twice, to the process and to its group; that does not count as two.
_SAME_SIGNAL_S = 0.5
_logger = logging.getLogger(__name__)


def serve(
    options: ServeOptions,
    on_ready: Callable[[TritonServer], None] | None = None,
    report: Report = _logger.info,
    source: Source | None = None,
    public: PublicOptions | None = None,
    on_log: Callable[[str], object] = lambda line: None,
) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP; call it from the main thread.

    With a `source` and no controlling terminal, SIGHUP reloads instead.

    Args:
        options: What to serve and where.
        on_ready: Called once, when all models are ready.
        report: Called with each message on progress, reloads, restarts and failures, from several threads.
        source: Where the detector comes from, for reloads, and to write the repository again if somebody removed it;
            None: it cannot be replaced.
        public: The front door before the server; None: there is none.
        on_log: Called with each line of Triton's log, in a thread of its own.

    Returns:
        0 after a signal, which may come at any time and stops everything within `drain_s`, `exit_timeout_s` and 5 s (a
        second one at once);
        after the reason was reported, 1 if the server could not be started, and 3 if it, or one of its models, died or
        failed too many times in a row.
    """
    with _Signals(reloads=source is not None and not _has_terminal()) as signals:
        server = TritonServer(options, source.restore if source and source.publish else None, on_log)
        signals.on_second(server.kill)
        supervisor = Supervisor(server, report)
        control = Control(server, Reloader(server, supervisor, source, report), report) if source else None
        try:
            with FrontDoor(public, server, report) if public else nullcontext() as door, server:
                try:
                    if sharing := server.gpu_sharing:
                        report(sharing)
                    if supervisor.start(signals.received):
                        if door:
                            door.open()
                        if on_ready:
                            on_ready(server)
                    while supervisor.running and not signals.received():
                        if control:
                            control.poll()
                            if not control.busy and signals.take_hangup():
                                control.reload()
                        time.sleep(_POLL_S)
                    if supervisor.running and options.drain_s:
                        _drain(server, door, options.drain_s, report)
                finally:
                    supervisor.stop()
                    if door:
                        door.drain()
            if supervisor.failure is not None and not signals.received():
                raise supervisor.failure
        except UnavailableError as error:
            if not signals.received():
                report(Failure(error))
                return CRASH_LOOP if isinstance(error, CrashLoopError) else FAILED
    return 0


def _drain(server: TritonServer, door: FrontDoor | None, seconds: int, report: Report) -> None:
    """Serve on while the server reports that it is not ready; until it ends, if that is earlier."""
    report(f"draining: for {seconds} s requests are served, and the server is not ready")
    starts, deadline = server.starts, time.monotonic() + seconds
    server.drain()
    if door:
        door.send_away()
    while time.monotonic() < deadline and server.starts == starts and server.alive():
        time.sleep(_POLL_S)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, which sends SIGHUP when it is closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextmanager
def running_server(
    options: ServeOptions,
    report: Report = _logger.info,
    on_log: Callable[[str], object] = lambda line: None,
) -> Iterator[TritonServer]:
    """A ready and supervised server for the duration of the block; see `serve`.

    Raises:
        UnavailableError: It could not be started, or the models did not load.
    """
    with TritonServer(options, on_log=on_log) as server:
        supervisor = Supervisor(server, report)
        try:
            supervisor.start()
            yield server
        finally:
            supervisor.stop()


class _Signals:
    """Notices stop signals. A handler may run anywhere in the main thread, so it takes no lock."""

    def __init__(self, reloads: bool) -> None:
        """`reloads`: whether SIGHUP is not one of them."""
        self._stopping = [each for each in STOP_SIGNALS if each is not signal.SIGHUP or not reloads]
        self._hung_up = False
        self._first_at: float | None = None
        self._second: Callable[[], None] = lambda: None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "_Signals":
        for number in STOP_SIGNALS:
            # `nohup` ignores SIGHUP; keep it so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def received(self) -> bool:
        return self._first_at is not None

    def take_hangup(self) -> bool:
        """Whether SIGHUP came since the last call, if it does not stop the server."""
        taken, self._hung_up = self._hung_up, False
        return taken

    def on_second(self, action: Callable[[], None]) -> None:
        self._second = action

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number not in self._stopping:
            self._hung_up = True
        elif self._first_at is None:
            self._first_at = now
        elif now - self._first_at > _SAME_SIGNAL_S:
            self._second()

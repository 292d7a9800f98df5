# SPDX-License-Identifier: Apache-2.0
"""Keeps a server serving: reloads the model of a dead or failed Python stub, restarts a dead server.

Triton 2.51 never restarts a stub, and still reports that it is ready. Unloading the model turns readiness off
at once, even while requests wait for the dead stub; loading it brings back the ensembles that need it.
"""

import contextlib
import itertools
import logging
import math
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from ocdserve.backend.serve.process.guard import SHARED_MEMORY
from ocdserve.backend.serve.process.health import HangWatch, take_failures
from ocdserve.backend.serve.process.processes import Stub
from ocdserve.backend.serve.server import STUCK_S, LoadStuckError, TritonServer, describe_end
from ocdserve.contract import UnavailableError

POLL_S = 0.1
# A server that ends within this time after it became ready, or earlier, counts as a quick death.
QUICK_DEATH_S = 5.0
MOST_QUICK_DEATHS = 5
# Number of reloads without a pause of a model that dies soon after it was loaded.
MOST_QUICK_CRASHES = 5
LONGEST_PAUSE_S = 30.0
# How long the living siblings of a dead stub may finish their requests.
_RETIREMENT_S = 10.0
_JOIN_S = 1.0

# Triton starts a stub at once and notices its death within 2 s; the rest is a margin for a busy machine.
NO_LIFE_S = 4.0
_logger = logging.getLogger(__name__)

Report = Callable[[str], None]


class Supervisor:
    """Watches one server in its own thread, between `start` and `stop`."""

    def __init__(self, server: TritonServer, report: Report) -> None:
        """Watch `server`; `report` is called with one sentence at a time, from several threads."""
        self.failure: UnavailableError | None = None
        self._server = server
        self._report = report
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ocdserve-supervisor", daemon=True)
        self._lock = threading.Lock()
        self._watched: dict[str, set[Stub]] = {}
        self._recovering: set[str] = set()
        self._loading: dict[str, frozenset[Stub]] = {}
        self._life_at = time.monotonic()
        self._dead_since: dict[Stub, float] = {}
        self._served_at: dict[str, float] = {}
        self._crashes: dict[str, int] = {}
        self._quick_deaths = 0
        self._ready_at = time.monotonic()
        self._hangs = HangWatch()

    @property
    def running(self) -> bool:
        """Whether it is watching; False after it gave up, with the reason in `failure`."""
        return self._thread.is_alive()

    def start(self, cancelled: Callable[[], bool] | None = None) -> bool:
        """Wait until the started server is ready, then watch it; False if the wait was cancelled.

        Raises:
            UnavailableError: The models do not load, or not in time.
        """
        if not self._first_load(cancelled):
            return False
        self._ready_at = time.monotonic()
        self._watch_all()
        self._thread.start()
        return True

    def stop(self) -> None:
        """Stop watching; call it before the server is stopped."""
        self._stopping.set()
        if self._thread.is_alive():
            # A restart in progress notices within one poll.
            self._thread.join(_JOIN_S)

    def _first_load(self, cancelled: Callable[[], bool] | None) -> bool:
        try:
            return self._server.wait_ready(self._report, cancelled)
        except UnavailableError as error:
            if not isinstance(error, LoadStuckError) and not self._server.log.mentions_dead_stub():
                raise
        self._report("a Python process died while its model loaded; starting again")
        self._server.launch()
        return self._server.wait_ready(self._report, cancelled)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(POLL_S):
                status = self._server.exit_status()
                if status is not None:
                    self._restart(status)
                # The guard kills the stubs of a server that died shortly before we notice its exit.
                elif self._server.alive():
                    self._end_if_lost()
                    self._end_hanging()
                    self._end_failed_stubs()
                    self._recover_dead_models()
                    self._end_if_stuck()
        except UnavailableError as error:
            self.failure = error

    def _watch_all(self) -> None:
        by_model: dict[str, set[Stub]] = defaultdict(set)
        for stub in self._server.stubs():
            by_model[stub.model].add(stub)
        with self._lock:
            self._watched = dict(by_model)
            self._recovering = set()
            self._loading = {}

    def _end_failed_stubs(self) -> None:
        """Kill the stubs that reported that they cannot serve any more; their models are then reloaded."""
        failures = take_failures(self._server.health_directory)
        if not failures:
            return
        # Their clients have been answered: a model reports a failure after its answers.
        for stub in self._server.stubs():
            if stub.pid in failures and stub.alive():
                self._report(f"{stub.model}: {failures[stub.pid]}; its process {stub.pid} is ended")
                _kill(stub)

    def _end_if_lost(self) -> None:
        """End a server whose files are gone: it cannot load a model again. It is restarted with new ones."""
        if self._server.lost():
            self._server.abort()
            self._report(f"{self._server.workspace} was removed; it is made again")

    def _end_hanging(self) -> None:
        """Kill what hangs: a stub, whose model is then reloaded, or the server, which is then restarted."""
        server = self._server.pid
        # Only known stubs: looking for new ones reads all of /proc.
        with self._lock:
            stubs = {stub.pid: stub for watched in self._watched.values() for stub in watched}
        watched = [*stubs, *([server] if server else [])]
        for pid, reason in self._hangs.hanging(self._server.health_directory, watched, time.monotonic()).items():
            self._report(f"{stubs[pid].model if pid in stubs else 'Triton'}: {reason}; its process {pid} is ended")
            if pid == server:
                self._server.abort()
            else:
                _kill(stubs[pid])

    def _recover_dead_models(self) -> None:
        with self._lock:
            for model, stubs in self._watched.items():
                if model in self._recovering or all(stub.alive() for stub in stubs):
                    continue
                self._recovering.add(model)
                arguments = (self._server.pid, model, frozenset(stubs))
                threading.Thread(target=self._recover, args=arguments, name=f"reload-{model}", daemon=True).start()

    def _recover(self, server_pid: int, model: str, old: frozenset[Stub]) -> None:
        started = time.monotonic()
        dead = ", ".join(str(stub.pid) for stub in sorted(old, key=lambda stub: stub.pid) if not stub.alive())
        self._report(f"{model}: Python process {dead} died; the model is unloaded and loaded again")
        self._unload(model)
        # A model that keeps dying soon after it was loaded must not be loaded in a busy loop.
        crashes = self._count_crash(model)
        for failures in itertools.count(max(0, crashes - MOST_QUICK_CRASHES)):
            if self._stopping.wait(_pause_s(failures)) or not self._is_current(server_pid):
                return
            try:
                self._load(model, old)
            except UnavailableError as error:
                if self._is_current(server_pid):
                    self._report(f"{error}; next attempt in {_pause_s(failures + 1):g} s")
                continue
            fresh = {stub for stub in self._server.stubs() if stub.model == model and stub not in old and stub.alive()}
            if len(fresh) >= len(old):
                break
            self._unload(model)
        with self._lock:
            if not self._is_current(server_pid):
                return
            self._watched[model] = fresh
            self._recovering.discard(model)
            self._served_at[model] = time.monotonic()
        self._report(f"{model} serves again after {time.monotonic() - started:.1f} s")
        self._retire(old)

    def _load(self, model: str, old: frozenset[Stub]) -> None:
        with self._lock:
            self._loading[model] = old
        try:
            self._server.api.load(model)
        finally:
            with self._lock:
                self._loading.pop(model, None)

    def _end_if_stuck(self) -> None:
        """Kill a server that waits forever for a stub which died in its first milliseconds; it is then restarted."""
        with self._lock:
            loading = dict(self._loading)
        if not loading:
            # Looking for new stubs reads all of /proc, which is too much for an idle server.
            self._life_at, self._dead_since = time.monotonic(), {}
            return
        fresh = [stub for stub in self._server.stubs() if stub.model in loading and stub not in loading[stub.model]]
        now = time.monotonic()
        if any(stub.alive() for stub in fresh):
            self._life_at = now
        self._dead_since = {stub: self._dead_since.get(stub, now) for stub in fresh if not stub.alive()}
        longest_s = max((now - since for since in self._dead_since.values()), default=0.0)
        if now - self._life_at > NO_LIFE_S or longest_s > STUCK_S:
            self._report(f"Triton is stuck in loading {', '.join(sorted(loading))}, whose Python process died")
            self._server.abort()

    def _unload(self, model: str) -> None:
        try:
            self._server.api.unload(model)
        except UnavailableError as error:
            # A server that does not answer will be replaced itself; if it refuses, loading fails.
            _logger.debug("%s", error)

    def _count_crash(self, model: str) -> int:
        with self._lock:
            quick = time.monotonic() - self._served_at.get(model, -math.inf) < QUICK_DEATH_S
            self._crashes[model] = self._crashes.get(model, 0) + 1 if quick else 0
            return self._crashes[model]

    def _is_current(self, server_pid: int) -> bool:
        return not self._stopping.is_set() and self._server.pid == server_pid and self._server.alive()

    def _retire(self, old: Iterable[Stub]) -> None:
        """Kill the remaining stubs of an unloaded model, one of which died: Triton may never release them."""
        deadline = time.monotonic() + _RETIREMENT_S
        while any(stub.alive() for stub in old) and time.monotonic() < deadline:
            if self._stopping.wait(POLL_S):
                return
        for stub in old:
            _kill(stub)
            (SHARED_MEMORY / stub.segment).unlink(missing_ok=True)

    def _restart(self, status: int) -> None:
        lived_s = time.monotonic() - self._ready_at
        self._quick_deaths = self._quick_deaths + 1 if lived_s < QUICK_DEATH_S else 0
        reason = "\n".join(filter(None, [describe_end(status), self._server.log.excerpt()]))
        while not self._stopping.is_set():
            if self._quick_deaths >= MOST_QUICK_DEATHS:
                raise UnavailableError(f"giving up after {self._quick_deaths} starts that ended at once. {reason}")
            pause_s = _pause_s(self._quick_deaths)
            self._report(f"{reason}\nstarting it again{f' in {pause_s:g} s' if pause_s else ''}")
            if self._stopping.wait(pause_s):
                return
            try:
                self._server.launch()
                if not self._server.wait_ready(self._report, self._stopping.is_set):
                    return
            except UnavailableError as error:
                self._quick_deaths += 1
                reason = str(error)
                continue
            self._ready_at = time.monotonic()
            self._watch_all()
            self._report("Triton serves again")
            return


def _kill(stub: Stub) -> None:
    """Kill a stub, unless it is dead already: its process id may be another's by now."""
    if stub.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(stub.pid, signal.SIGKILL)


def _pause_s(failures: int) -> float:
    """Seconds to wait after a number of consecutive failures: 0, 0, 1, 2, 4 ... 30."""
    return 0.0 if failures < 2 else min(2.0 ** (failures - 2), LONGEST_PAUSE_S)

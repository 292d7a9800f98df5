# SPDX-License-Identifier: Apache-2.0
"""Keeps a server serving: reloads the model of a dead, hung or failed Python stub, restarts such a server.

Triton 2.51 never restarts a stub, and still reports that it is ready. Unloading the model turns readiness off
at once, even while requests wait for the dead stub; loading it brings back the ensembles that need it. What was loaded
has to answer a canary, and so does what has been idle.
"""

import contextlib
import itertools
import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator

from ocdserve.backend.serve.canary import CanaryError, canary_models
from ocdserve.backend.serve.log_lines import Incident
from ocdserve.backend.serve.lost_requests import why_restart
from ocdserve.backend.serve.process.health import HangWatch, take_failures
from ocdserve.backend.serve.process.metrics import RESTARTS
from ocdserve.backend.serve.process.processes import LoadWatch, Stub, kill, retire
from ocdserve.backend.serve.server import LoadStuckError, TritonServer, describe_end
from ocdserve.backend.serve.watchdog import Watchdog, all_answer, problem_after_load, processes_of
from ocdserve.contract import NEXT, OcdserveError, UnavailableError

POLL_S = 0.1
# A server that ends within this time after it became ready, or earlier, counts as a quick death.
QUICK_DEATH_S = 5.0
MOST_QUICK_DEATHS = 5
# Number of reloads without a pause of a model that dies soon after it was loaded.
MOST_QUICK_CRASHES = 5
# Number of attempts to load a model, within about a minute, without one that answers its canary.
MOST_FAILED_LOADS = 8
LONGEST_PAUSE_S = 30.0
# How long the living siblings of a dead stub may finish their requests.
_RETIREMENT_S = 10.0
_JOIN_S = 1.0
_logger = logging.getLogger(__name__)

Report = Callable[[str], None]


class CrashLoopError(UnavailableError):
    """The server, or one of its models, died or failed too many times in a row."""


class Supervisor:
    """Watches one server in its own thread, between `start` and `stop`."""

    def __init__(self, server: TritonServer, report: Report) -> None:
        """Watch `server`; `report` is called with one sentence at a time, from several threads."""
        # A CrashLoopError, unless something is missing on the machine.
        self.failure: UnavailableError | None = None
        self._server = server
        self._report = report
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ocdserve-supervisor", daemon=True)
        self._lock = threading.Lock()
        self._watched: dict[str, set[Stub]] = {}
        self._recovering: set[str] = set()
        self._on_death: Callable[[], None] | None = None
        self._loading: dict[str, frozenset[Stub]] = {}
        self._load_watch = LoadWatch()
        # Why we have ended a process, as `RESTARTS` has it; all others died by themselves.
        self._ended: dict[int, str] = {}
        self._crash_loop: CrashLoopError | None = None
        self._served_at: dict[str, float] = {}
        self._crashes: dict[str, int] = {}
        self._quick_deaths = 0
        self._ready_at = time.monotonic()
        self._hangs = HangWatch()
        self._watchdog = Watchdog(server, self._processes, self._end_wrong)

    @property
    def running(self) -> bool:
        """Whether it is watching; False after it gave up, with the reason in `failure`."""
        return self._thread.is_alive()

    def start(self, cancelled: Callable[[], bool] | None = None) -> bool:
        """Wait until the started server is ready, then watch it; False if the wait was cancelled.

        Raises:
            UnavailableError: The models do not load, or not in time, or do not answer a canary.
        """
        if not self._first_load(cancelled) or not all_answer(self._server, cancelled):
            return False
        self._ready_at = time.monotonic()
        self._watch_all()
        self._thread.start()
        self._watchdog.start(self.stopping)
        return True

    def stop(self) -> None:
        """Stop watching; call it before the server is stopped."""
        self.stopping.set()
        if self._thread.is_alive():
            # A restart in progress notices within one poll.
            self._thread.join(_JOIN_S)

    def _warn(self, message: str) -> None:
        self._report(Incident(message))

    @contextlib.contextmanager
    def changing(self, on_death: Callable[[], None]) -> Iterator[None]:
        """For a block that changes what is served: when a process dies, `on_death` is called and no model reloaded."""
        with self._lock:
            if self._recovering or time.monotonic() < self._ready_at or not self._server.alive():
                raise UnavailableError("a process of the server died and is being replaced; try again later")
            self._on_death = on_death
        try:
            yield
        finally:
            with self._lock:
                self._on_death = None

    def watch(self, server_pid: int | None, models: Iterable[str], stubs: Collection[Stub]) -> None:
        """Watch these stubs for the models, under either name, in place of others; not of a server started since."""
        by_model = {name: {stub for stub in stubs if stub.model.removesuffix(NEXT) == name} for name in models}
        with self._lock:
            if self._server.pid == server_pid:
                self._watched.update(by_model)

    def load(self, model: str, old: frozenset[Stub]) -> None:
        """Load a model that has had the stubs `old`, and notice when Triton is stuck; raises UnavailableError."""
        with self._lock:
            self._loading[model] = old
        try:
            self._server.api.load(model)
        finally:
            with self._lock:
                self._loading.pop(model, None)

    def _first_load(self, cancelled: Callable[[], bool] | None) -> bool:
        try:
            return self._server.wait_ready(self._report, cancelled)
        except UnavailableError as error:
            if not isinstance(error, LoadStuckError) and not self._server.log.mentions_dead_stub():
                raise
        self._warn("Triton or a Python process died while the models loaded; starting again")
        self._server.counters.count(RESTARTS, "load_stuck")
        self._server.launch()
        return self._server.wait_ready(self._report, cancelled)

    def _run(self) -> None:
        try:
            while not self.stopping.wait(POLL_S):
                if self._crash_loop is not None:
                    raise self._crash_loop
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
        except Exception as error:
            # Without a supervisor the launcher must end too.
            _logger.exception("the supervisor failed")
            self.failure = UnavailableError(f"the supervisor failed with {type(error).__name__}: {error}")

    def _watch_all(self) -> None:
        by_model: dict[str, set[Stub]] = defaultdict(set)
        for stub in self._server.stubs():
            by_model[stub.model].add(stub)
        self._watchdog.unanswered = 0
        with self._lock:
            self._ended.clear()
            self._watched = dict(by_model)
            self._recovering = set()
            self._loading = {}

    def _end_failed_stubs(self) -> None:
        """Kill the stubs that reported that they cannot serve any more; their models are then reloaded."""
        failures = take_failures(self._server.health_directory)
        # Their clients have been answered: a model reports a failure after its answers.
        for stub in self._server.stubs() if failures else ():
            if stub.pid in failures and stub.alive():
                if self._server.shares_faults:
                    self._warn(f"{stub.model}: {failures[stub.pid]}; Triton is ended, whose processes share the fault")
                    return self._end_server("process_failed")
                self._warn(f"{stub.model}: {failures[stub.pid]}; its process {stub.pid} is ended")
                self._end(stub, "process_failed")

    def _end_if_lost(self) -> None:
        """End a server whose files are gone: it cannot load a model again. It is restarted with new ones."""
        if self._server.lost():
            self._warn(f"{self._server.workspace} was removed; it is made again")
            self._end_server("server_lost")

    def _end_hanging(self) -> None:
        """Kill what hangs: a stub, whose model is then reloaded, or the server, which is then restarted."""
        server = self._server.pid
        # Only known stubs: looking for new ones reads all of /proc.
        with self._lock:
            stubs = {stub.pid: stub for watched in self._watched.values() for stub in watched}
        watched = [*stubs, *([server] if server else [])]
        found = self._hangs.hanging(self._server.health_directory, watched, time.monotonic())
        if server and self._watchdog.hangs():
            found.setdefault(server, "it does not answer any more")
        for pid, reason in found.items():
            self._warn(f"{stubs[pid].model if pid in stubs else 'Triton'}: {reason}; its process {pid} is ended")
            if pid == server:
                self._end_server("server_hung")
            else:
                self._end(stubs[pid], "process_hung")

    def _end_wrong(self, model: str, error: CanaryError) -> None:
        """End the processes that serve a model, one of which answers wrongly or not at all."""
        self._warn(f"{error}; the processes of {model} are ended")
        for stub in self._processes(model) or ():
            self._end(stub, "canary_failed")

    def _end(self, stub: Stub, reason: str) -> None:
        self._ended[stub.pid] = reason
        kill(stub)

    def _end_server(self, reason: str) -> None:
        if self._server.pid is not None:
            self._ended[self._server.pid] = reason
        self._server.abort()

    def _processes(self, model: str, but: str | None = None) -> frozenset[Stub] | None:
        """The stubs that serve one of the canaries' models, `but` those of a step; None if one is to be replaced."""
        with self._lock:
            names = processes_of(model) - {but}
            stubs = frozenset(stub for name in names for stub in self._watched.get(name, ()))
            steady = not names & self._recovering and all(stub.alive() for stub in stubs)
        return stubs if steady else None

    def _recover_dead_models(self) -> None:
        with self._lock:
            dead = {
                model: frozenset(stubs)
                for model, stubs in self._watched.items()
                if model not in self._recovering and not all(stub.alive() for stub in stubs)
            }
        if not self._server.alive() or self._server.pid in self._ended:
            return  # its processes die with it
        reason = why_restart(self._server, dead.values())
        if reason:
            self._warn(reason)
            causes = [self._ended[s.pid] for stubs in dead.values() for s in stubs if s.pid in self._ended]
            self._end_server(causes[0] if causes else "process_died")
            return
        with self._lock:
            on_death = self._on_death
            for model, stubs in () if on_death else dead.items():
                self._recovering.add(model)
                arguments = (self._server.pid, model, stubs)
                threading.Thread(target=self._recover, args=arguments, name=f"reload-{model}", daemon=True).start()
        if on_death and dead:
            on_death()

    def _recover(self, server_pid: int, model: str, old: frozenset[Stub]) -> None:
        started = time.monotonic()
        dead = sorted(stub.pid for stub in old if not stub.alive())
        pids = ", ".join(map(str, dead))
        ended = [self._ended.pop(pid) for pid in dead if pid in self._ended]
        cause = ended[0] if ended else "process_died"
        self._server.counters.count(RESTARTS, cause)
        if not ended:
            self._warn(f"{model}: Python process {pids} died; the model is unloaded and loaded again")
        self._unload(model)
        # A model that keeps dying soon after it was loaded must not be loaded in a busy loop.
        first = max(0, self._count_crash(model) - MOST_QUICK_CRASHES)
        for failures in itertools.count(first):
            if self.stopping.wait(_pause_s(failures)) or not self._is_current(server_pid):
                return
            problem = self._load(server_pid, model, old)
            if problem is None:
                break
            if not self._is_current(server_pid):
                return
            if failures + 1 - first >= MOST_FAILED_LOADS:
                self._crash_loop = CrashLoopError(
                    f"giving up after {MOST_FAILED_LOADS} attempts to load {model}: {problem}"
                )
                return
            self._warn(f"{problem}; next attempt in {_pause_s(failures + 1):g} s")
        with self._lock:
            if not self._is_current(server_pid):
                return
            self._recovering.discard(model)
            self._served_at[model] = time.monotonic()
        # Errors from a reload do not explain a later exit.
        self._server.log.mark()
        self._report(f"{model} serves again after {time.monotonic() - started:.1f} s")
        retire(old, _RETIREMENT_S, self.stopping, self._server.health_directory)

    def _load(self, server_pid: int, model: str, old: frozenset[Stub]) -> str | None:
        """Load a model and send it a canary; returns what is wrong."""
        try:
            self.load(model, old)
        except UnavailableError as error:
            return str(error)
        fresh = {stub for stub in self._server.stubs() if stub.model == model and stub not in old and stub.alive()}
        self.watch(server_pid, [model], fresh)
        if len(fresh) < len(old):
            problem: str | None = f"{model}: a Python process died while the model loaded"
        else:
            problem = problem_after_load(
                self._server, model, fresh, lambda name: self._processes(name, but=model) is not None
            )
        if problem:
            self._unload(model)
            retire(fresh, _RETIREMENT_S, self.stopping, self._server.health_directory)
        return problem

    def _end_if_stuck(self) -> None:
        """Kill a server that waits forever for a stub which died in its first milliseconds; it is then restarted."""
        with self._lock:
            loading = dict(self._loading)
        # Looking for new stubs reads all of /proc, which is too much for an idle server.
        stubs = self._server.stubs() if loading else ()
        fresh = {name: [stub for stub in stubs if stub.model == name and stub not in loading[name]] for name in loading}
        stuck = self._load_watch.stuck(fresh, time.monotonic())
        if stuck:
            self._warn(f"Triton is stuck in loading {', '.join(stuck)}, whose Python process died; it is ended")
            self._end_server("load_stuck")

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
        return not self.stopping.is_set() and self._server.pid == server_pid and self._server.alive()

    def _restart(self, status: int) -> None:
        lived_s = time.monotonic() - self._ready_at
        # Nobody may load or unload models until it serves again.
        self._ready_at = math.inf
        self._quick_deaths = self._quick_deaths + 1 if lived_s < QUICK_DEATH_S else 0
        cause = self._ended.pop(self._server.pid or 0, "server_died")
        # What we have ended, and why, was reported then.
        reason = (
            None
            if cause != "server_died"
            else "\n".join(filter(None, [describe_end(status), self._server.log.excerpt()]))
        )
        while not self.stopping.is_set():
            if self._quick_deaths >= MOST_QUICK_DEATHS:
                raise CrashLoopError(
                    f"giving up after {self._quick_deaths} starts that ended at once. {reason or cause}"
                )
            pause_s = _pause_s(self._quick_deaths)
            again = f"starting it again in {pause_s:g} s" if pause_s else "starting it again"
            if reason or pause_s:
                self._warn(f"{reason}\n{again}" if reason else again)
            if self.stopping.wait(pause_s):
                return
            self._server.counters.count(RESTARTS, cause)
            try:
                self._server.launch()
                if not self._server.wait_ready(self._report, self.stopping.is_set):
                    return
                self._watch_all()
                if not all_answer(self._server, self._watched_stop):
                    return
            except (OcdserveError, OSError) as error:
                # The second where the disk is full.
                self._quick_deaths += 1
                reason, cause = str(error), "load_stuck" if isinstance(error, LoadStuckError) else "server_died"
                continue
            if canary_models(self._server.options.repository):
                # It has answered since, so it is no crash loop: what kills it again and again, such as a request, only
                # lengthens the pauses.
                self._quick_deaths = min(self._quick_deaths, MOST_QUICK_DEATHS - 2)
            self._ready_at = time.monotonic()
            self._report("Triton serves again")
            return

    def _watched_stop(self) -> bool:
        """Whether to stop; called by a loop that waits for models, which may hang."""
        self._end_hanging()
        return self.stopping.is_set()


def _pause_s(failures: int) -> float:
    """Seconds to wait after a number of consecutive failures: 0, 0, 1, 2, 4 ... 30."""
    return 0.0 if failures < 2 else min(2.0 ** (failures - 2), LONGEST_PAUSE_S)

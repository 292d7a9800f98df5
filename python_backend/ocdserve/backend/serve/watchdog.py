# SPDX-License-Identifier: Apache-2.0
"""Asks Triton and its models for signs of life, in a thread of its own: what hangs or answers wrongly may look alive.

Busy is not hung. A canary is only sent to a model that has answered nobody for a while. One that is shed says that the
model is busy, and so does one without an answer while others get theirs.
"""

import http.client
import re
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from ocdserve.backend.serve.canary import CANARY_MODELS, CanaryError, run_canary
from ocdserve.backend.serve.process.metrics import CANARIES, REQUESTS
from ocdserve.backend.serve.process.processes import Stub
from ocdserve.backend.serve.server import TritonServer
from ocdserve.contract import ENSEMBLE, FUSED, MODELS

TICK_S = 1.0
# How long a model answers nobody until it gets a canary; longer for one whose canary takes more than 5 % of this time.
IDLE_S = 10.0
LONGEST_IDLE_S = 120.0
_PART_OF_TIME = 20
# `ocdnet_raw` is served by the same processes as `ocdnet`.
_IDLE_MODELS = (ENSEMBLE, FUSED)
# Consecutive canaries after which a model is judged: the processes of one that answers wrongly may be about to end, and
# 90 s without one answer are longer than any request takes.
MOST_WRONG = 2
MOST_SILENT = 3
# Consecutive calls of Triton's liveness, of up to 5 s each, without an answer.
MOST_UNANSWERED = 6
_ANSWER_S = 5.0
_METRICS_S = 5.0
_CANCEL_POLL_S = 0.05

# Of a model: the processes that serve it, None while one of them is about to be replaced.
Processes = Callable[[str], frozenset[Stub] | None]


def canary_models(server: TritonServer) -> tuple[str, ...]:
    """The models of a server that a canary can be sent to."""
    return tuple(name for name in CANARY_MODELS if (server.options.repository / name / "config.pbtxt").is_file())


def processes_of(model: str) -> frozenset[str]:
    """The models whose processes answer a request to one of `CANARY_MODELS`."""
    if not MODELS[model].is_ensemble:
        return frozenset({model})
    return frozenset(name for name, contract in MODELS.items() if not contract.is_ensemble and name != FUSED)


def examine(server: TritonServer, model: str) -> CanaryError | None:
    """Send a canary and count it; returns what is wrong, None if the model answers or is busy."""
    before = answered(server, model)
    try:
        run_canary(server.api, model)
    except CanaryError as error:
        server.counters.count(CANARIES, error.cause)
        is_busy = error.cause == "busy" or (error.cause == "silent" and answered(server, model) != before)
        return None if is_busy else error
    server.counters.count(CANARIES, "ok")
    return None


def examine_all(server: TritonServer, cancelled: Callable[[], bool]) -> list[CanaryError | None] | None:
    """Send a canary to each model, and return what is wrong with each; None if the wait was cancelled."""
    errors: list[CanaryError | None] = []

    def ask() -> None:
        errors.extend(examine(server, model) for model in canary_models(server))

    asking = threading.Thread(target=ask, name="ocdserve-canary", daemon=True)
    asking.start()
    while asking.is_alive():
        if cancelled():
            return None
        asking.join(_CANCEL_POLL_S)
    return errors


def all_answer(server: TritonServer, cancelled: Callable[[], bool] | None) -> bool:
    """Send a canary to each model of a server that has just become ready; False if the wait was cancelled.

    Raises:
        CanaryError: One does not answer, or wrongly, and its processes live.
    """
    errors = examine_all(server, cancelled or (lambda: False))
    error = next(filter(None, errors or ()), None)
    if error and server.alive() and all(stub.alive() for stub in server.stubs()):
        raise error
    return errors is not None


def answered(server: TritonServer, model: str) -> tuple[int, int] | None:
    """How many requests to a model, canaries not counted, got results and got errors; None if that is unknown.

    Triton's statistics do not say: they count a request when a model that answers from threads has taken it.
    """
    try:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.metrics_url).netloc, timeout=_METRICS_S)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return None
    counts = [
        (re.search(r'outcome="(\w+)"', line), int(float(line.rpartition(" ")[2])))
        for line in text.splitlines()
        if line.startswith(f"{REQUESTS.name}{{") and f'model="{model}"' in line
    ]
    right = sum(count for outcome, count in counts if outcome and outcome[1] == "ok")
    return right, sum(count for _, count in counts) - right


@dataclass
class _State:
    """Of a model: when to look next, its right answers at the last look, and failed canaries in a row."""

    next_at: float
    right: int | None = None
    failed: int = 0


class Watchdog:
    """Watches one server between `start` and the event that stops it."""

    def __init__(
        self, server: TritonServer, processes: Processes, on_failed: Callable[[str, CanaryError], None]
    ) -> None:
        """Watch `server`; `on_failed` is called with a model and its canary's error."""
        self.unanswered = 0
        self._server = server
        self._processes = processes
        self._on_failed = on_failed

    def start(self, stopping: threading.Event) -> None:
        """Watch until the event is set."""
        threading.Thread(target=self._run, args=(stopping,), name="ocdserve-watchdog", daemon=True).start()

    def hangs(self) -> bool:
        """Whether Triton has not answered for half a minute."""
        return self.unanswered >= MOST_UNANSWERED

    def _run(self, stopping: threading.Event) -> None:
        first = time.monotonic() + IDLE_S
        states = {name: _State(first) for name in _IDLE_MODELS if name in canary_models(self._server)}
        while not stopping.wait(TICK_S):
            asked_at = time.monotonic()
            if not self._server.api.live(_ANSWER_S):
                self.unanswered += 1
                stopping.wait(max(0.0, _ANSWER_S - (time.monotonic() - asked_at)))
                continue
            self.unanswered = 0
            for model, state in states.items():
                if time.monotonic() >= state.next_at:
                    self._look(model, state)

    def _look(self, model: str, state: _State) -> None:
        processes, counts, began = self._processes(model), answered(self._server, model), time.monotonic()
        if processes is None or counts is None:
            # Replaced just now.
            state.right, state.failed, state.next_at = None, 0, began + IDLE_S
            return
        if counts[0] != state.right:
            state.right, state.failed, state.next_at = counts[0], 0, began + IDLE_S
            return
        error = examine(self._server, model)
        if error is None or self._processes(model) != processes:
            took_s = time.monotonic() - began
            state.failed, state.next_at = 0, began + min(max(IDLE_S, _PART_OF_TIME * took_s), LONGEST_IDLE_S)
            return
        state.failed += 1
        if state.failed >= (MOST_WRONG if error.cause == "wrong" else MOST_SILENT):
            state.failed, state.next_at = 0, began + IDLE_S
            self._on_failed(model, error)

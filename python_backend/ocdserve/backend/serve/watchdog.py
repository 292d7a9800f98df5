# SPDX-License-Identifier: Apache-2.0
"""Asks Triton and its models for signs of life, in a thread of its own: what hangs or answers wrongly may look alive.

Busy is not hung. A canary is only sent to a model that has answered nobody for a while. One that is shed says that the
model is busy, and so does one without an answer while others get theirs.
"""

import http.client
import threading
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from ocdserve.backend.serve.canary import CanaryError, canary_models, run_canary
from ocdserve.backend.serve.process.metrics import CANARIES, REQUESTS
from ocdserve.backend.serve.process.processes import Stub
from ocdserve.backend.serve.server import TritonServer
from ocdserve.contract import ENSEMBLE, FUSED, MODELS, OCR, OCR_FUSED, READING_MODELS, RECOGNISE

TICK_S = 1.0
# How long a model answers nobody until it gets a canary; longer for one whose canary takes more than 5 % of this time.
IDLE_S = 10.0
LONGEST_IDLE_S = 120.0
_PART_OF_TIME = 20
# `ocdnet_raw` and `ocr_raw` are served by the same processes as `ocdnet` and `ocr`.
_IDLE_MODELS = (ENSEMBLE, FUSED, OCR, OCR_FUSED)
# Consecutive canaries after which a model is judged: the processes of one that answers wrongly may be about to end, and
# 90 s without one answer are longer than any request takes.
MOST_WRONG = 2
MOST_SILENT = 3
# Consecutive calls of Triton's liveness, of up to 5 s each, without an answer.
MOST_UNANSWERED = 6
_ANSWER_S = 5.0
_METRICS_S = 5.0
_PENDING = "nv_inference_pending_request_count"
_CANCEL_POLL_S = 0.05

# Of a model: the processes that serve it, None while one of them is about to be replaced.
Processes = Callable[[str], frozenset[Stub] | None]


def processes_of(model: str) -> frozenset[str]:
    """The models whose processes answer a request to one of `ASKED_MODELS`."""
    if not MODELS[model].is_ensemble:
        return frozenset({model})
    others = {FUSED, OCR_FUSED} if model in READING_MODELS else {FUSED, OCR_FUSED, RECOGNISE}
    return frozenset(name for name, contract in MODELS.items() if not contract.is_ensemble and name not in others)


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


def examine_all(
    server: TritonServer, models: Iterable[str], cancelled: Callable[[], bool]
) -> dict[str, CanaryError | None]:
    """Send a canary to each of the models; returns what is wrong with each that was asked before a cancellation."""
    errors: dict[str, CanaryError | None] = {}

    def ask() -> None:
        for model in models:
            errors[model] = examine(server, model)

    asking = threading.Thread(target=ask, name="ocdserve-canary", daemon=True)
    asking.start()
    while asking.is_alive() and not cancelled():
        asking.join(_CANCEL_POLL_S)
    return dict(errors)


def all_answer(server: TritonServer, cancelled: Callable[[], bool] | None) -> bool:
    """Send a canary to each model of a server that has just become ready; False if the wait was cancelled.

    Raises:
        CanaryError: One does not answer, or wrongly, and its processes live.
    """
    is_cancelled = cancelled or (lambda: False)
    stubs = server.stubs()

    def died() -> bool:
        # It may never answer.
        return not all(stub.alive() for stub in stubs)

    errors = examine_all(server, canary_models(server.options.repository), lambda: is_cancelled() or died())
    error = next(filter(None, errors.values()), None)
    if error and server.alive() and not died():
        raise error
    return not is_cancelled()


def problem_after_load(
    server: TritonServer, model: str, fresh: Collection[Stub], others_serve: Callable[[str], bool]
) -> str | None:
    """What is wrong with the answers to which the new processes of a model contribute.

    Args:
        server: The server.
        model: What was loaded.
        fresh: Its processes.
        others_serve: Whether all other models' processes that answer a request to a model live and are to stay. While
            one is to be replaced there is no answer; whoever is the last to load asks.
    """
    models = [
        name for name in canary_models(server.options.repository) if model in processes_of(name) and others_serve(name)
    ]
    errors = examine_all(server, models, lambda: not all(stub.alive() for stub in fresh))
    for name in models:
        error = errors.get(name, f"canary of {name}: a Python process of {model} died")
        if error and others_serve(name):
            return str(error)
    return None


def answered(server: TritonServer, model: str) -> tuple[int, int] | None:
    """How many requests to a model, canaries not counted, got results and got errors; None if that is unknown.

    Triton's statistics do not say: they count a request when a model that answers from threads has taken it.
    """
    counts = _counts(server, REQUESTS.name, model)
    if counts is None:
        return None
    right = sum(count for labels, count in counts if 'outcome="ok"' in labels)
    return right, sum(count for _, count in counts) - right


def waiting(server: TritonServer, model: str) -> int:
    """How many requests wait in Triton's queue of a model; 0 if that is unknown."""
    return sum(count for _, count in _counts(server, _PENDING, model) or ())


def _counts(server: TritonServer, name: str, model: str) -> list[tuple[str, int]] | None:
    """Labels and values of one of a model's metrics; None if Triton does not answer."""
    try:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.metrics_url).netloc, timeout=_METRICS_S)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return None
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith(f"{name}{{")]
    return [(labels, int(float(value))) for labels, _, value in lines if f'model="{model}"' in labels]


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
        states = {
            name: _State(first) for name in _IDLE_MODELS if name in canary_models(self._server.options.repository)
        }
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

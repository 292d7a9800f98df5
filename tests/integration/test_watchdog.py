# SPDX-License-Identifier: Apache-2.0
"""The real Triton with models that answer wrongly, late or never: who is ended, and who is only busy."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend.files import write_atomically
from ocdserve.backend.serve import TritonServer, canary, foreground, supervisor, watchdog
from ocdserve.backend.serve.canary import CanaryError, run_canary
from ocdserve.backend.serve.process import health
from ocdserve.backend.serve.process.processes import find_stubs

pytestmark = [pytest.mark.triton, pytest.mark.timed]

RunningServer = Callable[..., AbstractContextManager[TritonServer]]

CONFIG = """
name: "ocdnet_fused"
backend: "python"
max_batch_size: 8
model_transaction_policy { decoupled: false }
input [ { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "QUADS" data_type: TYPE_FP32 dims: [ -1, 4, 2 ] },
  { name: "SCORES" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "COUNT" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "SIZE" data_type: TYPE_INT32 dims: [ 2 ] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
MODEL = """
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from ocdserve.backend.serve.process.health import InFlight

MODE = Path("THE MODE")


class TritonPythonModel:
    def initialize(self, args):
        self.family = pb_utils.MetricFamily(
            name="ocdserve_requests_total", description="", kind=pb_utils.MetricFamily.COUNTER
        )
        labels = [{"model": "ocdnet_fused", "outcome": outcome} for outcome in ("ok", "shed")]
        self.counts = {label["outcome"]: self.family.Metric(labels=label) for label in labels}

        self.in_flight = InFlight()

    def execute(self, requests):
        for request in requests:
            self.in_flight.add(1)
            threading.Thread(target=self.answer, args=(request,)).start()

    def answer(self, request):
        mode = MODE.read_text()
        picture = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()[0, 0]
        while mode == "silent" and picture[:4] == b"\\x89PNG":
            time.sleep(0.05)
            mode = MODE.read_text()
        score = float("nan") if mode == "nan" else 2.0 if mode == "wrong" else 0.5
        tensors = {
            "QUADS": np.zeros((1, 1, 4, 2), np.float32),
            "SCORES": np.full((1, 1), score, np.float32),
            "COUNT": np.ones((1, 1), np.int32),
            "SIZE": np.array([[96, 128]], np.int32),
        }
        answer = pb_utils.InferenceResponse([pb_utils.Tensor(*tensor) for tensor in tensors.items()])
        if request.request_id() != "ocdserve-canary":
            self.counts["shed" if mode == "shed" else "ok"].increment(1)
        if mode == "shed":
            error = pb_utils.TritonError("the queue is full", pb_utils.TritonError.UNAVAILABLE)
            answer = pb_utils.InferenceResponse([], error)
        request.get_response_sender().send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        self.in_flight.add(-1)
"""


class Repository:
    """A model repository of one model `ocdnet_fused` that answers as its mode says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The server serves a copy of the repository.
        folder, self._mode = path / "ocdnet_fused" / "1", path.with_name("mode")
        folder.mkdir(parents=True)
        (path / "ocdnet_fused" / "config.pbtxt").write_text(CONFIG)
        (folder / "model.py").write_text(MODEL.replace("THE MODE", str(self._mode)))
        self.mode("right")

    def mode(self, name: str) -> None:
        write_atomically(self._mode, name.encode())


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "IDLE_S", 0.2)
    monkeypatch.setattr(watchdog, "LONGEST_IDLE_S", 0.2)
    monkeypatch.setattr(watchdog, "TICK_S", 0.05)
    monkeypatch.setattr(watchdog, "run_canary", partial(run_canary, timeout_s=0.5))


def wait_until(condition: Callable[[], Any], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)


def stub_of(server: TritonServer) -> int | None:
    stubs = find_stubs(server.pid or 0)
    return stubs[-1].pid if stubs else None


def test_a_model_that_answers_wrongly_is_not_served(repository: Repository, running_server: RunningServer) -> None:
    repository.mode("nan")
    with pytest.raises(CanaryError, match="canary of ocdnet_fused: "), running_server(repository.path):
        pass


@pytest.mark.usefixtures("hurried")
def test_an_idle_model_that_answers_wrongly_or_never_is_ended_and_a_busy_one_is_not(
    repository: Repository, running_server: RunningServer
) -> None:
    messages: list[str] = []
    with running_server(repository.path, messages) as server:
        first = stub_of(server)
        repository.mode("shed")
        wait_until(lambda: canaries(server)["busy"] > 1, 20.0)
        # One canary gets no answer, but the others' requests do.
        repository.mode("silent")
        stop = threading.Event()
        traffic = threading.Thread(target=send_until, args=(server, stop))
        traffic.start()
        silent = canaries(server)["silent"]
        assert watchdog.examine(server, "ocdnet_fused") is None
        assert canaries(server)["silent"] == silent + 1
        assert stub_of(server) == first and not any("ended" in message for message in messages)
        stop.set()
        traffic.join()

        for mode, reason in (("silent", "no answer within 0.5 s"), ("wrong", "SCORES has values outside of 0 to 1")):
            old, said = stub_of(server), len(messages)
            repository.mode(mode)
            wait_until(lambda said=said: len(messages) > said, 30.0)
            repository.mode("right")
            # Triton too is started again for the silent ones, which their process had taken.
            again = "Triton serves again" if mode == "silent" else "ocdnet_fused serves again"
            wait_until(lambda again=again: messages[-1].startswith(again), 30.0)
            assert stub_of(server) != old
            assert messages[said].startswith(f"canary of ocdnet_fused: {reason}")
            assert messages[said].endswith("; the processes of ocdnet_fused are ended")
        assert len(run_canary(server.api, "ocdnet_fused")) == 1
        server.kill()
    assert server.counters._totals["ocdserve_restarts_total"]["canary_failed"] == 2
    assert sum(server.counters._totals["ocdserve_restarts_total"].values()) == 2


def test_requests_that_a_dead_process_had_taken_end(repository: Repository, running_server: RunningServer) -> None:
    messages: list[str] = []
    ended: list[Exception] = []
    with running_server(repository.path, messages) as server:
        repository.mode("silent")
        old = stub_of(server)

        def ask() -> None:
            try:
                server.api.infer("ocdnet_fused", *request_of(canary.picture()[0]), 30.0)
            except (OSError, HTTPException) as error:
                ended.append(error)

        asking = [threading.Thread(target=ask) for _ in range(2)]
        for thread in asking:
            thread.start()
        file = server.health_directory / f"in-flight-{server.pid}-{old}"
        wait_until(lambda: int.from_bytes(file.read_bytes(), "little") == 2, 20.0)
        repository.mode("right")
        os.kill(old or 0, signal.SIGKILL)
        for thread in asking:
            thread.join(20.0)
        # Not their own time limit, after which they would never have had an answer.
        assert len(ended) == 2 and not any(isinstance(error, TimeoutError) for error in ended)
        wait_until(lambda: messages[-1] == "Triton serves again", 30.0)
        expected = f"ocdnet_fused: Python process {old} died with 2 requests, which only a restart of Triton ends"
        assert expected in messages
        assert len(run_canary(server.api, "ocdnet_fused")) == 1
        server.kill()
    assert server.counters._totals["ocdserve_restarts_total"]["process_died"] == 1


def canaries(server: TritonServer) -> dict[str, int]:
    return dict(server.counters._totals["ocdserve_canary_total"])


def send_until(server: TritonServer, stop: threading.Event) -> None:
    """Requests with another picture than the canary's, which the model answers in each mode."""
    encoded, _ = canary.picture()
    while not stop.is_set():
        data = b"GIF8" + encoded[4:]
        server.api.infer("ocdnet_fused", *request_of(data), 5.0)
        time.sleep(0.02)


def request_of(encoded: bytes) -> tuple[bytes, bytes]:
    data = len(encoded).to_bytes(4, "little") + encoded
    header = (
        b'{"inputs":[{"name":"IMAGE","shape":[1,1],"datatype":"BYTES","parameters":{"binary_data_size":%d}}]}'
        % len(data)
    )
    return header, data


def test_a_server_that_does_not_answer_is_ended_and_started_again(
    repository: Repository, running_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where it hangs without having been stopped.
    monkeypatch.setattr(health, "STOPPED_S", 1e9)
    monkeypatch.setattr(watchdog, "_ANSWER_S", 0.2)
    monkeypatch.setattr(watchdog, "TICK_S", 0.05)
    messages: list[str] = []
    with running_server(repository.path, messages) as server:
        old = server.pid
        assert old is not None
        os.kill(old, signal.SIGSTOP)
        wait_until(lambda: server.pid != old and messages[-1] == "Triton serves again", 30.0)
        assert f"Triton: it does not answer any more; its process {old} is ended" in messages
        assert not any("signal" in message for message in messages)
        server.kill()
    assert server.counters._totals["ocdserve_restarts_total"]["server_hung"] == 1


def test_a_model_that_cannot_be_loaded_again_ends_the_launcher_with_a_code(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MOST_FAILED_LOADS", 2)
    messages: list[str] = []

    def kill(server: TritonServer) -> None:
        repository.mode("wrong")
        os.kill(stub_of(server) or 0, signal.SIGKILL)

    options = foreground.ServeOptions(repository.path, http_port=0, grpc_port=0, metrics_port=0)
    assert foreground.serve(options, kill, messages.append) == 3
    assert messages[-1] == (
        "giving up after 2 attempts to load ocdnet_fused: canary of ocdnet_fused: SCORES has values outside of 0 to 1"
    )

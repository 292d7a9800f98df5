# SPDX-License-Identifier: Apache-2.0
"""The real Triton under its launcher: starts, kills of every kind, stops, and that nothing is left."""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from ocdserve.backend.serve import ServeOptions, Supervisor, TritonServer
from ocdserve.backend.serve.options import GrpcConnections
from ocdserve.backend.serve.process import health
from ocdserve.backend.serve.process.processes import find_stubs
from ocdserve.contract import GRPC_HEADER_PREFIX, SHARED_MEMORY_HEADER, UnavailableError

pytestmark = [pytest.mark.triton, pytest.mark.timed]

# What the issue asks for.
SERVING_AGAIN_S = 5.0
STOPPED_S = 10.0

RunningServer = Callable[..., AbstractContextManager[TritonServer]]
Leftovers = Callable[[int], list[str]]


def infer(server: TritonServer, model: str, value: int = 7) -> int:
    """One request of 300 kB; returns the first element of the answer."""
    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        return _infer(client, model, value)


def _infer(client: triton.InferenceServerClient, model: str, value: int) -> int:
    data = np.full((1, 300_000), value, np.uint8)
    tensor = triton.InferInput("X", list(data.shape), "UINT8")
    tensor.set_data_from_numpy(data)
    answer = client.infer(model, [tensor], client_timeout=10).as_numpy("Y")
    assert answer.shape == data.shape
    return int(answer[0, -1])


def wait_until(condition: Callable[[], Any], timeout_s: float) -> float:
    """Seconds until the condition holds; fails the test when it does not in time."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, f"not within {timeout_s} s"
        time.sleep(0.02)
    return time.monotonic() - start


def serves(server: TritonServer, *models: str) -> bool:
    """Whether the server reports that it is ready and each model answers."""
    if not server.ready():
        return False
    try:
        return all(infer(server, model) == 7 for model in models)
    except triton.InferenceServerException:
        return False


def stub_pids(server: TritonServer, model: str) -> list[int]:
    assert server.pid is not None
    return [stub.pid for stub in find_stubs(server.pid) if stub.model == model]


def kill_stub(server: TritonServer, model: str) -> None:
    # The newest: after an earlier reload, an old sibling may still be about to end.
    os.kill(stub_pids(server, model)[-1], signal.SIGKILL)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, running_server: RunningServer, make_tiny: Callable[[Path], Any]
) -> Iterator[TritonServer]:
    """One server for all tests that kill its stubs: an ensemble of two models and a third on its own."""
    tiny = make_tiny(tmp_path_factory.mktemp("supervised"))
    tiny.model("quick")
    tiny.model("slow", load_s=1.5, execute_s=0.02, instances=2)
    tiny.model("alone", load_s=1.5)
    tiny.ensemble("chain", "quick", "slow")
    with running_server(tiny.path) as running:
        yield running
        running.kill()


@pytest.mark.parametrize("victims", [["slow"], ["alone"], ["quick", "slow"]], ids=" and ".join)
def test_after_a_stub_is_killed_readiness_says_no_and_all_serve_again_in_time(
    server: TritonServer, victims: list[str]
) -> None:
    assert serves(server, "chain", "alone")
    for victim in victims:
        kill_stub(server, victim)
    start = time.monotonic()

    assert wait_until(lambda: not server.ready(), 1.0) < 0.5
    wait_until(lambda: serves(server, "chain", "alone"), SERVING_AGAIN_S)
    assert time.monotonic() - start < SERVING_AGAIN_S


def test_a_model_that_reports_a_failure_is_killed_and_reloaded(tiny: Any, running_server: RunningServer) -> None:
    tiny.model("quick")
    # As where a GPU has failed: the process lives on.
    tiny.code(
        "quick",
        "pass",
        "x = pb_utils.get_input_tensor_by_name(requests[0], 'X').as_numpy();"
        " from ocdserve.backend.serve.process.health import report_failure;"
        " x[0, 0] == 13 and report_failure('the GPU failed')",
    )
    messages: list[str] = []
    with running_server(tiny.path, messages) as running:
        (old,) = stub_pids(running, "quick")
        with contextlib.suppress(triton.InferenceServerException):
            infer(running, "quick", value=13)
        # For a moment there is neither the old process nor the new one.
        wait_until(lambda: set(stub_pids(running, "quick")) - {old} and serves(running, "quick"), SERVING_AGAIN_S)
        assert f"quick: the GPU failed; its process {old} is ended" in messages
        # The note was removed.
        assert [file.name for file in running.health_directory.iterdir()] == ["totals.json"]
        running.kill()


def test_a_stopped_stub_is_ended_and_its_model_serves_again_in_time(server: TritonServer) -> None:
    wait_until(lambda: serves(server, "chain", "alone"), SERVING_AGAIN_S)
    (old,) = stub_pids(server, "quick")
    start = time.monotonic()
    os.kill(old, signal.SIGSTOP)
    wait_until(lambda: not server.ready(), 2.5)
    wait_until(lambda: set(stub_pids(server, "quick")) - {old} and serves(server, "chain", "alone"), 6.0)
    assert time.monotonic() - start < 6.0


def test_a_stub_that_does_not_run_is_ended_and_one_that_is_busy_is_not(
    tiny: Any, running_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "SILENT_S", 2.0)
    for name, sleep in (("busy", "time.sleep"), ("hung", "ctypes.PyDLL(None).sleep")):
        tiny.model(name)
        # The second keeps Python's lock, so that no thread of the process runs.
        tiny.code(
            name,
            "import ctypes; from ocdserve.backend.serve.process.health import start_heartbeat; start_heartbeat()",
            "import ctypes; x = pb_utils.get_input_tensor_by_name(requests[0], 'X').as_numpy();"
            f" x[0, 0] == 13 and {sleep}(5)",
        )
    messages: list[str] = []
    with running_server(tiny.path, messages) as running:
        (old,), (busy,) = stub_pids(running, "hung"), stub_pids(running, "busy")
        with contextlib.suppress(triton.InferenceServerException):
            infer(running, "hung", value=13)
        wait_until(lambda: set(stub_pids(running, "hung")) - {old} and serves(running, "hung"), SERVING_AGAIN_S)
        assert f"hung: it has not run for 2 s; its process {old} is ended" in messages
        assert infer(running, "busy", value=13) == 13
        assert stub_pids(running, "busy") == [busy] and not any(str(busy) in message for message in messages)
        running.kill()


def test_a_stub_killed_again_during_its_reload_serves_again_in_time(server: TritonServer) -> None:
    old = stub_pids(server, "alone")
    kill_stub(server, "alone")
    wait_until(lambda: set(stub_pids(server, "alone")) - set(old), 3.0)
    (fresh,) = set(stub_pids(server, "alone")) - set(old)
    # Past its first milliseconds, in which its death would escape Triton: the next test is about those.
    time.sleep(0.4)
    os.kill(fresh, signal.SIGKILL)

    assert not server.ready()
    wait_until(lambda: serves(server, "chain", "alone"), SERVING_AGAIN_S)


def test_a_stub_killed_as_soon_as_its_reload_begins_does_not_block_the_server(
    tiny: Any, running_server: RunningServer
) -> None:
    tiny.model("quick")
    with running_server(tiny.path) as running:
        old = stub_pids(running, "quick")
        kill_stub(running, "quick")
        while not (fresh := set(stub_pids(running, "quick")) - set(old)):
            time.sleep(0.001)
        os.kill(fresh.pop(), signal.SIGKILL)

        # Triton waits for the stub's first message without a limit, so the whole server has to be restarted.
        wait_until(lambda: serves(running, "quick"), 15.0)
        running.kill()


def test_a_stub_killed_under_load_of_eight_clients_serves_again_in_time(server: TritonServer) -> None:
    answered: list[float] = []
    wrong: list[int] = []
    stop = threading.Event()

    def hammer(value: int) -> None:
        with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
            while not stop.is_set():
                try:
                    if _infer(client, "chain", value) != value:
                        wrong.append(value)
                    answered.append(time.monotonic())
                except triton.InferenceServerException:
                    time.sleep(0.02)

    clients = [threading.Thread(target=hammer, args=(value,)) for value in range(8)]
    for client in clients:
        client.start()
    try:
        wait_until(lambda: len(answered) > 50, 5.0)
        kill_stub(server, "slow")
        killed = time.monotonic()
        assert wait_until(lambda: not server.ready(), 1.0) < 0.5
        wait_until(server.ready, SERVING_AGAIN_S)
        wait_until(lambda: answered[-1] - killed > 1.0, SERVING_AGAIN_S)
    finally:
        stop.set()
        for client in clients:
            client.join()

    assert answered[-1] - killed < SERVING_AGAIN_S
    assert wrong == []


def test_processes_and_segments_of_dead_models_do_not_accumulate(server: TritonServer) -> None:
    wait_until(lambda: serves(server, "chain", "alone"), SERVING_AGAIN_S)

    def segments() -> set[str]:
        return {name for name in os.listdir("/dev/shm") if name.startswith(server.segment_prefix)}

    # One quick, two slow, one alone; Triton alone would keep the siblings of each killed stub for ever.
    wait_until(lambda: len(find_stubs(server.pid or 0)) == 4, 15.0)
    wait_until(lambda: segments() == {stub.segment for stub in find_stubs(server.pid or 0)}, 2.0)


def test_stop_after_kills_and_reloads_is_clean_and_in_time(
    tiny: Any, running_server: RunningServer, leftovers: Leftovers
) -> None:
    tiny.model("slow", load_s=1.5, instances=2)
    with running_server(tiny.path) as running:
        kill_stub(running, "slow")
        wait_until(lambda: serves(running, "slow"), SERVING_AGAIN_S)
        kill_stub(running, "slow")
        wait_until(lambda: not running.ready(), 1.0)
        own = running.api
        start = time.monotonic()

    assert time.monotonic() - start < STOPPED_S
    assert not own.ready()
    assert [left for left in leftovers(os.getpid()) if running.segment_prefix in left] == []


def test_restricted_apis_refuse_without_their_secret(tiny: Any, running_server: RunningServer, tmp_path: Path) -> None:
    tiny.model("quick")
    token = tmp_path / "token"
    with running_server(tiny.path, shared_memory=token) as running:
        assert status(running, "POST", "/v2/repository/index") == 403
        assert status(running, "POST", "/v2/repository/models/quick/unload") == 403
        assert status(running, "GET", "/v2/trace/setting") == 403
        assert status(running, "GET", "/v2/logging") == 403
        for kind in ("system", "cuda"):
            assert status(running, "GET", f"/v2/{kind}sharedmemory/status") == 403
            assert status(running, "POST", f"/v2/{kind}sharedmemory/region/x/register") == 403
            assert status(running, "POST", f"/v2/{kind}sharedmemory/unregister") == 403
        assert status(running, "GET", "/v2/systemsharedmemory/status", **{SHARED_MEMORY_HEADER: "wrong"}) == 403
        assert token.stat().st_mode & 0o777 == 0o600
        right = {SHARED_MEMORY_HEADER: token.read_text()}
        assert status(running, "GET", "/v2/systemsharedmemory/status", **right) == 200
        # The one secret does not open the other APIs.
        assert status(running, "POST", "/v2/repository/index", **right) == 403
        with triton.InferenceServerClient(running.grpc_url.removeprefix("grpc://")) as client:
            restricted = [client.get_model_repository_index, client.get_trace_settings, client.get_log_settings]
            restricted += [client.get_system_shared_memory_status, client.get_cuda_shared_memory_status]
            restricted += [client.unregister_system_shared_memory, client.unregister_cuda_shared_memory]
            for call in restricted:
                with pytest.raises(triton.InferenceServerException, match="restricted"):
                    call()
            known = client.get_system_shared_memory_status(
                headers={GRPC_HEADER_PREFIX + SHARED_MEMORY_HEADER: token.read_text()}
            )
            assert len(known.regions) == 0
        with urllib.request.urlopen(running.metrics_url, timeout=5) as metrics:
            assert b"nv_inference_request_success" in metrics.read()
        assert infer(running, "quick") == 7
        running.kill()
    assert not token.exists()


def test_other_users_cannot_read_the_segments_of_the_stubs(tiny: Any, running_server: RunningServer) -> None:
    tiny.model("quick")
    with running_server(tiny.path) as running:
        segments = [Path("/dev/shm", name) for name in os.listdir("/dev/shm") if running.segment_prefix in name]
        deadline = time.monotonic() + 2
        while any(path.stat().st_mode & 0o077 for path in segments) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert segments and {path.stat().st_mode & 0o777 for path in segments} == {0o600}
        assert infer(running, "quick") == 7
        running.kill()


def status(running: TritonServer, method: str, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", running.ports.http, timeout=5)
    connection.request(method, path, headers=headers)
    code = connection.getresponse().status
    connection.close()
    return code


def test_a_server_that_dies_is_started_again_on_the_same_ports(tiny: Any, running_server: RunningServer) -> None:
    tiny.model("quick")
    messages: list[str] = []
    with running_server(tiny.path, messages) as running:
        first, ports, old_stubs = running.pid, running.ports, find_stubs(running.pid or 0)
        # The known way to kill Triton 2.51: a raw body of 4 MB or more.
        request = urllib.request.Request(
            f"{running.http_url}/v2/models/quick/infer",
            data=bytes(5_000_000),
            headers={"Inference-Header-Content-Length": "0"},
        )
        with pytest.raises(OSError, match=r"."):
            urllib.request.urlopen(request, timeout=10)
        # Models answer a moment before the supervisor has seen it.
        wait_until(lambda: "Triton serves again" in messages and serves(running, "quick"), 8.0)
        second = running.pid
        assert second != first

        os.kill(second or 0, signal.SIGKILL)
        wait_until(lambda: running.pid != second and serves(running, "quick"), 8.0)

        assert running.ports == ports
        assert not any(stub.alive() for stub in old_stubs)
        assert not any((Path("/dev/shm") / stub.segment).exists() for stub in old_stubs)
        running.kill()
    assert [message.splitlines()[0] for message in messages if "ended" in message] == [
        "Triton was ended by signal 11",
        "Triton was ended by signal 9",
    ]


def test_a_stopped_server_is_ended_and_started_again(tiny: Any, running_server: RunningServer) -> None:
    tiny.model("quick")
    with running_server(tiny.path) as running:
        old = running.pid
        assert old is not None
        os.kill(old, signal.SIGSTOP)
        wait_until(lambda: running.pid != old and serves(running, "quick"), 12.0)
        running.kill()


def test_a_workspace_that_was_removed_is_made_again(tiny: Any, tmp_path: Path) -> None:
    tiny.model("quick")
    workspace, messages = tmp_path / "workspace", []
    repository = workspace / "repository"

    def restore() -> None:
        shutil.copytree(tiny.path, repository)

    workspace.mkdir()
    restore()
    options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0, workspace=workspace)
    with TritonServer(options, restore) as running:
        supervisor = Supervisor(running, messages.append)
        supervisor.start()
        try:
            old = running.pid
            shutil.rmtree(workspace)
            wait_until(lambda: running.pid != old and serves(running, "quick"), 12.0)
            assert f"{workspace} was removed; it is made again" in messages
            # A model can be loaded again.
            (stub,) = stub_pids(running, "quick")
            os.kill(stub, signal.SIGKILL)
            wait_until(lambda: set(stub_pids(running, "quick")) - {stub} and serves(running, "quick"), 6.0)
        finally:
            supervisor.stop()
            running.kill()


def test_a_failed_reload_is_reported_and_retried_with_backoff(tiny: Any, running_server: RunningServer) -> None:
    tiny.model("quick")
    messages: list[str] = []
    with running_server(tiny.path, messages) as running:
        tiny.code("quick", "raise RuntimeError('the weights are gone')")
        kill_stub(running, "quick")
        wait_until(lambda: sum("the weights are gone" in message for message in messages) == 3, 10.0)
        assert not running.ready()
        tiny.code("quick", "pass")
        wait_until(lambda: serves(running, "quick"), 5.0)
        running.kill()
    pauses = [message.rsplit("next attempt in ", 1)[1] for message in messages if "the weights are gone" in message]
    assert pauses == ["0 s", "1 s", "2 s"]


class Launcher:
    """`ocdserve serve` as a process of its own."""

    def __init__(self, repository: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "ocdserve.cli", "serve", "--repository", str(repository), *arguments]
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        self.process = subprocess.Popen([*command, *ports], stderr=subprocess.PIPE, text=True)
        self.output: list[str] = []

    def read_until(self, text: str) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.output.append(line)
            if text in line:
                return
        pytest.fail(f"ended without {text!r}: {self.output}")

    def end(self, timeout_s: float = STOPPED_S) -> tuple[int, float]:
        """Wait for its end; returns exit code and seconds."""
        start = time.monotonic()
        self.output.append(self.process.communicate(timeout=timeout_s)[1])
        return self.process.returncode, time.monotonic() - start


@pytest.fixture
def launch(leftovers: Leftovers) -> Iterator[Callable[..., Launcher]]:
    """Starts launchers; fails the test if one of them left anything."""
    launchers: list[Launcher] = []

    def start(repository: Path, *arguments: str) -> Launcher:
        launchers.append(Launcher(repository, *arguments))
        return launchers[-1]

    yield start
    for launcher in launchers:
        if launcher.process.poll() is None:
            launcher.process.kill()
            launcher.process.communicate()
        wait_until(lambda launcher=launcher: not leftovers(launcher.process.pid), STOPPED_S)


@pytest.mark.parametrize("moment", ["loading slow", "quick is ready", "ready: http"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_ends_all(
    tiny: Any, launch: Callable[..., Launcher], leftovers: Leftovers, moment: str, number: int
) -> None:
    tiny.model("quick")
    tiny.model("slow", load_s=1.0)
    launcher = launch(tiny.path)
    launcher.read_until(moment)

    launcher.process.send_signal(number)
    code, duration_s = launcher.end()

    assert (code, duration_s < STOPPED_S) == (0, True)
    assert leftovers(launcher.process.pid) == []


def test_a_second_signal_does_not_wait(tiny: Any, launch: Callable[..., Launcher], leftovers: Leftovers) -> None:
    tiny.model("quick")
    launcher = launch(tiny.path)
    launcher.read_until("ready: http")

    launcher.process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    launcher.process.send_signal(signal.SIGINT)
    code, duration_s = launcher.end()

    assert (code, duration_s < 1.0) == (0, True)
    assert leftovers(launcher.process.pid) == []


def test_a_killed_launcher_takes_everything_with_it(
    tiny: Any, launch: Callable[..., Launcher], leftovers: Leftovers
) -> None:
    tiny.model("quick")
    launcher = launch(tiny.path)
    launcher.read_until("ready: http")
    assert len(leftovers(launcher.process.pid)) >= 3

    launcher.process.kill()
    launcher.process.communicate()

    wait_until(lambda: not leftovers(launcher.process.pid), STOPPED_S)


def test_a_model_that_does_not_load_ends_the_launcher_with_its_reason(
    tiny: Any, launch: Callable[..., Launcher]
) -> None:
    tiny.model("quick")
    tiny.code("quick", "raise RuntimeError('the weights are gone')")
    launcher = launch(tiny.path)

    code, _ = launcher.end(20)

    assert code == 1
    assert "the weights are gone" in "".join(launcher.output)


@pytest.mark.long
def test_a_model_that_refuses_to_load_is_named_when_others_take_longer(
    tiny: Any, running_server: RunningServer
) -> None:
    tiny.model("broken")
    tiny.code("broken", 'raise ValueError("its weights are damaged")')
    # Than a process may be dead until Triton is believed not to notice.
    tiny.model("slow", load_s=8)
    messages: list[str] = []
    with pytest.raises(UnavailableError, match="its weights are damaged"), running_server(tiny.path, messages):
        pass
    assert not [message for message in messages if "starting again" in message]


def test_a_first_start_that_triton_aborts_is_made_again(tiny: Any) -> None:
    tiny.model("quick")
    with TritonServer(ServeOptions(tiny.path, http_port=0, grpc_port=0, metrics_port=0)) as server:
        supervisor = Supervisor(server, print)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGABRT)
        try:
            assert supervisor.start()
            assert infer(server, "quick") == 7
            assert server.starts == 2
        finally:
            supervisor.stop()
            server.kill()


def test_a_port_in_use_is_named(tiny: Any, free_ports: Callable[[int], list[int]]) -> None:
    tiny.model("quick")
    (port,) = free_ports(1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        options = ServeOptions(tiny.path, http_port=0, grpc_port=port, metrics_port=0)
        with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port} \(grpc_port\) cannot be bound"):
            TritonServer(options).__enter__()


@pytest.mark.long
def test_settings_of_grpc_connections_are_in_force(tiny: Any, running_server: RunningServer) -> None:
    tiny.model("quick")
    settings = GrpcConnections(
        grpc_keepalive_time=10_000,
        grpc_keepalive_timeout=5000,
        grpc_keepalive_permit_without_calls=True,
        grpc_http2_max_pings_without_data=0,
        grpc_http2_min_recv_ping_interval_without_data=5000,
        grpc_http2_max_ping_strikes=0,
        grpc_max_connection_age=300,
        grpc_max_connection_age_grace=1000,
    )
    closed = threading.Event()
    with (
        running_server(tiny.path, grpc=settings) as server,
        grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel,
    ):
        states: list[grpc.ChannelConnectivity] = []
        idle = grpc.ChannelConnectivity.IDLE

        def watch(state: grpc.ChannelConnectivity) -> None:
            states.append(state)
            if state is idle and grpc.ChannelConnectivity.READY in states:
                closed.set()

        channel.subscribe(watch, try_to_connect=True)
        assert closed.wait(30), states

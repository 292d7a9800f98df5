# SPDX-License-Identifier: Apache-2.0
"""The daemon of MPS, with a program in its place that records how it is called."""

import json
import os
import socket
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ocdserve.backend.serve import ServeOptions, serve, supervisor
from ocdserve.backend.serve.process import command, mps
from ocdserve.backend.serve.process.health import DIRECTORY_VARIABLE, report_failure
from ocdserve.backend.serve.process.mps import MpsDaemon, daemon_for, sharing
from ocdserve.backend.serve.process.ownership import new_prefix
from ocdserve.backend.serve.process.processes import ProcessStat
from ocdserve.backend.serve.server import TritonServer
from ocdserve.contract import UnavailableError

# `-f` listens until somebody sends `quit`; without arguments it sends what it reads.
PROGRAM = """
#!{python} -IS
import json, os, socket, sys, time


def record(**what):
    with open({record!r}, "a") as file:
        file.write(json.dumps(what) + "\\n")


pipes = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
control = socket.socket(socket.AF_UNIX)
if sys.argv[1:] == ["-f"]:
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_VISIBLE_DEVICES")
    record(event="start", pid=os.getpid(), **{{name: os.environ.get(name) for name in names}})
    {at_start}
    control.bind(pipes + "/control")
    control.listen()
    while True:
        text = control.accept()[0].recv(100).decode()
        if text:
            record(event=text)
            {at_quit}
else:
    control.connect(pipes + "/control")
    control.send(sys.stdin.buffer.read())
"""
TRITON = """
#!{python} -IS
import http.server, json, os, sys
options = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:] if "=" in argument)
with open({record!r}, "a") as file:
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    file.write(json.dumps(dict(event="triton", pid=os.getpid(), CUDA_MPS_PIPE_DIRECTORY=pipes)) + "\\n")
{at_start}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


http.server.HTTPServer(("127.0.0.1", int(options["http-port"])), Handler).serve_forever()
"""

Events = Callable[[], list[dict[str, Any]]]


def write_program(path: Path, source: str, **values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source).format(python=sys.executable, **values).lstrip())
    path.chmod(0o700)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record"


@pytest.fixture
def events(record: Path) -> Events:
    return lambda: [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


@pytest.fixture
def install(tmp_path: Path, record: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Puts the program on PATH and returns an environment that has it."""
    monkeypatch.delenv(mps.PIPE_DIRECTORY, raising=False)
    monkeypatch.setattr(mps, "_DEFAULT_PIPES", str(tmp_path / "default"))

    def write(at_start: str = "pass", at_quit: str = "sys.exit()") -> dict[str, str]:
        write_program(tmp_path / "bin" / mps.PROGRAM, PROGRAM, record=str(record), at_start=at_start, at_quit=at_quit)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        return {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "1"}

    return write


@pytest.fixture
def options(tmp_path: Path, record: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ServeOptions]:
    """Options of a server with a small program in place of Triton, whose model has three processes on a GPU."""
    monkeypatch.setattr(command, "gpu_count", lambda: 1)
    model = tmp_path / "models" / "model"
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "model" instance_group [ { kind: KIND_GPU count: 3 } ]')
    (tmp_path / "fake" / "backends" / "python").mkdir(parents=True)

    def make(at_start: str = "", **changes: Any) -> ServeOptions:
        binary = tmp_path / "fake" / "bin" / "tritonserver"
        write_program(binary, TRITON, record=str(record), at_start=at_start)
        ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
        return ServeOptions(tmp_path / "models", tritonserver=binary, **ports, **changes)

    return make


def gone(pid: int) -> bool:
    stat = ProcessStat.read(pid)
    return stat is None or not stat.alive


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)


def daemon_in(folder: Path, environment: dict[str, str]) -> MpsDaemon:
    daemon = daemon_for(folder, environment, new_prefix())
    assert daemon is not None
    return daemon


class TestDaemon:
    def test_it_has_folders_of_its_own_sees_all_gpus_and_is_asked_to_quit(
        self, install: Callable[..., dict[str, str]], events: Events, tmp_path: Path
    ) -> None:
        folder = tmp_path / "mps"
        daemon = daemon_in(folder, install())
        daemon.start()
        assert {path.name: path.stat().st_mode & 0o777 for path in (folder / "pipe", folder / "log")} == {
            "pipe": 0o700,
            "log": 0o700,
        }
        daemon.stop()
        daemon.stop()

        started, quit_ = events()
        assert daemon.environment == {
            "CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"),
            "CUDA_MPS_LOG_DIRECTORY": str(folder / "log"),
        }
        assert {name: started[name] for name in daemon.environment} == daemon.environment
        assert started["CUDA_VISIBLE_DEVICES"] is None
        assert quit_ == {"event": "quit -t 3\n"}
        assert gone(started["pid"])
        assert not folder.exists()

    def test_a_second_start_replaces_it(
        self, install: Callable[..., dict[str, str]], events: Events, tmp_path: Path
    ) -> None:
        daemon = daemon_in(tmp_path / "mps", install())
        daemon.start()
        daemon.start()
        daemon.stop()

        first, _, second, _ = events()
        assert [event["event"] for event in events()] == ["start", "quit -t 3\n", "start", "quit -t 3\n"]
        assert first["pid"] != second["pid"]

    def test_it_quits_when_the_launcher_is_killed(
        self, install: Callable[..., dict[str, str]], events: Events, tmp_path: Path
    ) -> None:
        daemon = daemon_in(tmp_path / "mps", install())
        daemon.start()
        assert daemon._process

        # What the kernel does with the launcher's pipes when it is killed.
        process = daemon._process
        process.close()

        wait_until(lambda: process.exit_status() is not None)
        assert not (tmp_path / "mps").exists()
        assert [event["event"] for event in events()] == ["start", "quit -t 3\n"]
        assert gone(events()[0]["pid"])

    def test_one_that_does_not_quit_is_killed_with_its_servers(
        self,
        install: Callable[..., dict[str, str]],
        events: Events,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(mps, "_STOP_S", 0.3)
        fork = "server = os.fork(); server or (os.setsid(), time.sleep(60)); record(event='server', pid=server)"
        daemon = daemon_in(tmp_path / "mps", install(at_start=fork, at_quit="pass"))
        daemon.start()
        daemon.stop()

        assert [event["event"] for event in events()] == ["start", "server", "quit -t 3\n"]
        assert all(gone(event["pid"]) for event in events() if "pid" in event)

    def test_one_that_does_not_start_is_reported_with_its_output(
        self, install: Callable[..., dict[str, str]], tmp_path: Path
    ) -> None:
        daemon = daemon_in(tmp_path / "mps", install(at_start="print('no GPU of Volta or later'); sys.exit(1)"))
        with pytest.raises(UnavailableError) as raised:
            daemon.start()
        assert str(raised.value) == "--mps: nvidia-cuda-mps-control does not start:\nno GPU of Volta or later"
        assert not (tmp_path / "mps").exists()

    def test_without_the_program_the_error_says_where_it_comes_from(
        self, install: Callable[..., dict[str, str]], tmp_path: Path
    ) -> None:
        install()
        with pytest.raises(UnavailableError, match=r"nvidia-cuda-mps-control is not on PATH\. .* nvidia-compute-utils"):
            daemon_for(tmp_path, {"PATH": str(tmp_path)}, "")

    def test_a_folder_too_long_for_a_socket_is_refused(
        self, install: Callable[..., dict[str, str]], tmp_path: Path
    ) -> None:
        with pytest.raises(
            UnavailableError, match=r"longer than the 107 bytes .* set TMPDIR to a folder with a shorter"
        ):
            daemon_for(tmp_path / ("x" * 100), install(), "")


class TestOtherDaemons:
    @pytest.fixture
    def listening(self, tmp_path: Path) -> Callable[[str], Path]:
        def listen(name: str) -> Path:
            (tmp_path / name).mkdir()
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.listener.bind(str(tmp_path / name / "control"))
            self.listener.listen()
            return tmp_path / name

        return listen

    def test_one_that_the_environment_names_is_used_as_it_is(
        self, install: Callable[..., dict[str, str]], listening: Callable[[str], Path], tmp_path: Path
    ) -> None:
        environment = {**install(), mps.PIPE_DIRECTORY: str(listening("named"))}
        assert daemon_for(tmp_path / "mps", environment, "") is None
        assert sharing(environment, None, 1) == (
            f"the models' processes share each GPU by MPS, whose daemon was there before, in {tmp_path / 'named'}"
        )

    def test_one_that_has_ended_is_not_replaced_unasked(
        self, install: Callable[..., dict[str, str]], listening: Callable[[str], Path], tmp_path: Path
    ) -> None:
        environment = {**install(), mps.PIPE_DIRECTORY: str(listening("named"))}
        self.listener.close()
        with pytest.raises(UnavailableError, match=r"no MPS daemon listens in .*named, .* or unset the variable"):
            daemon_for(tmp_path / "mps", environment, "")

    def test_one_in_the_default_place_must_be_named_to_be_used(
        self, install: Callable[..., dict[str, str]], listening: Callable[[str], Path], tmp_path: Path
    ) -> None:
        listening("default")
        with pytest.raises(
            UnavailableError, match=r"Set CUDA_MPS_PIPE_DIRECTORY=\S+default to use it, or stop it \(ec"
        ):
            daemon_for(tmp_path / "mps", install(), "")


class TestServer:
    def test_the_daemon_is_there_before_triton_and_quits_after_it(
        self, install: Callable[..., dict[str, str]], options: Callable[..., ServeOptions], events: Events
    ) -> None:
        install()
        with TritonServer(options(mps=True)) as server:
            assert server.wait_ready()
            assert server.shares_faults
            assert server.gpu_sharing == (
                "the models' processes share each GPU by MPS, whose daemon this server has started"
            )
            workspace = server.workspace
        assert [event["event"] for event in events()] == ["start", "triton", "quit -t 3\n"]
        daemon, triton, _ = events()
        assert triton["CUDA_MPS_PIPE_DIRECTORY"] == daemon["CUDA_MPS_PIPE_DIRECTORY"] == str(workspace / "mps" / "pipe")
        assert gone(daemon["pid"])
        assert not workspace.exists()

    def test_a_failed_start_leaves_no_daemon(
        self, install: Callable[..., dict[str, str]], options: Callable[..., ServeOptions], events: Events
    ) -> None:
        install()
        assert serve(options(at_start="sys.exit(3)", mps=True), report=lambda message: None) == 1
        assert [event["event"] for event in events()] == ["start", "triton", "quit -t 3\n"]
        assert gone(events()[0]["pid"])

    def test_it_is_never_started_unasked_and_time_slices_are_reported(
        self, install: Callable[..., dict[str, str]], options: Callable[..., ServeOptions], events: Events
    ) -> None:
        install()
        messages: list[str] = []
        assert serve(options(at_start="sys.exit(3)"), report=messages.append) == 1
        assert [(event["event"], event["CUDA_MPS_PIPE_DIRECTORY"]) for event in events()] == [("triton", None)]
        assert messages[0] == (
            "3 processes of a model take turns on each GPU (time slices); with --mps their work overlaps"
        )

    def test_a_repository_without_a_gpu_is_refused(
        self, install: Callable[..., dict[str, str]], options: Callable[..., ServeOptions], events: Events
    ) -> None:
        install()
        chosen = options(mps=True)
        (chosen.repository / "model" / "config.pbtxt").write_text('name: "model"')
        with pytest.raises(UnavailableError, match=r"--mps: no model of .* uses a GPU"), TritonServer(chosen):
            pass
        assert events() == []


@pytest.mark.parametrize("shares_faults", [False, True])
def test_a_fault_that_all_clients_share_ends_triton_instead_of_one_process(shares_faults: bool, tmp_path: Path) -> None:
    ended: list[str] = []
    assert report_failure("the GPU failed", {DIRECTORY_VARIABLE: str(tmp_path)})
    process = SimpleNamespace(pid=os.getpid(), model="ocdnet_fused", alive=lambda: True)
    server: Any = SimpleNamespace(
        health_directory=tmp_path,
        stubs=lambda: [process],
        shares_faults=shares_faults,
        pid=2,
        abort=lambda: ended.append("Triton"),
    )
    messages: list[str] = []
    supervisor_ = supervisor.Supervisor(server, messages.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "kill", lambda stub: ended.append(stub.model))
        supervisor_._end_failed_stubs()

    assert ended == ["Triton" if shares_faults else "ocdnet_fused"]
    assert [str(message) for message in messages] == [
        "ocdnet_fused: the GPU failed; Triton is ended, whose processes share the fault"
        if shares_faults
        else f"ocdnet_fused: the GPU failed; its process {os.getpid()} is ended"
    ]


def test_one_process_has_a_gpu_to_itself(install: Callable[..., dict[str, str]]) -> None:
    assert sharing(install(), None, 1) == ""

# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ocdserve.backend.serve.process.health import (
    DIRECTORY_VARIABLE,
    HangWatch,
    InFlight,
    report_failure,
    start_heartbeat,
    take_failures,
    take_lost,
)
from ocdserve.backend.serve.process.processes import ProcessStat, Stub
from ocdserve.backend.serve.supervisor import Supervisor


def test_a_note_is_taken_once(tmp_path: Path) -> None:
    assert report_failure("the GPU failed: é", {DIRECTORY_VARIABLE: str(tmp_path)})
    assert take_failures(tmp_path) == {os.getpid(): "the GPU failed: é"}
    assert take_failures(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_note_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "17.draft").write_text("half a sen")
    assert take_failures(tmp_path) == {}


def test_without_a_launcher_nobody_is_notified(tmp_path: Path) -> None:
    assert not report_failure("the GPU failed", {})
    assert not report_failure("the GPU failed", {DIRECTORY_VARIABLE: str(tmp_path / "gone")})
    assert take_failures(tmp_path / "gone") == {}


class TestSupervisor:
    """What it does with a note; the real server is in tests/integration."""

    @pytest.fixture
    def killed(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        killed: list[int] = []
        monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
        return killed

    @pytest.mark.parametrize(("alive", "expected"), [(True, [11]), (False, [])])
    def test_only_a_living_stub_that_failed_is_ended(
        self, tmp_path: Path, killed: list[int], monkeypatch: pytest.MonkeyPatch, alive: bool, expected: list[int]
    ) -> None:
        class Server:
            health_directory = tmp_path
            shares_faults = False

            def stubs(self) -> tuple[Stub, ...]:
                return Stub(10, 1, "ocdnet_network", "a"), Stub(11, 1, "ocdnet_fused", "b")

        monkeypatch.setattr(Stub, "alive", lambda self: alive)
        messages: list[str] = []
        supervisor = Supervisor(Server(), messages.append)  # type: ignore[arg-type]
        supervisor._end_failed_stubs()
        assert (killed, messages) == ([], [])
        (tmp_path / "11").write_text("the GPU failed")
        (tmp_path / "99").write_text("a process of an earlier server")
        supervisor._end_failed_stubs()
        supervisor._end_failed_stubs()
        assert killed == expected
        assert messages == ["ocdnet_fused: the GPU failed; its process 11 is ended"] * alive


def test_a_process_hangs_that_is_stopped_or_no_longer_touches_its_file(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watch, pid, beat = HangWatch(), process.pid, tmp_path / f"beat-{process.pid}"
    try:
        # Without a file it is not known to have a heartbeat.
        assert watch.hanging(tmp_path, [pid], 0.0) == watch.hanging(tmp_path, [pid], 1e6) == {}
        beat.touch()
        os.utime(beat, (1, 1))
        assert watch.hanging(tmp_path, [pid], 1e6) == watch.hanging(tmp_path, [pid], 1e6 + 59) == {}
        assert watch.hanging(tmp_path, [pid], 1e6 + 61) == {pid: "it has not run for 60 s"}
        os.utime(beat, (2, 2))
        assert watch.hanging(tmp_path, [pid], 1e6 + 62) == {}
        process.send_signal(signal.SIGSTOP)
        while ProcessStat.read(pid).state != "T":  # type: ignore[union-attr]
            time.sleep(0.01)
        assert watch.hanging(tmp_path, [pid], 1e6 + 62) == watch.hanging(tmp_path, [pid], 1e6 + 62.9) == {}
        assert watch.hanging(tmp_path, [pid], 1e6 + 63.1) == {pid: "it was stopped by a signal"}
        process.send_signal(signal.SIGCONT)
        while ProcessStat.read(pid).state == "T":  # type: ignore[union-attr]
            time.sleep(0.01)
        assert watch.hanging(tmp_path, [pid], 1e6 + 63.2) == {}
    finally:
        process.kill()
        process.wait()
    assert watch.hanging(tmp_path, [pid], 2e6) == {} and not beat.exists()


def test_a_heartbeat_touches_its_file_while_there_is_a_launcher(tmp_path: Path) -> None:
    start_heartbeat({DIRECTORY_VARIABLE: str(tmp_path)})
    deadline = time.monotonic() + 5
    while not (tmp_path / f"beat-{os.getpid()}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / f"beat-{os.getpid()}").exists()
    threads = threading.active_count()
    start_heartbeat({})
    assert threading.active_count() == threads


def test_requests_without_an_answer_are_known_after_the_death_of_their_process(tmp_path: Path) -> None:
    code = (
        "from ocdserve.backend.serve.process.health import InFlight; import os, signal;"
        " count = InFlight(); count.add(3); count.add(-1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, DIRECTORY_VARIABLE: str(tmp_path)})
    assert process.wait(20) == -signal.SIGKILL
    assert take_lost(tmp_path, os.getpid()) == {process.pid: 2}
    assert take_lost(tmp_path, os.getpid()) == {}
    assert list(tmp_path.iterdir()) == []


def test_only_dead_processes_of_the_server_have_lost_requests(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait(20)
    server = os.getpid()
    for name, count in (
        (f"{server}-{process.pid}", b""),  # no room on the disk
        (f"{server}-{os.getpid()}", bytes([3, 0, 0, 0, 0, 0, 0, 0])),  # lives
        (f"1-{process.pid}", bytes([3, 0, 0, 0, 0, 0, 0, 0])),  # of a server that has ended
    ):
        (tmp_path / f"in-flight-{name}").write_bytes(count)
    assert take_lost(tmp_path, server) == {process.pid: None}
    assert [file.name for file in tmp_path.iterdir()] == [f"in-flight-{server}-{server}"]


def test_without_a_launcher_requests_are_not_shown(tmp_path: Path) -> None:
    for environment in ({}, {DIRECTORY_VARIABLE: str(tmp_path / "gone")}):
        count = InFlight(environment)
        count.add(1)
        count.add(-1)

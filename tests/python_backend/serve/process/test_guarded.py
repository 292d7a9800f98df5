# SPDX-License-Identifier: Apache-2.0
"""The guard with small shell scripts in place of tritonserver."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ocdserve.backend.serve.process.guarded import GuardedProcess, GuardSpec
from ocdserve.backend.serve.process.ownership import new_prefix
from ocdserve.backend.serve.process.processes import ProcessStat
from ocdserve.contract import UnavailableError

# A server that starts a stub, says so, and stops on SIGTERM without ending the stub.
WITH_STUB = "sleep 60 & echo $! ; trap 'exit 4' TERM; while :; do sleep 0.05; done"
STUBBORN = "trap '' TERM; sleep 60 & echo $! ; while :; do sleep 0.05; done"


@pytest.fixture
def spec(tmp_path: Path) -> Callable[[str], GuardSpec]:
    (tmp_path / "workspace").mkdir()

    def make(script: str) -> GuardSpec:
        return GuardSpec(
            command=["/bin/sh", "-c", script],
            environment={"PATH": "/usr/bin:/bin"},
            directory=tmp_path / "workspace",
            log=tmp_path / "log",
            segment_prefix=new_prefix(),
            workspace=tmp_path / "workspace",
            stop_timeout_s=0.5,
        )

    return make


def stub_pid(spec: GuardSpec) -> int:
    wait_until(lambda: spec.log.exists() and spec.log.read_text().endswith("\n"))
    return int(spec.log.read_text())


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    stat = ProcessStat.read(pid)
    return stat is None or not stat.alive


def segment(spec: GuardSpec) -> Path:
    path = Path("/dev/shm") / f"{spec.segment_prefix}segment"
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize("script", [WITH_STUB, STUBBORN], ids=["orderly", "stubborn"])
def test_stop_ends_server_and_stubs_and_removes_segments(spec: Callable[[str], GuardSpec], script: str) -> None:
    what = spec(script)
    process = GuardedProcess(what)
    left, stub = segment(what), stub_pid(what)
    assert process.exit_status() is None

    process.stop()

    assert gone(process.pid)
    assert gone(stub)
    assert not left.exists()
    assert process.exit_status() == (4 if script == WITH_STUB else 137)


@pytest.mark.parametrize(
    ("script", "status"),
    [("sleep 60 & echo $! ; exit 3", 3), ("sleep 60 & echo $! ; kill -SEGV $$", 139)],
    ids=["exit", "crash"],
)
def test_a_server_that_dies_leaves_nothing_but_its_status(
    spec: Callable[[str], GuardSpec], script: str, status: int
) -> None:
    what = spec(script)
    left = segment(what)
    process = GuardedProcess(what)

    wait_until(lambda: process.exit_status() is not None)

    assert process.exit_status() == status
    assert gone(stub_pid(what))
    assert not left.exists()
    # The launcher still needs it to start the server again.
    assert what.workspace.exists()
    process.stop()


def test_kill_does_not_wait_for_a_stubborn_server(spec: Callable[[str], GuardSpec]) -> None:
    what = dataclasses.replace(spec(STUBBORN), stop_timeout_s=60)
    process = GuardedProcess(what)
    stub = stub_pid(what)
    start = time.monotonic()

    process.kill()
    process.stop()

    assert time.monotonic() - start < 30
    assert gone(stub)


def test_a_launcher_that_disappears_takes_everything_with_it(spec: Callable[[str], GuardSpec]) -> None:
    what = spec(WITH_STUB)
    process = GuardedProcess(what)
    left, stub = segment(what), stub_pid(what)

    # What the kernel does with the launcher's pipes when it is killed.
    process.close()

    wait_until(lambda: process.exit_status() is not None)
    assert gone(stub)
    assert not left.exists()
    assert not what.workspace.exists()


def test_a_guard_that_is_killed_is_replaced_by_the_launcher(spec: Callable[[str], GuardSpec]) -> None:
    what = spec(STUBBORN)
    process = GuardedProcess(what)
    left, stub = segment(what), stub_pid(what)
    stat = ProcessStat.read(process.pid)
    assert stat is not None

    os.kill(stat.parent, signal.SIGKILL)
    wait_until(lambda: process.exit_status() is not None)

    assert process.exit_status() == -9
    wait_until(lambda: gone(process.pid) and gone(stub))
    assert not left.exists()
    process.stop()


def test_a_server_that_cannot_be_started_is_named_with_the_reason(spec: Callable[[str], GuardSpec]) -> None:
    what = spec("true")
    broken = GuardSpec(**{**vars(what), "command": ["/nowhere/tritonserver"]})
    with pytest.raises(UnavailableError, match="/nowhere/tritonserver could not be started: FileNotFoundError"):
        GuardedProcess(broken)

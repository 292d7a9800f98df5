# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from ocdserve.backend.serve.process.processes import (
    ProcessStat,
    Stub,
    find_dead,
    find_stubs,
    parse_stub_arguments,
    retire,
)

STUB = "/somewhere/backends/python/triton_python_backend_stub"
# Twenty-two fields, as proc(5) lists them: state is the third, the parent the fourth, the start time the last here.
TAIL = "{state} {parent} 500 500 0 -1 4194304 7718 0 6 0 38 12 0 0 20 0 5 0 {start}"


def stat(pid: int, name: str, state: str = "S", parent: int = 77, start: int = 123456) -> str:
    return f"{pid} ({name}) {TAIL.format(state=state, parent=parent, start=start)} 0 0"


@pytest.mark.parametrize("name", ["triton_python_b", "two words", "a) S 1 (b", "((", "))", ""])
def test_a_process_name_may_hold_spaces_and_parentheses(name: str) -> None:
    assert ProcessStat.parse(stat(4321, name)) == ProcessStat(4321, name, "S", 77, 123456)


@pytest.mark.parametrize(
    ("state", "alive"), [("R", True), ("S", True), ("D", True), ("T", True), ("Z", False), ("X", False)]
)
def test_a_zombie_counts_as_dead(state: str, alive: bool) -> None:
    assert ProcessStat.parse(stat(1, "x", state)).alive is alive


def test_this_process_is_read_from_the_real_proc() -> None:
    own = ProcessStat.read(os.getpid())
    assert own is not None
    assert (own.pid, own.parent, own.alive) == (os.getpid(), os.getppid(), True)


def test_a_real_zombie_is_dead_and_a_reaped_process_is_nothing() -> None:
    child = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    zombie = ProcessStat.read(child.pid)
    child.wait()
    assert zombie is not None
    assert not zombie.alive
    assert ProcessStat.read(child.pid) is None


def test_the_command_line_of_a_stub_names_model_and_segment() -> None:
    arguments = [
        STUB,
        "/my models/ocdnet_network/1/model.py",
        "/own-1b2c",
        "1",
        "1",
        "77",
        "/b",
        "336",
        "group_0_1",
        "DEFAULT",
    ]
    assert parse_stub_arguments(arguments) == ("ocdnet_network", "own-1b2c")


@pytest.mark.parametrize(
    "arguments",
    [[], [""], [STUB], [STUB, "/r/m/1/model.py", "own"], ["/bin/cat", "/r/m/1/model.py", *"abcdefgh"]],
)
def test_other_command_lines_are_no_stubs(arguments: list[str]) -> None:
    assert parse_stub_arguments(arguments) is None


def process(proc: Path, text: str, *arguments: str) -> None:
    entry = proc / text.split()[0]
    entry.mkdir()
    (entry / "stat").write_text(text)
    (entry / "cmdline").write_bytes(b"".join(argument.encode() + b"\0" for argument in arguments))


def stub_arguments(model: str) -> tuple[str, ...]:
    return (STUB, f"/r/{model}/1/model.py", f"own-{model}", "1", "1", "77", "/b", "336", f"{model}_0_0", "DEFAULT")


def test_only_living_stubs_of_the_server_are_found(tmp_path: Path) -> None:
    process(tmp_path, stat(20, "triton_python_b", start=5), *stub_arguments("second"))
    process(tmp_path, stat(9, "triton_python_b", start=4), *stub_arguments("first"))
    process(tmp_path, stat(21, "triton_python_b", parent=78), *stub_arguments("of_another_server"))
    process(tmp_path, stat(22, "triton_python_b", state="Z"))
    process(tmp_path, stat(23, "tritonserver"), "/bin/tritonserver", "--model-repository=/r")
    (tmp_path / "self").mkdir()

    assert find_stubs(77, tmp_path) == (Stub(9, 4, "first", "own-first"), Stub(20, 5, "second", "own-second"))


def test_stubs_are_found_that_died_before_they_were_seen(tmp_path: Path) -> None:
    # A zombie has no arguments.
    process(tmp_path, stat(20, "triton_python_b", state="Z", start=5))
    process(tmp_path, stat(21, "triton_python_b", state="Z", start=6))
    process(tmp_path, stat(22, "triton_python_b", state="Z", parent=78))
    process(tmp_path, stat(23, "sh", state="Z"))
    process(tmp_path, stat(24, "triton_python_b"), *stub_arguments("alive"))

    assert find_dead(77, {20}, tmp_path) == (Stub(21, 6, "", ""),)


def test_a_stub_whose_pid_now_belongs_to_another_process_is_dead(tmp_path: Path) -> None:
    process(tmp_path, stat(20, "triton_python_b", start=6), *stub_arguments("model"))
    assert Stub(20, 6, "model", "own-model").alive(tmp_path)
    assert not Stub(20, 5, "model", "own-model").alive(tmp_path)
    assert not Stub(19, 6, "model", "own-model").alive(tmp_path)


def test_notes_of_a_retired_process_go_with_it(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        found = ProcessStat.read(process.pid)
        assert found is not None
        for name in (f"beat-{process.pid}", f"in-flight-{process.pid}", f"beat-{process.pid}1", "totals.json"):
            (tmp_path / name).touch()
        stub = Stub(process.pid, found.start_time, "ocdnet_network", "ocdserve-test-no-segment")
        retire([stub], 0.0, threading.Event(), tmp_path)
        assert process.wait(10) == -signal.SIGKILL
        # Of the requests that it has lost, the supervisor has yet to learn.
        left = [f"beat-{process.pid}1", f"in-flight-{process.pid}", "totals.json"]
        assert sorted(path.name for path in tmp_path.iterdir()) == left
    finally:
        process.kill()

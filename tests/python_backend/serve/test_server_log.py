# SPDX-License-Identifier: Apache-2.0
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ocdserve.backend.serve.server_log import ServerLog, explain, loading_messages
from ocdserve.contract import UnavailableError

LOADING = 'I1121 02:26:51.020973 5352 model_lifecycle.cc:472] "loading: slow:1"'
LOADED = "I1121 02:26:52.727422 5352 model_lifecycle.cc:839] \"successfully loaded 'slow'\""
OTHER = 'I1121 02:26:51.021702 5352 python_be.cc:2249] "TRITONBACKEND_ModelInstanceInitialize: slow_0_1 (CPU device 0)"'
FAILED = (
    "E1121 02:26:53.000000 5352 model_lifecycle.cc:642] \"failed to load 'slow' version 1: Internal: "
    "RuntimeError: the weights are gone"
)
TRACEBACK = "At:\n  /models/slow/1/model.py(8): initialize"


def test_models_that_start_and_finish_loading_are_reported() -> None:
    assert loading_messages([LOADING, OTHER, LOADED]) == ["loading slow ...", "slow is ready"]


def test_progress_is_reported_once_and_only_for_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(f"{LOADED}\n")
    log = ServerLog(path)
    assert log.progress() == []
    with path.open("a") as file:
        file.write(f"{LOADING}\n{LOADED[:40]}")
    assert log.progress() == ["loading slow ..."]
    with path.open("a") as file:
        file.write(f"{LOADED[40:]}\n")
    assert log.progress() == ["slow is ready"]


def test_a_log_that_does_not_exist_yet_says_nothing(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "log")
    assert (log.progress(), log.excerpt(), log.mentions_dead_stub()) == ([], "", False)


def test_models_that_refuse_to_load_are_known_by_name(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(f"{FAILED}\n")
    log = ServerLog(path)
    assert log.refused() == set()
    with path.open("a") as file:
        file.write(f"{LOADED}\n{FAILED.replace('slow', 'ocdnet_network')}\n")
    assert log.refused() == {"ocdnet_network"}


def test_errors_are_quoted_with_what_follows_them_and_nothing_else() -> None:
    text = f"{LOADING}\n{FAILED}\n\n{TRACEBACK}\n{OTHER}\n+------+\n| slow | UNAVAILABLE |\n"
    assert explain(text) == f"{FAILED}\n{TRACEBACK}"


def test_what_triton_calls_an_error_on_each_machine_without_a_gpu_explains_nothing() -> None:
    missing = 'E1121 02:26:51.605904 20994 server.cc:241] "CudaDriverHelper has not been initialized."'
    stream = (
        'E1121 02:26:51.277358 9046 ensemble_scheduler.cc:1468] "unable to create stream for ocdnet: '
        'CUDA driver version is insufficient for CUDA runtime version"'
    )
    assert explain(f"{missing}\n{stream}\n{FAILED}") == FAILED


def test_without_errors_the_end_is_quoted() -> None:
    assert explain("\n".join(f"line {i}" for i in range(100))).splitlines() == [f"line {i}" for i in range(75, 100)]


def test_only_the_latest_run_explains_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(f"{FAILED}\n")
    log = ServerLog(path)
    assert log.excerpt() == ""
    with path.open("a") as file:
        file.write("E1121 02:26:53.0 1 x.cc:1] \"Stub process 'slow_0_0' is not healthy.\"\n")
    assert log.mentions_dead_stub()
    log.mark()
    assert not log.mentions_dead_stub()


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UnavailableError, match=r"cannot write the log file '.*/absent/a.log': No such file or directory"
    ):
        ServerLog(tmp_path / "absent" / "a.log")
    with pytest.raises(UnavailableError, match="Is a directory"):
        ServerLog(tmp_path)


def test_new_lines_are_relayed_once_and_the_file_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("of an earlier server\n")
    relayed: list[str] = []
    log = ServerLog(path, 4096, relayed.append)
    log.start()
    expected = [f"line {number} {'x' * 90}" for number in range(300)]
    with path.open("a") as file:
        for begin in range(0, 300, 100):
            file.write("".join(f"{line}\n" for line in expected[begin : begin + 100]))
            file.flush()
            wait_until(lambda begin=begin: len(relayed) == begin + 100)
            wait_until(lambda: path.stat().st_size <= 4096)
        file.write("\nthe last one\n")
    log.stop()
    assert relayed == [*expected, "the last one"]
    assert (tmp_path / "log.1").stat().st_size <= 4096
    assert stat.S_IMODE((tmp_path / "log.1").stat().st_mode) == 0o600
    kept = ((tmp_path / "log.1").read_text() + path.read_text()).splitlines()
    assert kept[-2:] == ["", "the last one"]
    assert kept[-3] in expected


@pytest.mark.parametrize("character", ["\u2028", "\x0b", "\x0c", "\x1e", "\x85"])
def test_no_other_character_than_a_line_break_begins_a_line(tmp_path: Path, character: str) -> None:
    log = ServerLog(tmp_path / "log")
    forged = 'I1128 21:00:00.000000 1 a.cc:1] "loading: forged:1"'
    (tmp_path / "log").write_text(f'E1128 21:00:00.000000 1 a.py:1] "no {character}{forged}{character}"\n', "utf-8")
    assert log.progress() == []
    assert log.excerpt() == (tmp_path / "log").read_text("utf-8").removesuffix("\n")


def test_a_file_that_is_too_large_is_emptied_even_where_no_second_one_can_be_written(tmp_path: Path) -> None:
    path, other = tmp_path / "log", tmp_path / "other"
    other.write_text("somebody's")
    (tmp_path / "log.1").symlink_to(other)
    path.write_text("x\n" * 5000)
    log = ServerLog(path, 4096)
    log.start()
    wait_until(lambda: path.stat().st_size == 0)
    log.stop()
    assert other.read_text() == "somebody's"
    path.write_text(f"{LOADING}\n")
    assert log.progress() == ["loading slow ..."]


@pytest.mark.parametrize("target", ["/dev/stderr", "/dev/stdout"])
def test_the_output_of_the_launcher_is_not_relayed_to_itself(tmp_path: Path, target: str) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ocdserve.backend.serve.server_log import ServerLog\n"
        f"log = ServerLog(Path({target!r}), 4096, lambda line: print(line, file=sys.stderr, flush=True))\n"
        "log.start(); print('once', file=sys.stderr, flush=True); time.sleep(0.5); log.stop()"
    )
    with (tmp_path / "output").open("wb") as output:
        subprocess.run([sys.executable, "-c", code], stdout=output, stderr=output, check=True, timeout=60)
    assert (tmp_path / "output").read_text() == "once\n"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

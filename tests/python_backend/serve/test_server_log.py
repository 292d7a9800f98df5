# SPDX-License-Identifier: Apache-2.0
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


def test_errors_are_quoted_with_what_follows_them_and_nothing_else() -> None:
    text = f"{LOADING}\n{FAILED}\n\n{TRACEBACK}\n{OTHER}\n+------+\n| slow | UNAVAILABLE |\n"
    assert explain(text) == f"{FAILED}\n{TRACEBACK}"


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

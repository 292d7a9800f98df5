# SPDX-License-Identifier: Apache-2.0
"""Status, exit codes and refusals of the command, with actions that do as the test says."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve.backend.device import pytorch
from ocdserve.builder.tao import actions
from ocdserve.builder.tao.actions import ACTIONS, Action, ActionResult, Context
from ocdserve.builder.tao.cli import main
from ocdserve.builder.tao.running import run_action
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.status import StatusLog
from ocdserve.contract import InvalidInputError

ACTION = ACTIONS["default_specs"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "status.json").read_text("utf-8").splitlines()]


@pytest.fixture
def acting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs an action whose body is the given function, with its results in `tmp_path`."""

    def act(body: Callable[[Spec, Context], ActionResult], *overrides: str, action: Action = ACTION) -> int:
        monkeypatch.setattr(actions, "run", body)
        return run_action(replace(action, module="actions"), None, [f"results_dir={tmp_path}", *overrides])

    return act


class TestStatusLog:
    def test_a_line_has_tao_s_fields_and_unpadded_date_and_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> "Clock":
                return cls(2026, 3, 4, 5, 6, 7)

        monkeypatch.setattr("ocdserve.builder.tao.status.datetime", Clock)
        StatusLog(tmp_path).write("RUNNING", "Working.", kpi={"hmean": 0.5}, epoch=3)
        assert (tmp_path / "status.json").read_text("utf-8") == (
            '{"date": "3/4/2026", "time": "5:6:7", "status": "RUNNING", "verbosity": "INFO", "message": "Working.", '
            '"kpi": {"hmean": 0.5}, "epoch": 3}\n'
        )

    def test_runs_are_appended(self, tmp_path: Path) -> None:
        for number in range(2):
            StatusLog(tmp_path).write("STARTED", f"run {number}")
        assert [line["message"] for line in lines(tmp_path)] == ["run 0", "run 1"]

    def test_data_comes_first_and_figures_are_repeated_where_asked(self, tmp_path: Path) -> None:
        """As TAO's training image writes them."""
        log = StatusLog(tmp_path, repeats_kpi=True)
        log.write("RUNNING", "a", data={"epoch": 0})
        log.write("RUNNING", "b", kpi={"hmean": "0.5"})
        log.write("RUNNING", "c")
        found = lines(tmp_path)
        assert [list(line) for line in found][:2] == [
            ["epoch", "date", "time", "status", "verbosity", "message"],
            ["date", "time", "status", "verbosity", "message", "kpi"],
        ]
        assert found[2]["kpi"] == {"hmean": "0.5"}

    def test_numbers_stay_numbers_and_non_finite_ones_are_null(self, tmp_path: Path) -> None:
        """Fault 22: TAO writes figures as texts."""
        kpi = {"a": np.float32(0.5), "b": np.int64(3), "c": float("nan"), "d": float("inf"), "e": Path("x")}
        StatusLog(tmp_path).write("SUCCESS", "done", kpi=kpi)  # type: ignore[arg-type]
        assert lines(tmp_path)[0]["kpi"] == {"a": 0.5, "b": 3, "c": None, "d": None, "e": "x"}


class TestEnd:
    def test_a_success_is_written_as_tao_does_and_then_as_success(
        self, acting: Callable[..., int], tmp_path: Path
    ) -> None:
        """Fault 22: in TAO the last line of a success says RUNNING."""
        code = acting(lambda spec, context: ActionResult("all done", {"hmean": 0.25}))
        assert code == 0
        found = lines(tmp_path)
        assert [line["status"] for line in found] == ["STARTED", "RUNNING", "SUCCESS"]
        assert found[1]["message"] == "Default_specs finished successfully."
        assert found[2]["kpi"] == {"hmean": 0.25}
        assert (tmp_path / "experiment.yaml").is_file()

    @pytest.mark.parametrize(
        ("name", "started", "finished"),
        [
            ("evaluate", "Starting ocdnet trt_evaluate.", "Trt_evaluate finished successfully."),
            ("inference", "Starting ocdnet trt_inference.", "Trt_inference finished successfully."),
            ("gen_trt_engine", "Starting ocdnet gen_trt_engine.", "Gen_trt_engine finished successfully."),
            ("train", "Starting OCDNet train.", "Train finished successfully."),
            ("retrain", "Starting OCDNet train.", "Train finished successfully."),
            ("export", "Starting OCDNet export.", "Export finished successfully."),
            ("prune", "Starting OCDNet prune.", "Prune finished successfully."),
            ("quantize", "Starting OCDNet quantize.", "Quantize finished successfully."),
        ],
    )
    def test_messages_are_those_of_tao(
        self, acting: Callable[..., int], tmp_path: Path, name: str, started: str, finished: str
    ) -> None:
        action = replace(ACTIONS[name], mandatory=())
        own = f"{'train' if name == 'retrain' else name}.results_dir={tmp_path}"
        assert acting(lambda spec, context: ActionResult("done"), own, action=action) == 0
        assert [line["message"] for line in lines(tmp_path)] == [started, finished, "done"]

    @pytest.mark.parametrize("name", ["evaluate", "inference"])
    def test_a_checkpoint_gets_the_messages_of_the_training_image(
        self, acting: Callable[..., int], tmp_path: Path, name: str
    ) -> None:
        of_checkpoint = ACTIONS[name].of_checkpoint
        assert of_checkpoint is not None
        row = replace(of_checkpoint, module="actions", function="run", mandatory=())
        action = replace(ACTIONS[name], of_checkpoint=row)
        assert acting(lambda spec, context: ActionResult("done"), f"{name}.checkpoint=a.pth", action=action) == 0
        first, last, _ = (line["message"] for line in lines(tmp_path / name))
        assert (first, last) == (f"Starting OCDNet {name}.", f"{name.capitalize()} finished successfully.")

    @pytest.mark.parametrize(
        "error",
        [
            KeyError("k"),
            IndexError(),
            RuntimeError("r"),
            AssertionError("a"),
            SystemExit(0),
            MemoryError(),
            OSError("o"),
        ],
    )
    def test_every_exception_ends_in_a_failure(
        self, acting: Callable[..., int], tmp_path: Path, error: BaseException, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Fault 22: many exceptions leave no line in TAO."""

        def body(spec: Spec, context: Context) -> ActionResult:
            raise error

        assert acting(body) == 1
        last = lines(tmp_path)[-1]
        assert (last["status"], last["verbosity"]) == ("FAILURE", "ERROR")
        assert type(error).__name__ in last["message"]
        assert "Traceback" in capsys.readouterr().err

    def test_our_errors_have_no_traceback(
        self, acting: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def body(spec: Spec, context: Context) -> ActionResult:
            raise InvalidInputError("name another file")

        assert acting(body) == 1
        assert lines(tmp_path)[-1]["message"] == "name another file"
        assert capsys.readouterr().err == "ocdnet default_specs: name another file\n"

    def test_a_file_that_cannot_be_written_is_reported_without_a_traceback(
        self, acting: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = tmp_path / "results.json"
        target.mkdir()

        def body(spec: Spec, context: Context) -> ActionResult:
            target.write_text("{}")
            raise RuntimeError("not reached")

        assert acting(body) == 1
        output = capsys.readouterr().err
        assert output.startswith("ocdnet default_specs: ") and output.count("\n") == 1 and str(target) in output
        assert str(target) in lines(tmp_path)[-1]["message"]

    @pytest.mark.parametrize(
        ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
    )
    def test_signals_end_in_a_failure_and_their_own_code(
        self, acting: Callable[..., int], tmp_path: Path, number: int, code: int, word: str
    ) -> None:
        """In TAO, Ctrl-C exits with 0."""

        def body(spec: Spec, context: Context) -> ActionResult:
            os.kill(os.getpid(), number)
            raise RuntimeError("not reached")

        assert acting(body) == code
        assert word in lines(tmp_path)[-1]["message"]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    @pytest.mark.parametrize(("nodes", "written"), [(2, False), (1, True)])
    def test_the_first_of_several_machines_writes(
        self, acting: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, written: bool
    ) -> None:
        monkeypatch.setenv("NODE_RANK", "1")
        action = replace(ACTIONS["train"], mandatory=())
        assert acting(lambda spec, context: ActionResult("done"), f"train.num_nodes={nodes}", action=action) == 0
        for name in ("status.json", "experiment.yaml"):
            assert (tmp_path / "train" / name).is_file() is written

    def test_an_error_of_the_spec_is_a_failure(self, tmp_path: Path) -> None:
        """Fault 22: in TAO errors of the spec come before there is a status."""
        code = run_action(ACTION, None, [f"results_dir={tmp_path}", "evaluate.batchsize=1"])
        assert code == 1
        assert [line["status"] for line in lines(tmp_path)] == ["STARTED", "FAILURE"]
        assert "evaluate.batch_size" in lines(tmp_path)[-1]["message"]

    def test_a_missing_spec_file_is_a_failure_if_an_override_sets_the_folder(self, tmp_path: Path) -> None:
        action = ACTIONS["evaluate"]
        assert run_action(action, tmp_path / "none.yaml", [f"results_dir={tmp_path}"]) == 1
        assert "no spec file" in lines(tmp_path / "trt_evaluate")[-1]["message"]

    def test_a_folder_that_cannot_be_written_is_reported(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        assert run_action(ACTION, None, [f"results_dir={tmp_path / 'file'}"]) == 1
        assert "cannot be written" in capsys.readouterr().err

    def test_mandatory_keys_are_named(self, tmp_path: Path) -> None:
        spec = tmp_path / "spec.yaml"
        spec.write_text("gen_trt_engine:\n  onnx_file: ???\n")
        assert run_action(ACTIONS["gen_trt_engine"], spec, [f"results_dir={tmp_path}"]) == 1
        message = lines(tmp_path / "gen_trt_engine")[-1]["message"]
        assert "needs gen_trt_engine.onnx_file and gen_trt_engine.trt_engine" in message


class TestCommand:
    def test_it_is_a_module_too_for_the_name_ocdnet_belongs_to_tao_deploy_as_well(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "ocdserve.builder.tao", "default_specs", f"results_dir={tmp_path}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["Execution status: PASS"]), done.stderr
        assert (tmp_path / "experiment.yaml").is_file()

    def test_default_specs_writes_every_key(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["default_specs", f"results_dir={tmp_path}"]) == 0
        text = (tmp_path / "experiment.yaml").read_text("utf-8")
        for key in ("backbone: deformable_resnet18", "workspace_size: 1024", "onnx_file: ???", "onnx_file: null"):
            assert key in text
        assert "ocdserve" not in text
        assert capsys.readouterr().out.endswith("Execution status: PASS\n")

    def test_default_specs_needs_a_folder(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["default_specs"]) == 1
        assert "set results_dir" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [["evaluate"], ["evaluate", "-x"], ["detect"], []])
    def test_bad_usage_is_a_failure(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(arguments) == 1
        assert "usage: ocdnet" in capsys.readouterr().err

    def test_an_output_of_a_tool_that_cannot_be_written_is_reported(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "ocdnet.engine").write_text("")
        target = tmp_path / "nowhere" / "x.json"
        assert main(["resolve", "--parent", str(tmp_path), "--action", "evaluate", "--json", str(target)]) == 1
        assert re.fullmatch(r"ocdnet resolve: .*No such file.*\n", capsys.readouterr().err)

    def test_a_checkpoint_or_an_engine_is_asked_for(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        spec = tmp_path / "spec.yaml"
        spec.write_text("evaluate:\n  checkpoint: ???\n")
        assert main(["evaluate", "-e", str(spec), f"results_dir={tmp_path}"]) == 1
        assert "evaluate needs evaluate.trt_engine or evaluate.checkpoint and dataset." in capsys.readouterr().err

    def test_training_without_its_extra_says_how_to_install_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pytorch, "missing_modules", lambda: ["torch"])
        action = replace(ACTIONS["train"], module="training.needs_torch", mandatory=())
        assert run_action(action, None, [f"results_dir={tmp_path}"]) == 1
        message = lines(tmp_path / "train")[-1]["message"]
        assert message.startswith("training needs the extra `train` (torch): `pip install 'ocdserve[train]'`")

    def test_retrain_is_train_with_the_pruned_graph(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(actions, "run", lambda spec, context: ActionResult(str(spec.model.load_pruned_graph)))
        action = replace(ACTIONS["retrain"], module="actions", mandatory=())
        assert run_action(action, None, [f"results_dir={tmp_path}"]) == 0
        assert lines(tmp_path / "train")[-1]["message"] == "True"

    def test_retrain_needs_the_pruned_graph(self, tmp_path: Path) -> None:
        spec = tmp_path / "spec.yaml"
        spec.write_text("dataset: {train_dataset: {data_path: [a]}, validate_dataset: {data_path: [b]}}")
        assert run_action(ACTIONS["retrain"], spec, [f"results_dir={tmp_path}"]) == 1
        assert lines(tmp_path / "train")[-1]["message"].startswith("retrain needs model.pruned_graph_path; set it")

    def test_the_actions_of_a_schema_are_tao_s(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["schema", "dataset_convert"]) == 1
        known = "gen_trt_engine, evaluate, inference, default_specs, train, retrain, export, prune, quantize, automl"
        assert capsys.readouterr().err.endswith(f"there is no action 'dataset_convert'; known are {known}\n")

    def test_the_launcher_s_spelling_is_the_same_command(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from ocdserve.cli import main as ocdserve

        assert ocdserve(["tao", "deploy", "ocdnet", "default_specs", f"results_dir={tmp_path}"]) == 0
        assert (tmp_path / "experiment.yaml").is_file()
        assert ocdserve(["tao", "model", "ocdnet", "default_specs", f"results_dir={tmp_path}"]) == 0
        assert ocdserve(["tao", "model", "rtdetr", "train"]) == 2
        assert "ocdserve tao model ocdnet ACTION" in capsys.readouterr().err

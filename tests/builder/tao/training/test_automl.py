# SPDX-License-Identifier: Apache-2.0
"""The search for the learning rate and the weight decay, on a stand-in for the training whose losses are known."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.running import run_action
from ocdserve.builder.tao.spec import Spec, load_spec
from ocdserve.builder.tao.training import automl, automl_report

LR, DECAY = "train.optimizer.args.lr", "train.optimizer.args.weight_decay"
SPEC = """
dataset: {train_dataset: {data_path: [a]}, validate_dataset: {data_path: [b]}}
train: {num_epochs: 5, lr_scheduler: {args: {warmup_epoch: 2}}}
"""


class Trainings:
    """Stands for the training: its loss falls by a tenth an epoch, from the distance of the lr to 0.01 in decades."""

    def __init__(self) -> None:
        self.specs: list[Spec] = []
        self.interrupted_at = 0
        self.is_diverging: Callable[[float], bool] = lambda lr: False

    def train(self, spec: Spec, context: Any, on_epoch: Callable[[int, dict[str, float]], None]) -> None:
        self.specs.append(spec)
        (context.results_dir / "model_epoch_000_step_00001.pth").touch()
        lr = spec.train.optimizer.args.lr
        for epoch in range(spec.train.num_epochs):
            if len(self.specs) == self.interrupted_at:
                raise KeyboardInterrupt
            loss = math.nan if self.is_diverging(lr) else (1 + abs(math.log10(lr / 0.01))) * 0.9**epoch
            figures = {"train_loss": loss}
            if (epoch + 1) % spec.train.validation_interval == 0:
                figures |= {"recall": 0.5, "precision": 0.5, "hmean": 0.9 - abs(math.log10(lr / 0.01)) / 10}
            on_epoch(epoch, figures)

    @property
    def values(self) -> list[tuple[float, float]]:
        return [(spec.train.optimizer.args.lr, spec.train.optimizer.args.weight_decay) for spec in self.specs]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    stand_in = Trainings()
    monkeypatch.setattr(automl, "train", stand_in.train)
    monkeypatch.setattr(
        automl_report, "_plot", lambda outcome, path: None
    )  # half of the time; it has a test of its own
    return stand_in


def run(folder: Path, *overrides: str) -> int:
    spec = folder / "spec.yaml"
    spec.write_text(SPEC)
    return run_action(ACTIONS["automl"], spec, [f"results_dir={folder}", *overrides])


def report(folder: Path) -> Any:
    return json.loads((folder / "automl" / "report.json").read_text())


def messages(folder: Path) -> list[str]:
    return [json.loads(line)["message"] for line in (folder / "automl" / "status.json").read_text().splitlines()]


def test_the_first_trial_has_the_spec_s_values_and_the_best_one_becomes_a_spec(
    trainings: Trainings, tmp_path: Path
) -> None:
    assert run(tmp_path, "ocdserve.automl_trials=8", f"{LR}=1e-4") == 0
    assert trainings.values[0] == (1e-4, 0.0)
    assert len(set(trainings.values)) == len(trainings.specs) == 8
    assert all(1e-5 <= lr <= 0.1 and 0 <= decay <= 0.01 for lr, decay in trainings.values)
    best = min(trainings.values, key=lambda one: abs(math.log10(one[0] / 0.01)))
    found = report(tmp_path)
    assert found["best"]["overrides"] == {LR: best[0], DECAY: best[1]}
    assert found["direction"] == "minimize"
    spec = load_spec(tmp_path / "automl" / "best_spec.yaml").spec
    assert (spec.train.optimizer.args.lr, spec.train.optimizer.args.weight_decay) == best
    # The intervals are those of the user, not of the trials.
    assert (spec.train.validation_interval, trainings.specs[0].train.validation_interval) == (1, 5)
    assert trainings.specs[0].train.checkpoint_interval == 5
    kept = [path.parent.name for path in sorted(tmp_path.rglob("*.pth"))]
    assert kept == [f"{found['best']['trial']:03d}"]


def test_a_trial_above_the_median_is_stopped(trainings: Trainings, tmp_path: Path) -> None:
    assert run(tmp_path, "ocdserve.automl_trials=9") == 0
    trials = report(tmp_path)["trials"]
    stopped = [one for one in trials if one["ended"] == "stopped"]
    assert stopped
    for one in stopped:
        epochs = len(one["train_loss_by_epoch"])
        assert 2 < epochs < 5  # not during the warm-up of two epochs
        finished = [other for other in trials[: one["trial"] - 1] if other["ended"] == "finished"]
        losses = sorted(other["train_loss_by_epoch"][epochs - 1] for other in finished)
        assert one["train_loss_by_epoch"][-1] > losses[(len(losses) - 1) // 2]
    assert all(one["ended"] == "finished" for one in trials[:3])


def test_an_interrupted_search_goes_on_to_the_same_result(trainings: Trainings, tmp_path: Path) -> None:
    for name in ("whole", "interrupted"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "whole", "ocdserve.automl_trials=5") == 0
    whole = trainings.values
    trainings.specs.clear()
    trainings.interrupted_at = 1
    assert run(tmp_path / "interrupted", "ocdserve.automl_trials=5") == 130
    trainings.interrupted_at = 5  # the first training is repeated: that of the fourth trial
    assert run(tmp_path / "interrupted", "ocdserve.automl_trials=5") == 130
    trainings.interrupted_at = 0
    assert run(tmp_path / "interrupted", "ocdserve.automl_trials=5") == 0
    assert trainings.values == [whole[0], *whole[:4], *whole[3:]]
    first, second = (report(tmp_path / name) for name in ("whole", "interrupted"))
    assert first["best"]["overrides"] == second["best"]["overrides"]
    assert [one["values"] for one in first["trials"]] == [one["values"] for one in second["trials"]]
    # More trials of a finished search: only the further one is trained.
    trainings.specs.clear()
    assert run(tmp_path / "interrupted", "ocdserve.automl_trials=6") == 0
    assert len(trainings.specs) == 1


def test_another_spec_does_not_continue_a_search(trainings: Trainings, tmp_path: Path) -> None:
    assert run(tmp_path, "ocdserve.automl_trials=1") == 0
    assert run(tmp_path, "ocdserve.automl_trials=2", "train.num_epochs=20") == 1
    assert "is the search of another spec; choose another results_dir" in messages(tmp_path)[-1]
    assert len(trainings.specs) == 1


def test_hmean_is_maximised_where_it_is_the_metric(trainings: Trainings, tmp_path: Path) -> None:
    assert run(tmp_path, "ocdserve.automl_trials=5", "ocdserve.automl_metric=hmean") == 0
    found = report(tmp_path)
    best = min(trainings.values, key=lambda one: abs(math.log10(one[0] / 0.01)))
    assert found["direction"] == "maximize"
    assert found["best"]["overrides"][LR] == best[0]
    assert found["best"]["hmean"] == pytest.approx(0.9 - abs(math.log10(best[0] / 0.01)) / 10)
    assert found["trials"][0]["train_loss_by_epoch"][0] == pytest.approx(2)


def test_a_diverging_trial_ends_at_once_and_is_never_the_best(trainings: Trainings, tmp_path: Path) -> None:
    trainings.is_diverging = lambda lr: lr > 0.001
    assert run(tmp_path, "ocdserve.automl_trials=5") == 0
    ended = {one["values"][LR] > 0.001: one["ended"] for one in report(tmp_path)["trials"]}
    assert ended[True] == "diverged"
    assert report(tmp_path)["best"]["overrides"][LR] <= 0.001
    trainings.is_diverging = lambda lr: True
    (tmp_path / "all").mkdir()
    assert run(tmp_path / "all", "ocdserve.automl_trials=2") == 1
    assert messages(tmp_path / "all")[-1].startswith("none of 2 trials was trained to its end")


def test_every_trial_has_status_lines_and_a_result_folder_of_its_own(trainings: Trainings, tmp_path: Path) -> None:
    assert run(tmp_path, "ocdserve.automl_trials=2") == 0
    found = messages(tmp_path)
    assert found[1] == "Trial 1 of 2: train.optimizer.args.lr=0.001, train.optimizer.args.weight_decay=0"
    assert found[2] == "Trial 1 finished: train_loss 1.3122; best: 1.3122 of trial 1"
    assert found[-2] == "Automl finished successfully."
    last = json.loads((tmp_path / "automl" / "status.json").read_text().splitlines()[-1])
    assert last["kpi"]["train_loss"] == report(tmp_path)["best"]["train_loss"]
    for number, spec in enumerate(trainings.specs, 1):
        folder = tmp_path / "automl" / "trials" / f"{number:03d}"
        assert Path(spec.results_dir) == folder
        assert load_spec(folder / "experiment.yaml").spec.train.optimizer.args.lr == spec.train.optimizer.args.lr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ocdserve.automl_parameters=[train.loss]"], "'train.loss' cannot be varied: the schema disables it; choose"),
        (["ocdserve.automl_parameters=[train.num_epochs]"], "'train.num_epochs' cannot be varied: the schema does not"),
        (["ocdserve.automl_parameters=[]"], f"automl_parameters is empty; choose from {LR}, {DECAY}"),
        (["ocdserve.automl_metric=recall"], "must be one of train_loss, train_loss_epoch, hmean"),
        (["ocdserve.automl_policy=maybe"], "must be one of on, off, auto"),
        (["train.num_gpus=2"], "got train.num_gpus=2 and train.num_nodes=1: set both to 1"),
        (["train.resume_training_checkpoint_path=a.pth"], "set train.resume_training_checkpoint_path to null"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    trainings: Trainings, tmp_path: Path, overrides: list[str], message: str
) -> None:
    assert run(tmp_path, *overrides) == 1
    assert message in messages(tmp_path)[-1]
    assert trainings.specs == []


def test_one_parameter_varies_alone_and_bounds_include_the_spec_s_value(trainings: Trainings, tmp_path: Path) -> None:
    assert run(tmp_path, "ocdserve.automl_trials=3", f"ocdserve.automl_parameters=[{LR}]", f"{LR}=0.5") == 0
    assert trainings.values[0] == (0.5, 0.0)
    assert {decay for _, decay in trainings.values} == {0.0}
    bounds = {"key": LR, "default": 0.5, "low": 1e-5, "high": 0.5, "low_from": "ocdserve", "high_from": "spec"}
    assert report(tmp_path)["bounds"] == [bounds]


def test_one_epoch_trials_have_no_warm_up(
    trainings: Trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "ocdserve.automl_trials=1", "train.num_epochs=1") == 0
    assert trainings.specs[0].train.lr_scheduler.args.warmup_epoch == 0
    assert "a trial of one epoch trains without warm-up" in capsys.readouterr().err


def test_no_trial_begins_after_the_timeout(
    trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A training takes 60 s.
    monkeypatch.setattr(automl, "time", SimpleNamespace(monotonic=lambda: 60 * len(trainings.specs)))
    assert run(tmp_path, "ocdserve.automl_trials=9", "ocdserve.automl_timeout_s=100") == 0
    assert len(trainings.specs) == 2


@pytest.mark.parametrize("text", ["off", "'off'", "false"])
def test_a_search_that_is_off_trains_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    ran: list[str] = []
    monkeypatch.setattr(automl, "run_train", lambda spec, context: ran.append(spec.ocdserve.automl_policy))
    path = tmp_path / "off.yaml"
    path.write_text(f"ocdserve: {{automl_policy: {text}}}")
    automl.run(load_spec(path).spec, None)  # type: ignore[arg-type]
    assert ran == ["off"]


@pytest.mark.parametrize(("text", "policy"), [("on", "on"), ("auto", "auto"), ("{}", "on")])
def test_both_words_for_a_search_are_understood(tmp_path: Path, text: str, policy: str) -> None:
    path = tmp_path / "on.yaml"
    path.write_text("{}" if text == "{}" else f"ocdserve: {{automl_policy: {text}}}")
    assert load_spec(path).spec.ocdserve.automl_policy == policy

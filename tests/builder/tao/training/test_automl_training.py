# SPDX-License-Identifier: Apache-2.0
"""A search with real trainings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ocdserve.builder.tao.spec import load_spec
from ocdserve.builder.tao.training import automl
from ocdserve.builder.tao.training.automl_space import space

from .small_training import run_train

OPTIONS = ("ocdserve.automl_trials=3", "train.optimizer.args.lr=0.002", "train.model_ema=false")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three trials of two epochs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("automl") / "results"
    assert run_train(folder, *OPTIONS, f"results_dir={folder}", action="automl") == 0
    return folder / "automl"


def test_three_trials_train_with_other_values_and_the_best_is_not_worse_than_the_first(searched: Path) -> None:
    report = json.loads((searched / "report.json").read_text("utf-8"))
    trials = report["trials"]
    assert [one["ended"] for one in trials] == ["finished"] * 3
    assert trials[0]["values"] == {"train.optimizer.args.lr": 0.002, "train.optimizer.args.weight_decay": 0.0}
    losses = [one["train_loss"] for one in trials]
    assert len(set(losses)) == 3
    assert report["best"]["train_loss"] == min(losses) <= losses[0]
    for number, trial in enumerate(trials, 1):
        status = (searched / "trials" / f"{number:03d}" / "status.json").read_text("utf-8")
        lines = [json.loads(line) for line in status.splitlines()]
        found = [line["kpi"]["train_loss"] for line in lines if line["message"] == "Train metrics generated."]
        assert found == trial["train_loss_by_epoch"]


def test_the_trials_are_drawn(searched: Path) -> None:
    with Image.open(searched / "trials.png") as image:
        assert image.size == (1620, 480)
        colours = image.convert("RGB").getcolors(1 << 20) or []
    blue = sum(count for count, colour in colours if colour == (31, 119, 180))
    # Three trials in each of three panels, as discs of 10 pixels.
    assert 9 * 60 < blue < 9 * 110


def test_the_best_checkpoint_and_spec_are_ready_for_the_next_action(searched: Path) -> None:
    best = json.loads((searched / "report.json").read_text("utf-8"))["best"]
    kept = sorted(path.relative_to(searched).as_posix() for path in searched.rglob("*.pth"))
    folder = f"trials/{best['trial']:03d}"
    assert kept == [f"{folder}/{name}.pth" for name in ("model_best", "model_epoch_001_step_00004", "ocd_model_latest")]
    content = torch.load(searched / folder / "model_best.pth", weights_only=True)
    assert content["config"]["train"]["optimizer"]["args"]["lr"] == best["overrides"]["train.optimizer.args.lr"]
    spec = load_spec(searched / "best_spec.yaml").spec
    assert spec.train.optimizer.args.lr == best["overrides"]["train.optimizer.args.lr"]
    assert (spec.train.num_epochs, spec.train.checkpoint_interval) == (2, 1)


def test_a_trial_whose_loss_is_not_finite_does_not_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automl, "space", lambda spec: (replace(space(spec)[0], low=1e29, high=1e30),))
    options = ("ocdserve.automl_trials=2", "train.trainer.clip_grad_norm=0", "train.num_epochs=3")
    assert run_train(tmp_path / "results", *options, f"results_dir={tmp_path}", action="automl") == 0
    report = json.loads((tmp_path / "automl" / "report.json").read_text("utf-8"))
    assert [one["ended"] for one in report["trials"]] == ["finished", "diverged"]

# SPDX-License-Identifier: Apache-2.0
"""A training that was interrupted and resumed equals one that was not, bit for bit on the CPU."""

import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ocdserve.builder.tao.training.train import train
from ocdserve.builder.tao.training.trainer.module import DetectorModule
from ocdserve.contract import InvalidInputError

from .small_training import context_of, differing, loaded, run_train, spec_of
from .test_train import status

LAST = "model_epoch_001_step_00004.pth"
# What a training has learned; the rest of a checkpoint holds times and positions.
LEARNED = ("state_dict", "optimizer_states", "lr_schedulers", "ocdserve")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of two steps, with a checkpoint of each step."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("resume") / "whole"
    assert run_train(folder, "train.checkpoint_interval_unit=step") == 0
    assert {path.name for path in folder.glob("model_epoch*")} == {
        f"model_epoch_{epoch:03d}_step_{step:05d}.pth" for epoch, step in ((0, 1), (0, 2), (1, 3), (1, 4))
    }
    return folder


def assert_equal_training(one: Path, other: Path) -> None:
    first, second = (loaded(folder / LAST) for folder in (one, other))
    assert [differing(first[key], second[key], key) for key in LEARNED] == [[]] * len(LEARNED)


def test_an_epoch_and_a_resumed_one_equal_two(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(epoch: int, figures: Mapping[str, float]) -> None:
        assert figures.keys() >= {"train_loss", "hmean"}
        raise RuntimeError("enough")

    folder = tmp_path / "two"
    folder.mkdir()
    with pytest.raises(RuntimeError, match="enough"):
        train(spec_of(folder), context_of(folder, []), stop)
    assert [path.name for path in folder.glob("model_epoch*")] == ["model_epoch_000_step_00002.pth"]
    assert run_train(folder) == 0
    resumed = f"Resuming training from checkpoint: {folder / 'ocd_model_latest.pth'}"
    assert resumed in [line["message"] for line in status(folder)]
    assert resumed in capsys.readouterr().out
    assert_equal_training(uninterrupted, folder)
    assert loaded(folder / "model_best.pth")["metrics"]["best_model_epoch"] == 1


def test_a_resumed_training_takes_rate_and_weight_decay_of_the_spec(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slower"
    folder.mkdir()
    said: list[str] = []
    start = f"train.resume_training_checkpoint_path={uninterrupted / 'model_epoch_000_step_00001.pth'}"
    keys = ("train.optimizer.args.lr=0.0006", "train.optimizer.args.weight_decay=0.01")
    train(spec_of(folder, start, *keys), context_of(folder, said))
    # A third of the rate in the one epoch of warm-up, then all of it.
    assert [text for text in said if text.startswith("lr: ")] == ["lr: 0.00019999999999999998", "lr: 0.0006"]
    (group,) = loaded(folder / LAST)["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["weight_decay"]) == (0.0006, 0.01)


@pytest.mark.parametrize("step", ["model_epoch_000_step_00001.pth", "model_epoch_001_step_00003.pth"])
def test_the_rest_of_an_epoch_is_trained(uninterrupted: Path, tmp_path: Path, step: str) -> None:
    assert run_train(tmp_path / "rest", f"train.resume_training_checkpoint_path={uninterrupted / step}") == 0
    assert_equal_training(uninterrupted, tmp_path / "rest")


@pytest.mark.parametrize(
    ("number", "code", "at", "kept"),
    [
        (signal.SIGINT, 130, 2, "model_epoch_001_step_00003.pth"),
        (signal.SIGTERM, 143, 1, "model_epoch_000_step_00002.pth"),
        (0, 1, 3, "model_epoch_001_step_00003.pth"),
    ],
)
def test_a_signal_or_an_error_leaves_a_checkpoint_and_a_failure(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, at: int, kept: str
) -> None:
    """A signal waits for the end of the step, so that nothing is half done. In TAO, Ctrl-C exits with 0."""
    step = DetectorModule.training_step

    def interrupted(self: DetectorModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == at and not number:
            raise RuntimeError("out of memory")
        if self.global_step == at:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(DetectorModule, "training_step", interrupted)
        assert run_train(folder) == code
    assert status(folder)[-1]["status"] == "FAILURE"
    assert (folder / "ocd_model_latest.pth").readlink() == Path(kept)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run_train(folder) == 0
    assert_equal_training(uninterrupted, folder)


def test_nothing_is_left_to_train(uninterrupted: Path, tmp_path: Path) -> None:
    """In TAO, running a finished training again silently does nothing."""
    folder = tmp_path / "done"
    shutil.copytree(uninterrupted, folder, symlinks=True)
    before = (folder / LAST).stat().st_mtime_ns
    assert run_train(folder) == 0
    assert status(folder)[-1]["message"] == "Nothing was left to train: 2 epochs are done."
    assert (folder / LAST).stat().st_mtime_ns == before


@pytest.mark.long
def test_the_average_may_begin_or_end_with_the_resumed_part(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = f"train.resume_training_checkpoint_path={uninterrupted / 'model_epoch_000_step_00002.pth'}"
    assert run_train(tmp_path / "without", resume, "train.model_ema=false") == 0
    without = loaded(tmp_path / "without" / LAST)
    assert not [name for name in without["state_dict"] if name.startswith("model_ema")]
    whole = loaded(uninterrupted / LAST)
    assert differing(without["state_dict"], {name: whole["state_dict"][name] for name in without["state_dict"]}) == []
    resume = f"train.resume_training_checkpoint_path={tmp_path / 'without' / LAST}"
    assert run_train(tmp_path / "with", resume, "train.num_epochs=3") == 0
    again = loaded(tmp_path / "with" / "model_epoch_002_step_00006.pth")
    assert again["ocdserve"]["ema_updates"] == 2
    assert "lr: 0.00053" in capsys.readouterr().out  # (1 - 1 / 2)^0.9 of 0.001, of the third of three epochs


@pytest.mark.parametrize(
    ("file", "more", "words"),
    [
        ("a.onnx", (), "Resume checkpoint has an invalid file format; it must be either a .tlt or a .pth. Got"),
        ("none.pth", (), "there is no checkpoint 'none.pth'"),
        ("model_best.pth", (), "holds weights but not the state of the training: resume from a model_epoch_"),
        (LAST, ("ocdserve.width=0.25",), "is of another network: backbone.bn1.bias has the shape \\(8,\\) there and"),
        (
            LAST,
            ("train.optimizer.type=SGD",),
            "is of a training with another optimizer, which differs in amsgrad, betas,",
        ),
        (
            LAST,
            ("train.optimizer.type=AdamW",),
            "which differs in decoupled_weight_decay: set train.optimizer as it was",
        ),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    uninterrupted: Path, tmp_path: Path, file: str, more: tuple[str, ...], words: str
) -> None:
    path = uninterrupted / file if (uninterrupted / file).is_file() else Path(file)
    folder = tmp_path / "refused"
    folder.mkdir()
    spec = spec_of(folder, f"train.resume_training_checkpoint_path={path}", *more)
    with pytest.raises(InvalidInputError, match=words):
        train(spec, context_of(folder, []))
    assert not list(folder.glob("*.pth")) and not re.search("Traceback", words)

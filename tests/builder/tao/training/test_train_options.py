# SPDX-License-Identifier: Apache-2.0
"""What keys of the spec change in a training."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ocdserve.builder.tao.spec.training import Optimizer, OptimizerArgs
from ocdserve.builder.tao.training.train import train
from ocdserve.builder.tao.training.trainer.checkpoints import save
from ocdserve.builder.tao.training.trainer.module import DetectorModule, build_optimizer
from ocdserve.builder.train.networks.model import NetworkOptions, build_network
from ocdserve.builder.train.pruned_graph import save_pruned
from ocdserve.contract import InvalidInputError, OcdserveError

from .small_training import context_of, loaded, run_train, spec_of
from .test_train import status

OPTIONS = NetworkOptions(width=0.125)
ONE_EPOCH = ("train.num_epochs=1", "train.lr_scheduler.args.warmup_epoch=0", "train.model_ema=false")


def test_a_dry_run_is_one_batch_and_leaves_the_best_weights(tmp_path: Path) -> None:
    folder = tmp_path / "dry"
    assert run_train(folder, "train.is_dry_run=true", "train.num_epochs=10", "train.checkpoint_interval=10") == 0
    assert {path.name for path in folder.iterdir()} == {
        *("experiment.yaml", "status.json", "model_best.pth", "model_best_ema.pth")
    }
    assert loaded(folder / "model_best.pth")["global_step"] == 1


def test_one_epoch_needs_no_warm_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(tmp_path / "one", *ONE_EPOCH) == 0
    assert "lr: 0.001\n" in capsys.readouterr().out


def test_checkpoints_and_validations_have_intervals(tmp_path: Path) -> None:
    folder = tmp_path / "intervals"
    more = ("train.num_epochs=3", "train.checkpoint_interval=2", "train.validation_interval=3", "train.model_ema=false")
    assert run_train(folder, *more) == 0
    assert [path.name for path in folder.glob("model_epoch*")] == ["model_epoch_001_step_00004.pth"]
    validated = [
        line.get("kpi", {}).get("hmean") for line in status(folder) if line["message"] == "Training loop in progress"
    ]
    assert validated[:2] == [None, None] and validated[2] is not None


class TestPretrained:
    def test_weights_of_the_same_network_are_the_first_ones(self, tmp_path: Path) -> None:
        torch.manual_seed(7)
        network = build_network(OPTIONS)
        torch.save(
            {"state_dict": {f"model.{name}": tensor for name, tensor in network.state_dict().items()}},
            tmp_path / "a.pth",
        )
        said: list[str] = []
        folder = tmp_path / "pretrained"
        folder.mkdir()
        # At this rate, the weights stay.
        more = (f"model.pretrained_model_path={tmp_path / 'a.pth'}", "train.optimizer.args.lr=1e-30", *ONE_EPOCH)
        train(spec_of(folder, *more), context_of(folder, said))
        trained = loaded(folder / "model_best.pth")["state_dict"]
        assert all(torch.allclose(trained[name], value, atol=1e-20) for name, value in network.named_parameters())
        assert f"Loaded pretrained weights from {tmp_path / 'a.pth'}" in said
        assert not [text for text in said if "lack" in text]

    def test_names_that_do_not_fit_are_reported(self, tmp_path: Path) -> None:
        """Fault 15: TAO loads what fits, and says nothing."""
        weights = build_network(OPTIONS).state_dict()
        weights["head.other.weight"] = weights.pop("head.binarize.0.weight")
        torch.save(weights, tmp_path / "a.pth")
        said: list[str] = []
        folder = tmp_path / "pretrained"
        folder.mkdir()
        train(
            spec_of(folder, f"model.pretrained_model_path={tmp_path / 'a.pth'}", *ONE_EPOCH), context_of(folder, said)
        )
        (warning,) = (text for text in said if "lack" in text)
        assert "weights lack head.binarize.0.weight" in warning and "network lacks head.other.weight" in warning


def test_retrain_begins_with_the_pruned_network(tmp_path: Path) -> None:
    pruned = build_network(NetworkOptions(width=0.25))
    save_pruned(tmp_path / "pruned_0.1.pth", pruned, NetworkOptions())
    folder = tmp_path / "retrained"
    path = f"model.pruned_graph_path={tmp_path / 'pruned_0.1.pth'}"
    assert run_train(folder, path, *ONE_EPOCH, "ocdserve.width=1", action="retrain") == 0
    found = loaded(folder / "model_best.pth")
    assert found["config"]["model"]["load_pruned_graph"] is True
    assert {name: tensor.shape for name, tensor in found["state_dict"].items()} == {
        name: tensor.shape for name, tensor in pruned.state_dict().items()
    }


class TestOptimizer:
    ARGS = OptimizerArgs(lr=0.5, weight_decay=0.1, amsgrad=True, momentum=0.9, eps=1e-6)

    @pytest.mark.parametrize(
        ("name", "taken"),
        [
            ("Adam", {"lr": 0.5, "weight_decay": 0.1, "amsgrad": True, "eps": 1e-6}),
            ("AdamW", {"lr": 0.5, "weight_decay": 0.1, "amsgrad": True, "eps": 1e-6}),
            ("SGD", {"lr": 0.5, "weight_decay": 0.1, "momentum": 0.9}),
            ("RMSprop", {"lr": 0.5, "weight_decay": 0.1, "momentum": 0.9, "eps": 1e-6}),
        ],
    )
    def test_each_gets_the_arguments_that_it_has(self, name: str, taken: dict[str, Any]) -> None:
        """In TAO, only Adam can be made."""
        group = build_optimizer(Optimizer(name, self.ARGS), [torch.zeros(1, requires_grad=True)]).param_groups[0]
        assert type(group).__name__ == "dict" and {key: group[key] for key in taken} == taken
        assert "momentum" in taken or "momentum" not in group


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = DetectorModule.optimizer_step

    def measured(self: DetectorModule, *args: Any) -> None:
        step(self, *args)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    monkeypatch.setattr(DetectorModule, "optimizer_step", measured)
    for limit in ("0.01", "0"):
        assert run_train(tmp_path / limit, f"train.trainer.clip_grad_norm={limit}", *ONE_EPOCH) == 0
    limited, free = norms[:2], norms[2:]
    assert limited == pytest.approx([0.01, 0.01], rel=1e-3) and min(free) > 0.1


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def training_step(self: DetectorModule, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["img"]).mean() * float("nan")

    monkeypatch.setattr(DetectorModule, "training_step", training_step)
    folder = tmp_path / "nan"
    folder.mkdir()
    with pytest.raises(InvalidInputError, match=r"the loss of epoch 0 is not finite: lower train\.optimizer\.args\.lr"):
        train(spec_of(folder), context_of(folder, []))
    # The same command with a lower rate does not resume from weights that are lost.
    assert list(folder.glob("*.pth")) == []


def test_a_checkpoint_that_does_not_fit_the_disk_is_reported_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth"
    (tmp_path / f".model_best.pth.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OcdserveError, match=r"model_best\.pth cannot be written: No space left on device; make room"):
        save({"state_dict": {"weight": torch.zeros(1 << 20)}}, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "times"), [("wandb.project=mine", 1), ("train.seed=1", 0)])
def test_nothing_is_sent_to_wandb(tmp_path: Path, key: str, times: int) -> None:
    said: list[str] = []
    folder = tmp_path / "wandb"
    folder.mkdir()
    train(spec_of(folder, key, "train.is_dry_run=true"), context_of(folder, said))
    assert len([text for text in said if "the section wandb has no effect" in text]) == times


def test_without_a_seed_each_training_is_another(tmp_path: Path) -> None:
    dry = ("train.seed=-1", "train.is_dry_run=true")
    weights = []
    for name in ("a", "b"):
        assert run_train(tmp_path / name, *dry) == 0
        weights.append(loaded(tmp_path / name / "model_best.pth")["state_dict"]["backbone.conv1.weight"])
    assert not torch.equal(*weights)


@pytest.mark.long
def test_samples_may_be_made_by_other_processes(tmp_path: Path) -> None:
    losses = []
    for workers in (0, 2):
        folder = tmp_path / f"workers{workers}"
        folder.mkdir()
        spec = spec_of(folder, f"dataset.train_dataset.loader.num_workers={workers}", *ONE_EPOCH)
        losses.append(train(spec, context_of(folder, [])).last["train_loss"])
    assert losses[0] == losses[1]

# SPDX-License-Identifier: Apache-2.0
"""What a training writes: status lines, checkpoints, best weights, logs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ocdserve.builder.tao.inputs.resolve import Request, resolve
from ocdserve.builder.tao.training.trainer.devices import Devices, plan_devices
from ocdserve.builder.train.checkpoints import load_weights, read_weights
from ocdserve.builder.train.networks.model import NetworkOptions, build_network

from .small_training import differing, loaded, run_train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a training of two epochs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("train") / "results"
    assert run_train(folder) == 0
    return folder


def status(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "status.json").read_text("utf-8").splitlines()]


class TestStatus:
    def test_the_lines_are_tao_s_in_order(self, trained: Path) -> None:
        epoch = ["Eval metrics generated.", "Training loop in progress", "Train metrics generated."]
        found = status(trained)
        assert [line["message"] for line in found][:-1] == [
            *("Starting OCDNet train.", "Starting Training Loop."),
            *epoch,
            *epoch,
            *("Training loop complete.", "Train finished successfully."),
        ]
        assert [line["status"] for line in found] == ["STARTED"] * 2 + ["RUNNING"] * 8 + ["SUCCESS"]

    def test_the_epoch_s_data_come_first(self, trained: Path) -> None:
        line = status(trained)[6]
        assert list(line) == [
            *("epoch", "step", "max_epoch", "max_step", "time_per_epoch", "time_per_step", "eta"),
            *("date", "time", "status", "verbosity", "message", "kpi"),
        ]
        assert [line[name] for name in ("epoch", "step", "max_epoch", "max_step", "eta")] == [1, 4, 1, 4, "0:00:00"]

    def test_figures_of_the_validation_are_texts_and_the_loss_a_number(self, trained: Path) -> None:
        found = status(trained)
        assert list(found[2]["kpi"]) == [
            f"{part}{name}" for part in ("", "ema_") for name in ("recall", "precision", "hmean")
        ]
        assert all(isinstance(value, str) for value in found[2]["kpi"].values())
        assert found[3]["kpi"] == found[2]["kpi"]
        assert isinstance(found[4]["kpi"]["train_loss"], float)
        assert found[7]["kpi"] == found[8]["kpi"] == found[9]["kpi"]


class TestFiles:
    def test_names_are_tao_s(self, trained: Path) -> None:
        assert {path.name for path in trained.iterdir()} == {
            *("experiment.yaml", "status.json", "lightning_logs"),
            *("model_epoch_000_step_00002.pth", "model_epoch_001_step_00004.pth", "ocd_model_latest.pth"),
            *("model_best.pth", "model_best_ema.pth"),
        }
        assert (trained / "ocd_model_latest.pth").readlink() == Path("model_epoch_001_step_00004.pth")

    def test_a_restricted_reading_reads_them_all(self, trained: Path) -> None:
        for path in trained.glob("*.pth"):
            assert loaded(path)["state_dict"]

    def test_epoch_checkpoints_are_lightning_s_with_tao_s_names(self, trained: Path) -> None:
        content = loaded(trained / "model_epoch_001_step_00004.pth")
        assert {
            *("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks"),
            *("optimizer_states", "lr_schedulers", "hyper_parameters"),
        } <= content.keys()
        assert (content["epoch"], content["global_step"]) == (1, 4)
        names = set(build_network(NetworkOptions(width=0.125)).state_dict())
        assert set(content["state_dict"]) == {
            f"{part}.{name}" for part in ("model", "model_ema.module") for name in names
        }
        assert content["hyper_parameters"]["train"]["num_epochs"] == 2

    def test_best_weights_have_bare_names_and_the_figures(self, trained: Path) -> None:
        best = loaded(trained / "model_best.pth")
        assert list(best) == ["epoch", "global_step", "state_dict", "optimizer", "scheduler", "config", "metrics"]
        assert list(best["metrics"]) == ["recall", "precision", "hmean", "train_loss", "best_model_epoch"]
        assert isinstance(best["metrics"]["train_loss"], torch.Tensor)
        assert best["config"]["train"]["model_ema"] is True
        network = build_network(NetworkOptions(width=0.125))
        assert network.load_state_dict(best["state_dict"]).missing_keys == []

    def test_best_averaged_weights_are_those_of_the_average(self, trained: Path) -> None:
        """Fault 14: TAO writes the average with names that nothing reads, and next to a file that was only read."""
        best = loaded(trained / "model_best_ema.pth")
        last = loaded(trained / "model_epoch_001_step_00004.pth")["state_dict"]
        assert best["epoch"] == 1
        for name, tensor in best["state_dict"].items():
            assert torch.equal(tensor, last[f"model_ema.module.{name}"])
        files = set(trained.iterdir())
        for file, averaged in (("model_best_ema.pth", False), ("model_epoch_001_step_00004.pth", True)):
            weights = read_weights(trained / file, averaged=averaged)
            load_weights(build_network(NetworkOptions(width=0.125)), weights)
            assert torch.equal(weights["head.binarize.0.weight"], best["state_dict"]["head.binarize.0.weight"])
        assert set(trained.iterdir()) == files

    def test_figures_are_in_tensorboard_s_log(self, trained: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        log = EventAccumulator(str(trained / "lightning_logs" / "version_1")).Reload()
        assert {"train_loss_step", "train_loss_epoch", "recall", "precision", "hmean"} <= set(log.Tags()["scalars"])
        assert [event.step for event in log.Scalars("hmean")] == [2, 4]


def test_a_sharded_network_is_validated_and_saved_as_a_whole(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the calls that put it together, which in one process give the same; FSDP itself needs GPUs."""

    def planned(*args: Any) -> Devices:
        devices = plan_devices(*args)
        monkeypatch.setattr(Devices, "is_sharded", True)
        return devices

    monkeypatch.setattr("ocdserve.builder.tao.training.train.plan_devices", planned)
    assert run_train(tmp_path / "sharded", "train.model_ema=false") == 0
    one, other = (loaded(folder / "model_best.pth") for folder in (trained, tmp_path / "sharded"))
    assert differing(one["state_dict"], other["state_dict"]) == []
    assert one["metrics"] == other["metrics"]


class TestHandOver:
    """What the next action takes from the results."""

    def test_actions_get_the_file_that_they_need(self, trained: Path) -> None:
        for action in ("evaluate", "inference", "export", "prune"):
            assert resolve(Request(action, trained)).values[f"{action}.checkpoint"] == str(trained / "model_best.pth")
        latest = resolve(Request("evaluate", trained, checkpoint="latest")).values["evaluate.checkpoint"]
        assert Path(str(latest)).name == "model_epoch_001_step_00004.pth"

    def test_a_later_training_resumes_and_takes_pretrained_weights_only_without(self, trained: Path) -> None:
        found = resolve(Request("train", None, trained, pretrained=trained / "ptm.pth")).values
        assert Path(str(found["train.resume_training_checkpoint_path"])).name == "model_epoch_001_step_00004.pth"
        assert "model.pretrained_model_path" not in found

    def test_quantize_gets_the_full_checkpoint_of_the_best_epoch(self, trained: Path, tmp_path: Path) -> None:
        lines = status(trained)
        lines[3]["kpi"]["hmean"] = "0.9"
        lines[-1]["kpi"]["hmean"] = 0.9  # the best figures, at the end
        for path in trained.glob("model_*.pth"):
            (tmp_path / path.name).touch()
        (tmp_path / "status.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
        chosen = resolve(Request("quantize", tmp_path)).values["quantize.model_path"]
        assert Path(str(chosen)).name == "model_epoch_000_step_00002.pth"

# SPDX-License-Identifier: Apache-2.0
"""Specs that a training refuses, or says that it takes another way, before anything is trained."""

import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ocdserve.builder.tao.training.train import train
from ocdserve.builder.tao.training.trainer.devices import plan_devices
from ocdserve.builder.train.networks.model import NetworkOptions, build_network
from ocdserve.contract import InvalidInputError, OcdserveError, UnavailableError

from .small_training import context_of, data_folder, run_train, spec_of
from .test_train import status


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["train.lr_scheduler.args.warmup_epoch=2"],
            r"^num_epochs should not be same as warmup_epoch\. Both are 2: set .* to 0 for a run of one epoch\.$",
        ),
        (
            ["train.checkpoint_interval=3"],
            r"^Checkpoint interval 3 > Number of epochs 2\. Set train\.checkpoint_interval",
        ),
        (
            ["train.validation_interval=3"],
            r"^Validation interval 3 > Number of epochs 2\. Set train\.validation_interval",
        ),
        (
            ["dataset.train_dataset.loader.batch_size=5"],
            r"^Dataset size \(4\) is smaller than the total batch size \(5\)\. Not enough data for train\. Lower",
        ),
        (["train.loss.type=FocalLoss"], "train.loss.type must be DBLoss"),
        (["model.head=FCEHead"], "model.head must be DBHead"),
        (["train.optimizer.type=Adagard"], "train.optimizer.type must be an optimizer of torch.optim such as Adam"),
        (["train.optimizer.type=LRScheduler"], "train.optimizer.type must be an optimizer of torch.optim such as Adam"),
        (["train.precision=bf16"], "train.precision must be fp32 or fp16; got 'bf16'"),
        (
            ["train.distributed_strategy=dp"],
            r"^dp is not implemented\. Only ddp, fsdp and deepspeed_stage_3_offload are",
        ),
        (["model.pretrained_model_path=none.pth"], "there are no weights 'none.pth'"),
        (
            ["model.load_pruned_graph=true", "model.pruned_graph_path=none.pth"],
            r"^The load_pruned_graph is set to True\. But the pruned_graph_path is not available\.",
        ),
    ],
)
def test_the_key_and_the_remedy_are_named(tmp_path: Path, more: list[str], words: str) -> None:
    with pytest.raises(OcdserveError, match=words):
        train(spec_of(tmp_path / "results", *more), context_of(tmp_path / "results", []))


@pytest.mark.parametrize("name", ["train_dataset", "validate_dataset"])
def test_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    """TAO opens it as a list of images."""
    with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as archive:
        archive.add(data_folder(tmp_path / "data"), "data")
    code = run_train(tmp_path / "results", f"dataset.{name}.data_path=[{tmp_path / 'data.tar.gz'}]")
    assert code == 1
    assert "is an archive, not a folder: extract it first" in status(tmp_path / "results")[-1]["message"]


class TestDevices:
    """The plan on a machine with so many GPUs; on the CPU it is also run."""

    @pytest.fixture(autouse=True)
    def _no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpus(monkeypatch, 0)

    @staticmethod
    def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    @staticmethod
    def plan(tmp_path: Path, *more: str) -> SimpleNamespace:
        said: list[str] = []
        warned: list[str] = []
        devices = plan_devices(spec_of(tmp_path / "results", *more), warned.append, said.append)
        options = devices.trainer_options()
        return SimpleNamespace(devices=devices, options=options, said=said, warned=warned)

    def test_one_process_needs_no_strategy(self, tmp_path: Path) -> None:
        """Fault 27: TAO needs a GPU."""
        found = self.plan(tmp_path)
        assert found.options == {
            **{"accelerator": "cpu", "devices": 1, "num_nodes": 1, "precision": "32-true", "strategy": "auto"},
            "sync_batchnorm": False,
        }

    def test_mixed_precision_is_for_gpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        on_cpu = self.plan(tmp_path, "train.precision=fp16")
        assert (on_cpu.options["precision"], len(on_cpu.warned)) == ("32-true", 1)
        self.gpus(monkeypatch, 1)
        on_gpu = self.plan(tmp_path, "train.precision=fp16")
        assert (on_gpu.options["precision"], on_gpu.options["devices"], on_gpu.warned) == ("16-mixed", [0], [])

    def test_processes_of_a_cpu_are_asked_for(self, tmp_path: Path) -> None:
        with pytest.raises(
            UnavailableError, match=r"train\.num_gpus=2, but PyTorch finds no GPU: .* ocdserve\.device=cpu"
        ):
            self.plan(tmp_path, "train.num_gpus=2")
        found = self.plan(tmp_path, "train.num_gpus=2", "ocdserve.device=cpu")
        assert (found.options["devices"], found.devices.processes) == (2, 2)
        assert found.options["strategy"]._process_group_backend == "gloo"

    def test_the_larger_number_of_gpus_counts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpus(monkeypatch, 4)
        assert self.plan(tmp_path, "train.gpu_ids=[2]").options["devices"] == [2]
        assert self.plan(tmp_path, "train.num_gpus=2", "train.gpu_ids=[1,3]").options["devices"] == [1, 3]
        two = self.plan(tmp_path, "train.num_gpus=2")
        assert (two.options["devices"], two.warned) == ([0, 1], [])
        three = self.plan(tmp_path, "train.num_gpus=3", "train.gpu_ids=[1,3]")
        assert (three.options["devices"], len(three.warned)) == ([0, 1, 2], 1)
        more = self.plan(tmp_path, "train.gpu_ids=[1,3]")
        assert (more.options["devices"], len(more.warned)) == ([1, 3], 1)
        with pytest.raises(InvalidInputError, match=r"train\.gpu_ids must be different indices below 4"):
            self.plan(tmp_path, "train.gpu_ids=[4]")

    @pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_stage_3_offload"])
    def test_sharded_strategies_force_mixed_precision(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
    ) -> None:
        asked = (f"train.distributed_strategy={strategy}", "train.num_gpus=2", "train.model_ema=false")
        with pytest.raises(UnavailableError, match=rf"{strategy} needs more than one GPU; on a CPU take ddp"):
            self.plan(tmp_path, *asked, "ocdserve.device=cpu")
        assert self.plan(tmp_path, asked[0]).options["strategy"] == "auto"
        self.gpus(monkeypatch, 2)
        if strategy != "fsdp":
            with pytest.raises(UnavailableError, match=r"needs `pip install deepspeed`"):
                self.plan(tmp_path, *asked)
            return
        found = self.plan(tmp_path, *asked)
        assert (found.options["strategy"], found.options["precision"]) == ("fsdp", "16-mixed")
        assert found.said == ["Overriding Precision to FP16 for fsdp"]
        with pytest.raises(InvalidInputError, match=r"train\.model_ema needs whole weights in every process"):
            self.plan(tmp_path, *asked[:2], "train.model_ema=true")

    @pytest.mark.parametrize("backbone", ["deformable_resnet18", "fan_tiny_8_p4_hybrid"])
    def test_fan_synchronises_statistics(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str) -> None:
        self.gpus(monkeypatch, 2)
        found = self.plan(tmp_path, "train.num_gpus=2", f"model.backbone={backbone}")
        is_fan = backbone.startswith("fan")
        assert found.options["sync_batchnorm"] is is_fan
        assert found.options["strategy"]._ddp_kwargs["find_unused_parameters"] is False
        assert found.said == (["Setting sync batch norm"] if is_fan else [])

    @pytest.mark.parametrize("checkpoints", [False, True])
    @pytest.mark.parametrize("backbone", ["deformable_resnet18", "resnet50", "fan_tiny_8_p4_hybrid"])
    def test_every_weight_gets_a_gradient(self, backbone: str, checkpoints: bool) -> None:
        """So `find_unused_parameters` may be false; TAO's choice depends on activation checkpoints."""
        width = 1 if backbone.startswith("fan") else 0.125
        network = build_network(NetworkOptions(backbone, width, activation_checkpoint=checkpoints))
        network(torch.rand(1, 3, 64, 64)).sum().backward()
        assert [name for name, value in network.named_parameters() if value.grad is None] == []

    def test_several_machines_need_to_know_each_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(
            InvalidInputError, match=r"train\.num_nodes=2 needs .* NODE_RANK, MASTER_ADDR, MASTER_PORT: "
        ):
            self.plan(tmp_path, "train.num_nodes=2")
        monkeypatch.setenv("LOCAL_RANK", "0")
        with pytest.raises(InvalidInputError, match=r"run it once on each machine, not by torchrun"):
            self.plan(tmp_path)

    def test_a_gpu_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UnavailableError, match=r"ocdserve\.device=cuda, but PyTorch finds no GPU"):
            self.plan(tmp_path, "ocdserve.device=cuda")

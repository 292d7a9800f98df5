# SPDX-License-Identifier: Apache-2.0
"""On which devices a training runs, and how they share the work."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy

from ocdserve.builder.tao.spec import Spec
from ocdserve.contract import InvalidInputError, UnavailableError

_SHARDED = ("fsdp", "deepspeed_stage_3_offload")
_FAN = "fan_"


@dataclass(frozen=True)
class Devices:
    """The processes of a training, one for each device.

    Attributes:
        kind: What computes.
        ids: Indices of this machine's GPUs, or on a CPU of its processes.
        nodes: Machines.
        strategy: `train.distributed_strategy`; has effect with more than one process.
        precision: Lightning's name.
        is_fan: Whether the backbone is a FAN.
    """

    kind: Literal["cpu", "gpu"]
    ids: tuple[int, ...]
    nodes: int
    strategy: str
    precision: str
    is_fan: bool

    @property
    def processes(self) -> int:
        """Processes on all machines."""
        return len(self.ids) * self.nodes

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds only a part of the weights."""
        return self.processes > 1 and self.strategy in _SHARDED

    def trainer_options(self) -> dict[str, Any]:
        """Return arguments of Lightning's Trainer."""
        return {
            "accelerator": self.kind,
            "devices": len(self.ids) if self.kind == "cpu" else list(self.ids),
            "num_nodes": self.nodes,
            "precision": self.precision,
            "strategy": self._lightning_strategy(),
            "sync_batchnorm": self._syncs_batchnorm,
        }

    @property
    def _syncs_batchnorm(self) -> bool:
        # PyTorch has it on GPUs only.
        return self.is_fan and self.processes > 1 and self.kind == "gpu"

    def _lightning_strategy(self) -> Any:
        if self.processes == 1:
            return "auto"
        if self.strategy != "ddp":
            return self.strategy
        # Every weight gets a gradient, if only of zeros as those of FAN's last class token: none need be looked for.
        backend = "gloo" if self.kind == "cpu" else None
        return DDPStrategy(find_unused_parameters=False, process_group_backend=backend)


def plan_devices(spec: Spec, warn: Callable[[str], None], say: Callable[[str], None]) -> Devices:
    """Choose the devices of a training.

    Args:
        spec: Its section `train`, `model.backbone` and `ocdserve.device`.
        warn: Called where the spec's numbers contradict each other or have no effect.
        say: Called with what TAO prints.

    Raises:
        InvalidInputError: A key is invalid, or has more devices than there are.
        UnavailableError: What the strategy needs is missing.
    """
    train, is_fan = spec.train, spec.model.backbone.startswith(_FAN)
    if train.precision not in ("fp32", "fp16"):
        raise InvalidInputError(f"train.precision must be fp32 or fp16; got {train.precision!r}")
    if train.distributed_strategy not in ("ddp", *_SHARDED):
        raise InvalidInputError(
            f"{train.distributed_strategy} is not implemented. Only ddp, fsdp and deepspeed_stage_3_offload are "
            "supported as train.distributed_strategy."
        )
    kind = _kind(spec)
    ids = _ids(spec, kind, warn)
    devices = Devices(kind, ids, train.num_nodes, train.distributed_strategy, _precision(spec, kind, warn), is_fan)
    _check_nodes(train.num_nodes)
    if devices.is_sharded:
        _check_sharded(spec, kind)
        say(f"Overriding Precision to FP16 for {train.distributed_strategy}")
        devices = replace(devices, precision="16-mixed")
    if is_fan and devices.processes > 1:
        if kind == "gpu":
            say("Setting sync batch norm")
        else:
            warn("the processes of a CPU do not share their batch statistics: PyTorch synchronises them on GPUs only")
    return devices


def _kind(spec: Spec) -> Literal["cpu", "gpu"]:
    has_gpu = torch.cuda.is_available()
    if spec.ocdserve.device == "cuda" and not has_gpu:
        raise UnavailableError("ocdserve.device=cuda, but PyTorch finds no GPU; leave it out to train on the CPU")
    return "cpu" if spec.ocdserve.device == "cpu" or not has_gpu else "gpu"


def _ids(spec: Spec, kind: Literal["cpu", "gpu"], warn: Callable[[str], None]) -> tuple[int, ...]:
    train = spec.train
    count = max(train.num_gpus, len(train.gpu_ids))
    ids = train.gpu_ids if len(train.gpu_ids) == count else tuple(range(count))
    if count != train.num_gpus or (len(train.gpu_ids) not in (1, count)):
        warn(
            f"train.num_gpus is {train.num_gpus} and train.gpu_ids has {len(train.gpu_ids)}; the larger number is "
            f"taken: {', '.join(map(str, ids))}"
        )
    if kind == "cpu":
        if count > 1 and spec.ocdserve.device != "cpu":
            raise UnavailableError(
                f"train.num_gpus={count}, but PyTorch finds no GPU: set it to 1, or ocdserve.device=cpu for {count} "
                "processes on the CPU"
            )
        return tuple(range(count))
    absent = [index for index in ids if not 0 <= index < torch.cuda.device_count()]
    if absent or len(set(ids)) < len(ids):
        raise InvalidInputError(
            f"train.gpu_ids must be different indices below {torch.cuda.device_count()}, the number of GPUs; got {ids}"
        )
    return ids


def _precision(spec: Spec, kind: str, warn: Callable[[str], None]) -> str:
    if spec.train.precision == "fp16" and kind == "cpu":
        warn("train.precision=fp16 has no effect on a CPU, where FP16 is slower: training in FP32")
    return "16-mixed" if spec.train.precision == "fp16" and kind == "gpu" else "32-true"


def _check_nodes(nodes: int) -> None:
    if "LOCAL_RANK" in os.environ:
        raise InvalidInputError(
            "train starts a process for each device itself: run it once on each machine, not by torchrun (LOCAL_RANK "
            "is set)"
        )
    absent = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if nodes > 1 and absent:
        raise InvalidInputError(
            f"train.num_nodes={nodes} needs the environment variable{'s' if len(absent) > 1 else ''} "
            f"{', '.join(absent)}: the index of this machine from 0, and address and port of machine 0"
        )


def _check_sharded(spec: Spec, kind: str) -> None:
    strategy = spec.train.distributed_strategy
    if kind == "cpu":
        raise UnavailableError(
            f"train.distributed_strategy={strategy} needs more than one GPU; on a CPU take ddp, or one process"
        )
    if strategy.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        raise UnavailableError(f"train.distributed_strategy={strategy} needs `pip install deepspeed`")
    if spec.train.model_ema:
        raise InvalidInputError(
            f"train.model_ema needs whole weights in every process, which {strategy} has not; take ddp"
        )

# SPDX-License-Identifier: Apache-2.0
"""The training loop: crops of the user's pictures, and of others on which the network is to stay as it is."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ocdserve.backend.processor import cpu_flags, cpuinfo, instruction_sets
from ocdserve.builder.progress import Progress
from ocdserve.builder.train.distil import distillation_loss, map_divergence
from ocdserve.builder.train.finetune.options import Schedule
from ocdserve.contract import InvalidInputError


class Batch(NamedTuple):
    """Crops of one step.

    Attributes:
        own: Of the user's pictures, float32 (N, 3, H, W).
        target: Their probability maps, float32 (N, H, W), 0 to 1.
        other: Of other pictures, float32 (M, 3, H, W).
    """

    own: NDArray[np.float32]
    target: NDArray[np.float32]
    other: NDArray[np.float32]


class Batches(Protocol):
    """Source of batches."""

    def batch(self, step: int) -> Batch:
        """The crops of a step, the same for the same step."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """The file that an interrupted training continues from.

    Attributes:
        file: Written while training, and read at its begin if it exists.
        plan: What is trained and how; a file of another plan is refused.
        every: Steps between two writes.
    """

    file: Path
    plan: str
    every: int = 250

    def restore(self, parts: Mapping[str, Any]) -> int:
        """Load the states of modules and optimisers, if there is a file; returns the steps that are done.

        Raises:
            InvalidInputError: The file is of a training by another plan.
        """
        if not self.file.exists():
            return 0
        found = torch.load(self.file, weights_only=True)
        if found["plan"] != self.plan:
            raise InvalidInputError(f"{self.file} is of {found['plan']}, not of {self.plan}: name another --output")
        for name, part in parts.items():
            part.load_state_dict(found[name])
        return int(found["step"])

    def save(self, parts: Mapping[str, Any], step: int) -> None:
        """Write the states after a step, where one is due."""
        if step % self.every:
            return
        new = self.file.with_suffix(".new")
        torch.save({"plan": self.plan, "step": step, **{name: each.state_dict() for name, each in parts.items()}}, new)
        new.replace(self.file)


def has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16, so that training in it is faster."""
    return "BF16" in instruction_sets(cpu_flags(cpuinfo()))


def rate_factor(step: int, schedule: Schedule) -> float:
    """Factor of the learning rate at a step from 0: a linear warm-up, of an eighth at most, then a cosine to 0."""
    warmup = min(schedule.warmup, max(1, schedule.steps // 8))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, schedule.steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train(
    module: nn.Module,
    batches: Batches,
    schedule: Schedule,
    progress: Progress,
    loss_of: Callable[[Tensor, Tensor], Tensor] = distillation_loss,
    check: Callable[[int, nn.Module], bool] = lambda step, averaged: True,
    one_by_one: bool = False,
    *,
    original: nn.Module | None = None,
    checkpoint: Checkpoint | None = None,
    bfloat16: bool = False,
) -> nn.Module:
    """Train a network; it is changed in place.

    Args:
        module: With logits (N, 1, H, W) in training mode and probabilities in evaluation mode.
        batches: Source of crops.
        schedule: How long and how fast.
        progress: Reports each step.
        loss_of: Loss of the network's output, (N, 1, H, W), from the target.
        check: Called after each step with its number, from 1, and the averaged network; False ends the training.
        one_by_one: Whether the network takes one image at a time only.
        original: What the network is to answer as on other pictures; None: as it does before.
        checkpoint: Continues an interrupted training; None: it begins anew.
        bfloat16: Whether to compute in bfloat16 where that is precise enough: two thirds of the time where the
            processor has it, several times as long elsewhere.

    Returns:
        The network with the moving average of the weights, in evaluation mode.

    Raises:
        InvalidInputError: The checkpoint is of another plan, or the loss is no longer a number.
    """
    layout = _memory_format(module)
    module = module.to(memory_format=layout)
    original = copy.deepcopy(original or module).to(memory_format=layout).eval().requires_grad_(False)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(schedule.average))
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, schedule.rate, weight_decay=schedule.weight_decay)
    parts = {"module": module, "averaged": averaged, "optimizer": optimizer}
    done = checkpoint.restore(parts) if checkpoint else 0

    def output(of: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return _output(of, images, layout, one_by_one).float()

    module.train()
    with progress.task("fine-tuning", schedule.steps) as task:
        task.advance(done)
        for step in range(done, schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate * rate_factor(step, schedule)
            own, target, other = map(torch.from_numpy, batches.batch(step))
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(output(module, own), target)
            loss.backward()
            if len(other):
                with torch.no_grad():
                    known = output(original, other)[:, 0]
                kept = map_divergence(output(module, other)[:, 0], known)
                (schedule.keep_weight * kept).backward()
            torch.nn.utils.clip_grad_norm_(weights, schedule.clip)
            optimizer.step()
            averaged.update_parameters(module)
            if not math.isfinite(value := float(loss.detach())):
                raise InvalidInputError(f"the loss of step {step + 1} is {value}: train at a lower rate")
            task.advance(note=f"loss {value:.3f}")
            if checkpoint:
                checkpoint.save(parts, step + 1)
            if not check(step + 1, averaged.module):
                break
    return averaged.module.eval()


def _memory_format(module: nn.Module) -> torch.memory_format:
    """Channels last, a quarter faster on a CPU; the plain one where PyTorch's oneDNN would overwrite memory.

    It does so in the backward pass of 1 x 1 convolutions of stride 2 with fewer than 16 inputs (PyTorch 2.13), which
    small and pruned ResNets have.
    """
    is_unsafe = any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels < 16
        for layer in module.modules()
    )
    return torch.contiguous_format if is_unsafe else torch.channels_last


def _output(module: Any, images: Tensor, layout: torch.memory_format, one_by_one: bool) -> Tensor:
    images = images.contiguous(memory_format=layout)
    return torch.cat([module(part) for part in (images.split(1) if one_by_one else (images,))])

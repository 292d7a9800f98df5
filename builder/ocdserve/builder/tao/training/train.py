# SPDX-License-Identifier: Apache-2.0
"""The action `train`: train a network on labelled images, or go on with a training."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from ocdserve.builder.tao.actions import ActionResult, Context
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.spec.training import Wandb
from ocdserve.builder.tao.training.trainer.checkpoints import BEST, find_resumed
from ocdserve.builder.tao.training.trainer.devices import plan_devices
from ocdserve.builder.tao.training.trainer.fit import Job, fit, fit_in_process
from ocdserve.builder.tao.training.trainer.processes import run_in_processes
from ocdserve.builder.tao.training.trainer.reporting import OnEpoch
from ocdserve.contract import InvalidInputError


@dataclass(frozen=True)
class TrainResult:
    """What a training has reached.

    Attributes:
        best: Figures of the best epoch: recall, precision, hmean and its `epoch`; None if none was validated.
        last: Figures of the last epoch: `train_loss`, and where it was validated recall, precision and hmean; empty if
            there was nothing left to train.
    """

    best: Mapping[str, float] | None
    last: Mapping[str, float]


def run(spec: Spec, context: Context) -> ActionResult:
    """Train.

    Raises:
        InvalidInputError: A key, the data or a checkpoint is invalid, or the loss is not finite.
        UnavailableError: There are not the devices that the spec asks for.
    """
    result = train(spec, context)
    best, last = result.best or {}, result.last
    kpi = {name: value for name, value in {**last, **best}.items() if name != "epoch"}
    if not last:
        return ActionResult(f"Nothing was left to train: {spec.train.num_epochs} epochs are done.", kpi)
    if not best:
        return ActionResult(f"Trained to a loss of {last['train_loss']:.4f}; nothing was validated.", kpi)
    return ActionResult(
        f"Trained to a loss of {last['train_loss']:.4f}; best hmean {best['hmean']:.4f}, of epoch {best['epoch']}, in "
        f"{context.results_dir / BEST}.",
        kpi,
    )


def train(spec: Spec, context: Context, on_epoch: OnEpoch | None = None) -> TrainResult:
    """Train as the section `train` says, with its results in the context's folder.

    Args:
        spec: The spec.
        context: Of the action.
        on_epoch: Called as `on_epoch(epoch, figures)` after each epoch in this process, which must be the only one;
            what it raises ends the training and is raised here.

    Raises:
        InvalidInputError: A key, the data or a checkpoint is invalid, or the loss is not finite.
        UnavailableError: There are not the devices that the spec asks for.
    """
    _check(spec)
    if spec.wandb.enable and spec.wandb != Wandb():
        context.warn("the section wandb has no effect: figures are in lightning_logs (TensorBoard) and status.json")
    devices = plan_devices(spec, context.warn, context.say)
    resumed = find_resumed(context.results_dir, spec.train.resume_training_checkpoint_path)
    if resumed is not None:
        context.status.write("RUNNING", f"Resuming training from checkpoint: {resumed}")
        context.say(f"Resuming training from checkpoint: {resumed}")
        if spec.model.pretrained_model_path:
            context.warn("model.pretrained_model_path has no effect: the training is resumed from a checkpoint")
    seed = spec.train.seed if spec.train.seed >= 0 else int.from_bytes(os.urandom(4), "little")
    job = Job(spec, context.results_dir, devices, seed, resumed)
    context.status.write("STARTED", "Starting Training Loop.")
    if devices.processes == 1:
        progress = fit(job, context, on_epoch)
    elif on_epoch is not None:
        raise InvalidInputError(
            "only a training in one process reports the figures of each epoch; set train.num_gpus=1"
        )
    else:
        progress = run_in_processes(partial(fit_in_process, job), len(devices.ids))
    context.status.write("RUNNING", "Training loop complete.", kpi=progress.kpi)
    return TrainResult(progress.best.get(BEST), progress.metrics)


def _check(spec: Spec) -> None:
    """Raise InvalidInputError for keys that contradict each other; the texts begin as TAO's."""
    train = spec.train
    epochs, warmup = train.num_epochs, train.lr_scheduler.args.warmup_epoch
    if epochs == warmup:
        raise InvalidInputError(
            f"num_epochs should not be same as warmup_epoch. Both are {epochs}: set "
            "train.lr_scheduler.args.warmup_epoch below train.num_epochs, to 0 for a run of one epoch."
        )
    by_epoch = train.checkpoint_interval_unit == "epoch" and not train.is_dry_run
    if by_epoch and train.checkpoint_interval > epochs:
        raise InvalidInputError(
            f"Checkpoint interval {train.checkpoint_interval} > Number of epochs {epochs}. Set "
            "train.checkpoint_interval to train.num_epochs or less."
        )
    if train.validation_interval > epochs and not train.is_dry_run:
        raise InvalidInputError(
            f"Validation interval {train.validation_interval} > Number of epochs {epochs}. Set "
            "train.validation_interval to train.num_epochs or less."
        )
    if train.loss.type != "DBLoss":
        raise InvalidInputError(f"train.loss.type must be DBLoss, the only one there is; got {train.loss.type!r}")

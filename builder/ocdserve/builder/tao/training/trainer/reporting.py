# SPDX-License-Identifier: Apache-2.0
"""Validation, status lines, best weights and figures at the end of each epoch; files by the first process only."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ocdserve.backend.evaluation.figures import Counts
from ocdserve.builder.progress import Task
from ocdserve.builder.tao.actions import Context
from ocdserve.builder.tao.training.trainer.checkpoints import BEST, BEST_AVERAGED, save
from ocdserve.builder.tao.training.trainer.module import DetectorModule
from ocdserve.builder.tao.training.trainer.signals import Interruption
from ocdserve.builder.tao.training.trainer.validation import TorchNetwork, Validator
from ocdserve.contract import InvalidInputError

OnEpoch = Callable[[int, Mapping[str, float]], None]
_PREFIXES = {BEST: "", BEST_AVERAGED: "ema_"}


@dataclass
class Progress:
    """How far a training is; kept in its checkpoints.

    Attributes:
        best: Figures of the best epoch by file of weights: recall, precision, hmean and its `epoch`.
        metrics: Figures of the last epoch: `train_loss`, and where it was validated recall, precision and hmean.
        kpi: Of the last status line.
    """

    best: dict[str, dict[str, float]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    kpi: dict[str, Any] = field(default_factory=dict)


class Reporter(Callback):
    """Ends each epoch: validates, writes status lines and the best weights, and asks whether to go on.

    Args:
        context: Of the action; its methods are called in the first process only.
        validator: Labelled images.
        interval: Epochs between two validations.
        config: The spec, for the files of best weights.
        interruption: Signals that wait for the end of a step.
        task: Advanced by each step.
        on_epoch: Called with the figures of each epoch; may raise to end the training after it.
        is_sharded: Whether each process holds only a part of the weights.

    Attributes:
        progress: How far the training is.
        stopped_by: What `on_epoch` raised.
    """

    def __init__(
        self,
        context: Context,
        validator: Validator,
        interval: int,
        config: Mapping[str, Any],
        interruption: Interruption,
        task: Task,
        on_epoch: OnEpoch | None = None,
        is_sharded: bool = False,
    ) -> None:
        self.progress = Progress()
        self.stopped_by: Exception | None = None
        self._context = context
        self._validator = validator
        self._interval = interval
        self._config = config
        self._interruption = interruption
        self._task = task
        self._on_epoch = on_epoch
        self._is_sharded = is_sharded
        self._loss: Tensor | None = None
        self._batches = 0
        self._started = self._step_started = 0.0
        self._step_times: list[float] = []
        self._rate = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to know: the best figures so far."""
        return {"best": self.progress.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best figures of a training that is resumed."""
        self.progress.best = dict(state_dict["best"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure an epoch."""
        self._begin(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a step, which signals do not interrupt."""
        if self._loss is None:  # resumed within an epoch
            self._begin(trainer)
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._interruption.is_busy = True
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a step."""
        loss = outputs["loss"].detach()
        assert self._loss is not None  # set when the epoch or its first step began
        self._loss += loss
        self._batches += 1
        self._step_times.append(time.perf_counter() - self._step_started)
        if trainer.logger is not None and trainer.global_step % trainer.log_every_n_steps == 1:
            trainer.logger.log_metrics({"train_loss_step": float(loss)}, step=trainer.global_step)
        self._task.advance(note=f"epoch {trainer.current_epoch}" if self._batches % 10 == 1 else "")
        # Lightning resumes from the end of an epoch, but not from the end of an epoch's last step.
        if not trainer.is_last_batch:
            self._interruption.check()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate where it is due and report."""
        self._interruption.check()
        assert isinstance(pl_module, DetectorModule)
        epoch = trainer.current_epoch
        seconds = time.perf_counter() - self._started
        metrics = {"train_loss": self._mean_loss(trainer)}
        is_finite = math.isfinite(metrics["train_loss"])
        if is_finite and (trainer.fast_dev_run or (epoch + 1) % self._interval == 0):
            found = {file: self._measure(trainer, network) for file, network in self._networks(pl_module).items()}
            self._report_validation(trainer, pl_module, found, metrics)
        self.progress.metrics = metrics
        self._write("Training loop in progress", data=self._position(trainer, seconds))
        self._write("Train metrics generated.", kpi={"train_loss": metrics["train_loss"]})
        if trainer.logger is not None:
            logged = {("train_loss_epoch" if name == "train_loss" else name): value for name, value in metrics.items()}
            trainer.logger.log_metrics(logged, step=trainer.global_step)
        self._loss = None
        if self._on_epoch is not None and trainer.is_global_zero:
            try:
                self._on_epoch(epoch, metrics)
            except Exception as error:  # the caller's, who ends the training by it: passed on when it has ended
                self.stopped_by = error
                trainer.should_stop = True
        if self.stopped_by is None and not is_finite:
            raise InvalidInputError(
                f"the loss of epoch {epoch} is not finite: lower train.optimizer.args.lr ({self._rate:g} then), or set "
                "train.trainer.clip_grad_norm"
            )

    def _begin(self, trainer: Trainer) -> None:
        self._loss, self._batches = torch.zeros((), device=trainer.strategy.root_device), 0
        self._started = time.perf_counter()

    def _mean_loss(self, trainer: Trainer) -> float:
        assert self._loss is not None
        mean = trainer.strategy.reduce(self._loss / max(self._batches, 1), reduce_op="mean")
        return float(mean)

    def _measure(self, trainer: Trainer, network: nn.Module) -> Counts:
        """Counts of all processes, each of which measures a part of the images with the first one's weights."""
        ranks, rank = trainer.world_size, trainer.global_rank
        if self._is_sharded:  # every process computes a part of each layer, so all need the same images
            ranks, rank = 1, 0
        if ranks > 1:
            for buffer in network.buffers():  # each process has its own statistics of BatchNorm
                torch.distributed.broadcast(buffer, 0)
        part = slice(rank, None, ranks)
        if trainer.fast_dev_run:
            part = slice(rank, ranks * self._validator.loader.batch_size, ranks)
        counts = self._validator.measure(TorchNetwork(network, trainer.strategy.root_device), part)
        if ranks > 1:
            numbers = torch.tensor(
                [counts.matched, counts.detections, counts.truths], device=trainer.strategy.root_device
            )
            torch.distributed.all_reduce(numbers)
            counts = Counts(*numbers.tolist())
        return counts

    def _report_validation(
        self, trainer: Trainer, module: DetectorModule, found: Mapping[str, Counts], metrics: dict[str, float]
    ) -> None:
        figures = {
            f"{_PREFIXES[file]}{name}": value
            for file, counts in found.items()
            for name, value in (("recall", counts.recall), ("precision", counts.precision), ("hmean", counts.hmean))
        }
        self._write("Eval metrics generated.", kpi={name: str(value) for name, value in figures.items()})
        for file, network in self._networks(module).items():
            own = {name: figures[f"{_PREFIXES[file]}{name}"] for name in ("recall", "precision", "hmean")}
            if own["hmean"] >= self.progress.best.get(file, own)["hmean"]:
                self.progress.best[file] = {**own, "epoch": trainer.current_epoch}
                self._save_best(trainer, file, network, own | metrics)
        if trainer.is_global_zero:
            lines = {"current_epoch": trainer.current_epoch, "lr": self._rate, **figures}
            for name, value in lines.items():
                self._context.say(f"{name}: {value}")
        metrics.update(figures)

    def _save_best(self, trainer: Trainer, file: str, network: nn.Module, metrics: dict[str, float]) -> None:
        weights = self._weights(trainer, network)
        if not trainer.is_global_zero:
            return
        path = self._context.results_dir / file
        content = {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "state_dict": weights,
            "optimizer": trainer.optimizers[0].state_dict(),
            "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "config": dict(self._config),
            "metrics": {
                **metrics,
                "train_loss": torch.tensor(metrics["train_loss"]),
                "best_model_epoch": trainer.current_epoch,
            },
        }
        shown = {**metrics, "best_model_epoch": trainer.current_epoch}
        self._context.say("current best, " + ", ".join(f"{name}: {value}" for name, value in shown.items()))
        self._context.say(f"Saving current best: {path}")
        save(content, path)

    def _position(self, trainer: Trainer, seconds: float) -> dict[str, Any]:
        epochs = trainer.max_epochs or 1
        remaining = epochs - trainer.current_epoch - 1
        step = sum(self._step_times) / max(len(self._step_times), 1)
        return {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "max_epoch": epochs - 1,
            "max_step": epochs * int(trainer.num_training_batches),
            "time_per_epoch": str(timedelta(seconds=seconds)),
            "time_per_step": str(timedelta(seconds=step)),
            "eta": str(timedelta(seconds=remaining * seconds)),
        }

    def _write(self, message: str, kpi: dict[str, Any] | None = None, data: dict[str, Any] | None = None) -> None:
        self.progress.kpi = kpi or self.progress.kpi
        self._context.status.write("RUNNING", message, kpi=kpi, data=data)

    def _networks(self, module: DetectorModule) -> dict[str, nn.Module]:
        """The networks to validate, by the file of their best weights."""
        if self._is_sharded:
            return {BEST: module.trainer.strategy.model}
        averaged = {} if module.model_ema is None else {BEST_AVERAGED: module.model_ema.module}
        return {BEST: module.model, **averaged}

    def _weights(self, trainer: Trainer, network: nn.Module) -> dict[str, Tensor]:
        """State dict of a network; where it is sharded, all processes put it together."""
        if not self._is_sharded:
            return dict(network.state_dict())
        return {
            name.removeprefix("model."): value for name, value in trainer.strategy.lightning_module_state_dict().items()
        }

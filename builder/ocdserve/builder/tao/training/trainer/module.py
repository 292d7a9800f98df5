# SPDX-License-Identifier: Apache-2.0
"""The network, its loss and its optimizer as Lightning runs them."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.spec.training import Optimizer
from ocdserve.builder.train.averaging import ModelAverage
from ocdserve.builder.train.losses import DbLoss
from ocdserve.builder.train.schedule import warmup_poly
from ocdserve.contract import InvalidInputError

AVERAGED = "model_ema."
OWN_KEY = "ocdserve"
# Batches of an epoch that get seeds of their own.
_BATCHES = 1 << 20


@dataclass(frozen=True)
class Schedule:
    """Of the learning rate: warm-up and length in epochs."""

    warmup: int
    epochs: int


class DetectorModule(LightningModule):
    """A DB network in training, with the average of its weights where asked for.

    Its state dict has TAO's names: `model.*` and `model_ema.module.*`.

    Args:
        network: In training mode (N, 3, H, W) to (N, 3, H, W), as `DbLoss` takes it.
        loss: The loss.
        optimizer: Kind and arguments.
        schedule: Of the learning rate.
        seed: Of what a layer draws; each batch of each process has its own numbers.
        decay: Of the average; None for none.
        config: What checkpoints record of the run, plain values.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: DbLoss,
        optimizer: Optimizer,
        schedule: Schedule,
        seed: int,
        decay: float | None,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model = network
        self.model_ema = None if decay is None else ModelAverage(network, decay)
        self._loss = loss
        self._optimizer = optimizer
        self._schedule = schedule
        self._seed = seed
        self._config = config

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        found: Tensor = self.model(x)
        return found

    def on_train_epoch_start(self) -> None:
        """Set the rate, which the schedule of a resumed training may have had another length for."""
        factor = warmup_poly(self.trainer.current_epoch, self._schedule.warmup, self._schedule.epochs)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * factor

    def on_train_batch_start(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Seed what layers draw, such as dropout, so that a resumed training draws the same."""
        torch.manual_seed(hash((self._seed, self.trainer.current_epoch * _BATCHES + batch_idx, self.global_rank)))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self._loss(self(batch["img"]), batch).total

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Change the weights and add them to their average, before callbacks may save both."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.model_ema is not None:
            self.model_ema.update(self.model)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm of the whole gradient, of which FSDP's processes hold parts."""
        of_all_parts = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)
        if of_all_parts is not None and gradient_clip_val:
            of_all_parts(gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return optimizer and schedule; the rate is set once an epoch."""
        optimizer = build_optimizer(self._optimizer, self.model.parameters())
        warmup, epochs = self._schedule.warmup, self._schedule.epochs
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: warmup_poly(epoch, warmup, epochs))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's settings, and what the state dict does not hold."""
        checkpoint["hyper_parameters"] = dict(self._config)
        checkpoint[OWN_KEY] = {"ema_updates": self.model_ema.updates if self.model_ema is not None else 0}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take rate and weight decay from the spec, and an average where none was kept; drop one not kept now."""
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            was, lr = group["initial_lr"], self._optimizer.args.lr
            if was != lr:
                group.update(initial_lr=lr, lr=group["lr"] / was * lr)
            group["weight_decay"] = self._optimizer.args.weight_decay
            checkpoint["lr_schedulers"][0]["base_lrs"] = [lr]
        weights = checkpoint["state_dict"]
        names = [name for name in weights if name.startswith(AVERAGED)]
        if self.model_ema is None:
            for name in names:
                del weights[name]
            return
        # A file of TAO does not say how many updates there were: one a step.
        steps = checkpoint["global_step"] if names else 0
        self.model_ema.updates = checkpoint.get(OWN_KEY, {}).get("ema_updates", steps) if names else 0
        if not names:
            weights.update({f"{AVERAGED}module.{name.removeprefix('model.')}": weights[name] for name in list(weights)})


def build_optimizer(options: Optimizer, parameters: Any) -> torch.optim.Optimizer:
    """Build an optimizer of PyTorch, with those of the arguments that it has.

    Raises:
        InvalidInputError: There is no such optimizer, or it does not take these values.
    """
    kind = getattr(torch.optim, options.type, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
        raise InvalidInputError(
            f"train.optimizer.type must be an optimizer of torch.optim such as Adam, AdamW or SGD; got {options.type!r}"
        )
    taken = set(inspect.signature(kind).parameters)
    try:
        optimizer: torch.optim.Optimizer = kind(
            parameters, **{name: value for name, value in asdict(options.args).items() if name in taken}
        )
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"train.optimizer: {options.type} cannot be made of these arguments: {error}"
        ) from error
    return optimizer


def detector_module(spec: Spec, network: nn.Module, seed: int, config: Mapping[str, Any]) -> DetectorModule:
    """Return the module of a spec's section `train`."""
    train = spec.train
    return DetectorModule(
        network,
        DbLoss(train.loss.alpha, train.loss.beta, train.loss.ohem_ratio, train.loss.eps),
        train.optimizer,
        Schedule(train.lr_scheduler.args.warmup_epoch, train.num_epochs),
        seed,
        train.model_ema_decay if train.model_ema else None,
        config,
    )

# SPDX-License-Identifier: Apache-2.0
"""Train a network in this process, alone or as one of several."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

from ocdserve.builder.progress import SILENT, TerminalProgress
from ocdserve.builder.tao.actions import Context
from ocdserve.builder.tao.running import say, warn
from ocdserve.builder.tao.spec import Spec, plain
from ocdserve.builder.tao.status import StatusLog
from ocdserve.builder.tao.training.data import training_data
from ocdserve.builder.tao.training.trainer.checkpoints import EpochCheckpoints, PlainCheckpointIO, check_resumed
from ocdserve.builder.tao.training.trainer.devices import Devices
from ocdserve.builder.tao.training.trainer.loader import EpochLoader, LoaderOptions
from ocdserve.builder.tao.training.trainer.module import build_optimizer, detector_module
from ocdserve.builder.tao.training.trainer.network import initial_network, load_pretrained
from ocdserve.builder.tao.training.trainer.reporting import OnEpoch, Progress, Reporter
from ocdserve.builder.tao.training.trainer.signals import Interruption
from ocdserve.builder.tao.training.trainer.validation import validator
from ocdserve.contract import InvalidInputError


@dataclass(frozen=True)
class Job:
    """A training, as each of its processes gets it.

    Attributes:
        spec: The spec.
        folder: Its result folder.
        devices: The processes.
        seed: Of everything that is drawn.
        resumed: Checkpoint to resume from.
    """

    spec: Spec
    folder: Path
    devices: Devices
    seed: int
    resumed: Path | None


def fit(job: Job, context: Context, on_epoch: OnEpoch | None = None) -> Progress:
    """Train.

    Args:
        job: What to do.
        context: Of the action.
        on_epoch: Called with the figures of each epoch by the first process; may raise to end the training.

    Raises:
        InvalidInputError: A key, the data or the checkpoint is invalid, or the loss is not finite.
    """
    spec, train = job.spec, job.spec.train
    _set_up(spec, job.seed)
    network = initial_network(spec)
    if job.resumed is not None:
        check_resumed(job.resumed, network, build_optimizer(train.optimizer, network.parameters()))
    else:
        load_pretrained(spec, network, context.say, context.warn)
    config: dict[str, Any] = plain(spec)
    module = detector_module(spec, network, job.seed, config)
    loader = _loader(job, context, lambda: _position(trainer))
    interruption = Interruption()
    steps = 1 if train.is_dry_run else train.num_epochs * len(loader)
    with context.progress.task("train", steps) as task:
        reporter = Reporter(
            context,
            validator(spec, train.post_processing.args),
            train.validation_interval,
            config,
            interruption,
            task,
            on_epoch,
            job.devices.is_sharded,
        )
        trainer = _trainer(job, [reporter, *_checkpoints(job, context)])
        with interruption.listening():
            trainer.fit(module, loader, ckpt_path=job.resumed)
    if reporter.stopped_by is not None:
        raise reporter.stopped_by
    return reporter.progress


def fit_in_process(job: Job) -> Progress:
    """Train as one of several processes; the first one of the first machine reports."""
    is_first = _from_environment("NODE_RANK") == _from_environment("LOCAL_RANK") == 0
    status = StatusLog(job.folder, repeats_kpi=True, is_written=is_first)
    if not is_first:
        return fit(job, Context(job.folder, status, SILENT, _ignore, _ignore))
    return fit(job, Context(job.folder, status, TerminalProgress(sys.stderr), say, warn))


def _loader(job: Job, context: Context, position: Callable[[], tuple[int, int]]) -> EpochLoader:
    """Batches of this process; raises InvalidInputError if there is not one for each process."""
    data = training_data(job.spec, job.seed)
    for note in data.notes:
        context.warn(note)
    options, ranks = job.spec.dataset.train_dataset.loader, job.devices.processes
    images, batch = len(data.dataset), options.batch_size * ranks
    if images < batch:
        raise InvalidInputError(
            f"Dataset size ({images}) is smaller than the total batch size ({batch}). Not enough data for train. Lower "
            "dataset.train_dataset.loader.batch_size, or add images."
        )
    rank = _from_environment("NODE_RANK") * len(job.devices.ids) + _from_environment("LOCAL_RANK")
    pins = options.pin_memory and job.devices.kind == "gpu"
    loading = LoaderOptions(options.batch_size, options.shuffle, options.num_workers, pins, job.seed, rank, ranks)
    return EpochLoader(data.dataset, loading, position)


def _position(trainer: Trainer) -> tuple[int, int]:
    """Epoch, and its batches that are done."""
    loop = trainer.fit_loop
    return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.ready


def _from_environment(name: str) -> int:
    return int(os.environ.get(name, 0))


def _trainer(job: Job, callbacks: list[Any]) -> Trainer:
    train = job.spec.train
    logs = not train.is_dry_run
    trainer = Trainer(
        **job.devices.trainer_options(),
        max_epochs=train.num_epochs,
        gradient_clip_val=train.trainer.clip_grad_norm or None,
        fast_dev_run=train.is_dry_run,
        logger=TensorBoardLogger(str(job.folder), name="lightning_logs", version=1) if logs else False,
        callbacks=callbacks,
        plugins=[LightningEnvironment(), PlainCheckpointIO()],
        default_root_dir=job.folder,
        enable_checkpointing=logs,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=10,
    )
    # Lightning's handler of SIGTERM calls other processes while they wait for another call; ours are in `signals`.
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def _checkpoints(job: Job, context: Context) -> list[Any]:
    train = job.spec.train
    if train.is_dry_run:
        return []
    return [
        EpochCheckpoints(job.folder, train.checkpoint_interval, train.checkpoint_interval_unit == "step", context.warn)
    ]


def _set_up(spec: Spec, seed: int) -> None:
    """Set what PyTorch and Lightning keep for the whole process."""
    for name in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    # Advice for other set-ups: this one's loaders and loggers are chosen by the spec.
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    if spec.ocdserve.threads:
        torch.set_num_threads(spec.ocdserve.threads)
    torch.backends.cudnn.benchmark = spec.train.cudnn.benchmark
    torch.backends.cudnn.deterministic = spec.train.cudnn.deterministic
    torch.manual_seed(seed)


def _ignore(message: str) -> None:
    """The other processes say the same."""

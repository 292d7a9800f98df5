# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files by TAO's names.

They hold tensors and plain values only, so that `torch.load(weights_only=True)` reads them.
`model_epoch_EEE_step_SSSSS.pth` are Lightning's, which training resumes from; `ocd_model_latest.pth` links to the
newest; `model_best.pth` and `model_best_ema.pth` hold the weights of the best validation.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from ocdserve.builder.train.checkpoints import read_checkpoint
from ocdserve.contract import InvalidInputError, OcdserveError

LATEST = "ocd_model_latest.pth"
BEST = "model_best.pth"
BEST_AVERAGED = "model_best_ema.pth"


def epoch_name(epoch: int, step: int) -> str:
    """Name of a checkpoint: epoch from 0, steps of the optimizer so far."""
    return f"model_epoch_{epoch:03d}_step_{step:05d}.pth"


def plain(value: Any) -> Any:
    """Return a value with the containers and numbers of Python in place of subclasses and NumPy's.

    Raises:
        TypeError: It holds something that `torch.load(weights_only=True)` would refuse.
    """
    if isinstance(value, nn.Parameter):
        return value.data
    if value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if hasattr(value, "item"):
        return plain(value.item())
    raise TypeError(f"a checkpoint holds tensors and plain values only; got {type(value).__name__}")


def save(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint; its name appears when it is complete.

    Raises:
        OcdserveError: It cannot be written, for example because the disk is full.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            torch.save(plain(content), file)
        draft.replace(path)
    except (OSError, RuntimeError) as error:
        # PyTorch's writer raises another error on top of the file's.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise OcdserveError(
            f"{path} cannot be written: {reason.strerror}; make room there and run the same command again, which "
            "resumes from the newest checkpoint, or choose another results_dir"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


class PlainCheckpointIO(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints here."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file of plain values."""
        save(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file, TAO's too, without executing what it holds."""
        return read_checkpoint(Path(path))


def find_resumed(folder: Path, given: str) -> Path | None:
    """Return the checkpoint that a training resumes from, None to begin anew.

    Args:
        folder: Its result folder; the first `*_latest.pth` in it is resumed if there is no other.
        given: `train.resume_training_checkpoint_path`; may be empty.

    Raises:
        InvalidInputError: The file does not exist, or has neither suffix of TAO's checkpoints.
    """
    if not given:
        return next(iter(sorted(path for path in folder.glob("*_latest.pth") if path.exists())), None)
    path = Path(given)
    if path.suffix not in (".pth", ".tlt"):
        raise InvalidInputError(
            f"Resume checkpoint has an invalid file format; it must be either a .tlt or a .pth. Got {given!r}."
        )
    if not path.is_file():
        raise InvalidInputError(f"there is no checkpoint {given!r} (train.resume_training_checkpoint_path)")
    return path


def check_resumed(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Check a checkpoint to resume from.

    Raises:
        InvalidInputError: It is not one of Lightning, or of another network or optimizer.
    """
    content = read_checkpoint(path)
    if not {"state_dict", "optimizer_states", "loops"} <= content.keys():
        raise InvalidInputError(
            f"{path} holds weights but not the state of the training: resume from a model_epoch_<epoch>_step_<step>.pth"
            f", or begin with these weights by model.pretrained_model_path={path}"
        )
    theirs = {
        name.removeprefix("model."): tuple(tensor.shape)
        for name, tensor in content["state_dict"].items()
        if name.startswith("model.")
    }
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if theirs != ours:
        wrong = sorted({*theirs.items()} ^ {*ours.items()})[0][0]
        raise InvalidInputError(
            f"{path} is of another network: {wrong} has the shape {theirs.get(wrong, 'of no weight')} there and "
            f"{ours.get(wrong, 'of no weight')} here. Set the keys of the section model, and ocdserve.width, as they "
            "were."
        )
    _check_optimizer(path, content["optimizer_states"][0]["param_groups"][0], optimizer.param_groups[0])


def _check_optimizer(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse settings that decide what an optimizer remembers, and how it uses that."""
    wrong = sorted(
        name
        for name, value in theirs.items()
        if name != "initial_lr" and (name not in ours or (isinstance(value, bool) and ours[name] != value))
    )
    if wrong:
        raise InvalidInputError(
            f"{path} is of a training with another optimizer, which differs in {', '.join(wrong)}: set train.optimizer "
            f"as it was, or begin with these weights by model.pretrained_model_path={path} and another results_dir"
        )


class EpochCheckpoints(Checkpoint):
    """Writes checkpoints at intervals and when the training ends by an exception.

    Weights that are not finite are never the newest, which the next run would resume from.

    Args:
        folder: Where to.
        interval: Epochs, or steps, between two.
        by_step: Whether it counts steps.
        warn: Called with the reason why a checkpoint could not be written when an exception ended the training.
    """

    def __init__(self, folder: Path, interval: int, by_step: bool, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._interval = interval
        self._by_step = by_step
        self._warn = warn

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write one every so many steps; the last one of an epoch is written when that has ended."""
        if self._by_step and trainer.global_step % self._interval == 0 and not trainer.is_last_batch:
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write one every so many epochs, or steps."""
        done = trainer.global_step if self._by_step else trainer.current_epoch + 1
        if done % self._interval == 0:
            self._write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was trained so far."""
        path = self._folder / epoch_name(trainer.current_epoch, trainer.global_step)
        if not trainer.global_step or not trainer.is_global_zero or path.exists() or not _is_finite(pl_module):
            return
        try:
            if trainer.world_size == 1:
                trainer.save_checkpoint(path)
            else:
                # Without the barrier of `save_checkpoint`: other processes may be gone, or wait for this one.
                save(trainer._checkpoint_connector.dump_checkpoint(weights_only=False), path)
            link_latest(path)
        except Exception as error:  # the exception that ended the training matters more
            self._warn(f"{path} could not be written: {error}")

    def _write(self, trainer: Trainer, module: nn.Module) -> None:
        path = self._folder / epoch_name(trainer.current_epoch, trainer.global_step)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero and _is_finite(module):
            link_latest(path)


def _is_finite(module: nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in (*module.parameters(), *module.buffers()))


def link_latest(path: Path) -> None:
    """Make `ocd_model_latest.pth` a link to a checkpoint of its folder."""
    draft = path.with_name(f".{LATEST}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):
        draft.unlink()
    draft.symlink_to(path.name)
    draft.replace(path.with_name(LATEST))

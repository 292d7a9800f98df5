# SPDX-License-Identifier: Apache-2.0
"""A training that takes a second: four drawn pictures, crops of 64 pixels, a network of an eighth of the width."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ocdserve.builder.progress import SILENT
from ocdserve.builder.tao.actions import ACTIONS, Context
from ocdserve.builder.tao.running import run_action
from ocdserve.builder.tao.spec import Spec, load_spec
from ocdserve.builder.tao.status import StatusLog

from ..conftest import label, picture

IMAGES = 4
_STEPS = """[
    {type: IaaAugment, args: [{type: Fliplr, args: {p: 0.5}}, {type: Affine, args: {rotate: [-10, 10]}}]},
    {type: EastRandomCropData, args: {size: [64, 64], max_tries: 50, keep_ratio: true}},
    {type: MakeBorderMap, args: {shrink_ratio: 0.4, thresh_min: 0.3, thresh_max: 0.7}},
    {type: MakeShrinkMap, args: {shrink_ratio: 0.4, min_text_size: 8}}]"""
_SIZE = "[{type: Resize2D, args: {short_size: [128, 96], resize_text_polys: true}}]"


def data_folder(folder: Path) -> Path:
    """A data set: each picture has one bright word."""
    for index in range(IMAGES):
        x, y = 20 + 10 * index, 30 + 8 * index
        picture(folder / "img" / f"p{index}.png", [(x, y, 60, 24, 0.9)], (128, 96))
        label(folder, f"p{index}", [f"{x},{y},{x + 60},{y},{x + 60},{y + 24},{x},{y + 24},word"])
    return folder


def overrides(folder: Path, *more: str) -> list[str]:
    """Those of the small training, with its results in `folder`; later ones take precedence."""
    data = folder.parent / "data"
    if not data.is_dir():
        data_folder(data)
    return [
        f"train.results_dir={folder}",
        f"dataset.train_dataset.data_path=[{data}]",
        f"dataset.validate_dataset.data_path=[{data}]",
        f"dataset.train_dataset.args.pre_processes={' '.join(_STEPS.split())}",
        f"dataset.validate_dataset.args.pre_processes={_SIZE}",
        "dataset.train_dataset.loader.batch_size=2",
        "dataset.validate_dataset.loader.num_workers=1",
        "train.num_epochs=2",
        "train.lr_scheduler.args.warmup_epoch=1",
        "train.model_ema=true",
        "ocdserve.width=0.125",
        *more,
    ]


def run_train(folder: Path, *more: str, action: str = "train") -> int:
    """Run the action as the command does, and return its exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = folder.parent / "spec.yaml"
    spec.write_text("train:\n")
    return run_action(ACTIONS[action], spec, overrides(folder, *more), SILENT)


def spec_of(folder: Path, *more: str) -> Spec:
    """The spec of the small training."""
    return load_spec(None, overrides(folder, *more)).spec


def context_of(folder: Path, said: list[str]) -> Context:
    """A context that collects what is said."""
    return Context(folder, StatusLog(folder, repeats_kpi=True), SILENT, said.append, said.append)


def loaded(path: Path) -> Any:
    """The content of a checkpoint, by PyTorch's restricted reading."""
    return torch.load(path, weights_only=True)


def differing(one: Any, other: Any, key: str = "") -> Sequence[str]:
    """Where two contents of checkpoints differ, bit for bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [key]
    if isinstance(one, dict):
        names = [f"{key}.{name}" for name in one.keys() ^ other.keys()]
        return names + [
            at for name in one.keys() & other.keys() for at in differing(one[name], other[name], f"{key}.{name}")
        ]
    if isinstance(one, list | tuple):
        return [
            at for index, pair in enumerate(zip(one, other, strict=True)) for at in differing(*pair, f"{key}.{index}")
        ]
    return [] if one == other else [key]

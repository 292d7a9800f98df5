# SPDX-License-Identifier: Apache-2.0
"""Two receipts are learned by heart."""

from pathlib import Path

import pytest

from ocdserve.builder.tao.spec import load_spec
from ocdserve.builder.tao.training.train import train

from .small_training import context_of

RECEIPTS = Path(__file__).parents[5] / "shared" / "data" / "receipts"
STEPS = """[
    {type: EastRandomCropData, args: {size: [160, 160], max_tries: 50, keep_ratio: true}},
    {type: MakeBorderMap, args: {shrink_ratio: 0.4, thresh_min: 0.3, thresh_max: 0.7}},
    {type: MakeShrinkMap, args: {shrink_ratio: 0.4, min_text_size: 8}}]"""


@pytest.mark.long
def test_the_loss_of_two_receipts_falls_by_more_than_half(tmp_path: Path) -> None:
    if not RECEIPTS.is_dir():
        pytest.skip(f"the receipts are not there: {RECEIPTS}")
    listed = tmp_path / "two.txt"
    pairs = [
        (RECEIPTS / "img" / f"{stem}.jpg", RECEIPTS / "gt" / f"gt_{stem}.txt")
        for stem in ("receipt_000", "receipt_002")
    ]
    listed.write_text("".join(f"{image}\t{labels}\n" for image, labels in pairs), "utf-8")
    folder = tmp_path / "results"
    folder.mkdir()
    losses: list[float] = []
    spec = load_spec(
        None,
        [
            f"dataset.train_dataset.data_path=[{listed}]",
            f"dataset.validate_dataset.data_path=[{listed}]",
            f"dataset.train_dataset.args.pre_processes={' '.join(STEPS.split())}",
            "dataset.train_dataset.loader.batch_size=2",
            *(f"train.{name}=120" for name in ("num_epochs", "checkpoint_interval", "validation_interval")),
            "train.optimizer.args.lr=0.003",
            "ocdserve.width=0.25",
            "ocdserve.threads=1",
        ],
    ).spec
    train(spec, context_of(folder, []), lambda epoch, figures: losses.append(figures["train_loss"]))
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < first / 2

# SPDX-License-Identifier: Apache-2.0
"""Losses, against values computed by hand."""

import math

import pytest
import torch

from ocdserve.builder.train.losses import DbLoss, balanced_bce, dice_loss, masked_l1
from ocdserve.contract import InvalidInputError


def row(*values: float) -> torch.Tensor:
    return torch.tensor([[list(values)]], dtype=torch.float32)


def bce(logit: float, target: int) -> float:
    """Cross-entropy of one pixel, from its definition."""
    probability = 1 / (1 + math.exp(-logit))
    return -math.log(probability if target else 1 - probability)


def test_three_hardest_negatives_count_for_each_positive() -> None:
    logits = row(2, -1, 0, 1, -3, 3)
    loss = balanced_bce(logits, row(1, 0, 0, 0, 0, 0), row(1, 1, 1, 1, 1, 0))
    # The negative of logit 3 is masked, that of -3 is the easiest of four.
    expected = (bce(2, 1) + bce(1, 0) + bce(0, 0) + bce(-1, 0)) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_negatives_are_ranked_over_the_whole_batch() -> None:
    logits = torch.cat([row(0, -5, -5, -5), row(3, 2, 1, -5)])
    target = torch.cat([row(1, 0, 0, 0), row(0, 0, 0, 0)])
    loss = balanced_bce(logits, target, torch.ones(2, 1, 4))
    assert loss.item() == pytest.approx((bce(0, 1) + bce(3, 0) + bce(2, 0) + bce(1, 0)) / 4, rel=1e-5)


def test_fewer_negatives_than_wanted_all_count() -> None:
    loss = balanced_bce(row(1, 1, -1), row(1, 1, 0), row(1, 1, 1))
    assert loss.item() == pytest.approx((2 * bce(1, 1) + bce(-1, 0)) / 3, rel=1e-5)


def test_a_batch_without_text_learns_from_its_hardest_negatives() -> None:
    logits = torch.full((2, 10, 10), -4.0)
    logits[0, 3, 3], logits[1, 5, 5] = 2.0, 1.0
    logits.requires_grad_()
    loss = balanced_bce(logits, torch.zeros(2, 10, 10), torch.ones(2, 10, 10))
    # One in a hundred of 200 pixels, times 3: six negatives.
    assert loss.item() == pytest.approx((bce(2, 0) + bce(1, 0) + 4 * bce(-4, 0)) / 6, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 3, 3] > 0.1


def test_a_batch_that_is_masked_everywhere_has_no_loss() -> None:
    zeros = torch.zeros(1, 2, 2)
    assert balanced_bce(zeros, zeros, zeros).item() == 0
    assert masked_l1(zeros + 1, zeros, zeros).item() == 0


def test_l1_is_the_mean_inside_of_the_mask() -> None:
    assert masked_l1(row(0.5, 0.2, 0.9), row(0.7, 0.7, 0), row(1, 1, 0)).item() == pytest.approx(0.35, rel=1e-5)


def test_dice_compares_the_overlap_inside_of_the_mask() -> None:
    # 1 - 2 * 0.8 / (0.8 + 0.4 + 1)
    assert dice_loss(row(0.8, 0.4, 1), row(1, 0, 1), row(1, 1, 0)).item() == pytest.approx(1 - 1.6 / 2.2, rel=1e-5)


def test_the_total_is_weighted() -> None:
    prediction = torch.stack([row(2, -1), row(0.5, 0.5), row(0.9, 0.1)], dim=1).reshape(1, 3, 1, 2)
    targets = {
        "shrink_map": row(1, 0),
        "shrink_mask": row(1, 1),
        "threshold_map": row(0.7, 0.3),
        "threshold_mask": row(1, 0),
    }
    losses = DbLoss(alpha=5, beta=10)(prediction.half(), targets)
    assert losses.bce.item() == pytest.approx((bce(2, 1) + bce(-1, 0)) / 2, rel=1e-3)
    assert losses.l1.item() == pytest.approx(0.2, rel=1e-3)
    assert losses.dice.item() == pytest.approx(1 - 1.8 / 2, rel=5e-3)
    assert losses.total.dtype == torch.float32
    total = 5 * losses.bce + 10 * losses.l1 + losses.dice
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-6)


@pytest.mark.parametrize(("name", "value"), [("alpha", -1.0), ("ohem_ratio", math.nan), ("eps", math.inf)])
def test_a_weight_that_makes_no_sense_is_named(name: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=f"the loss's {name} must be a finite number"):
        DbLoss(**{name: value})

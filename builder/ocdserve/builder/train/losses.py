# SPDX-License-Identifier: Apache-2.0
"""Loss of a DB network: probability map, threshold map and differentiable binary map."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ocdserve.contract import InvalidInputError

# Share of text that a batch without any is assumed to have when its hard negatives are counted.
_ASSUMED_TEXT = 0.01
_BCE_EPS = 1e-6


class Losses(NamedTuple):
    """Scalars; `total` is the weighted sum of the others."""

    total: Tensor
    bce: Tensor
    l1: Tensor
    dice: Tensor


@dataclass(frozen=True)
class DbLoss:
    """Loss of Differentiable Binarization (Liao et al., 2020, section 3.5): alpha BCE + beta L1 + Dice.

    Attributes:
        alpha: Weight of the probability map.
        beta: Weight of the threshold map.
        ohem_ratio: Hard negatives for each positive pixel.
        eps: Added to the denominators of L1 and Dice.

    Raises:
        InvalidInputError: A value is negative or not finite.
    """

    alpha: float = 5.0
    beta: float = 10.0
    ohem_ratio: float = 3.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "ohem_ratio", "eps"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InvalidInputError(f"the loss's {name} must be a finite number of at least 0; got {value}")

    def __call__(self, prediction: Tensor, targets: Mapping[str, Tensor]) -> Losses:
        """Compute the loss of a batch, in float32.

        Args:
            prediction: (N, 3, H, W): logits of the probability, threshold, binary map.
            targets: `shrink_map`, `shrink_mask`, `threshold_map`, `threshold_mask`, each (N, H, W).
        """
        logits, threshold, binary = prediction.float().unbind(1)
        shrink, mask = targets["shrink_map"], targets["shrink_mask"]
        bce = balanced_bce(logits, shrink, mask, self.ohem_ratio)
        l1 = masked_l1(threshold, targets["threshold_map"], targets["threshold_mask"], self.eps)
        dice = dice_loss(binary, shrink, mask, self.eps)
        return Losses(self.alpha * bce + self.beta * l1 + dice, bce, l1, dice)


def balanced_bce(logits: Tensor, target: Tensor, mask: Tensor, ohem_ratio: float = 3.0) -> Tensor:
    """Binary cross-entropy of all positive pixels and `ohem_ratio` times as many of the hardest negative ones.

    Negatives are ranked over the whole batch. A batch without positives, of pictures without text, gets as many
    negatives as if one pixel in a hundred were text; TAO's loss is 0 there, so that false alarms on such pictures teach
    nothing.

    Args:
        logits: (N, H, W).
        target: 0 or 1, (N, H, W).
        mask: 1 where a pixel counts, else 0, (N, H, W).
    """
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    positive, negative = target * mask, (1 - target) * mask
    counts = torch.stack([positive.sum(), negative.sum()])
    positives, negatives = (round(count) for count in counts.tolist())
    wanted = int(positives * ohem_ratio) if positives else math.ceil(negatives * _ASSUMED_TEXT * ohem_ratio)
    hardest = min(negatives, wanted)
    total = (losses * positive).sum() + (losses * negative).flatten().topk(hardest, sorted=False).values.sum()
    return total / (positives + hardest + _BCE_EPS)


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor, eps: float = 1e-6) -> Tensor:
    """Mean absolute difference where the mask is 1; all (N, H, W)."""
    return ((prediction - target).abs() * mask).sum() / (mask.sum() + eps)


def dice_loss(prediction: Tensor, target: Tensor, mask: Tensor, eps: float = 1e-6) -> Tensor:
    """One minus the Dice coefficient of two maps where the mask is 1; all (N, H, W)."""
    overlap = (prediction * target * mask).sum()
    return 1 - 2 * overlap / ((prediction * mask).sum() + (target * mask).sum() + eps)

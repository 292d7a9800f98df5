# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of the gate's figures, which come from paired counts of the same images.

Texts of an image are not independent, so that images are resampled (paired cluster bootstrap: Davison and Hinkley,
"Bootstrap Methods and their Application", 1997, section 3.8). Where hardly a match differs all resamples are alike,
and the bootstrap would call the loss certain: there the exact counts of differing matches decide (limits of Poisson
counts and their difference). The reported interval covers both.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.evaluation.figures import Counts

_RESAMPLES = 2000
_SEED = 0
# Quantile of the normal distribution for 95 %, two-sided.
_Z = 1.959964

Interval = tuple[float, float]
_Array = NDArray[np.float64]


def hmean_loss_interval(fp32: Sequence[Counts], candidate: Sequence[Counts], lost: int, won: int) -> Interval:
    """95 % interval of the points of hmean lost.

    Args:
        fp32: Counts of FP32, by image.
        candidate: Counts of the candidate, in the same order.
        lost: Truths that only FP32 finds.
        won: Truths that only the candidate finds.

    Returns:
        (low, high) in points; (-100, 100) for a single image, which says nothing of others.
    """
    if len(fp32) < 2:
        return -100.0, 100.0
    counts = np.stack([_rows(fp32), _rows(candidate)], axis=1)
    low, high = _bootstrap(counts, lambda sums: 100 * (_hmean(sums[:, 0]) - _hmean(sums[:, 1])))
    # One match is worth 2 / (detections + truths) of hmean.
    worth = 200 / max(1.0, float(counts[:, 0, 1:].sum()))
    loss = float(100 * (_hmean(counts[:, 0].sum(axis=0)) - _hmean(counts[:, 1].sum(axis=0))))
    below, above = _difference_limits(lost, won)
    return max(-100.0, min(low, loss - worth * below)), min(100.0, max(high, loss + worth * above))


def agreement_interval(agreeing: Sequence[Counts]) -> Interval:
    """95 % interval of the agreement, from the counts of each image with FP32's boxes as the truths.

    Returns:
        (low, high), 0 to 1; (0, 1) for a single image, and where there is no box.
    """
    counts = _rows(agreeing)
    boxes = float(counts[:, 1:].sum())
    if len(agreeing) < 2 or not boxes:
        return 0.0, 1.0
    low, high = _bootstrap(counts, _hmean)
    differing_low, differing_high = poisson_interval(int(boxes - 2 * counts[:, 0].sum()))
    return max(0.0, min(low, 1 - differing_high / boxes)), min(1.0, max(high, 1 - differing_low / boxes))


def loss_interval(lost: NDArray[np.int64], won: NDArray[np.int64], totals: NDArray[np.int64]) -> Interval:
    """95 % interval of the points that a share of items lost.

    Args:
        lost: Items that only FP32 has right, by image.
        won: Items that only the candidate has right.
        totals: All items.

    Returns:
        (low, high) in points; (-100, 100) for a single image, and where there is no item.
    """
    count = int(totals.sum())
    if len(totals) < 2 or not count:
        return -100.0, 100.0
    counts = np.stack([lost - won, totals], axis=1).astype(np.float64)
    low, high = _bootstrap(counts, lambda sums: 100 * sums[:, 0] / np.maximum(1.0, sums[:, 1]))
    losses, wins = int(lost.sum()), int(won.sum())
    below, above = _difference_limits(losses, wins)
    loss = 100 * (losses - wins) / count
    return max(-100.0, min(low, loss - 100 * below / count)), min(100.0, max(high, loss + 100 * above / count))


def poisson_interval(count: int) -> Interval:
    """95 % interval of the mean of a Poisson distribution of which `count` was drawn.

    Byar's approximation of the exact limits, within 0.03: Breslow and Day, "Statistical Methods in Cancer Research",
    volume 2, 1987, equation 2.12.
    """
    more = count + 1
    high = more * (1 - 1 / (9 * more) + _Z / (3 * more**0.5)) ** 3
    low = max(0.0, count * (1 - 1 / (9 * count) - _Z / (3 * count**0.5)) ** 3) if count else 0.0
    return low, high


def _difference_limits(lost: int, won: int) -> tuple[float, float]:
    """How far the difference of two Poisson counts reaches below and above `lost - won`, 95 %.

    Zou and Donner, "Construction of confidence limits about effect measures", 2008, equation 7.
    """
    (lost_low, lost_high), (won_low, won_high) = poisson_interval(lost), poisson_interval(won)
    return float(np.hypot(lost - lost_low, won_high - won)), float(np.hypot(lost_high - lost, won - won_low))


def _bootstrap(counts: _Array, figure: Callable[[_Array], _Array]) -> Interval:
    """Percentiles of a figure of summed counts (images, ...), widened for few images.

    They are too narrow by sqrt(n / (n - 1)) and by the ratio of Student's quantile to the normal one (Hesterberg,
    "What Teachers Should Know About the Bootstrap", 2015, section 4.1).
    """
    images = len(counts)
    weights = np.random.default_rng(_SEED).multinomial(images, np.full(images, 1 / images), _RESAMPLES)
    drawn = figure(np.tensordot(weights.astype(np.float64), counts, axes=1))
    value = float(figure(counts.sum(axis=0)[None])[0])
    freedom = images - 1
    # Fisher's expansion of Student's quantile: Abramowitz and Stegun, 26.7.5.
    student = _Z + (_Z**3 + _Z) / (4 * freedom) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)
    wider = student / _Z * (images / freedom) ** 0.5
    low, high = np.quantile(drawn, (0.025, 0.975))
    return value + wider * float(low - value), value + wider * float(high - value)


def _rows(counts: Sequence[Counts]) -> _Array:
    """Matches, detections and truths, (images, 3)."""
    return np.array([(item.matched, item.detections, item.truths) for item in counts], np.float64).reshape(-1, 3)


def _hmean(counts: _Array) -> _Array:
    """2 M / (D + T), the same as the harmonic mean of M / D and M / T."""
    hmean: _Array = 2 * counts[..., 0] / np.maximum(1.0, counts[..., 1] + counts[..., 2])
    return hmean

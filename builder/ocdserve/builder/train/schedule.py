# SPDX-License-Identifier: Apache-2.0
"""Schedule of the learning rate."""

_START = 1 / 3
_POWER = 0.9


def warmup_poly(epoch: float, warmup: float, epochs: float) -> float:
    """Factor of the learning rate: linear from 1/3 to 1 during the warm-up, then (1 - progress)^0.9 down to 0.

    NVIDIA TAO's WarmupPolyLR. The unit of the arguments is free, epochs or steps.

    Args:
        epoch: From 0.
        warmup: Length of the warm-up; 0 for none. It may be longer than the training.
        epochs: Length of the training, warm-up included.
    """
    if epoch < warmup:
        return _START + (1 - _START) * epoch / warmup
    if epoch >= epochs:
        return 0.0
    return float((1 - (epoch - warmup) / (epochs - warmup)) ** _POWER)

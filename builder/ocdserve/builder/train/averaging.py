# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a network's weights."""

import copy
import math

import torch
from torch import nn

from ocdserve.contract import InvalidInputError

# Updates after which the decay has reached 63 % of its final value, so that early weights are forgotten.
_RAMP = 2000.0


class ModelAverage(nn.Module):
    """Average of a network's weights and statistics over the updates: d average + (1 - d) network.

    d = decay (1 - exp(-n / 2000)) at the n-th update, from 1. Integers, such as BatchNorm's counters, are copied.

    Attributes:
        module: The averaged network, in evaluation mode; its entries of a state dict are named `module.*`.
        updates: How many there were. Not part of the state dict, whose names are TAO's: save it next to it.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999) -> None:
        """Start with a copy of the network.

        Raises:
            InvalidInputError: The decay is not between 0 and 1.
        """
        super().__init__()
        if not 0 <= decay <= 1:
            raise InvalidInputError(f"the decay of the average must be between 0 and 1; got {decay}")
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def train(self, mode: bool = True) -> "ModelAverage":
        """Stay in evaluation mode: an average is never trained."""
        return super().train(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Add the weights of a network of the same names and shapes; call it after each step of the optimizer."""
        self.updates += 1
        decay = self.decay * (1 - math.exp(-self.updates / _RAMP))
        source = network.state_dict()
        for name, average in self.module.state_dict().items():
            if average.is_floating_point():
                average.lerp_(source[name].to(average), 1 - decay)
            else:
                average.copy_(source[name])

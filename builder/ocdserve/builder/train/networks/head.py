# SPDX-License-Identifier: Apache-2.0
"""The head of DB (Liao et al., "Real-time Scene Text Detection with Differentiable Binarization")."""

import torch
from torch import Tensor, nn


class DBHead(nn.Module):
    """Features to maps of text: in training probability logits, threshold and binary map, else probabilities.

    Args:
        inputs: Channels of the features, a multiple of 4.
        k: Steepness of the differentiable binarization.
        upsamplings: 2 from features at stride 4, 1 from stride 2.
    """

    def __init__(self, inputs: int, k: float, upsamplings: int) -> None:
        super().__init__()
        self.k = k
        self.binarize = _branch(inputs, upsamplings)
        self.thresh = _branch(inputs, upsamplings)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 3, H, W) in training, else to (N, 1, H, W)."""
        if not self.training:
            return self.binarize(x)
        logits = self.binarize[:-1](x)
        threshold = self.thresh(x)
        binary = torch.sigmoid(self.k * (torch.sigmoid(logits) - threshold))
        return torch.cat([logits, threshold, binary], dim=1)


def _branch(inputs: int, upsamplings: int) -> nn.Sequential:
    inner = inputs // 4
    layers = [nn.Conv2d(inputs, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()]
    for _ in range(upsamplings - 1):
        layers += [nn.ConvTranspose2d(inner, inner, 2, 2), nn.BatchNorm2d(inner), nn.ReLU()]
    branch = nn.Sequential(*layers, nn.ConvTranspose2d(inner, 1, 2, 2), nn.Sigmoid())
    for module in branch:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 1e-4)
    return branch

# SPDX-License-Identifier: Apache-2.0
"""The convolutional stem of the hybrid FAN: two stages of a ConvNeXt (Liu et al., "A ConvNet for the 2020s")."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCKS = 3


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; sizes are kept."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Mlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 4 * channels, 1)
        self.fc2 = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = ChannelNorm(channels, eps=1e-6)
        self.mlp = _Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma[:, None, None] * self.mlp(self.norm(self.conv_dw(x)))


class _Stage(nn.Module):
    """Blocks, behind a convolution of stride 2 unless it is the first stage."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.downsample = nn.Identity()
        if inputs != channels:
            self.downsample = nn.Sequential(ChannelNorm(inputs, eps=1e-6), nn.Conv2d(inputs, channels, 2, 2))
        self.blocks = nn.Sequential(*(_Block(channels) for _ in range(_BLOCKS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ConvNext(nn.Module):
    """Images to features of two stages.

    Args:
        widths: Channels of the stages.
        stride: Of the first stage; the second has twice that.
    """

    def __init__(self, widths: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], stride, stride), ChannelNorm(widths[0], eps=1e-6))
        self.stages = nn.Sequential(_Stage(widths[0], widths[0]), _Stage(widths[0], widths[1]))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

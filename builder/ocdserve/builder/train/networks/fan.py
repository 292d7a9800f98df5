# SPDX-License-Identifier: Apache-2.0
"""The hybrid fully attentional network, FAN (Zhou et al., "Understanding the Robustness in Vision Transformers").

A ConvNeXt of two stages makes tokens. Every block attends over tokens, then reweights channels by their attention; two
class attention blocks end it (Touvron et al., "Going deeper with Image Transformers"). Tensors of tokens are (N, T, C).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocdserve.builder.train.networks.checkpointing import checkpointed
from ocdserve.builder.train.networks.convnext import ConvNext

HEADS = 8
_BLOCKS = 8
_CLASS_BLOCKS = 2
_FREQUENCIES = 32
_TEMPERATURE = 10000.0


class Fan(nn.Module):
    """Images to four levels of features, the last two of the same size.

    Linear layers and the ConvNeXt start from a truncated normal distribution of 0.02, as is usual for transformers.

    Args:
        widths: Channels of ConvNeXt's stages and of the tokens; the latter a multiple of 8.
        enlarged: Levels at strides 2, 4, 8 and 8 instead of 4, 8, 16 and 16.
        fused: Keys and values come from one projection.
        activation_checkpoint: Keep the blocks' inputs only and compute a block again in the backward pass.
    """

    def __init__(
        self, widths: tuple[int, int, int], enlarged: bool, fused: bool, activation_checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.activation_checkpoint = activation_checkpoint
        width = widths[2]
        self.widths = (*widths, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embed = _PatchEmbed(widths, 2 if enlarged else 4)
        self.pos_embed = _PositionalCode(width)
        self.blocks = nn.ModuleList(_Block(width, fused) for _ in range(_BLOCKS))
        self.cls_attn_blocks = nn.ModuleList(_ClassBlock(width) for _ in range(_CLASS_BLOCKS))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to features from fine to coarse."""
        first, second, grid = self.patch_embed(x)
        height, width = grid.shape[2:]
        tokens = _tokens(grid + self.pos_embed(height, width))
        for block in self.blocks:
            tokens = self._through(block, tokens, height, width)
        third = _image(tokens, height, width)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for block in self.cls_attn_blocks:
            tokens = self._through(block, tokens)
        return [first, second, third, _image(tokens[:, 1:], height, width)]

    def _through(self, block: nn.Module, *inputs: Any) -> Tensor:
        return checkpointed(block, *inputs) if self.activation_checkpoint else block(*inputs)


class _PatchEmbed(nn.Module):
    def __init__(self, widths: tuple[int, int, int], stride: int) -> None:
        super().__init__()
        self.backbone = ConvNext(widths[:2], stride)
        self.proj = nn.Conv2d(widths[1], widths[2], 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both stages, and the tokens as an image."""
        first = self.backbone.stages[0](self.backbone.stem(x))
        second = self.backbone.stages[1](first)
        return first, second, self.proj(second)


class _PositionalCode(nn.Module):
    """Projected sines and cosines of the relative row and column (El-Nouby et al., "XCiT")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * _FREQUENCIES, width, 1)

    def forward(self, height: int, width: int) -> Tensor:
        """(1, C, height, width)."""
        weight = self.token_projection.weight
        rows, columns = (_waves(count, weight) for count in (height, width))
        code = torch.cat(
            [
                rows[:, :, None].expand(-1, -1, width),
                columns[:, None, :].expand(-1, height, -1),
            ]
        )
        return self.token_projection(code[None])


def _waves(count: int, like: Tensor) -> Tensor:
    """(32, count): sine and cosine by turns, of angles up to a full turn divided by growing periods."""
    position = torch.arange(1, count + 1, device=like.device, dtype=like.dtype)
    angle = position / (count + 1e-6) * (2 * math.pi)
    exponent = torch.arange(0, _FREQUENCIES, 2, device=like.device, dtype=like.dtype) / _FREQUENCIES
    phase = angle / _TEMPERATURE ** exponent[:, None]
    return torch.stack([phase.sin(), phase.cos()], dim=1).flatten(0, 1)


class _Block(nn.Module):
    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.gamma1 = nn.Parameter(torch.ones(width))
        self.gamma2 = nn.Parameter(torch.ones(width))
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _TokenAttention(width, fused)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _ChannelAttention(width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        return x + self.gamma2 * self.mlp(self.norm2(x), height, width)


class _TokenAttention(nn.Module):
    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q = nn.Linear(width, width)
        if fused:
            self.kv = nn.Linear(width, 2 * width)
        else:
            self.k = nn.Linear(width, width)
            self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, dim=-1) if self.fused else (self.k(x), self.v(x))
        return self.proj(_attended(self.q(x), k, v))


class _ChannelAttention(nn.Module):
    """Weights the channels of a perceptron's result by how much they agree with the mean channel of their head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.mlp_v = _SpatialMlp(width)
        self.norm_v = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        q = _per_head(self.q(x)).softmax(dim=-2).transpose(-1, -2)
        k = _per_head(x).softmax(dim=-2).mean(dim=-1, keepdim=True)
        weight = (q @ k).sigmoid() * self.temperature  # (N, heads, C / heads, 1)
        values = _per_head(self.norm_v(self.mlp_v(x, height, width)))
        return _joined(values * weight.transpose(-1, -2))


class _SpatialMlp(nn.Module):
    """A perceptron per token, with a depthwise convolution over neighbouring tokens in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4 * width))
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = _Neighbours(4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x + self.gamma * _tokens(self.dwconv(_image(x, height, width))))


class _Neighbours(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn(functional.gelu(self.conv1(x))))


class _ClassBlock(nn.Module):
    """The first token attends to all; the others are normalised, which counts them twice, as in XCiT's weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma1 = nn.Parameter(torch.ones(width))
        self.gamma2 = nn.Parameter(torch.ones(width))
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _ClassAttention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _ClassMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = self.norm2(x + self.gamma1 * torch.cat([self.attn(normed), normed[:, 1:]], dim=1))
        return x + torch.cat([self.gamma2 * self.mlp(x[:, :1]), x[:, 1:]], dim=1)


class _ClassAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(_attended(self.q(x[:, :1]), self.k(x), self.v(x)))


class _ClassMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _joined(functional.scaled_dot_product_attention(*(_per_head(part) for part in (q, k, v))))


def _per_head(x: Tensor) -> Tensor:
    """(N, T, C) to (N, heads, T, C / heads)."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def _image(x: Tensor, height: int, width: int) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (height, width))

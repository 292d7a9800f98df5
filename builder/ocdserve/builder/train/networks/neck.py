# SPDX-License-Identifier: Apache-2.0
"""Necks: four levels of features, from fine to coarse, become one map at the finest level's size."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocdserve.builder.train.networks.resnet import Widths


class FPN(nn.Module):
    """Feature pyramid (Lin et al.): coarse levels are added to finer ones, then all are brought to one size.

    Args:
        widths: Channels of the levels.
        inner: Channels of the result, a multiple of 4.
    """

    def __init__(self, widths: Widths, inner: int) -> None:
        super().__init__()
        for level, channels in reversed(list(enumerate(widths, 2))):
            self.add_module(f"in{level}", nn.Conv2d(channels, inner, 1, bias=False))
        for level in (5, 4, 3):
            output = nn.Conv2d(inner, inner // 4, 3, padding=1, bias=False)
            self.add_module(f"out{level}", nn.Sequential(output, nn.Upsample(scale_factor=2 ** (level - 2))))
        self.out2 = nn.Conv2d(inner, inner // 4, 3, padding=1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels at strides 4 to 32 to (N, inner, H / 4, W / 4), coarse channels first."""
        c2, c3, c4, c5 = levels
        p5 = self.in5(c5)
        p4 = _doubled(p5) + self.in4(c4)
        p3 = _doubled(p4) + self.in3(c3)
        p2 = _doubled(p3) + self.in2(c2)
        return torch.cat([self.out5(p5), self.out4(p4), self.out3(p3), self.out2(p2)], dim=1)


class FANNeck(nn.Module):
    """Levels are projected, enlarged, concatenated and fused, as in SegFormer (Xie et al.).

    Args:
        widths: Channels of the levels.
        inner: Channels of the result.
    """

    def __init__(self, widths: Widths, inner: int) -> None:
        super().__init__()
        for level, channels in reversed(list(enumerate(widths, 1))):
            self.add_module(f"linear_c{level}", _Projection(channels, inner))
        self.linear_fuse = _Fusion(len(widths) * inner, inner)
        self.dropout = nn.Dropout2d(0.1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels at 1, 1 / 2, 1 / 4 and 1 / 4 of (h, w) to (N, inner, h, w), coarse channels first, in float32."""
        c1, c2, c3, c4 = levels
        parts = [
            _enlarged(self.linear_c4(c4), 4),
            _enlarged(self.linear_c3(c3), 4),
            _enlarged(self.linear_c2(c2), 2),
            self.linear_c1(c1),
        ]
        merged = torch.cat(parts, dim=1)
        if not torch.is_autocast_enabled(merged.device.type):
            return self.dropout(self.linear_fuse(merged))
        with torch.autocast(merged.device.type, enabled=False):
            return self.dropout(self.linear_fuse(merged.float()))


def _enlarged(x: Tensor, factor: int) -> Tensor:
    return functional.interpolate(x, scale_factor=float(factor), mode="bilinear")


class _Projection(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Fusion(nn.Module):
    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm = nn.BatchNorm2d(inner)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x)))


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0)

# SPDX-License-Identifier: Apache-2.0
"""The modulated deformable 3 x 3 convolution in PyTorch's own operators (Zhu et al., "Deformable ConvNets v2")."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

TAPS = 9


class DeformConv2d(nn.Module):
    """A 3 x 3 convolution of padding 1 without bias whose taps are displaced and weighted.

    The weight is initialised as torchvision does: uniform, by the fan-in.

    Args:
        inputs, outputs: Channels.
        stride: Of the output's pixels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """See `deform_conv`."""
        return deform_conv(x, offset, mask, self.weight, self.stride)

    def extra_repr(self) -> str:
        """Channels and stride, for the network's printed form."""
        outputs, inputs = self.weight.shape[:2]
        return f"{inputs}, {outputs}, stride={self.stride}"


def deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Sample all taps at once, bilinearly with zeros around the image, then convolve the samples 1 x 1.

    Args:
        x: (N, C, H, W).
        offset: (N, 18, h, w) in pixels of x: y and x of the first tap, y and x of the second, and so on, row by row;
            h and w are H and W divided by the stride, rounded up.
        mask: (N, 9, h, w), factors of the samples.
        weight: (O, C, 3, 3).
        stride: Of the output's pixels.

    Returns:
        (N, O, h, w) of x's type. Coordinates are computed in float32 at least: in float16 they would be 0.25 pixels
        apart at pixel 300.
    """
    batch, channels, height, width = x.shape
    rows, columns = offset.shape[2:]
    exact = torch.promote_types(offset.dtype, torch.float32)
    moved = offset.to(exact).reshape(batch, TAPS, 2, rows, columns)
    tap = torch.arange(TAPS, device=x.device)
    y = _pixels(rows, stride, x.device)[:, None] + (tap // 3 - 1)[:, None, None] + moved[:, :, 0]
    x_ = _pixels(columns, stride, x.device) + (tap % 3 - 1)[:, None, None] + moved[:, :, 1]
    # grid_sample's coordinates run from -1 to 1, from edge to edge of the image (align_corners=False).
    grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    samples = functional.grid_sample(x.to(exact), grid.flatten(2, 3), align_corners=False).to(x.dtype)
    samples = samples * mask.reshape(batch, 1, TAPS, rows * columns)
    samples = samples.reshape(batch, channels * TAPS, rows, columns)
    return functional.conv2d(samples, weight.reshape(len(weight), channels * TAPS, 1, 1))


def _pixels(count: int, stride: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device) * stride

# SPDX-License-Identifier: Apache-2.0
"""ResNets (He et al., "Deep Residual Learning", stride in the 3 x 3) as pyramids of features, plain and deformable."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ocdserve.builder.train.networks.checkpointing import checkpointed
from ocdserve.builder.train.networks.deform import TAPS, DeformConv2d

Widths = tuple[int, int, int, int]


class _Block(nn.Module):
    """What basic and bottleneck blocks share: the second convolution, perhaps deformable, and the shortcut."""

    conv2_offset: nn.Conv2d

    def add_shortcut(self, inputs: int, outputs: int, stride: int) -> None:
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def add_second(self, channels: int, stride: int, deformable: bool) -> None:
        self.deformable = deformable
        if deformable:
            self.conv2_offset = nn.Conv2d(channels, 3 * TAPS, 3, stride, 1)
            self.conv2 = DeformConv2d(channels, channels, stride)
        else:
            self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)

    def second(self, x: Tensor) -> Tensor:
        if not self.deformable:
            return self.conv2(x)
        offset, mask = torch.split(self.conv2_offset(x), [2 * TAPS, TAPS], dim=1)
        return self.conv2(x, offset, mask.sigmoid())

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class BasicBlock(_Block):
    """Two 3 x 3 convolutions."""

    EXPANSION = 1

    def __init__(self, inputs: int, channels: int, stride: int, deformable: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.add_second(channels, 1, deformable)
        self.bn2 = nn.BatchNorm2d(channels)
        self.add_shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.second(y)) + self.shortcut(x))


class Bottleneck(_Block):
    """1 x 1, 3 x 3 and 1 x 1 convolutions; the last widens by four."""

    EXPANSION = 4

    def __init__(self, inputs: int, channels: int, stride: int, deformable: bool) -> None:
        super().__init__()
        outputs = channels * self.EXPANSION
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.add_second(channels, stride, deformable)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.add_shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 4 * channels, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.second(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


@dataclass(frozen=True)
class ResNetOptions:
    """A member of the family.

    Attributes:
        block: Kind of block.
        depths: Blocks per stage.
        deformable: The second convolution of every block of stages 2 to 4 is deformable.
    """

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    deformable: bool


RESNETS = {
    "resnet18": ResNetOptions(BasicBlock, (2, 2, 2, 2), deformable=False),
    "resnet50": ResNetOptions(Bottleneck, (3, 4, 6, 3), deformable=False),
    "deformable_resnet18": ResNetOptions(BasicBlock, (2, 2, 2, 2), deformable=True),
    "deformable_resnet50": ResNetOptions(Bottleneck, (3, 4, 6, 3), deformable=True),
}


class ResNet(nn.Module):
    """(N, 3, H, W) to the four stages' outputs, at strides 4, 8, 16 and 32.

    Convolutions start normal by their fan-out, offsets and masks at 0: a deformable layer then is a plain one of half
    the strength.

    Args:
        options: Member of the family.
        widths: Channels of the four stages' 3 x 3 convolutions.
        activation_checkpoint: Keep the blocks' inputs only and compute a block again in the backward pass.
    """

    def __init__(self, options: ResNetOptions, widths: Widths, activation_checkpoint: bool = False) -> None:
        super().__init__()
        self.activation_checkpoint = activation_checkpoint
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = widths[0]
        for stage, (channels, depth) in enumerate(zip(widths, options.depths, strict=True), 1):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(options.block(inputs, channels, stride, options.deformable and stage > 1))
                inputs = channels * options.block.EXPANSION
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.widths: Widths = tuple(width * options.block.EXPANSION for width in widths)  # type: ignore[assignment]
        _initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features from fine to coarse."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        levels = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = checkpointed(stage, x) if self.activation_checkpoint else stage(x)
            levels.append(x)
        return levels


def _initialise(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if name.endswith("conv2_offset"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.weight[0, 0].numel() * module.out_channels)))

# SPDX-License-Identifier: Apache-2.0
"""OCDNet with random weights in PyTorch, exported as NVIDIA's TAO toolkit exports it.

Backbone, neck and probability head of `deformable_resnet18`: ResNet-18 whose stages 2 to 4 have a modulated
deformable 3 x 3 (Zhu et al., "Deformable ConvNets v2") as second convolution of every block, feature pyramid
(256 / 64 channels), DB head. Module names are TAO's, so node names in the ONNX file are those of a real export.

Needs torch and onnx; a test imports this module behind `pytest.importorskip("torch")`.
"""

import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

CUSTOM_OP = "ModulatedDeformConv2d"


class _ModulatedDeformConv(torch.autograd.Function):
    """DCNv2 with one group and one offset group; exported as the node that TensorRT's plugin takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, padding: int) -> Tensor:
        return deform_conv(x, offset, mask, weight, padding)

    @staticmethod
    def symbolic(graph: Any, x: Any, offset: Any, mask: Any, weight: Any, padding: int) -> Any:
        pair = {"stride_i": [1, 1], "padding_i": [padding, padding], "dilation_i": [1, 1]}
        node = graph.op(f"tao::{CUSTOM_OP}", x, offset, mask, weight, **pair, group_i=1, deformable_group_i=1)
        node.setType(x.type().with_sizes([None, weight.type().sizes()[0], None, None]))
        return node


def deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, padding: int) -> Tensor:
    """Deformable convolution of stride 1, tap by tap: every tap is a bilinear sample of the zero-padded image.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 * K, H, W) in pixels: y and x of the first tap, y and x of the second, and so on.
        mask: (N, K, H, W).
        weight: (O, C, k, k), K = k * k.
        padding: (k - 1) / 2.
    """
    batch, _, height, width = x.shape
    size = weight.shape[-1]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    result = x.new_zeros(batch, weight.shape[0], height, width)
    for tap in range(size * size):
        y = rows - padding + tap // size + offset[:, 2 * tap]
        x_ = columns - padding + tap % size + offset[:, 2 * tap + 1]
        grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
        sampled = functional.grid_sample(x, grid, align_corners=False) * mask[:, tap : tap + 1]
        result = result + functional.conv2d(sampled, weight[:, :, tap // size, tap % size, None, None])
    return result


class DeformConv2d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = _ModulatedDeformConv.apply(x, offset, mask, self.weight, 1)
        return result


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int, deformable: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2_offset = nn.Conv2d(channels, 27, 3, padding=1) if deformable else None
        self.conv2 = DeformConv2d(channels) if deformable else nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or inputs != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        if self.conv2_offset is None:
            x = self.conv2(x)
        else:
            offset_mask = self.conv2_offset(x)
            x = self.conv2(x, offset_mask[:, :18], offset_mask[:, -9:].sigmoid())
        return functional.relu(self.bn2(x) + skip)


class ResNet(nn.Module):
    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = widths[0]
        for index, channels in enumerate(widths, 1):
            first = BasicBlock(inputs, channels, 1 if index == 1 else 2, deformable=index > 1)
            second = BasicBlock(channels, channels, 1, deformable=index > 1)
            self.add_module(f"layer{index}", nn.Sequential(first, second))
            inputs = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        levels = []
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
            levels.append(x)
        return levels


class FeaturePyramid(nn.Module):
    def __init__(self, widths: tuple[int, int, int, int], inner: int) -> None:
        super().__init__()
        for level, channels in enumerate(widths, 2):
            self.add_module(f"in{level}", nn.Conv2d(channels, inner, 1, bias=False))
            self.add_module(f"out{level}", nn.Conv2d(inner, inner // 4, 3, padding=1, bias=False))

    def forward(self, levels: list[Tensor]) -> Tensor:
        merged = [self.get_submodule(f"in{level}")(x) for level, x in enumerate(levels, 2)]
        for index in (2, 1, 0):
            merged[index] = merged[index] + functional.interpolate(merged[index + 1], scale_factor=2.0)
        out = [self.get_submodule(f"out{level}")(x) for level, x in enumerate(merged, 2)]
        out[1:] = [functional.interpolate(x, scale_factor=2.0**index) for index, x in enumerate(out[1:], 1)]
        return torch.cat(out[::-1], dim=1)


class ProbabilityHead(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.binarize = nn.Sequential(
            nn.Conv2d(channels, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.ConvTranspose2d(inner, inner, 2, 2),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.ConvTranspose2d(inner, 1, 2, 2),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.binarize(x)
        return result


class OCDNet(nn.Module):
    """float32 (N, 3, H, W) to probabilities (N, 1, H, W); H and W are multiples of 32.

    Args:
        width_factor: Factor of all channel counts; 1.0 is NVIDIA's network.
    """

    def __init__(self, width_factor: float = 1.0) -> None:
        super().__init__()
        first, second, third, fourth, inner = (round(width * width_factor) for width in (64, 128, 256, 512, 256))
        widths = (first, second, third, fourth)
        self.backbone = ResNet(widths)
        self.neck = FeaturePyramid(widths, inner)
        self.head = ProbabilityHead(inner)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.neck(self.backbone(x)))
        return result


def ocdnet(*, seed: int = 0, width_factor: float = 1.0) -> OCDNet:
    """An OCDNet in inference mode whose weights depend on nothing but the seed.

    As in a trained network, normalisation fits the activations, offsets are of a pixel or so, masks and probabilities
    use their range. (Training starts with offset convolutions of 0, where a wrong offset would not be seen.) Most of an
    offset is its convolution's bias: random weights large enough to do it made rounding errors thirty times larger.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = OCDNet(width_factor)
        for name, module in network.named_modules():
            if name.endswith("conv2_offset"):
                nn.init.normal_(module.weight, std=0.5 / module.weight[0].numel() ** 0.5)
                nn.init.normal_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.normal_(module.bias, std=0.1)
                module.momentum = 1.0
        nn.init.normal_(network.head.binarize[-2].weight, std=3.0 / network.head.binarize[-2].in_channels ** 0.5)
        blots = functional.interpolate(torch.rand(2, 3, 16, 24) - 0.5, scale_factor=8.0, mode="bilinear")
        network(blots + 0.1 * torch.randn_like(blots))
        return network.eval()


def export_ocdnet(
    path: Path,
    *,
    height: int,
    width: int,
    seed: int = 0,
    dynamic_size: bool = False,
    width_factor: float = 1.0,
    opset: int = 17,
) -> OCDNet:
    """Write `ocdnet(...)` as ONNX with dynamic batch and custom nodes for the deformable convolutions.

    Args:
        path: File to write.
        height, width: Size of the input, multiples of 32.
        dynamic_size: Leave height and width open, too.
        opset: TAO's default is 11.

    Returns:
        The network that was exported.
    """
    network = ocdnet(seed=seed, width_factor=width_factor)
    axes = {0: "batch", 2: "height", 3: "width"} if dynamic_size else {0: "batch"}
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter without torch.export is deprecated, but only it knows autograd functions' symbolics.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, height, width),),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            output_names=["pred"],
            dynamic_axes={"input": axes},
            custom_opsets={"tao": 1},
        )
    model = onnx.load(str(path))
    for node in model.graph.node:  # TAO writes the node without a domain, which this exporter refuses
        if node.op_type == CUSTOM_OP:
            node.domain = ""
    del model.opset_import[1:]
    onnx.save(model, str(path))
    return network

# SPDX-License-Identifier: Apache-2.0
"""OCDNet: backbone, neck and head, chosen by options."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocdserve.builder.train.networks.fan import Fan
from ocdserve.builder.train.networks.head import DBHead
from ocdserve.builder.train.networks.neck import FPN, FANNeck
from ocdserve.builder.train.networks.resnet import RESNETS, ResNet
from ocdserve.contract import InvalidInputError

FAN = "fan_tiny_8_p4_hybrid"
BACKBONES = (*RESNETS, FAN)


@dataclass(frozen=True)
class NetworkOptions:
    """What a network is built of; the defaults are NVIDIA TAO's.

    Attributes:
        backbone: One of `BACKBONES`. The neck follows it.
        width: Factor of all channel counts, which are rounded to multiples of 8; 1 is NVIDIA's network.
        k: Steepness of the differentiable binarization.
        enlarge_feature_map_size: FAN only: features at twice the size, for small text.
        fuse_qkv_proj: FAN only: keys and values of an attention come from one projection.
        activation_checkpoint: Memory for time: activations inside of blocks are computed again in the backward pass.
    """

    backbone: str = "deformable_resnet18"
    width: float = 1.0
    k: float = 50
    enlarge_feature_map_size: bool = False
    fuse_qkv_proj: bool = True
    activation_checkpoint: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InvalidInputError: A value is out of its range.
        """
        if self.backbone not in BACKBONES:
            raise InvalidInputError(f"backbone must be one of {', '.join(BACKBONES)}; got {self.backbone!r}")
        if not 0 < self.width <= 4:
            raise InvalidInputError(f"width must be above 0 and at most 4; got {self.width}")
        if not self.k >= 1:
            raise InvalidInputError(f"k must be at least 1; got {self.k}")


class OcdNet(nn.Module):
    """A DB text detector by NVIDIA TAO's module names.

    In training, float (N, 3, H, W) becomes (N, 3, H, W): logits of the probability, threshold and differentiable binary
    map. In inference mode it becomes probabilities (N, 1, H, W). H and W are multiples of 32.

    Args:
        backbone: Images to four levels of features.
        neck: Levels to one map of features.
        head: Features to maps of text; runs in float32 under automatic mixed precision, as its loss does.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: DBHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        features = self.neck(self.backbone(x))
        if not torch.is_autocast_enabled(features.device.type):
            return self.head(features)
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())


def build_network(options: NetworkOptions) -> OcdNet:
    """A network in training mode with initial weights, drawn from PyTorch's global generator."""

    def scaled(channels: int) -> int:
        return max(8, 8 * round(channels * options.width / 8))

    if options.backbone == FAN:
        enlarged = options.enlarge_feature_map_size
        widths = scaled(128), scaled(256), scaled(192)
        fan = Fan(widths, enlarged, options.fuse_qkv_proj, options.activation_checkpoint)
        inner = scaled(768)
        return OcdNet(fan, FANNeck(fan.widths, inner), DBHead(inner, options.k, upsamplings=1 if enlarged else 2))
    planes = scaled(64), scaled(128), scaled(256), scaled(512)
    resnet = ResNet(RESNETS[options.backbone], planes, options.activation_checkpoint)
    inner = scaled(256)
    return OcdNet(resnet, FPN(resnet.widths, inner), DBHead(inner, options.k, upsamplings=2))

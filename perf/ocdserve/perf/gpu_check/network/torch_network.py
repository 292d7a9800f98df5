# SPDX-License-Identifier: Apache-2.0
"""OCDNet's ResNet-18 in PyTorch, for a GPU on which no other runtime is installed.

Its weights are random: what it computes costs what a trained one does, and known maps then take the place of its own.
"""

import importlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, DeviceError, DeviceMemoryError, Stream
from ocdserve.backend.network.options import MapType
from ocdserve.contract import UnavailableError
from ocdserve.perf.gpu_check.network.fake_network import MapNetwork

NAME = "pytorch resnet18 fp16"

_BACKBONE = "resnet18"
# Of ImageNet, per channel.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class TorchNetwork:
    """A `DeviceNetwork`: FP16, channels last, batch normalisation inside of the convolutions.

    Each stream has its own part of PyTorch's memory, in which the calls of a stream follow each other: graphs may be
    recorded once a shape was executed, since nothing is allocated any more.

    Args:
        device: The GPU, number 0 of the process.
        maps: See `MapNetwork`.
        place: PyTorch's name of the device.

    Raises:
        UnavailableError: PyTorch is not installed, or sees no GPU.
    """

    map_type: MapType = "uint8"

    def __init__(self, device: Device, maps: Sequence[NDArray[np.uint8]], place: str = "cuda") -> None:
        try:
            self._torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise UnavailableError(f"PyTorch cannot be imported: {error}") from error
        torch = self._torch
        if place == "cuda" and not torch.cuda.is_available():
            raise UnavailableError(f"PyTorch {torch.__version__} sees no GPU")
        torch.backends.cudnn.benchmark = True
        self._place = place
        self._network = _network(torch).to(place, torch.float16, memory_format=torch.channels_last)
        scale = torch.tensor([1 / (255 * deviation) for deviation in _DEVIATION])
        shift = torch.tensor([-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)])
        self._scale, self._shift = (one.view(1, 3, 1, 1).to(place, torch.float16) for one in (scale, shift))
        self._known = MapNetwork(device, maps)

    def check(self, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.check`."""

    def enqueue(self, stream: Stream, pixels: Buffer, maps: Buffer, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.enqueue`."""
        torch = self._torch
        try:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)), torch.inference_mode():
                target = self._tensor(maps, (batch, 1, height, width))
                target.copy_(self.infer(self._tensor(pixels, (batch, height, width, 3))))
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(f"PyTorch: {error}") from error
        except RuntimeError as error:
            raise DeviceError(f"PyTorch: {error}") from error
        self._known.enqueue(stream, pixels, maps, batch, height, width)

    def infer(self, pixels: Any) -> Any:
        """Pixels (N, H, W, 3) uint8 to maps (N, 1, H, W) of 255 times the probability, in FP16."""
        # In memory these are channels last.
        images = pixels.permute(0, 3, 1, 2).to(self._torch.float16).mul_(self._scale).add_(self._shift)
        return self._network(images).mul_(255).round_()

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulate operations of its convolutions per image."""
        count = 0

        def add(module: Any, inputs: Any, output: Any) -> None:
            nonlocal count
            # Of a transposed convolution each input, else each output, takes part in a product with all weights of it.
            transposed = isinstance(module, self._torch.nn.ConvTranspose2d)
            elements = inputs[0].numel() if transposed else output.numel()
            count += elements * module.weight[0].numel()

        kinds = (self._torch.nn.Conv2d, self._torch.nn.ConvTranspose2d)
        hooks = [one.register_forward_hook(add) for one in self._network.modules() if isinstance(one, kinds)]
        with self._torch.inference_mode():
            empty = self._torch.zeros(1, height, width, 3, dtype=self._torch.uint8, device=self._place)
            self.infer(empty)
        for hook in hooks:
            hook.remove()
        return count

    def unrecordable(self) -> str:
        """See `DeviceNetwork.unrecordable`."""
        return ""

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.release`; PyTorch keeps its memory for the next shape."""

    def close(self) -> None:
        """See `DeviceNetwork.close`."""
        self._known.close()

    def _tensor(self, buffer: Buffer, shape: tuple[int, ...]) -> Any:
        return self._torch.as_tensor(_DeviceArray(buffer.pointer, shape), device=self._place)


class _DeviceArray:
    """Bytes on the GPU for PyTorch, which takes them without a copy (CUDA array interface, version 3)."""

    def __init__(self, pointer: int, shape: tuple[int, ...]) -> None:
        # Without a stream to wait for: PyTorch works on the caller's.
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "|u1",
            "data": (pointer, False),
            "version": 3,
            "stream": None,
        }


def _network(torch: Any) -> Any:
    """The network for inference, in FP32 on the CPU, the same in every process."""
    model: Any = importlib.import_module("ocdserve.builder.train.networks.model")
    fusion: Any = importlib.import_module("torch.nn.utils.fusion")
    torch.manual_seed(0)
    network = model.build_network(model.NetworkOptions(_BACKBONE)).eval()
    norms, convolutions = torch.nn.BatchNorm2d, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (name, first), (norm, second) in pairwise(children):
            if isinstance(first, convolutions) and isinstance(second, norms):
                transposed = isinstance(first, torch.nn.ConvTranspose2d)
                setattr(parent, name, fusion.fuse_conv_bn_eval(first, second, transposed))
                setattr(parent, norm, torch.nn.Identity())
    return network

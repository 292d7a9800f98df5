# SPDX-License-Identifier: Apache-2.0
"""The ResNet-18 in PyTorch, on the CPU; on a GPU its calls are queued on the caller's stream, which none has here."""

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice

from ocdserve.contract import UnavailableError
from ocdserve.perf.gpu_check.network import torch_network
from ocdserve.perf.gpu_check.network.torch_network import TorchNetwork

torch: Any = pytest.importorskip("torch")

MAPS = [np.full((64, 96), level, np.uint8) for level in (10, 20, 30)]


@pytest.fixture(scope="module")
def device() -> EmulatedDevice:
    return EmulatedDevice()


@pytest.fixture(scope="module")
def network(device: EmulatedDevice) -> TorchNetwork:
    return TorchNetwork(device, MAPS, place="cpu")


def test_folded_half_precision_gives_the_trained_module_s_maps(network: TorchNetwork) -> None:
    from ocdserve.builder.train.networks.model import NetworkOptions, build_network

    torch.manual_seed(0)
    reference = build_network(NetworkOptions("resnet18")).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((pixels / 255 - mean) / deviation).permute(0, 3, 1, 2)

    with torch.inference_mode():
        expected, found = reference(images) * 255, network.infer(pixels)

    assert (found.shape, found.dtype) == ((2, 1, 64, 96), torch.float16)
    assert float(expected.std()) > 1
    assert float((found - expected).abs().mean()) < 2


def test_its_operations_are_counted(network: TorchNetwork) -> None:
    # 7 x 7 of 3 to 64 channels at half the size alone, and everything: 4 times the pixels are 4 times the work.
    assert network.macs(64, 96) > 32 * 48 * 64 * 3 * 49
    assert network.macs(128, 192) == 4 * network.macs(64, 96)


def test_it_computes_on_the_caller_s_stream_and_gives_known_maps(
    device: EmulatedDevice, network: TorchNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = device.stream()
    pixels, maps = device.allocate(5 * 64 * 96 * 3), device.allocate(5 * 64 * 96)
    used: list[Any] = []
    computed: list[tuple[int, ...]] = []

    def on_stream(stream: Any) -> contextlib.nullcontext[None]:
        used.append(stream)
        return contextlib.nullcontext()

    fake = SimpleNamespace(ExternalStream=lambda handle: handle, stream=on_stream)
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(network, "_tensor", lambda buffer, shape: torch.zeros(shape, dtype=torch.uint8))
    monkeypatch.setattr(network, "infer", lambda pixels: computed.append(tuple(pixels.shape)) or torch.zeros(1))

    network.enqueue(stream, pixels, maps, 5, 64, 96)

    found = np.empty((5, 64, 96), np.uint8)
    stream.to_host(found, maps)
    stream.synchronize()
    assert (used, computed) == ([stream.handle], [(5, 64, 96, 3)])
    assert found[:, 0, 0].tolist() == [10, 20, 30, 10, 20]
    assert network.unrecordable() == ""


def test_device_memory_is_described_for_pytorch() -> None:
    described = torch_network._DeviceArray(4096, (2, 3)).__cuda_array_interface__
    assert described == {"shape": (2, 3), "typestr": "|u1", "data": (4096, False), "version": 3, "stream": None}


def test_without_a_gpu_it_is_not_available() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UnavailableError, match="sees no GPU"):
        TorchNetwork(EmulatedDevice(), MAPS)

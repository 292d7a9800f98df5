# SPDX-License-Identifier: Apache-2.0
"""The CUDA provider's network, executed by ONNX Runtime's CPU provider on tensors bound by their address."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ocdserve.backend import Bundle, DetectorSpec, NetworkSpec
from ocdserve.backend.network.host_network import HostNetwork
from ocdserve.backend.network.load import load_device_network, load_network
from ocdserve.backend.network.onnxruntime_cuda import PROVIDER, OnnxRuntimeCudaNetwork
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.contract import InvalidInputError, UnavailableError

TinyNetwork = Callable[..., Path]


class OnTheCpu(OnnxRuntimeCudaNetwork):
    """The same calls, with the CPU's provider instead of CUDA's."""

    _memory = "cpu"

    def _check_provider(self) -> None:
        pass

    def _providers(self, handle: int) -> list[tuple[str, dict[str, str]]]:
        return [("CPUExecutionProvider", {})]


@pytest.fixture
def bundle(tiny_network: TinyNetwork) -> Bundle:
    return Bundle(DetectorSpec(network=NetworkSpec(std=(300, 400, 500))), tiny_network(weights=(0.2, 0.3, 0.4)))


@pytest.mark.parametrize("map_type", ["uint8", "float32"])
def test_maps_are_written_where_they_are_wanted(bundle: Bundle, device: Any, map_type: Any) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3)).astype(np.uint8) for seed in range(3)]
    expected = load_network(bundle, RuntimeOptions("onnxruntime", threads=1, map_type=map_type)).infer(images)
    network, stream = OnTheCpu(bundle, RuntimeOptions(map_type=map_type)), device.stream()
    found = np.zeros((3, 64, 96), map_type)
    pixels, maps = device.allocate(3 * 64 * 96 * 3), device.allocate(found.nbytes)
    stream.to_device(pixels, np.stack(images))
    network.check(3, 64, 96)
    network.enqueue(stream, pixels, maps, 3, 64, 96)
    stream.to_host(found, maps)
    np.testing.assert_array_equal(found, np.stack(expected))


def test_a_stream_has_its_own_session_for_all_shapes(bundle: Bundle, device: Any) -> None:
    network = OnTheCpu(bundle, RuntimeOptions())
    host = HostNetwork(device, network, streams=2)
    for height in (32, 64, 32, 96):
        assert host.infer([np.zeros((height, 64, 3), np.uint8)])[0].shape == (height, 64)
    assert len(network._sessions) == 2
    network.release(device.stream(), 1, 32, 64)
    network.close()
    assert network._sessions == {}


def test_an_execution_that_fails_says_why(tiny_network: TinyNetwork, device: Any) -> None:
    bundle = Bundle(DetectorSpec(), tiny_network(shape=(1, 3, 64, 96)))
    pixels = device.allocate(32 * 32 * 3)
    with pytest.raises(UnavailableError, match=r"(?s)cannot execute model\.onnx on 1 x 32 x 32 pixels: .*imension"):
        OnTheCpu(bundle, RuntimeOptions()).enqueue(device.stream(), pixels, pixels, 1, 32, 32)


def test_a_network_that_is_none_is_refused(tmp_path: Path, device: Any) -> None:
    (tmp_path / "model.onnx").write_bytes(b"text")
    with pytest.raises(InvalidInputError, match=r"model\.onnx is no"):
        OnTheCpu(Bundle(DetectorSpec(), tmp_path / "model.onnx"), RuntimeOptions())


@pytest.mark.skipif(PROVIDER in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is installed")
def test_an_onnxruntime_without_cuda_is_named(bundle: Bundle, device: Any) -> None:
    with pytest.raises(UnavailableError, match=r"has no CUDAExecutionProvider; .*Replace the package onnxruntime by"):
        load_device_network(bundle, RuntimeOptions("onnxruntime-cuda"), device)


def test_a_provider_that_falls_back_to_the_cpu_is_refused(
    bundle: Bundle, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FallsBack(OnTheCpu):
        def _providers(self, handle: int) -> list[tuple[str, dict[str, str]]]:
            return [(PROVIDER, {})]

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, settings, providers: real(model, settings, providers=["CPUExecutionProvider"]),
    )
    buffer = device.allocate(64)
    with pytest.raises(UnavailableError, match="CUDAExecutionProvider does not start here"):
        FallsBack(bundle, RuntimeOptions()).enqueue(device.stream(), buffer, buffer, 1, 32, 32)


def test_the_stream_and_the_gpu_are_those_that_were_asked_for(bundle: Bundle, device: Any) -> None:
    class Described(OnnxRuntimeCudaNetwork):
        def _check_provider(self) -> None:
            pass

    (name, settings), _ = Described(bundle, RuntimeOptions(device=2))._providers(77)
    assert (name, settings["device_id"], settings["user_compute_stream"]) == (PROVIDER, "2", "77")

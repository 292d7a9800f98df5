# SPDX-License-Identifier: Apache-2.0
"""Requesting a GPU on a machine without one reports what is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend import Bundle, Detector, DetectorSpec
from ocdserve.backend.device import probe
from ocdserve.backend.network.load import check_gpu, load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.contract import UnavailableError

TinyNetwork = Callable[..., Path]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what this machine has: GPUs and importable modules; no GPUs and no driver where `gpus` is None."""

    def have(gpus: int | None, *modules: str) -> None:
        class Driver:
            def cuInit(self, flags: int) -> int:  # noqa: N802
                return 0 if gpus else 100

            def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
                count._obj.value = gpus
                return 0

            def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
                device._obj.value = index
                return 0

            def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
                name.value = b"NVIDIA Imaginary"
                return 0

            def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
                value._obj.value = {75: 9, 76: 0}[attribute]
                return 0

        monkeypatch.setattr(probe, "_driver", lambda: None if gpus is None else Driver())
        monkeypatch.setattr(probe, "_importable", lambda name: name in modules)

    return have


@pytest.mark.parametrize(
    ("gpus", "modules", "message"),
    [
        (None, (), r"this machine has no NVIDIA driver; the module pycuda is not installed; the module cuda\.bindings"),
        (0, ("pycuda", "cuda.bindings", "tensorrt"), r"this machine has no usable NVIDIA GPU; see what `nvidia-smi`"),
        (1, ("pycuda", "cuda.bindings"), r"needs a GPU, but the module tensorrt is not installed\. See `ocdserve doc"),
        (1, ("cuda.bindings", "tensorrt"), r"needs a GPU, but the module pycuda is not installed\. See"),
    ],
)
def test_all_that_is_missing_is_listed_with_the_remedy(
    machine: Callable[..., None], gpus: int | None, modules: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    machine(gpus, *modules)
    bundle = Bundle(DetectorSpec(name="mine", engine="model.plan", runtime="tensorrt"), tmp_path / "model.onnx")
    with pytest.raises(UnavailableError, match=message) as caught:
        load_network(bundle)
    assert str(caught.value).startswith("the runtime tensorrt of the detector mine needs a GPU, but ")
    assert str(caught.value).endswith("To execute the network on the CPU, name its runtime: openvino or onnxruntime.")


def test_a_missing_gpu_is_named(machine: Callable[..., None]) -> None:
    machine(2, "pycuda", "cuda.bindings", "onnxruntime")
    with pytest.raises(UnavailableError, match=r"this machine has no GPU 2; it has 2, counted from 0\."):
        Detector.load(runtime="onnxruntime-cuda", device=2)


def test_gpus_are_counted_and_described_without_a_context(machine: Callable[..., None]) -> None:
    machine(3)
    assert (probe.gpu_count(), probe.present_gpu(2)) == (3, ("sm_90", "NVIDIA Imaginary"))
    machine(None)
    assert probe.gpu_count() == 0


def test_nothing_is_missing_on_a_complete_machine(machine: Callable[..., None]) -> None:
    machine(1, "pycuda", "cuda.bindings", "tensorrt_rtx")
    assert probe.missing(0, ["tensorrt_rtx"]) == []
    check_gpu(Bundle.load(), "tensorrt-rtx")


def test_modules_are_looked_up_also_where_their_package_is_absent() -> None:
    assert not probe._importable("no_such_package.bindings")
    assert probe._importable("importlib.util")


def test_a_bundle_for_the_gpu_is_executed_on_the_cpu_where_that_is_asked_for(tiny_network: TinyNetwork) -> None:
    bundle = Bundle(DetectorSpec(runtime="tensorrt", engine="model.plan"), tiny_network())
    assert load_network(bundle, RuntimeOptions("onnxruntime", threads=1)) is not None


def test_a_runtime_of_a_later_version_is_not_guessed(tmp_path: Path) -> None:
    bundle = Bundle(DetectorSpec(name="mine", runtime="npu"), tmp_path / "model.onnx")
    with pytest.raises(UnavailableError, match=r"built for the runtime npu, which this version does not know\. Name"):
        load_network(bundle)

# SPDX-License-Identifier: Apache-2.0
"""The default detector on pictures and photographs, its kernels in the emulator.

The network is executed by ONNX Runtime's CPU provider through the class for CUDA's, on tensors bound by their address.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, require_compiler

from ocdserve.backend import Bundle, Detector
from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.onnxruntime_cuda import OnnxRuntimeCudaNetwork
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.contract import UnavailableError
from ocdserve.perf.inputs.pictures import demo_pictures
from ocdserve.results.detections import Detections


class OnTheCpu(OnnxRuntimeCudaNetwork):
    """The same calls, with the CPU's provider instead of CUDA's."""

    _memory = "cpu"

    def _check_provider(self) -> None:
        pass

    def unrecordable(self) -> str:
        return ""

    def _providers(self, handle: int | None) -> list[tuple[str, dict[str, str]]]:
        return [("CPUExecutionProvider", {})]

    def enqueue(self, stream: Any, *arguments: Any) -> None:
        if stream._capture is not None:
            raise UnavailableError("the CPU cannot be recorded")
        super().enqueue(stream, *arguments)


@pytest.fixture(scope="module")
def detectors() -> Any:
    require_compiler()
    bundle = Bundle.load()
    # It executes at once, since the network does.
    device = EmulatedDevice(deferred=False)
    network = OnTheCpu(bundle, RuntimeOptions("onnxruntime-cuda"))
    reference = Detector(bundle, load_network(bundle, RuntimeOptions("onnxruntime", threads=2)))
    with GpuDetector(bundle, device, network, GpuOptions(slots=1, max_batch=2)) as detector:
        yield detector, reference


def assert_equal(ours: Detections, theirs: Detections) -> None:
    assert (ours.width, ours.height, len(ours)) == (theirs.width, theirs.height, len(theirs))
    np.testing.assert_allclose(ours.quads, theirs.quads, atol=0.01)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_pictures_drawn_give_the_boxes_of_the_cpu(detectors: tuple[GpuDetector, Detector]) -> None:
    detector, reference = detectors
    pictures = [picture.png() for picture in demo_pictures()]
    expected = [reference.detect(picture) for picture in pictures]
    assert min(map(len, expected)) > 5
    for found, theirs in zip(detector.detect_batch(pictures), expected, strict=True):
        assert_equal(found, theirs)


@pytest.mark.parametrize("kind", ["receipts", "scene"])
def test_photographs_give_the_boxes_of_the_cpu(
    detectors: tuple[GpuDetector, Detector], shared_data: Path, kind: str
) -> None:
    detector, reference = detectors
    paths = sorted((shared_data / kind / "img").iterdir())[:2]
    for found, path in zip(detector.detect_batch(paths), paths, strict=True):
        assert_equal(found, reference.detect(path))

# SPDX-License-Identifier: Apache-2.0
"""The default detector and recogniser on pictures and photographs, their kernels in the emulator.

The networks are executed by ONNX Runtime's CPU provider through the classes for CUDA's, on tensors bound by their
address.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, require_compiler

from ocdserve.backend import Bundle, Detector, Reader
from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.gpu.reader import GpuReader
from ocdserve.backend.gpu.recogniser import GpuRecogniser
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.onnxruntime_cuda import OnnxRuntimeCudaNetwork, OnnxRuntimeCudaRecogniser
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.recogniser import load_recogniser
from ocdserve.backend.recogniser import Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.inputs.pictures import demo_pictures
from ocdserve.results.detections import Detections


class _OnTheCpu:
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
        super().enqueue(stream, *arguments)  # type: ignore[misc]


class OnTheCpu(_OnTheCpu, OnnxRuntimeCudaNetwork):
    pass


class RecogniserOnTheCpu(_OnTheCpu, OnnxRuntimeCudaRecogniser):
    pass


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


@pytest.fixture(scope="module")
def readers(detectors: tuple[GpuDetector, Detector]) -> Iterator[tuple[GpuReader, Reader]]:
    detector, reference = detectors
    bundle = RecogniserBundle.load()
    network = RecogniserOnTheCpu(bundle, RuntimeOptions("onnxruntime-cuda"))
    recogniser = GpuRecogniser(bundle, detector._device, network, GpuOptions(slots=1, max_lines=2))
    on_cpu = Recogniser(bundle, load_recogniser(bundle, RuntimeOptions("onnxruntime", threads=2)))
    yield GpuReader(detector, recogniser), Reader(reference, on_cpu)
    recogniser.close()


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


def test_a_small_picture_gives_the_texts_of_the_cpu(readers: tuple[GpuReader, Reader]) -> None:
    reader, reference = readers
    picture = np.full((64, 280, 3), 255, np.uint8)
    cv2.putText(picture, "Total 12.30", (20, 44), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (0, 0, 0), 2, cv2.LINE_AA)
    with pytest.raises(InvalidInputError, match=r"image 1\b"):
        reader.read_batch([picture, b"no image"])
    found, theirs = reader.read(picture, words=True), reference.read(picture, words=True)
    assert found.text == theirs.text == "Total 12.30"
    assert_equal(found, theirs)
    np.testing.assert_allclose(found.text_scores, theirs.text_scores, atol=1e-4)
    words, expected = ([word for line in each.words or () for word in line] for each in (found, theirs))
    assert [word.text for word in words] == [word.text for word in expected] == ["Total", "12.30"]
    for ours, other in zip(words, expected, strict=True):
        np.testing.assert_allclose(ours.quad, other.quad, atol=0.01)

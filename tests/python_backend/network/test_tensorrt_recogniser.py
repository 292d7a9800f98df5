# SPDX-License-Identifier: Apache-2.0
"""A recogniser's engine with a fake TensorRT, whose engines return the first pixel of 8 columns; needs no GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imaginary_tensorrt import Engine, ImaginaryTensorRt

from ocdserve.backend.network.load import load_device_recogniser
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.contract import InvalidInputError

TENSORS = {"LINES": "uint8", "CLASSES": "int32", "PROBABILITIES": "float32"}


@pytest.fixture
def trt(trt: ImaginaryTensorRt) -> ImaginaryTensorRt:
    trt.tensors = dict(TENSORS)
    trt.engine = Engine(trt, [((1, 48, 16), (4, 48, 320)), ((1, 48, 336), (2, 48, 3200))])
    return trt


@pytest.fixture
def bundle(tmp_path: Path) -> RecogniserBundle:
    (tmp_path / "model.engine").write_bytes(b"plan")
    spec = RecogniserSpec(name="mine", runtime="tensorrt", engine="model.engine")
    return RecogniserBundle(spec, tmp_path / "model.onnx")


def load(trt: ImaginaryTensorRt, bundle: RecogniserBundle) -> Any:
    return load_device_recogniser(bundle, RuntimeOptions(), trt.device)


@pytest.mark.parametrize(("batch", "width"), [(1, 48), (3, 320), (2, 640)])
def test_classes_and_probabilities_are_written_where_they_are_wanted(
    trt: ImaginaryTensorRt, bundle: RecogniserBundle, batch: int, width: int
) -> None:
    network, stream = load(trt, bundle), trt.device.stream()
    lines = np.random.default_rng(width).integers(0, 256, (batch, 48, width, 3)).astype(np.uint8)
    shape = (batch, network.steps(stream, 48, width))
    assert shape == (batch, width // 8)
    classes, probabilities = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    source, *targets = (trt.device.allocate(each.nbytes) for each in (lines, classes, probabilities))
    stream.to_device(source, lines)
    network.check(batch, 48, width)
    network.enqueue(stream, source, *targets, batch, 48, width)
    for array, target in zip((classes, probabilities), targets, strict=True):
        stream.to_host(array, target)
    np.testing.assert_array_equal(classes, lines[:, 0, ::8, 0])
    np.testing.assert_array_equal(probabilities, lines[:, 0, ::8, 1])
    assert network.unrecordable() == ""


def test_more_lines_than_it_takes_are_refused(trt: ImaginaryTensorRt, bundle: RecogniserBundle) -> None:
    network = load(trt, bundle)
    network.check(4, 48, 320)
    with pytest.raises(
        InvalidInputError, match=r"^the engine of mine takes at most 4 lines of 320 pixels at once; got 5"
    ):
        network.check(5, 48, 320)
    with pytest.raises(InvalidInputError, match="at most 2 lines of 640 pixels"):
        network.check(4, 48, 640)
    with pytest.raises(InvalidInputError, match=r"takes images of 48 x 16 to 48 x 320 or 48 x 336 to 48 x 3200 pixels"):
        network.check(1, 32, 320)


@pytest.mark.parametrize("tensors", [{"NETWORK_IMAGE": "uint8", "MAP": "uint8"}, TENSORS | {"CLASSES": "float32"}])
def test_another_engine_is_refused(trt: ImaginaryTensorRt, bundle: RecogniserBundle, tensors: dict[str, str]) -> None:
    trt.tensors = tensors
    with pytest.raises(InvalidInputError, match=r"must have the tensors LINES \(uint8\), CLASSES \(int32\) and"):
        load(trt, bundle)


def test_a_bundle_without_an_engine_says_how_to_build_one(trt: ImaginaryTensorRt, tmp_path: Path) -> None:
    bundle = RecogniserBundle(RecogniserSpec(name="mine"), tmp_path / "model.onnx")
    with pytest.raises(
        InvalidInputError, match="mine must hold an engine of tensorrt to be executed by it; it holds none"
    ):
        load_device_recogniser(bundle, RuntimeOptions("tensorrt"), trt.device)

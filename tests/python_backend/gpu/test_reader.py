# SPDX-License-Identifier: Apache-2.0
"""The whole reader on the emulated device, against the CPU's stages on the same images."""

import importlib.util
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, require_compiler
from numpy.typing import NDArray
from served_models import TinyNetwork, png

from ocdserve.backend import Bundle, Detector, DetectorSpec, NetworkSpec, PostprocessParams, Reader, ResizePolicy
from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.gpu.reader import GpuReader
from ocdserve.backend.gpu.recogniser import GpuRecogniser
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.recogniser import Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec, WidthPolicy
from ocdserve.backend.stages.ctc import Steps
from ocdserve.contract import InvalidInputError, Limits, ReadingParameters, UnavailableError
from ocdserve.results.reading import Reading

FAKE = Path(__file__).resolve().parents[2] / "fakes" / "red_network.py"
SPEC = DetectorSpec(
    network=NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255)),
    resize=ResizePolicy(kind="short_side", side=64, largest_side=256),
    postprocess=PostprocessParams(box_thresh=0.5, dilation=True),
)
LETTERS = ("a", "b", "c", " ", "d")
Pixels = NDArray[np.uint8]


class OnTheCpu:
    """What `RedRecogniser` computes."""

    def infer(self, lines: Sequence[Pixels]) -> list[Steps]:
        first = [line[0, ::8].astype(np.int32) for line in lines]
        return [Steps(each[:, 0] % 6, each[:, 1].astype(np.float32) / np.float32(255)) for each in first]


@pytest.fixture(scope="module")
def red() -> ModuleType:
    specification = importlib.util.spec_from_file_location("red_network", FAKE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def device(red: ModuleType) -> EmulatedDevice:
    require_compiler()
    return EmulatedDevice(sources=red.SOURCES)


@pytest.fixture
def readers(
    device: EmulatedDevice, red: ModuleType, tiny_network: TinyNetwork, tmp_path: Path
) -> Iterator[tuple[GpuReader, Reader]]:
    """That of the GPU, which must have left nothing on the device in the end, and the CPU's."""
    bundle = Bundle(SPEC, tiny_network(weights=(0, 0, 1)))
    widths = WidthPolicy(((64, 16), (256, 32)), 16)
    reading = RecogniserBundle(RecogniserSpec(height=16, characters=LETTERS, widths=widths), tmp_path / "model.onnx")
    options = GpuOptions(slots=1, max_batch=4, max_lines=4, decode_threads=2)
    recogniser = GpuRecogniser(reading, device, red.RedRecogniser(device, 6), options)
    left: list[int] = []
    real_close = device.close

    def close() -> None:
        left.append(device.allocated)
        real_close()

    device.close = close  # type: ignore[method-assign]
    on_gpu = GpuReader(GpuDetector(bundle, device, red.RedNetwork(device), options), recogniser)
    on_cpu = Detector(bundle, load_network(bundle, RuntimeOptions("onnxruntime", threads=1)))
    yield on_gpu, Reader(on_cpu, Recogniser(reading, OnTheCpu()))
    on_gpu.close()
    on_gpu.close()
    assert left == ([] if device.failed else [0])


def page(rng: np.random.Generator, *words: tuple[int, int], size: tuple[int, int] = (64, 128)) -> Pixels:
    """Words of 40 x 12 pixels at (x, y) that are all red, on none; green and blue are noise."""
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    pixels[..., 0] = 0
    for x, y in words:
        pixels[y : y + 12, x : x + 40, 0] = 204 + x % 50
    return pixels


def pages(rng: np.random.Generator) -> list[Pixels]:
    return [
        page(rng, (20, 10)),
        page(rng, (15, 8), (70, 40)),
        page(rng),
        page(rng, (20, 10), (21, 80), (120, 150), size=(192, 224)),
    ]


def assert_equal(ours: Sequence[Reading], theirs: Sequence[Reading]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.quads, other.quads, atol=0.01)
        assert one.texts == other.texts
        np.testing.assert_allclose(one.text_scores, other.text_scores, atol=1e-6)
        assert (one.words is None) == (other.words is None)
        for ours_of, theirs_of in zip(one.words or (), other.words or (), strict=True):
            assert [word.text for word in ours_of] == [word.text for word in theirs_of]
            for word, reference in zip(ours_of, theirs_of, strict=True):
                np.testing.assert_allclose(word.quad, reference.quad, atol=0.02)


def test_reads_what_the_cpu_reads_again_and_again(readers: tuple[GpuReader, Reader], rng: np.random.Generator) -> None:
    reader, reference = readers
    for images in (pages(rng), pages(rng), pages(rng)[:1]):
        expected = reference.read_batch(images, words=True, min_text_score=0.0)
        assert sum(map(len, expected)) == (6 if len(images) > 1 else 1)
        assert_equal(reader.read_batch(images, words=True, min_text_score=0.0), expected)
        given = [png(image) for image in images]
        assert_equal(reader.read_batch(given, words=True, min_text_score=0.0), expected)
    (many,) = reader.read_many([images[0]], min_text_score=0.0)
    assert_equal([many.result()], [reference.read(images[0], min_text_score=0.0)])
    assert_equal([reader.read_tiled(images[0])], [reference.read_tiled(images[0])])


def test_each_image_has_its_own_parameters_and_errors(
    readers: tuple[GpuReader, Reader], rng: np.random.Generator
) -> None:
    reader, reference = readers
    image = pages(rng)[3]
    parameters = [
        ReadingParameters(words=True, min_text_score=0.0),
        ReadingParameters(direction=False, page=1, min_text_score=0.0),
        ReadingParameters(),
        ReadingParameters(page=2),
        ReadingParameters(min_text_score=1.0),
    ]
    images: list[Any] = [image, png(image), b"no image", png(image), image]
    answers = reader.submit(images, parameters)
    for index in (0, 1, 4):
        (expected,) = reference.answer([images[index]], parameters[index])
        assert_equal([answers[index].result()], [expected])
        assert answers[index].result().page == parameters[index].page
    for index, message in ((2, "image"), (3, "page")):
        with pytest.raises(InvalidInputError, match=message):
            answers[index].result()
    with pytest.raises(InvalidInputError, match=r"^image 1\b"):
        reader.read_batch([image, b"no image"])


def test_a_bounded_reader_refuses_images_of_too_many_lines(
    readers: tuple[GpuReader, Reader], rng: np.random.Generator
) -> None:
    reader, reference = readers
    bounded = GpuReader(reader.detector, reader.recogniser, bounded=True)
    bounded.limits = Limits(max_lines=2)
    images = pages(rng)
    _, two, _, three = bounded.submit(images, [ReadingParameters(min_text_score=0.0)] * 4)
    assert_equal([two.result()], [reference.read(images[1], min_text_score=0.0)])
    with pytest.raises(InvalidInputError, match=r"has 3 lines of text; at most 2 are read \(max_lines\)"):
        three.result()


def test_after_a_failure_of_the_gpu_it_is_not_healthy(
    readers: tuple[GpuReader, Reader], device: EmulatedDevice, rng: np.random.Generator
) -> None:
    reader, _ = readers
    assert reader.healthy
    device.fail("the kernel faulted")
    with pytest.raises(UnavailableError, match="the kernel faulted"):
        reader.read(pages(rng)[0])
    assert not reader.healthy


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_refused(readers: tuple[GpuReader, Reader], rng: np.random.Generator) -> None:
    reader, _ = readers
    images = pages(rng)
    reader.read(images[0])
    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            reader.read(images[0])
        except BaseException as error:
            reader.close()
            os.write(target, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(target)
    with os.fdopen(source, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert said.startswith(f"UnavailableError: this network was loaded in process {os.getpid()} and is used in its")

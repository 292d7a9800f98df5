# SPDX-License-Identifier: Apache-2.0
"""The recogniser on the emulated device, against the CPU's stages on the same images."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, require_compiler
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import DeviceMemoryError
from ocdserve.backend.gpu.device_image import DeviceImage
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.gpu.recogniser import GpuRecogniser
from ocdserve.backend.recogniser import Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec, WidthPolicy
from ocdserve.backend.stages.ctc import Steps
from ocdserve.contract import InvalidInputError, ReadingParameters, UnavailableError
from ocdserve.results.detections import Detections
from ocdserve.results.reading import Reading

FAKE = Path(__file__).resolve().parents[2] / "fakes" / "red_network.py"
WIDTHS = WidthPolicy(((64, 16), (128, 32)), 16)
CHARACTERS = ("a", "b", "c", " ", "d")
Pixels = NDArray[np.uint8]
Make = Callable[..., GpuRecogniser]

EVERYTHING = ReadingParameters(min_text_score=0.0, words=True)


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
def bundle(tmp_path: Path) -> RecogniserBundle:
    spec = RecogniserSpec(height=16, characters=CHARACTERS, widths=WIDTHS)
    return RecogniserBundle(spec, tmp_path / "model.onnx")


@pytest.fixture
def make(device: EmulatedDevice, red: ModuleType, bundle: RecogniserBundle) -> Iterator[Make]:
    """Makes recognisers; in the end they must have left nothing on the device."""
    made: list[GpuRecogniser] = []

    def make(network: Any = None, **options: Any) -> GpuRecogniser:
        settings = GpuOptions(**{"slots": 1, "max_lines": 4, **options})
        made.append(GpuRecogniser(bundle, device, network or red.RedRecogniser(device, 6), settings))
        return made[-1]

    yield make
    for recogniser in made:
        recogniser.close()
        recogniser.close()
    if not device.failed:
        assert device.allocated == 0
        assert not device.graphs


@pytest.fixture
def reference(bundle: RecogniserBundle) -> Recogniser:
    return Recogniser(bundle, OnTheCpu())


def pages(rng: np.random.Generator, *counts: int) -> tuple[list[Pixels], list[Detections]]:
    """Images of noise with quads of lines of several widths, and columns."""
    images, found = [], []
    for count in counts:
        height, width = map(int, rng.integers(60, 120, 2))
        corners = rng.uniform(0, 40, (count, 1, 2)) + np.array([[0, 0], [60, 3], [58, 18], [-2, 15]])
        corners[::3, 1:3, 0] -= 30
        corners[1::4] = corners[1::4][..., ::-1]
        images.append(rng.integers(0, 256, (height, width, 3), np.uint8))
        scores = np.ones(count, np.float32)
        found.append(Detections(corners.astype(np.float32), scores, width=width, height=height))
    return images, found


def assert_equal(ours: Sequence[Reading], theirs: Sequence[Reading]) -> None:
    """In every digit."""
    assert [each.to_json() for each in ours] == [each.to_json() for each in theirs]


def test_texts_and_words_are_those_of_the_cpu_again_and_again(
    make: Make, reference: Recogniser, rng: np.random.Generator
) -> None:
    recogniser = make()
    # Eagerly, while it is recorded, and as a graph.
    for counts in ((5, 0, 7), (5, 0, 7), (3, 9), (1,)):
        images, found = pages(rng, *counts)
        read = recogniser.recognise_all(images, found, EVERYTHING)
        assert_equal(read, reference.recognise_all(images, found, EVERYTHING))
        assert sum(map(len, read)) == sum(counts)
    assert any(word.text for each in read for line in each.words or () for word in line)


@pytest.mark.parametrize("given", [{"direction": False}, {"min_text_score": 0.5}, {}])
def test_parameters_act_as_on_the_cpu(
    make: Make, reference: Recogniser, rng: np.random.Generator, given: dict[str, Any]
) -> None:
    images, found = pages(rng, 12)
    parameters = ReadingParameters(**given)
    assert_equal(make().recognise_all(images, found, parameters), reference.recognise_all(images, found, parameters))


def test_lines_that_are_cut_out_already_are_read_as_on_the_cpu(
    make: Make, reference: Recogniser, rng: np.random.Generator
) -> None:
    images, found = pages(rng, 5, 4)
    cut = [reference.cut(*page) for page in zip(images, found, strict=True)]
    assert make().read_pages(cut) == reference.read_pages(cut)
    assert make().read_lines(cut[0], direction=False) == reference.read_lines(cut[0], direction=False)


def test_images_may_be_on_the_gpu(
    make: Make, device: EmulatedDevice, reference: Recogniser, rng: np.random.Generator
) -> None:
    recogniser = make()
    images, found = pages(rng, 3, 4)
    with recogniser.on_gpu(images) as placed:
        assert all(isinstance(image, DeviceImage) for image in placed)
        before = device.allocated
        read = recogniser.recognise_all([placed[0], images[1]], found, EVERYTHING)
        assert device.allocated >= before
    assert_equal(read, reference.recognise_all(images, found, EVERYTHING))


class TestBatches:
    def test_lines_of_one_width_share_batches_whatever_their_image(
        self, make: Make, device: EmulatedDevice, red: ModuleType, rng: np.random.Generator
    ) -> None:
        network = red.RedRecogniser(device, 6)
        images, found = pages(rng, 3, 3)
        for each in found:
            each.quads[:] = np.array([[0, 0], [60, 0], [60, 16], [0, 16]])
        make(network).recognise_all(images, found, ReadingParameters(direction=False))
        assert network.batches == [(4, 16, 64), (2, 16, 64)]

    def test_a_batch_is_no_larger_than_the_network_takes(
        self, make: Make, device: EmulatedDevice, red: ModuleType, reference: Recogniser, rng: np.random.Generator
    ) -> None:
        network = red.RedRecogniser(device, 6, largest_batch=2)
        images, found = pages(rng, 11)
        assert_equal(
            make(network).recognise_all(images, found, EVERYTHING), reference.recognise_all(images, found, EVERYTHING)
        )
        assert {batch for batch, _, _ in network.batches} == {1, 2}

    def test_a_width_that_the_network_does_not_take_is_refused(
        self, make: Make, device: EmulatedDevice, red: ModuleType, rng: np.random.Generator
    ) -> None:
        network = red.RedRecogniser(device, 6, largest_batch=0)
        with pytest.raises(InvalidInputError, match="at most 0 lines; got 1"):
            make(network).recognise_all(*pages(rng, 2), EVERYTHING)

    @pytest.mark.parametrize("slots", [1, 3])
    def test_a_line_reads_the_same_in_any_batch(self, make: Make, rng: np.random.Generator, slots: int) -> None:
        recogniser = make(slots=slots)
        images, found = pages(rng, 13)
        parameters = replace(EVERYTHING, direction=False)
        (whole,) = recogniser.recognise_all(images, found, parameters)
        for index in range(len(found[0])):
            (single,) = recogniser.recognise_all(images, [found[0].take([index])], parameters)
            assert single.to_json() == whole.take([index]).to_json()

    def test_a_shape_is_recorded_right_behind_its_second_batch(
        self, make: Make, device: EmulatedDevice, red: ModuleType, rng: np.random.Generator
    ) -> None:
        network = red.RedRecogniser(device, 6)
        recogniser = make(network)
        images, found = pages(rng, 1)
        queued = []
        for _ in range(4):
            recogniser.recognise_all(images, found, ReadingParameters(direction=False))
            queued.append(len(network.batches))
        # The third is the recording, after which the network is not asked again.
        assert queued == [1, 3, 3, 3]
        assert len(device.graphs) == 1


class TestMemoryAndFailure:
    def test_a_batch_that_does_not_fit_is_halved(
        self, red: ModuleType, bundle: RecogniserBundle, reference: Recogniser, rng: np.random.Generator
    ) -> None:
        images, found = pages(rng, 8)
        found[0].quads[:] = np.array([[0, 0], [60, 0], [60, 16], [0, 16]])
        # The image, the kernel's lines, and two lines with their steps.
        device = EmulatedDevice(sources=red.SOURCES, memory_size=images[0].nbytes + 8 * 112 + 2 * (3 * 16 + 1) * 64)
        network = red.RedRecogniser(device, 6)
        recogniser = GpuRecogniser(bundle, device, network, GpuOptions(slots=1, max_lines=8))
        read = recogniser.recognise_all(images, found, EVERYTHING)
        assert_equal(read, reference.recognise_all(images, found, EVERYTHING))
        assert max(batch for batch, _, _ in network.batches) == 2
        recogniser.close()
        device = EmulatedDevice(sources=red.SOURCES, memory_size=images[0].nbytes + 8 * 112 + 100)
        recogniser = GpuRecogniser(bundle, device, red.RedRecogniser(device, 6), GpuOptions(slots=1, max_lines=8))
        with pytest.raises(DeviceMemoryError):
            recogniser.recognise_all(images, found, EVERYTHING)
        recogniser.close()
        assert device.allocated == 0

    def test_a_failure_of_the_gpu_is_reported(
        self, make: Make, device: EmulatedDevice, rng: np.random.Generator
    ) -> None:
        recogniser = make()
        device.fail("the kernel faulted")
        with pytest.raises(UnavailableError, match="the kernel faulted"):
            recogniser.recognise_all(*pages(rng, 2), EVERYTHING)

    def test_shapes_that_are_not_used_are_released(
        self, make: Make, device: EmulatedDevice, red: ModuleType, rng: np.random.Generator
    ) -> None:
        network = red.RedRecogniser(device, 6)
        recogniser = make(network, line_shapes=2)
        for _ in range(3):
            recogniser.recognise_all(*pages(rng, 9, 4), EVERYTHING)
        assert len(network.prepared) <= 2
        assert len(set(network.batches)) > 2


def test_stretched_lines_are_refused(device: EmulatedDevice, red: ModuleType, bundle: RecogniserBundle) -> None:
    stretched = RecogniserBundle(
        replace(bundle.spec, widths=replace(bundle.spec.widths, fit="stretch")), bundle.model_path
    )
    with pytest.raises(InvalidInputError, match=r"^widths\.fit must be pad on a GPU; got stretch\."):
        GpuRecogniser(stretched, device, red.RedRecogniser(device, 6))

# SPDX-License-Identifier: Apache-2.0
"""The whole detector on the emulated device, against the CPU's stages on the same images."""

import importlib.util
import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, require_compiler
from PIL import Image
from served_models import Pixels, TinyNetwork, large, png

from ocdserve.backend import Bundle, Detector, DetectorSpec, NetworkSpec, PostprocessParams, ResizePolicy
from ocdserve.backend.device.protocol import DeviceMemoryError
from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.backend.gpu.device_image import DeviceImage
from ocdserve.backend.gpu.inputs import BatchQueue, batches_of, bucket_of
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions, gpu_runtime
from ocdserve.contract import InvalidInputError, RequestParameters, UnavailableError
from ocdserve.results.detections import Detections

FAKE = Path(__file__).resolve().parents[2] / "fakes" / "red_network.py"
Make = Callable[..., GpuDetector]

SPEC = DetectorSpec(
    network=NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255)),
    resize=ResizePolicy(kind="short_side", side=64, largest_side=256),
    postprocess=PostprocessParams(box_thresh=0.5, dilation=True),
)


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
def bundle(tiny_network: TinyNetwork) -> Bundle:
    return Bundle(SPEC, tiny_network(weights=(0, 0, 1)))


@pytest.fixture
def make(device: EmulatedDevice, red: ModuleType, bundle: Bundle) -> Iterator[Make]:
    """Makes detectors; in the end they must have left nothing on the device."""
    made: list[GpuDetector] = []
    left: list[int] = []
    real_close = device.close

    def close() -> None:
        left.append(device.allocated)
        real_close()

    device.close = close  # type: ignore[method-assign]

    def make(network: Any = None, observer: Any = None, **options: Any) -> GpuDetector:
        settings = GpuOptions(**{"slots": 2, "max_batch": 4, "decode_threads": 2, **options})
        made.append(GpuDetector(bundle, device, network or red.RedNetwork(device), settings, observer=observer))
        return made[-1]

    yield make
    for detector in made:
        healthy = detector.healthy
        detector.close()
        if healthy:
            assert left.pop() == 0
            assert not device.graphs


@pytest.fixture
def reference(bundle: Bundle) -> Detector:
    return Detector(bundle, load_network(bundle, RuntimeOptions("onnxruntime", threads=1)))


def page(*words: tuple[int, int, int], height: int = 64, width: int = 128) -> Pixels:
    """Black, with slanted words of about 40 x 10 pixels at (x, y) in a brightness."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for x, y, brightness in words:
        for column in range(40):
            top = y + column // 12
            pixels[top : top + 10, x + column] = brightness
    return pixels


ONE = page((20, 10, 255))
TWO = page((20, 10, 204), (70, 40, 255))
NONE = page()
LARGE = page((20, 10, 255), (20, 80, 230), (120, 150, 250), height=192, width=224)
SMALL = page((10, 6, 200), height=40, width=60)
# 1:15, in four tiles: as many as a batch holds; and 1:21 in five.
TALL = np.rot90(page(*((x, 20, 255) for x in range(30, 800, 100)), height=54, width=840)).copy()
WIDE = page(*((x, 20, 255) for x in range(30, 1100, 97)), height=54, width=1150)
BANNER, TOWER = large(), np.rot90(large()).copy()
ALL = [ONE, TWO, NONE, LARGE, SMALL]


def assert_equal(ours: Detections, theirs: Detections) -> None:
    assert (ours.width, ours.height, len(ours)) == (theirs.width, theirs.height, len(theirs))
    np.testing.assert_allclose(ours.quads, theirs.quads, atol=0.01)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    assert (ours.polygons is None) == (theirs.polygons is None)
    for mine, other in zip(ours.polygons or (), theirs.polygons or (), strict=True):
        np.testing.assert_allclose(mine, other, atol=0.01)


class TestDetect:
    def test_finds_what_the_cpu_finds_again_and_again(self, make: Make, reference: Detector) -> None:
        detector = make()
        # Eagerly, while it is recorded, and as a graph.
        for _ in range(3):
            for image in ALL:
                assert_equal(detector.detect(image), reference.detect(image))
        assert len(reference.detect(LARGE)) == 3

    def test_elongated_pictures_are_answered_as_on_the_cpu(self, make: Make, reference: Detector) -> None:
        assert [reference.preprocess(image)[1].tiles for image in (TALL, WIDE)] == [4, 5]
        detector = make()
        parameters = [RequestParameters(polygons=True), *[RequestParameters()] * 3]
        for _ in range(3):
            found = [answer.result() for answer in detector.submit([TALL, ONE, WIDE, TALL], parameters)]
            assert list(map(len, found)) == [8, 1, 12, 8]
            assert_equal(found[0], reference.detect(TALL, polygons=True))
            assert_equal(found[2], reference.detect(WIDE))

    def test_overviews_of_elongated_pictures_are_those_of_the_cpu(self, make: Make, reference: Detector) -> None:
        assert [len(reference.detect(image)) for image in (BANNER, TOWER)] == [2, 2]
        detector = make()
        parameters = [RequestParameters(polygons=True), *[RequestParameters()] * 3]
        for _ in range(3):
            found = [answer.result() for answer in detector.submit([TOWER, TALL, BANNER, ONE], parameters)]
            assert_equal(found[0], reference.detect(TOWER, polygons=True))
            for image, each in zip((TALL, BANNER, ONE), found[1:], strict=True):
                assert_equal(each, reference.detect(image))

    def test_takes_bytes_a_path_pixels_and_images_on_the_gpu(
        self, make: Make, reference: Detector, device: EmulatedDevice, tmp_path: Path
    ) -> None:
        detector = make()
        (tmp_path / "two.png").write_bytes(png(TWO))
        stream, memory = device.stream(), device.allocate(TWO.nbytes)
        stream.to_device(memory, TWO)
        stream.synchronize()
        there = DeviceImage(memory.pointer, TWO.shape[0], TWO.shape[1], owner=memory)
        expected = reference.detect(TWO)
        opened = io.BytesIO(png(TWO))
        files = (tmp_path / "two.png", str(tmp_path / "two.png"), opened, Image.fromarray(TWO))
        for image in (TWO, png(TWO), bytearray(png(TWO)), memoryview(png(TWO)), *files, there):
            assert_equal(detector.detect(image), expected)
        assert_equal(detector.detect(TWO[..., ::-1], bgr=True), expected)
        memory.close()
        stream.close()

    @pytest.mark.parametrize(
        "given", [{"box_thresh": 0.9}, {"thresh": 0.85}, {"polygons": True}, {"max_candidates": 1}, {"unclip_ratio": 3}]
    )
    def test_parameters_act_as_on_the_cpu(self, make: Make, reference: Detector, given: dict[str, Any]) -> None:
        assert_equal(make().detect(TWO, **given), reference.detect(TWO, **given))

    @pytest.mark.parametrize(
        ("image", "given", "message"),
        [
            (b"hello", {}, "not an image that can be read"),
            (b"", {}, r"empty \(0 bytes\)"),
            (
                np.zeros((4, 4), np.uint8),
                {},
                r"must be a non-empty uint8 array of shape \(H, W, 3\), RGB; got uint8 ",
            ),
            ("nowhere.png", {}, r"cannot read the image file 'nowhere\.png'"),
            (ONE, {"tresh": 1}, "unknown request parameter 'tresh'"),
        ],
    )
    def test_bad_input_is_refused_as_on_the_cpu(
        self, make: Make, reference: Detector, image: Any, given: dict[str, Any], message: str
    ) -> None:
        detector = make()
        for each in (detector, reference):
            with pytest.raises(InvalidInputError, match=message):
                each.detect(image, **given)
        assert detector.healthy


class TestBatches:
    def test_mixed_sizes_and_parameters_in_one_call(self, make: Make, reference: Detector) -> None:
        detector = make()
        images = [*ALL, *ALL]
        given = [RequestParameters(box_thresh=0.5 + 0.03 * index, polygons=index % 2 == 0) for index in range(10)]
        for _ in range(3):
            answers = detector.submit([png(image) for image in images], given)
            for answer, image, parameters in zip(answers, images, given, strict=True):
                assert_equal(answer.result(), reference.detect(image, **parameters.given()))

    def test_images_of_one_network_size_share_batches_of_powers_of_two(
        self, make: Make, device: EmulatedDevice, red: ModuleType
    ) -> None:
        network = red.RedNetwork(device)
        make(network).detect_batch([ONE] * 7 + [LARGE])
        # Of the 7, 3 are padded to 4.
        assert sorted(network.batches) == [(1, 192, 224), (4, 64, 128), (4, 64, 128)]

    @pytest.mark.parametrize(
        ("count", "most", "sizes", "computed"),
        [
            (1, 8, [1], [1]),
            (3, 8, [3], [4]),
            (5, 8, [5], [8]),
            (7, 8, [7], [8]),
            (8, 8, [8], [8]),
            (10, 8, [8, 2], [8, 2]),
            (9, 16, [8, 1], [8, 1]),
            (10, 16, [10], [16]),
            (5, 6, [5], [6]),
            (4, 6, [4], [4]),
        ],
    )
    def test_a_batch_is_padded_if_it_fills_more_than_60_percent(
        self, count: int, most: int, sizes: list[int], computed: list[int]
    ) -> None:
        batches = batches_of(range(count), most)
        assert [len(batch) for batch in batches] == sizes
        assert [index for batch in batches for index in batch] == list(range(count))
        assert [bucket_of(size, most) for size in sizes] == computed

    def test_images_of_several_calls_that_wait_for_a_slot_share_a_batch(
        self, make: Make, device: EmulatedDevice, red: ModuleType, reference: Detector
    ) -> None:
        network = red.RedNetwork(device)
        detector = make(network, slots=1, decode_threads=1)
        slot = detector._slots.get()
        answers = [detector.submit([image])[0] for image in (ONE, LARGE, TWO, NONE)]
        deadline = time.monotonic() + 30
        while sum(map(len, detector._decoded._groups.values())) < len(answers):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        detector._slots.put(slot)
        for image, answer in zip((ONE, LARGE, TWO, NONE), answers, strict=True):
            assert_equal(answer.result(), reference.detect(image))
        assert sorted(network.batches) == [(1, 192, 224), (4, 64, 128)]

    def test_groups_take_turns_by_what_has_waited_longest(self) -> None:
        queue: BatchQueue[int] = BatchQueue(4)
        assert queue.put({(1, 1): [0, 1, 2], (2, 2): [3]}) == 2
        assert queue.put({(1, 1): [4, 5]}) == 1
        assert [queue.take() for _ in range(4)] == [[0, 1, 2, 4], [3], [5], []]

    def test_a_padded_batch_has_the_same_answers_bit_by_bit(
        self, make: Make, device: EmulatedDevice, red: ModuleType
    ) -> None:
        network = red.RedNetwork(device)
        detector = make(network, slots=1, max_batch=8)
        # Images of an earlier batch of that shape are not found again.
        detector.detect_batch([TWO] * 8)
        images = [ONE, TWO, NONE, TWO, ONE, ONE, NONE]
        expected = [detector.detect(image) for image in images]
        network.batches.clear()
        for _ in range(3):
            for ours, theirs in zip(detector.detect_batch(images), expected, strict=True):
                np.testing.assert_array_equal(ours.quads, theirs.quads)
                np.testing.assert_array_equal(ours.scores, theirs.scores)
        assert set(network.batches) == {(8, 64, 128)}

    def test_a_bad_image_affects_only_itself(self, make: Make, reference: Detector) -> None:
        detector = make()
        first, bad, last = detector.submit([png(ONE), b"hello", png(TWO)])
        assert_equal(first.result(), reference.detect(ONE))
        assert_equal(last.result(), reference.detect(TWO))
        with pytest.raises(InvalidInputError, match="not an image"):
            bad.result()
        with pytest.raises(InvalidInputError, match=r"image 1 of 3 \(counted from 0\): not an image"):
            detector.detect_batch([png(ONE), b"hello", png(TWO)])

    def test_a_size_that_the_network_does_not_take_affects_only_its_images(
        self, make: Make, device: EmulatedDevice, red: ModuleType
    ) -> None:
        detector = make(red.RedNetwork(device, largest=128))
        good, bad, other = detector.submit([ONE, LARGE, TWO])
        assert (len(good.result()), len(other.result())) == (1, 2)
        with pytest.raises(InvalidInputError, match="at most 128 pixels a side; got 192 x 224"):
            bad.result()

    def test_calls_of_many_threads_get_their_own_answers(self, make: Make, reference: Detector) -> None:
        detector = make()
        expected = [reference.detect(image) for image in ALL]

        def ask(index: int) -> None:
            for step in range(4):
                chosen = [(index + step) % 5, (index + 2 * step) % 5]
                for found, which in zip(detector.detect_batch([ALL[each] for each in chosen]), chosen, strict=True):
                    assert_equal(found, expected[which])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(ask, range(6)))

    def test_many_images_and_tiles_are_answered_as_on_the_cpu(self, make: Make, reference: Detector) -> None:
        detector = make()
        with pytest.raises(InvalidInputError, match="not an image"):
            [one.result() for one in detector.detect_many([png(ONE), b"hello"])]
        for outcome, image in zip(detector.detect_many(map(png, ALL), concurrency=3), ALL, strict=True):
            assert_equal(outcome.result(), reference.detect(image))
        expected = reference.detect_tiled(LARGE, tile=128, overlap=64)
        assert len(expected) == 3
        assert_equal(detector.detect_tiled(LARGE, tile=128, overlap=64), expected)

    def test_memory_of_decoded_images_is_used_again_by_the_next_call(
        self, make: Make, device: EmulatedDevice, reference: Detector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        detector, pages = make(slots=1), [png(ONE), png(TWO), png(SMALL)]
        detector.detect_batch(pages)
        # The calls that are in work let go of it behind their answers.
        detector.detect_batch(pages)
        taken = []
        lock = device.host_array
        monkeypatch.setattr(device, "host_array", lambda shape, dtype: taken.append(shape) or lock(shape, dtype))

        for _ in range(20):
            for found, each in zip(detector.detect_batch(pages), (ONE, TWO, SMALL), strict=True):
                assert_equal(found, reference.detect(each))

        assert len(taken) <= len(pages)

    def test_no_images_have_no_answers(self, make: Make) -> None:
        assert make().detect_batch([]) == []


class TestGraphs:
    def test_a_shape_is_recorded_once_for_a_slot(self, make: Make, device: EmulatedDevice, red: ModuleType) -> None:
        network = red.RedNetwork(device)
        detector = make(network, slots=1)
        for _ in range(5):
            detector.detect(ONE)
        # Queued twice call by call, and once to record.
        assert len(network.batches) == 3
        assert len(device.graphs) == 1

    def test_warming_up_records_for_every_slot(self, make: Make, device: EmulatedDevice, red: ModuleType) -> None:
        network = red.RedNetwork(device)
        detector = make(network, slots=2)
        detector.warm_up([(64, 128)], batches=(1, 4))
        assert len(device.graphs) == 4
        queued = len(network.batches)
        detector.detect_batch([ONE] * 5)
        assert len(network.batches) == queued

    def test_warming_up_ends_in_time_and_says_what_is_missing(
        self, make: Make, device: EmulatedDevice, red: ModuleType, caplog: pytest.LogCaptureFixture
    ) -> None:
        network = red.RedNetwork(device)
        with caplog.at_level(logging.WARNING):
            make(network, slots=2).warm_up([(64, 128)], batches=(1, 2, 4), limit_s=-1)
        assert not network.batches
        assert "before batches of 4 images of 64 x 128 pixels" in caplog.text

    def test_the_least_recently_used_shape_is_released(
        self, make: Make, device: EmulatedDevice, red: ModuleType, reference: Detector
    ) -> None:
        network = red.RedNetwork(device)
        detector = make(network, slots=1, graphs=2)
        for image in (ONE, LARGE, ONE, SMALL, ONE, LARGE):
            assert_equal(detector.detect(image), reference.detect(image))
        assert {key[1:] for key in network.prepared} == {(1, 64, 128), (1, 192, 224)}
        assert len(device.graphs) == 1

    def test_a_shape_is_recorded_right_behind_its_second_batch(
        self, make: Make, device: EmulatedDevice, red: ModuleType
    ) -> None:
        network = red.RedNetwork(device)
        detector = make(network, slots=1)
        for image in (ONE, LARGE, ONE, LARGE, ONE):
            detector.detect(image)
        one, large = (1, 64, 128), (1, 192, 224)
        # Nothing of another shape is queued between the second batch and the recording.
        assert network.batches == [one, large, one, one, large, large]
        assert len(device.graphs) == 2

    def test_a_larger_shape_has_the_others_recorded_once_more(
        self, make: Make, device: EmulatedDevice, red: ModuleType, reference: Detector
    ) -> None:
        network = red.RedNetwork(device)
        detector = make(network, slots=1)
        for image in (ONE, ONE, ONE, LARGE, ONE, TWO, LARGE, ONE):
            assert_equal(detector.detect(image), reference.detect(image))
        one, large = (1, 64, 128), (1, 192, 224)
        # The larger one's tables are also the first one's, whose graph knew the old ones.
        assert network.batches == [one, one, one, large, one, one, large, large]
        assert len(device.graphs) == 2

    def test_the_tables_of_a_slot_are_those_of_its_largest_shape(self, make: Make, device: EmulatedDevice) -> None:
        detector = make(slots=1)
        detector.warm_up([(192, 224)], batches=(4,))
        of_one_shape = device.allocated
        detector.warm_up([(64, 128), (192, 224)], batches=(1, 2, 4))
        # All other shapes together add their pixels and maps, and no tables.
        pixels = (1 + 2) * 192 * 224 + (1 + 2 + 4) * 64 * 128
        assert device.allocated - of_one_shape == (3 + 1) * pixels

    def test_a_network_that_must_not_be_recorded_is_queued_each_time_and_the_log_says_why_once(
        self, make: Make, device: EmulatedDevice, red: ModuleType, caplog: pytest.LogCaptureFixture
    ) -> None:
        network = red.RedNetwork(device)
        network.reason = "it is too old"
        detector = make(network)
        with caplog.at_level(logging.WARNING):
            for image in (ONE, LARGE) * 3:
                detector.detect(image)
        assert [record.getMessage() for record in caplog.records] == [
            "the network is not recorded in CUDA graphs, its calls are queued each time: it is too old"
        ]
        assert not device.graphs
        assert len(network.batches) == 6

    def test_a_shape_that_cannot_be_recorded_is_queued_each_time_and_the_log_says_so_once(
        self,
        make: Make,
        device: EmulatedDevice,
        red: ModuleType,
        reference: Detector,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        network = red.RedNetwork(device)
        network.fault = red.refuses_capture
        detector = make(network)
        with caplog.at_level(logging.WARNING):
            for _ in range(4):
                assert_equal(detector.detect(ONE), reference.detect(ONE))
            network.fault = None
            for _ in range(3):
                for image in (ONE, LARGE):
                    assert_equal(detector.detect(image), reference.detect(image))
        assert [record.getMessage() for record in caplog.records] == [
            "a batch of 1 x 64 x 128 pixels cannot be recorded in a CUDA graph, its calls are queued each time: "
            "operation not permitted when stream is capturing"
        ]
        # Those of the other shape.
        assert len(device.graphs) == 1
        assert detector.healthy

    def test_after_too_many_shapes_no_further_ones_are_recorded(
        self, make: Make, device: EmulatedDevice, red: ModuleType, caplog: pytest.LogCaptureFixture
    ) -> None:
        network = red.RedNetwork(device)
        network.fault = red.refuses_capture
        detector = make(network, slots=1)
        with caplog.at_level(logging.WARNING):
            for width in range(64, 64 + 32 * 10, 32):
                for _ in range(2):
                    detector.detect(page(height=64, width=width))
        messages = [record.getMessage() for record in caplog.records]
        assert ["as are those of all further shapes" in message for message in messages] == [False] * 7 + [True]


class TestMemory:
    def test_memory_of_other_shapes_is_released_when_memory_is_short(
        self, make: Make, device: EmulatedDevice, reference: Detector
    ) -> None:
        detector = make(slots=1)
        detector.detect(ONE)
        device._memory_size = device.allocated + 1_000_000
        for image in (LARGE, ONE, LARGE):
            assert_equal(detector.detect(image), reference.detect(image))

    def test_a_batch_that_does_not_fit_is_halved(
        self, make: Make, device: EmulatedDevice, red: ModuleType, reference: Detector
    ) -> None:
        network = red.RedNetwork(device)
        detector = make(network, slots=1)
        detector.detect(ONE)
        detector.detect_batch([ONE] * 2)
        device._memory_size = device.allocated
        for found in detector.detect_batch([ONE, TWO, ONE, ONE])[::2]:
            assert_equal(found, reference.detect(ONE))
        assert max(batch for batch, _, _ in network.batches) == 2

    def test_an_image_that_does_not_fit_is_reported_and_leaves_the_detector_usable(
        self, make: Make, device: EmulatedDevice
    ) -> None:
        detector = make()
        device._memory_size = device.allocated
        with pytest.raises(DeviceMemoryError):
            detector.detect(ONE)
        device._memory_size = 1 << 34
        assert len(detector.detect(ONE)) == 1
        assert detector.healthy

    def test_too_little_memory_for_a_graph_does_not_disable_graphs(
        self, make: Make, device: EmulatedDevice, red: ModuleType, reference: Detector
    ) -> None:
        network = red.RedNetwork(device)
        detector = make(network, slots=1)
        detector.detect(ONE)

        def full_once(stream: Any) -> None:
            network.fault = None
            raise DeviceMemoryError("no room to record")

        network.fault = full_once
        for _ in range(3):
            assert_equal(detector.detect(ONE), reference.detect(ONE))
        assert len(device.graphs) == 1


class TestFailure:
    def test_after_a_failure_of_the_gpu_every_call_fails_at_once(
        self, make: Make, device: EmulatedDevice, red: ModuleType
    ) -> None:
        network = red.RedNetwork(device)
        detector = make(network)
        assert len(detector.detect(ONE)) == 1
        scratch = device.allocate(16)

        def illegal(stream: Any) -> None:
            stream.launch(network._kernel, (1, 1, 1), (256, 1, 1), [scratch, scratch, np.int32(256)])

        network.fault = illegal
        with pytest.raises(UnavailableError):
            detector.detect(LARGE)
        assert not detector.healthy
        network.fault = None
        queued = len(network.batches)
        for image in (ONE, png(TWO)):
            with pytest.raises(UnavailableError):
                detector.detect(image)
        assert len(network.batches) == queued

    def test_a_failure_of_the_library_alone_passes(self, make: Make, device: EmulatedDevice, red: ModuleType) -> None:
        network = red.RedNetwork(device)
        detector = make(network)

        def fails(stream: Any) -> None:
            raise UnavailableError("the library cannot")

        network.fault = fails
        with pytest.raises(UnavailableError, match="the library cannot"):
            detector.detect(ONE)
        network.fault = None
        assert len(detector.detect(ONE)) == 1
        assert detector.healthy


def test_answers_come_when_their_slot_is_free_again(make: Make) -> None:
    detector = make(slots=1)
    asked: list[Future[Detections]] = []
    done = threading.Event()

    def again(answer: "Future[Detections]") -> None:
        # From the thread that answers: with the slot still held, warming up would wait for ever.
        detector.warm_up([(64, 128)])
        done.set()

    asked += detector.submit([ONE])
    asked[0].add_done_callback(again)
    assert done.wait(30)


def test_the_observer_is_called_for_both_parts(make: Make) -> None:
    observed: list[tuple[str, int]] = []
    detector = make(observer=lambda stage, seconds, images: observed.append((stage, images)))
    detector.detect_batch([png(ONE), png(TWO), NONE])
    assert sorted(observed) == [("decode", 3), ("gpu", 3)]  # not the black image that fills the batch


@pytest.mark.parametrize("field", ["slots", "max_batch", "graphs"])
def test_options_out_of_range_are_named(field: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"{field} must be from 1 to \d+; got 0"):
        GpuOptions(**{field: 0})


class TestLoad:
    @pytest.mark.parametrize(
        ("built_for", "asked", "expected"),
        [
            (None, None, "onnxruntime-cuda"),
            ("openvino", None, "onnxruntime-cuda"),
            ("tensorrt", None, "tensorrt"),
            ("tensorrt", "onnxruntime-cuda", "onnxruntime-cuda"),
        ],
    )
    def test_the_runtime_is_the_one_asked_for_or_built_for(self, built_for: Any, asked: Any, expected: str) -> None:
        assert gpu_runtime(Bundle(DetectorSpec(runtime=built_for), Path("model.onnx")), asked) == expected

    def test_a_runtime_of_the_cpu_is_refused(self, bundle: Bundle) -> None:
        with pytest.raises(InvalidInputError, match=r"on a GPU the runtime must be one of tensorrt.*; got 'openvino'"):
            gpu_runtime(bundle, "openvino")

    def test_without_a_gpu_all_that_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ocdserve.backend.device import probe

        monkeypatch.setattr(probe, "_driver", lambda: None)
        with pytest.raises(UnavailableError, match=r"onnxruntime-cuda .* needs a GPU, but this machine has no NVIDIA"):
            GpuDetector.load()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_refused_and_leaves_the_gpu_alone(make: Make, device: EmulatedDevice) -> None:
    detector = make()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            detector.detect(page((20, 20, 255)))
        except BaseException as error:
            before = device.allocated
            detector.close()
            os.write(writer, f"{type(error).__name__}: {error} {device.allocated == before}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert said.startswith(
        f"UnavailableError: this network was loaded in process {os.getpid()} and is used in its child"
    )
    assert said.endswith(" True")

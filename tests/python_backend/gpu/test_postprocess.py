# SPDX-License-Identifier: Apache-2.0
"""Post-processing on the GPU, its kernels executed on the CPU, against the CPU's own and against literals."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, KernelFault, Schedule, package_sources, without_barrier
from numpy.typing import NDArray

from ocdserve.backend.gpu.postprocess import Capacity, GpuPostprocess
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages import postprocess as stage
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs import shapes
from ocdserve.perf.subjects.baseline import baseline_postprocess
from ocdserve.results.detections import Detections

if TYPE_CHECKING:
    from ocdserve.backend import Detector

Map = NDArray[Any]
Item = tuple[Frame, PostprocessParams]

# By NumPy and OpenCV.
postprocess = partial(stage.postprocess, compiled=False)

PARAMETERS = (
    PostprocessParams(box_thresh=0.2),
    PostprocessParams(box_thresh=0.2, dilation=True, polygons=True),
    PostprocessParams(thresh=0.5, box_thresh=0.0, min_size=0.0, unclip_ratio=0.7),
    PostprocessParams(box_thresh=0.0, min_size=0.0, max_candidates=3),
    PostprocessParams(box_thresh=0.2, min_size=0.0, unclip="analytic"),
)


def frame_of(probability: Map, scale: tuple[float, float] = (2, 3)) -> Frame:
    """A frame whose source is `scale` (y, x) times as large as the map."""
    height, width = probability.shape
    return Frame((max(1, int(height * scale[0])), max(1, int(width * scale[1]))), (height, width), (height, width))


def detect(
    device: EmulatedDevice,
    maps: Sequence[Map],
    items: Sequence[Item],
    *,
    capacity: Capacity | None = None,
    fill: int = 255,
) -> list[Detections]:
    """All maps in one batch, what lies around them in their container bright."""
    height, width = max(probability.shape[0] for probability in maps), max(probability.shape[1] for probability in maps)
    container = np.full((len(maps), height, width), fill, maps[0].dtype)
    for target, probability in zip(container, maps, strict=True):
        target[: probability.shape[0], : probability.shape[1]] = probability
    map_type: Any = str(container.dtype)
    stream = device.stream()
    buffer = device.allocate(container.nbytes)
    stream.to_device(buffer, container)
    stage = GpuPostprocess(device, len(maps), height, width, map_type, capacity)
    try:
        stage.set(items)
        stage.enqueue(stream, buffer)
        stream.synchronize()
        return stage.results(stream, buffer)
    finally:
        stage.close()
        buffer.close()
        stream.close()


def assert_same(found: Detections, expected: Detections) -> None:
    """Box for box: corners within 0.01 px, scores within 1e-4, in the same order."""
    assert len(found) == len(expected)
    assert (found.width, found.height) == (expected.width, expected.height)
    np.testing.assert_allclose(found.quads, expected.quads, rtol=0, atol=0.01)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)
    assert (found.polygons is None) == (expected.polygons is None)
    for ours, theirs in zip(found.polygons or (), expected.polygons or (), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.01)


class TestAgainstTheCpu:
    @pytest.mark.parametrize("draw", shapes.SHAPES)
    @pytest.mark.parametrize("params", PARAMETERS)
    def test_hard_shapes_give_the_same(
        self, emulated_device: EmulatedDevice, draw: Callable[[], Map], params: PostprocessParams
    ) -> None:
        probability = draw()
        frame = frame_of(probability)
        (found,) = detect(emulated_device, [probability], [(frame, params)])
        assert_same(found, postprocess(probability, frame, params))

    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_batches_of_noise_of_any_size_give_the_same(
        self, emulated_device: EmulatedDevice, seed: int, dtype: Any
    ) -> None:
        # Eight seeds of ten batches of up to four maps, twice: about 400 maps with thousands of boxes.
        rng = np.random.default_rng(seed)
        for _ in range(10):
            maps = [self._noise(rng, dtype) for _ in range(rng.integers(1, 5))]
            items = [(frame_of(probability, tuple(rng.uniform(0.3, 4, 2))), self._params(rng)) for probability in maps]
            for found, probability, item in zip(detect(emulated_device, maps, items), maps, items, strict=True):
                assert_same(found, postprocess(probability, *item))

    @staticmethod
    def _noise(rng: np.random.Generator, dtype: Any) -> Map:
        height, width = (int(side) for side in rng.integers(1, 130, 2))
        levels = shapes.noise(rng, height, width)
        return levels if dtype is np.uint8 else (levels / 255).astype(np.float32)

    @staticmethod
    def _params(rng: np.random.Generator) -> PostprocessParams:
        return PostprocessParams(
            thresh=float(rng.uniform(0.2, 0.7)),
            box_thresh=float(rng.choice([0, 0.3, 0.5])),
            unclip_ratio=float(rng.uniform(0, 4)),
            max_candidates=int(rng.choice([1000, 5])),
            min_size=float(rng.choice([3, 3, 3, 1, 5, 0])),
            dilation=bool(rng.integers(2)),
            polygons=bool(rng.integers(2)),
            unclip=rng.choice(["exact", "exact", "analytic"]),
        )

    def test_a_page_of_words_has_them_all(self, emulated_device: EmulatedDevice, rng: np.random.Generator) -> None:
        probability = shapes.words(rng, 736, 1280)
        frame, params = frame_of(probability), PostprocessParams(box_thresh=0.55)
        (found,) = detect(emulated_device, [probability], [(frame, params)])
        assert len(found) > 600
        assert_same(found, postprocess(probability, frame, params))
        assert_same(found, baseline_postprocess(probability, frame, params))

    def test_ten_thousand_regions_fit(self, emulated_device: EmulatedDevice, rng: np.random.Generator) -> None:
        probability = np.zeros((736, 1280), np.uint8)
        for y in range(1, 730, 7):
            for x in range(1, 1270, 12):
                probability[y : y + 5, x : x + rng.integers(4, 11)] = rng.integers(100, 256)
        frame, params = frame_of(probability), PostprocessParams(box_thresh=0.3, max_candidates=20_000)
        (found,) = detect(emulated_device, [probability], [(frame, params)])
        assert len(found) > 10_000
        assert_same(found, postprocess(probability, frame, params))

    @pytest.mark.parametrize("name", ["scene/img", "receipts/img"])
    def test_real_maps_give_the_same(
        self, emulated_device: EmulatedDevice, shared_data: Path, default_detector: "Detector", name: str
    ) -> None:
        maps, items = [], []
        for path in sorted((shared_data / name).iterdir())[:3]:
            pixels, frame = default_detector.preprocess(path)
            maps += default_detector.infer([pixels])
            items.append((frame, default_detector.spec.postprocess))
        for found, probability, item in zip(detect(emulated_device, maps, items), maps, items, strict=True):
            assert len(found) > 0
            assert_same(found, postprocess(probability, *item))

    @pytest.mark.long
    @pytest.mark.parametrize("name", ["scene/img", "receipts/img"])
    def test_all_real_maps_give_the_same(
        self, emulated_device: EmulatedDevice, shared_data: Path, default_detector: "Detector", name: str
    ) -> None:
        for path in sorted((shared_data / name).iterdir()):
            pixels, frame = default_detector.preprocess(path)
            (probability,) = default_detector.infer([pixels])
            for params in (default_detector.spec.postprocess, PostprocessParams(polygons=True)):
                (found,) = detect(emulated_device, [probability], [(frame, params)])
                assert_same(found, postprocess(probability, frame, params))

    @pytest.mark.long
    def test_thousands_of_maps_give_the_same(self, emulated_device: EmulatedDevice) -> None:
        rng = np.random.default_rng()
        for _ in range(1500):
            maps = [self._noise(rng, np.uint8) for _ in range(rng.integers(1, 5))]
            items = [(frame_of(probability, tuple(rng.uniform(0.3, 4, 2))), self._params(rng)) for probability in maps]
            for found, probability, item in zip(detect(emulated_device, maps, items), maps, items, strict=True):
                assert_same(found, postprocess(probability, *item))


class TestRegions:
    """Counts against OpenCV's own labelling."""

    @pytest.mark.parametrize("draw", shapes.SHAPES)
    def test_there_are_as_many_as_opencv_has_components_and_holes(
        self, emulated_device: EmulatedDevice, caplog: pytest.LogCaptureFixture, draw: Callable[[], Map]
    ) -> None:
        probability = draw()
        assert self._regions(emulated_device, caplog, probability) == self._by_opencv(probability)

    @pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
    def test_regions_that_reach_over_many_tiles_are_one(
        self, cuda_compiler: None, caplog: pytest.LogCaptureFixture, rng: np.random.Generator, share: float
    ) -> None:
        # Five tiles down and four across, of which the last ones are cut; between both phases' percolation thresholds
        # regions reach over all of them.
        probability = np.where(rng.random((141, 397)) < share, np.uint8(200), np.uint8(0))
        device = EmulatedDevice(Schedule(preemption=5, resident_blocks=4))
        assert self._regions(device, caplog, probability) == self._by_opencv(probability)

    @staticmethod
    def _by_opencv(probability: Map) -> int:
        text = (probability > 76).astype(np.uint8)
        components = cv2.connectedComponents(text, connectivity=8)[0] - 1
        # What surrounds the map is one with the background at its borders, and is no hole.
        background = np.pad(1 - text, 1, constant_values=1)
        holes = cv2.connectedComponents(background, connectivity=4)[0] - 2
        return components + holes

    @staticmethod
    def _regions(device: EmulatedDevice, caplog: pytest.LogCaptureFixture, probability: Map) -> int:
        # With room for one region only, an image that has more says how many.
        stage = GpuPostprocess(device, 1, *probability.shape, "uint8", Capacity(regions=1))
        stream, buffer = device.stream(), device.allocate(probability.nbytes)
        stream.to_device(buffer, probability)
        stage.set([(frame_of(probability), PostprocessParams(thresh=0.3))])
        stage.enqueue(stream, buffer)
        stream.synchronize()
        caplog.clear()
        stage.results(stream, buffer)
        reported = [int(word) for word in caplog.text.split() if word.isdigit()]
        return reported[0] if reported else int((probability > 76).any())


class TestOrder:
    def test_the_best_come_first(self, emulated_device: EmulatedDevice) -> None:
        probability = np.zeros((60, 200), np.uint8)
        for column, level in enumerate((120, 250, 90, 200)):
            probability[20:40, 10 + 45 * column : 45 + 45 * column] = level
        params = PostprocessParams(box_thresh=0.1)
        (found,) = detect(emulated_device, [probability], [(frame_of(probability, (1, 1)), params)])
        np.testing.assert_allclose(found.scores, np.array([250, 200, 120, 90]) / 255, atol=1e-6)

    def test_equal_ones_come_from_the_end_of_the_raster(self, emulated_device: EmulatedDevice) -> None:
        probability = shapes.equal_words()
        (found,) = detect(emulated_device, [probability], [(frame_of(probability, (1, 1)), PostprocessParams())])
        centres = found.quads.mean(axis=1)
        assert len(found) == 30
        assert centres[0].tolist() == [115.0, 54.5]
        assert (np.lexsort((-centres[:, 0], -centres[:, 1])) == np.arange(30)).all()

    def test_the_cap_keeps_the_best(self, emulated_device: EmulatedDevice, rng: np.random.Generator) -> None:
        probability = shapes.words(rng, 200, 300)
        frame = frame_of(probability)
        every, few = PostprocessParams(), PostprocessParams(max_candidates=4)
        all_found, few_found = detect(emulated_device, [probability] * 2, [(frame, every), (frame, few)])
        assert len(all_found) > 20
        assert few_found.quads.tolist() == all_found.quads[:4].tolist()

    def test_an_answer_depends_on_no_order_of_threads(self, cuda_compiler: None, rng: np.random.Generator) -> None:
        probability = shapes.noise(rng, 90, 150)
        item = frame_of(probability), PostprocessParams(thresh=0.5, box_thresh=0.1)
        answers = set()
        for seed in range(4):
            device = EmulatedDevice(Schedule(seed=seed, preemption=3, resident_blocks=1 + seed % 3))
            (found,) = detect(device, [probability], [item])
            answers.add((found.quads.tobytes(), found.scores.tobytes()))
        assert len(answers) == 1

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_no_thread_reads_what_another_writes_without_a_barrier(
        self, cuda_compiler: None, rng: np.random.Generator, dtype: Any
    ) -> None:
        device = EmulatedDevice(check_races=True)
        for draw in (shapes.nested, shapes.diamond_rings, lambda: shapes.noise(rng, 61, 97)):
            probability = draw() if dtype is np.uint8 else (draw() / 255).astype(np.float32)
            item = frame_of(probability), PostprocessParams(box_thresh=0.1, dilation=True)
            for capacity in (Capacity(), Capacity(regions=3)):
                (found,) = detect(device, [probability], [item], capacity=capacity)
                assert_same(found, postprocess(probability, *item))


class TestCapacity:
    @pytest.mark.parametrize(
        ("capacity", "words"),
        [(Capacity(regions=5), "regions"), (Capacity(candidates=7), "candidates"), (Capacity(rows=50), "rows")],
    )
    def test_too_much_for_a_table_is_reported_and_computed_by_the_cpu(
        self,
        emulated_device: EmulatedDevice,
        caplog: pytest.LogCaptureFixture,
        capacity: Capacity,
        words: str,
    ) -> None:
        crowded, sparse = shapes.equal_words(), np.zeros((64, 128), np.uint8)
        sparse[10:30, 20:90] = 220
        params = PostprocessParams(polygons=True)
        stream, buffer = emulated_device.stream(), emulated_device.allocate(2 * crowded.nbytes)
        stream.to_device(buffer, np.stack([crowded, sparse]))
        stage = GpuPostprocess(emulated_device, 2, 64, 128, "uint8", capacity)
        stage.set([(frame_of(crowded), params), (frame_of(sparse), params)])
        stage.enqueue(stream, buffer)
        stream.synchronize()
        found = stage.results(stream, buffer)
        (reported,) = caplog.messages
        assert f" {words}, more than the GPU's tables hold: the CPU computes it" in reported
        assert [len(item) for item in found] == [30, 1]
        assert_same(found[0], postprocess(crowded, frame_of(crowded), params))

    def test_more_detections_than_are_copied_at_once_are_fetched(self, emulated_device: EmulatedDevice) -> None:
        probability = shapes.equal_words()
        item = frame_of(probability), PostprocessParams()
        (found,) = detect(emulated_device, [probability], [item], capacity=Capacity(heads=4))
        assert_same(found, postprocess(probability, *item))

    def test_further_detections_of_several_images_are_fetched_at_once(self, emulated_device: EmulatedDevice) -> None:
        crowded, sparse = shapes.equal_words(), np.zeros((64, 128), np.uint8)
        sparse[10:30, 20:90] = 220
        maps = [crowded, sparse, crowded[:, ::-1].copy()]
        items = [(frame_of(each), PostprocessParams()) for each in maps]
        found = detect(emulated_device, maps, items, capacity=Capacity(heads=4))
        assert [len(each) for each in found] == [30, 1, 30]
        for each, probability, item in zip(found, maps, items, strict=True):
            assert_same(each, postprocess(probability, *item))

    @pytest.mark.parametrize("field", ["regions", "candidates", "rows", "heads"])
    def test_none_may_be_empty(self, field: str) -> None:
        with pytest.raises(InvalidInputError, match=f"Capacity.{field} must be at least 1; got 0"):
            Capacity(**{field: 0})


class TestModesOfTheHost:
    def test_mode_tao_is_the_cpu_s(self, emulated_device: EmulatedDevice, rng: np.random.Generator) -> None:
        probability = shapes.words(rng, 120, 200)
        tao, default = PostprocessParams(mode="tao"), PostprocessParams()
        frame = frame_of(probability)
        found = detect(emulated_device, [probability] * 2, [(frame, tao), (frame, default)])
        assert found[0].quads.tolist() == baseline_postprocess(probability, frame, tao).quads.tolist()
        assert_same(found[1], postprocess(probability, frame, default))

    def test_pixels_around_a_map_in_its_container_are_ignored(self, emulated_device: EmulatedDevice) -> None:
        small, large = np.zeros((20, 30), np.uint8), shapes.equal_words()
        small[5:12, 4:30] = 200
        items = [(frame_of(small), PostprocessParams()), (frame_of(large), PostprocessParams())]
        dark, bright = (detect(emulated_device, [small, large], items, fill=fill) for fill in (0, 255))
        assert_same(bright[0], postprocess(small, *items[0]))
        assert [item.quads.tolist() for item in dark] == [item.quads.tolist() for item in bright]


class TestUse:
    def test_a_graph_gives_what_the_calls_give_for_every_new_map(
        self, emulated_device: EmulatedDevice, rng: np.random.Generator
    ) -> None:
        stream = emulated_device.stream()
        host = emulated_device.host_array((1, 80, 140), np.uint8)
        buffer = emulated_device.allocate(host.nbytes)
        stage = GpuPostprocess(emulated_device, 1, 80, 140)
        with stream.capture() as capture:
            stream.to_device(buffer, host)
            stage.enqueue(stream, buffer)
        for thresh in (0.3, 0.45, 0.6):
            host[0] = shapes.noise(rng, 80, 140)
            item = frame_of(host[0]), PostprocessParams(thresh=thresh, box_thresh=0.2)
            stage.set([item])
            capture.graph.launch(stream)
            stream.synchronize()
            assert_same(stage.results(stream, buffer)[0], postprocess(host[0], *item))

    def test_a_batch_may_be_smaller_than_its_room(self, emulated_device: EmulatedDevice) -> None:
        probability = shapes.equal_words()
        stream, buffer = emulated_device.stream(), emulated_device.allocate(3 * probability.nbytes)
        stream.to_device(buffer, np.stack([probability] * 3))
        stage = GpuPostprocess(emulated_device, 3, *probability.shape)
        stage.set([(frame_of(probability), PostprocessParams())])
        stage.enqueue(stream, buffer)
        stream.synchronize()
        assert [len(found) for found in stage.results(stream, buffer)] == [30]

    def test_nothing_is_copied_to_the_host_that_was_never_set(self, emulated_device: EmulatedDevice) -> None:
        stream = emulated_device.stream()
        maps = emulated_device.allocate(64)
        stream.to_device(maps, np.zeros((8, 8), np.uint8))
        stage = GpuPostprocess(emulated_device, 1, 8, 8)
        stage.set([(frame_of(np.zeros((8, 8))), PARAMETERS[0])])
        stage.enqueue(stream, maps)
        stream.synchronize()
        assert not stage._host_heads.view(np.uint8).any()
        stage.close()

    def test_all_memory_is_released(self, emulated_device: EmulatedDevice) -> None:
        stage = GpuPostprocess(emulated_device, 2, 64, 128)
        assert emulated_device.allocated > 0
        stage.close()
        stage.close()
        assert emulated_device.allocated == 0

    def test_what_was_taken_is_released_when_there_is_too_little(self, cuda_compiler: None) -> None:
        device = EmulatedDevice(memory_size=2**20)
        with pytest.raises(Exception, match="asked for"):
            GpuPostprocess(device, 2, 640, 1280)
        assert device.allocated == 0

    def test_more_images_than_there_is_room_for_are_refused(self, emulated_device: EmulatedDevice) -> None:
        stage = GpuPostprocess(emulated_device, 1, 32, 32)
        frame = frame_of(np.zeros((32, 32)))
        with pytest.raises(InvalidInputError, match="at most 1 images at a time; got 2"):
            stage.set([(frame, PostprocessParams())] * 2)

    def test_a_map_larger_than_the_container_is_refused(self, emulated_device: EmulatedDevice) -> None:
        stage = GpuPostprocess(emulated_device, 1, 32, 64)
        with pytest.raises(InvalidInputError, match=r"image 0: its map of 33 x 64 .* container of 32 x 64"):
            stage.set([(frame_of(np.zeros((33, 64))), PostprocessParams())])

    @pytest.mark.parametrize("size", [(0, 32, 32), (1, 4097, 32), (1, 32, 0)])
    def test_a_size_out_of_range_is_refused(self, emulated_device: EmulatedDevice, size: tuple[int, int, int]) -> None:
        with pytest.raises(InvalidInputError, match="sides from 1 to 4096"):
            GpuPostprocess(emulated_device, *size)


BARRIERS = [
    (file, n)
    for file in ("labels.cu", "boxes.cu", "order.cu")
    for n in range(package_sources()[file].count("__syncthreads();"))
]


@pytest.mark.parametrize(("file", "n"), BARRIERS)
def test_no_barrier_can_be_left_out(cuda_compiler: None, rng: np.random.Generator, file: str, n: int) -> None:
    """Each deleted `__syncthreads` shows in some order of the threads."""
    # More words than a block orders at once, one too faint, and one with more rows than a block has threads.
    probability = np.zeros((150, 330), np.uint8)
    probability[:, :200] = shapes.words(rng, 150, 200, pitch=8)
    probability[100:120, 280:320] = 90
    slanted = np.array([[210, 2], [222, 0], [262, 146], [250, 149]])
    cv2.fillPoly(probability, [slanted], (255,))
    probability[:, 205:270] = np.where(probability[:, 205:270], np.linspace(100, 250, 150)[:, None], 0)
    item = frame_of(probability), PostprocessParams(box_thresh=0.4)
    expected = postprocess(probability, *item)
    assert_same(detect(EmulatedDevice(), [probability], [item])[0], expected)
    sources = {file: without_barrier(package_sources()[file], n)}
    for seed in range(30):
        device = EmulatedDevice(Schedule(seed=seed), sources=sources)
        try:
            (found,) = detect(device, [probability], [item])
            assert_same(found, expected)
        except (AssertionError, KernelFault):
            return
    pytest.fail(f"__syncthreads number {n} of {file} can be deleted unnoticed")

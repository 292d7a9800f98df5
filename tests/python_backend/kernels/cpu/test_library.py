# SPDX-License-Identifier: Apache-2.0
"""Compiled post-processing against NumPy's and OpenCV's, in every digit, and against literals."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocdserve.backend.kernels.cpu.library import Library, load
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.spec.rows import GROW_ON_HOST
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.perf.inputs import shapes
from ocdserve.perf.subjects.baseline import baseline_postprocess
from ocdserve.results.detections import Detections

if TYPE_CHECKING:
    from ocdserve.backend import Detector

pytestmark = pytest.mark.usefixtures("library")

Map = NDArray[Any]

PARAMETERS = (
    PostprocessParams(box_thresh=0.2),
    PostprocessParams(box_thresh=0.2, dilation=True, polygons=True),
    PostprocessParams(thresh=0.5, box_thresh=0.0, min_size=0.0, unclip_ratio=0.7),
    PostprocessParams(box_thresh=0.0, min_size=0.0, max_candidates=3),
    PostprocessParams(box_thresh=0.2, min_size=0.0, unclip="analytic"),
    PostprocessParams(thresh=0.0, box_thresh=0.0, unclip_ratio=10.0),
    PostprocessParams(thresh=1.0, box_thresh=0.0, min_size=0.0),
    PostprocessParams(box_thresh=0.0, min_size=0.0, unclip_ratio=0.0, max_candidates=2),
    PostprocessParams(box_thresh=0.5, polygons=True, max_candidates=2),
)


def frame_of(probability: Map, scale: tuple[float, float] = (2, 3)) -> Frame:
    """A frame whose source is `scale` (y, x) times as large as the map."""
    height, width = probability.shape
    return Frame((max(1, int(height * scale[0])), max(1, int(width * scale[1]))), (height, width), (height, width))


def assert_identical(found: Detections, expected: Detections) -> None:
    """All bits, in one order."""
    assert (found.width, found.height) == (expected.width, expected.height)
    assert found.quads.dtype == expected.quads.dtype
    assert found.quads.tolist() == expected.quads.tolist()
    assert found.scores.dtype == expected.scores.dtype
    assert found.scores.tolist() == expected.scores.tolist()
    assert (found.polygons is None) == (expected.polygons is None)
    for ours, theirs in zip(found.polygons or (), expected.polygons or (), strict=True):
        assert ours.tolist() == theirs.tolist()


def check(probability: Map, params: PostprocessParams, scale: tuple[float, float] = (2, 3)) -> int:
    """Compare both ways; returns how many detections there are."""
    frame = frame_of(probability, scale)
    expected = postprocess(probability, frame, params, compiled=False)
    assert_identical(postprocess(probability, frame, params), expected)
    return len(expected)


def random_map(rng: np.random.Generator) -> Map:
    """Noise, blobs or words, of any size up to 160."""
    height, width = (int(side) for side in rng.integers(1, 161, 2))
    kind = rng.integers(4)
    if kind == 0:
        return rng.integers(0, 256, (height, width), np.uint8)
    if kind == 1 and min(height, width) > 60:
        return shapes.words(rng, height, width, int(rng.integers(8, 19)))
    return shapes.noise(rng, height, width)


def random_params(rng: np.random.Generator) -> PostprocessParams:
    return PostprocessParams(
        thresh=float(rng.choice([rng.uniform(0, 1), rng.uniform(0.2, 0.7)])),
        box_thresh=float(rng.choice([0, 0.3, 0.5])),
        unclip_ratio=float(rng.choice([rng.uniform(0, 4), rng.uniform(0, 10)])),
        max_candidates=int(rng.choice([1000, 5, 1])),
        min_size=float(rng.choice([3, 3, 3, 1, 5, 0])),
        dilation=bool(rng.integers(2)),
        polygons=bool(rng.random() < 0.2),
        unclip=rng.choice(["exact", "exact", "analytic"]),
    )


class TestAgainstNumPy:
    @pytest.mark.parametrize("draw", shapes.SHAPES)
    @pytest.mark.parametrize("params", PARAMETERS)
    def test_hard_shapes_give_the_same(self, draw: Callable[[], Map], params: PostprocessParams) -> None:
        check(draw(), params)

    @given(st.integers(0, 2**32 - 1))
    def test_random_maps_give_the_same(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(3):
            check(random_map(rng), random_params(rng), tuple(rng.uniform(0.3, 4, 2)))

    @pytest.mark.long
    def test_five_thousand_random_maps_give_the_same(self) -> None:
        rng = np.random.default_rng()
        boxes = sum(check(random_map(rng), random_params(rng), tuple(rng.uniform(0.3, 4, 2))) for _ in range(5_000))
        assert boxes > 20_000

    @pytest.mark.parametrize("width", [1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 191, 192])
    @pytest.mark.parametrize("height", [1, 2, 40])
    def test_any_size_gives_the_same(self, rng: np.random.Generator, height: int, width: int) -> None:
        for value in (0, 255):
            check(np.full((height, width), value, np.uint8), PostprocessParams(dilation=True, box_thresh=0))
        for _ in range(10):
            values = cv2.blur(rng.integers(0, 256, (height, width), np.uint8), (3, 3)).reshape(height, width)
            for dilation in (False, True):
                check(values, PostprocessParams(thresh=0.5, box_thresh=0, min_size=0, dilation=dilation))

    @pytest.mark.parametrize("thresh", [*(level / 255 for level in range(0, 256, 15)), 127 / 255, 128 / 255, 1.0])
    def test_every_threshold_gives_the_same(self, rng: np.random.Generator, thresh: float) -> None:
        ramp = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
        check(ramp, PostprocessParams(thresh=thresh, box_thresh=0))
        check(shapes.noise(rng, 90, 150), PostprocessParams(thresh=thresh, box_thresh=0))

    @pytest.mark.parametrize("name", ["receipts/img", "scene/img"])
    def test_real_maps_give_the_same(self, shared_data: Path, default_detector: "Detector", name: str) -> None:
        self._real(shared_data / name, default_detector, 1)

    @pytest.mark.long
    @pytest.mark.parametrize("name", ["receipts/img", "scene/img"])
    def test_all_real_maps_give_the_same(self, shared_data: Path, default_detector: "Detector", name: str) -> None:
        self._real(shared_data / name, default_detector, None)

    @staticmethod
    def _real(folder: Path, detector: "Detector", count: int | None) -> None:
        boxes = 0
        for path in sorted(folder.iterdir())[:count]:
            pixels, frame = detector.preprocess(path)
            (probability,) = detector.infer([pixels])
            for params in (
                detector.spec.postprocess,
                PostprocessParams(polygons=True),
                PostprocessParams(box_thresh=0, min_size=0, max_candidates=7),
                PostprocessParams(unclip="analytic", thresh=0.1, dilation=True),
            ):
                expected = postprocess(probability, frame, params, compiled=False)
                assert_identical(postprocess(probability, frame, params), expected)
                boxes += len(expected)
        assert boxes > 0

    def test_a_page_of_words_has_them_all(self, rng: np.random.Generator) -> None:
        probability = shapes.words(rng, 736, 1280)
        assert check(probability, PostprocessParams(box_thresh=0.55)) > 600
        frame = frame_of(probability)
        params = PostprocessParams(box_thresh=0.55)
        found, plain = (each(probability, frame, params) for each in (postprocess, baseline_postprocess))
        np.testing.assert_allclose(found.quads, plain.quads, atol=1e-3)
        np.testing.assert_allclose(found.scores, plain.scores, atol=1e-6)

    @pytest.mark.parametrize("cap", [1, 2, 17, 19, 20])
    def test_regions_that_numpy_has_to_grow_keep_their_places(self, library: Library, cap: int) -> None:
        # Strokes one pixel thick collapse when they are cut to whole pixels; every second region is one.
        probability = np.zeros((140, 90), np.uint8)
        for index in range(20):
            height = 1 if index % 2 else 4
            probability[3 + 7 * index - 3 : 3 + 7 * index - 3 + height, 5 : 60 + index] = 130 + 6 * index
        params = PostprocessParams(min_size=0, box_thresh=0, max_candidates=cap)
        rows = library.rows(probability, frame_of(probability), params)
        assert rows is not None
        assert (rows["state"] == GROW_ON_HOST).any()
        assert check(probability, params) <= cap


class TestRegions:
    @pytest.mark.parametrize("draw", shapes.SHAPES)
    def test_there_are_as_many_as_opencv_has_components_and_holes(
        self, library: Library, draw: Callable[[], Map]
    ) -> None:
        probability = draw()
        text = (probability > 76).astype(np.uint8)
        components = cv2.connectedComponents(text, connectivity=8)[0] - 1
        # What surrounds the map is one with the background at its borders, and is no hole.
        holes = cv2.connectedComponents(np.pad(1 - text, 1, constant_values=1), connectivity=4)[0] - 2
        params = PostprocessParams(thresh=0.3, box_thresh=0, min_size=0, max_candidates=100_000)
        rows = library.rows(probability, frame_of(probability), params)
        assert rows is not None
        assert len(rows) == components + holes


class TestAnswers:
    """Literals: a word of 40 x 10 pixels at (20, 10) grows by 39 * 9 * 1.5 / 96 = 5.48 pixels."""

    @pytest.fixture
    def word(self) -> Map:
        probability = np.zeros((40, 100), np.uint8)
        probability[10:20, 20:60] = 204
        return probability

    def test_the_quad_is_the_grown_rectangle_clockwise_from_the_top_left(self, word: Map) -> None:
        found = postprocess(word, frame_of(word, (1, 1)), PostprocessParams())
        assert found.quads.tolist() == [[[15, 5], [64, 5], [64, 24], [15, 24]]]
        assert found.scores.tolist() == [np.float32(0.8)]

    def test_a_hole_is_a_region_too(self, word: Map) -> None:
        ring = np.zeros((60, 100), np.uint8)
        ring[10:50, 10:90] = 204
        ring[20:40, 20:80] = 0
        params = PostprocessParams(box_thresh=0, min_size=0, unclip="analytic", unclip_ratio=0)
        found = postprocess(ring, frame_of(ring, (1, 1)), params)
        assert found.quads.tolist() == [
            [[10, 10], [89, 10], [89, 49], [10, 49]],
            [[19, 19], [80, 19], [80, 40], [19, 40]],
        ]

    def test_equal_ones_come_from_the_end_of_the_raster(self) -> None:
        probability = shapes.equal_words()
        centres = postprocess(probability, frame_of(probability, (1, 1)), PostprocessParams()).quads.mean(axis=1)
        assert len(centres) == 30
        assert centres[0].tolist() == [115.0, 54.5]
        assert (np.lexsort((-centres[:, 0], -centres[:, 1])) == np.arange(30)).all()

    def test_the_map_is_not_changed(self, word: Map) -> None:
        before = word.copy()
        postprocess(word, frame_of(word), PostprocessParams(dilation=True))
        assert np.array_equal(word, before)


class TestWhatIsGiven:
    @pytest.mark.parametrize(
        "view",
        [
            lambda words: words[5:-5, 9:-9],
            lambda words: words[:, ::2],
            lambda words: words[::2],
            lambda words: words[::-1],
            lambda words: words[:, ::-1],
            lambda words: np.asfortranarray(words),
            lambda words: words.T,
            lambda words: np.broadcast_to(words[60], words.shape),
        ],
        ids=["part", "columns", "rows", "upside down", "mirrored", "column-major", "transposed", "repeated"],
    )
    def test_any_memory_layout_gives_the_same(self, rng: np.random.Generator, view: Callable[[Map], Map]) -> None:
        words = shapes.words(rng, 120, 200, 10)
        words.setflags(write=False)
        check(view(words), PostprocessParams(box_thresh=0.2))

    @pytest.mark.parametrize("shape", [(4097, 40), (40, 4097)])
    def test_a_map_too_large_for_the_library_is_computed_by_numpy(
        self, library: Library, shape: tuple[int, int]
    ) -> None:
        probability = np.zeros(shape, np.uint8)
        probability[10:30, 5:35] = 255
        assert library.rows(probability, frame_of(probability), PostprocessParams()) is None
        assert check(probability, PostprocessParams()) == 1

    def test_the_largest_map_is_not(self, library: Library) -> None:
        probability = np.zeros((4096, 4096), np.uint8)
        probability[7:4000:200, 5:4090] = 255
        probability[:, 1000:1010] = 255
        probability[4090:, 4090:] = 255
        rows = library.rows(probability, frame_of(probability), PostprocessParams(dilation=True, box_thresh=0))
        assert rows is not None
        assert check(probability, PostprocessParams(dilation=True, box_thresh=0, unclip_ratio=10)) == len(rows) > 0

    def test_a_float32_map_is_computed_by_numpy(self, rng: np.random.Generator) -> None:
        assert check((shapes.words(rng, 120, 200) / 255).astype(np.float32), PostprocessParams()) > 0

    @pytest.mark.parametrize("polygons", [False, True])
    def test_mode_tao_is_numpy_s(self, rng: np.random.Generator, polygons: bool) -> None:
        assert check(shapes.words(rng, 120, 200), PostprocessParams(mode="tao", polygons=polygons)) > 0


def test_threads_do_not_disturb_each_other(rng: np.random.Generator) -> None:
    assert load() is not None
    maps = [shapes.words(rng, 200, 300, 8 + index) for index in range(8)]
    params = PostprocessParams(box_thresh=0.2)
    expected = [postprocess(probability, frame_of(probability), params, compiled=False) for probability in maps]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            found = pool.map(lambda probability: postprocess(probability, frame_of(probability), params), maps)
            for ours, theirs in zip(found, expected, strict=True):
                assert_identical(ours, theirs)

# SPDX-License-Identifier: Apache-2.0
"""Elongated pictures: sizes, tiles and frames of the resize policy, and recall on drawn pages up to 1:100."""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ocdserve.backend import PRESETS, Bundle, Detector, DetectorSpec, ResizePolicy
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame, container_of
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections

Pixels = NDArray[np.uint8]

DEFAULT = PRESETS["ppocr"].resize
LETTERBOX = ResizePolicy("letterbox", 1280, 736, tiles=True)
POLICIES = [
    DEFAULT,
    PRESETS["ppocr-fast"].resize,
    PRESETS["ocdnet"].resize,
    LETTERBOX,
    ResizePolicy("long_side", side=960, shrink=True, tiles=True),
    ResizePolicy("short_side", side=480, shrink=True, tiles=True),
]
WORDS = ("harbour", "invoice", "seventeen", "kitchen", "garden", "monday", "tuesday", "delivery")


def lines(width: int, height: int, size: int) -> tuple[Pixels, NDArray[np.float64]]:
    """A white page of words of one font size, and their boxes (N, 4) of the font's height: left, top, right, bottom."""
    page = Image.new("RGB", (width, height), "white")
    canvas, font, words = ImageDraw.Draw(page), ImageFont.load_default(size), cycle(WORDS)
    boxes = []
    for y in range(size // 2, height - 2 * size, 2 * size):
        x, word = float(size), next(words)
        while (box := canvas.textbbox((x, y), word, font=font))[2] < width - size // 2:
            canvas.text((x, y), word, "black", font)
            boxes.append((box[0], y, box[2], y + 1.2 * size))
            x, word = box[2] + 3 * size, next(words)
    return np.asarray(page), np.array(boxes, float)


def large_words(width: int, height: int, size: int, turned: bool) -> tuple[Pixels, NDArray[np.float64]]:
    """A white page of a few large words, turned by 90 degrees or not, and the boxes (N, 4) of their ink."""
    columns, rows = (height, width) if turned else (width, height)
    page = Image.new("RGB", (columns, rows), "white")
    canvas, font, words = (
        ImageDraw.Draw(page),
        ImageFont.load_default(size),
        cycle(("Exit", "Open", "Salt", "Ab", "It")),
    )
    count = max(1, int((rows - 0.2 * size) // (1.7 * size)))
    boxes = []
    for row in range(count):
        x, y = 0.4 * size, (row + 0.5) * rows / count - 0.6 * size
        for word in islice(words, 100):
            box = canvas.textbbox((x, y), word, font=font)
            if box[2] < columns - 0.3 * size:
                canvas.text((x, y), word, "black", font)
                boxes.append(box)
                x = box[2] + size
    truth = np.array(boxes, float).reshape(-1, 4)
    if not turned:
        return np.asarray(page), truth
    left, top, right, bottom = truth.T
    return np.rot90(np.asarray(page)).copy(), np.stack([top, columns - right, bottom, columns - left], axis=1)


def found_words(found: Detections, boxes: NDArray[np.float64], turned: bool) -> tuple[int, int]:
    """How many words a detection covers to 0.7 that is no higher than 2.6 of them, and detections that cover none."""
    bounds = np.concatenate([found.quads.min(axis=1), found.quads.max(axis=1)], axis=1).astype(float)
    low, high = np.maximum(boxes[:, None, :2], bounds[:, :2]), np.minimum(boxes[:, None, 2:], bounds[:, 2:])
    covers = (
        np.prod(np.clip(high - low, 0, None), axis=2) >= 0.7 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)[:, None]
    )
    axis = 0 if turned else 1
    thin = bounds[:, axis + 2] - bounds[:, axis] <= 2.6 * np.median(boxes[:, axis + 2] - boxes[:, axis])
    covers &= thin
    return int(covers.any(axis=1).sum()), int((~covers.any(axis=0)).sum())


def recall(found: Detections, boxes: NDArray[np.float64]) -> float:
    """Share of the boxes (N, 4) of which a detection covers 0.7, and that fill 0.35 of it."""
    bounds = np.concatenate([found.quads.min(axis=1), found.quads.max(axis=1)], axis=1).astype(float)
    low, high = np.maximum(boxes[:, None, :2], bounds[:, :2]), np.minimum(boxes[:, None, 2:], bounds[:, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    truth, area = (np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (boxes, bounds))
    return float(((common >= 0.7 * truth[:, None]) & (common >= 0.35 * area)).any(axis=1).mean())


class TestSizes:
    @pytest.mark.parametrize(
        ("source", "network", "content", "tiles"),
        [
            ((9000, 250), (1472, 256), (9000, 250), 7),
            ((250, 9000), (256, 1472), (250, 9000), 7),
            ((400, 34_000), (416, 1568), (400, 34_000), 25),
            ((5000, 1000), (1184, 640), (3125, 625), 3),  # 1.25 ** 3 times the scale in one piece, 0.32
            ((64, 640), (160, 1600), (160, 1600), 1),  # enlarged to the longest side
            ((1600, 200), (1600, 224), (1600, 200), 1),  # padded, not stretched
            ((1000, 70_000), (480, 1600), (478, 33_466), 24),  # 16 megapixels
        ],
    )
    def test_the_default_policy_keeps_aspect_and_scale(
        self, source: tuple[int, int], network: tuple[int, int], content: tuple[int, int], tiles: int
    ) -> None:
        frame = Frame.of(*source, DEFAULT)
        assert (frame.network, frame.content, frame.tiles) == (network, content, tiles)

    @pytest.mark.parametrize(
        ("policy", "source", "content", "tiles"),
        [
            (PRESETS["ocdnet"].resize, (9000, 250), (9000, 250), 14),
            (PRESETS["ocdnet"].resize, (250, 9000), (250, 9000), 8),
            (PRESETS["ocdnet"].resize, (9000, 2000), (1048, 233), 2),  # 1.125 ** 3 times the scale in one piece
            (LETTERBOX, (1000, 12_000), (736, 8832), 8),  # as high as the network
            (LETTERBOX, (64, 640), (128, 1280), 1),
        ],
    )
    def test_a_network_of_one_size_takes_tiles_of_it(
        self, policy: ResizePolicy, source: tuple[int, int], content: tuple[int, int], tiles: int
    ) -> None:
        frame = Frame.of(*source, policy)
        assert (frame.network, frame.content, frame.tiles) == ((736, 1280), content, tiles)

    @given(st.sampled_from(POLICIES), st.integers(1, 6000), st.floats(1, 4))
    def test_ordinary_pictures_stay_as_they_were(self, policy: ResizePolicy, short: int, aspect: float) -> None:
        for size in ((short, int(short * aspect)), (int(short * aspect), short)):
            assert policy.sizes(*size) == replace(policy, tiles=False).sizes(*size)

    @given(st.sampled_from(POLICIES), st.integers(30, 3000), st.floats(4.04, 120), st.booleans())
    def test_the_aspect_is_kept_and_every_part_is_in_a_tile(
        self, policy: ResizePolicy, short: int, aspect: float, tall: bool
    ) -> None:
        long = int(short * aspect)
        source = (long, short) if tall else (short, long)
        frame = Frame.of(*source, policy)
        scale_x, scale_y = frame.scale
        # Within 2 %, or half a pixel of the shorter side.
        assert abs(scale_x / scale_y - 1) <= max(0.02, 0.6 / min(frame.content))
        policy.check_network_size(*frame.network)
        assert Frame.from_array(frame.to_array(), policy) == frame
        boxes = frame.boxes
        assert len(boxes) == frame.tiles
        assert boxes[0, :2].tolist() == [0, 0]
        assert boxes[-1, 2:].tolist() == [frame.content[1], frame.content[0]]
        assert ((boxes[:, 2:] - boxes[:, :2]) <= frame.network[::-1]).all()
        axis = 1 if tall else 0
        overlaps = boxes[:-1, axis + 2] - boxes[1:, axis]
        assert (overlaps >= frame.network[1 - axis] // 8 - 1).all()
        # No tile without need: without one of them the others do not reach the end.
        assert frame.tiles == 1 or (frame.tiles - 1) * frame.network[1 - axis] < 1.2 * max(frame.content)

    @given(st.sampled_from(POLICIES), st.integers(30, 3000), st.floats(4.04, 120), st.booleans())
    def test_what_is_in_tiles_has_an_overview_at_a_third_of_the_scale(
        self, policy: ResizePolicy, short: int, aspect: float, tall: bool
    ) -> None:
        long = int(short * aspect)
        frame = Frame.of(*((long, short) if tall else (short, long)), policy)
        overview = frame.overview
        # Lower text than 28 pixels of the overview is left to the tiles.
        assert (overview is None) == (frame.tiles == 1 or min(frame.content) < 84)
        if overview is None:
            return
        policy.check_network_size(*overview.network)
        assert [abs(3 * small - side) <= 1.5 for small, side in zip(overview.content, frame.content, strict=True)]
        assert overview.boxes[-1, 2:].tolist() == [overview.content[1], overview.content[0]]
        assert frame.container[0] == sum(part.network[0] for part in frame.parts)
        assert len(frame.parts) == len(frame.rows) == frame.tiles + overview.tiles
        assert frame.rows[frame.tiles] == frame.tiles * frame.network[0]
        # A network of one size is padded to it.
        pixels = [level.tiles * level.network[0] * level.network[1] for level in frame.levels]
        assert pixels[1] <= (0.67 if policy.has_one_size else 0.3) * pixels[0]

    @given(st.sampled_from(POLICIES), st.integers(100, 2000))
    def test_the_scale_has_no_step_at_1_to_4(self, policy: ResizePolicy, short: int) -> None:
        letterbox = replace(policy, kind="letterbox" if policy.has_one_size else policy.kind)
        (_, ordinary), (_, elongated) = letterbox.sizes(4 * short, short), letterbox.sizes(4 * short + 1, short)
        assert abs(max(ordinary) / max(elongated) - 1) < max(0.05, 40 / max(ordinary))

    def test_time_is_bounded_for_the_largest_pictures(self) -> None:
        for short in (1, 10, 100, 1000, 4000):
            frame = Frame.of(80_000_000 // short, short, DEFAULT)
            assert frame.content[0] * frame.content[1] <= 16_200_000
            assert frame.container[0] * frame.container[1] <= 40_000_000


class TestSpec:
    def test_a_detector_json_without_the_field_has_tiles_except_in_mode_tao(self) -> None:
        read = DetectorSpec.from_json
        assert read("{}").resize.tiles is True
        assert read('{"resize": {"kind": "fixed", "width": 1280, "height": 736}}').resize.tiles is True
        assert read('{"resize": {"tiles": false}}').resize.tiles is False
        assert read('{"postprocess": {"mode": "tao"}}').resize.tiles is False
        assert read('{"postprocess": {"mode": "tao"}, "resize": {"tiles": true}}').resize.tiles is False

    def test_another_value_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match=r"resize\.tiles must be true, false or null; got 'yes'"):
            DetectorSpec.from_json('{"resize": {"tiles": "yes"}}')

    def test_tao_stretches_as_it_always_did(self, tiny_network: Callable[..., Path]) -> None:
        spec = DetectorSpec(
            resize=ResizePolicy("fixed", 128, 64), postprocess=PostprocessParams(mode="tao", box_thresh=0.5)
        )
        picture = np.random.default_rng(1).integers(0, 256, (900, 50, 3), np.uint8)
        pixels, frame = Detector(Bundle(spec, tiny_network()), None).preprocess(picture)
        np.testing.assert_array_equal(pixels, cv2.resize(picture, (128, 64), interpolation=cv2.INTER_LINEAR))
        assert frame == Frame((900, 50), (64, 128), (64, 128))


class TestStages:
    @pytest.mark.parametrize(
        ("size", "levels"), [((1500, 60), 1), ((60, 1500), 1), ((700, 130), 2), ((1500, 90), 2), ((100, 2000), 2)]
    )
    def test_tiles_are_parts_of_the_scaled_picture(self, size: tuple[int, int], levels: int) -> None:
        policy = ResizePolicy(side=96, largest_side=256, stride=32, tiles=True)
        picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        pixels, frame = preprocess(picture, policy)
        assert frame.tiles > 1
        assert len(frame.levels) == levels
        row = 0
        for level in frame.levels:
            scaled = cv2.resize(picture, level.content[::-1], interpolation=cv2.INTER_LINEAR)
            height, width = level.network
            for left, top, right, bottom in level.boxes:
                tile, around = pixels[row : row + height, :width], pixels[row : row + height, width:]
                np.testing.assert_array_equal(tile[: bottom - top, : right - left], scaled[top:bottom, left:right])
                repeated = np.pad(scaled[top:bottom, left:right], [(0, 256), (0, 256), (0, 0)], "edge")
                np.testing.assert_array_equal(tile, repeated[:height, :width])
                assert not around.any()
                row += height
        assert pixels.shape == (row, frame.network[1], 3)

    @pytest.mark.parametrize("compiled", [True, False])
    @pytest.mark.parametrize("tall", [True, False])
    def test_text_across_seams_is_one_detection(self, tall: bool, compiled: bool) -> None:
        frame = Frame((4000, 200), (256, 128), (2000, 100)) if tall else Frame((200, 4000), (128, 256), (100, 2000))
        # Every 150 pixels a word of 40 x 16; and one text as long as the picture.
        content = np.zeros(frame.content, np.uint8)
        for start in range(20, 1960, 150):
            part = (slice(start, start + 40), slice(10, 26))
            content[part if tall else part[::-1]] = 255
        part = (slice(30, 1970), slice(60, 80))
        content[part if tall else part[::-1]] = 255
        maps = np.zeros((frame.tiles, *frame.network), np.uint8)
        for tile, (left, top, right, bottom) in zip(maps, frame.boxes, strict=True):
            tile[: bottom - top, : right - left] = content[top:bottom, left:right]
        params = PostprocessParams(unclip_ratio=0, polygons=True)
        found = postprocess(maps.reshape(frame.container), frame, params, compiled=compiled)
        bounds = np.concatenate([found.quads.min(axis=1), found.quads.max(axis=1)], axis=1)
        bounds = bounds[np.argsort(bounds[:, 1 if tall else 0])]
        expected = np.array([[20, s, 50, s + 78] for s in range(40, 3920, 300)] + [[120, 60, 158, 3938]])
        if not tall:
            expected = expected[:, [1, 0, 3, 2]]
        expected = expected[np.argsort(expected[:, 1 if tall else 0])]
        np.testing.assert_allclose(bounds, expected, atol=2.1)
        assert (found.width, found.height) == frame.source[::-1]
        assert found.polygons is not None
        for quad, polygon in zip(found.quads, found.polygons, strict=True):
            np.testing.assert_allclose(polygon.min(axis=0), quad.min(axis=0), atol=4.1)
            np.testing.assert_allclose(polygon.max(axis=0), quad.max(axis=0), atol=4.1)

    def test_images_that_take_too_much_memory_together_are_refused(self) -> None:
        def container(*sizes: tuple[int, int]) -> tuple[int, int]:
            return container_of([Frame.of(*size, DEFAULT) for size in sizes])

        with pytest.raises(InvalidInputError, match=r"3 images of this request take 748 MB.*; at most 512 MB .*fused"):
            container((34_000, 400), (400, 34_000), (100, 100))
        # 25 tiles of 1568 x 416 pixels, and an overview of 8 of 1600 x 160.
        assert container((34_000, 400), (400, 34_000)) == (52_000, 1600)
        assert container(*7 * [(34_000, 400)]) == (52_000, 416)

    def test_maps_of_another_number_of_tiles_are_refused(self) -> None:
        frame = Frame.of(9000, 250, DEFAULT)
        # 7 tiles of 1472 x 256 pixels, and an overview of 2 of 1600 x 96.
        with pytest.raises(InvalidInputError, match=r"network size \(13504, 256\); got uint8 \(10304, 256\)"):
            postprocess(np.zeros((7 * 1472, 256), np.uint8), frame, PostprocessParams())


@pytest.fixture(scope="module")
def exact_detector() -> Detector:
    """The default detector in float32: single words are near the limits, and must be on the same side everywhere."""
    return Detector.load("default-fp32", threads=2)


def check_recall(detector: Any, width: int, height: int, size: int) -> None:
    page, boxes = lines(width, height, size)
    assert len(boxes) > 25
    found = detector.detect(page, max_candidates=10_000)
    assert recall(found, boxes) >= 0.99
    assert len(found) <= 1.02 * len(boxes)


class TestRecall:
    @pytest.mark.parametrize(
        ("width", "height", "size"),
        [(150, 1500, 14), (1500, 150, 14), (100, 4000, 12), (4000, 100, 12), (70, 7000, 10), (7000, 70, 16)],
    )
    def test_drawn_words_are_found(self, exact_detector: Any, width: int, height: int, size: int) -> None:
        check_recall(exact_detector, width, height, size)

    @pytest.mark.parametrize(("width", "height"), [(2000, 300), (350, 2000), (1300, 300)])
    @pytest.mark.parametrize("colour", ["white", "#c8c8c8"])
    def test_a_page_without_text_has_no_detection(
        self, default_detector: Any, width: int, height: int, colour: str
    ) -> None:
        assert len(default_detector.detect(np.asarray(Image.new("RGB", (width, height), colour)))) == 0

    @pytest.mark.long
    @pytest.mark.parametrize("size", [10, 14, 20, 32])
    @pytest.mark.parametrize(
        ("width", "height"),
        [(250, 9000), (300, 30_000), (1000, 10_000), (9000, 250), (20_000, 300), (34_000, 400), (6000, 500)],
    )
    def test_long_pages(self, exact_detector: Any, width: int, height: int, size: int) -> None:
        check_recall(exact_detector, width, height, size)

    @pytest.mark.parametrize(
        ("name", "count"),
        [
            pytest.param("250x9000", 204, marks=pytest.mark.long),
            pytest.param("300x6000", 136, marks=pytest.mark.long),
            ("200x4000", 84),
        ],
    )
    def test_the_pictures_of_the_reports(self, default_detector: Any, name: str, count: int) -> None:
        path = Path(__file__).parents[3] / "shared" / "cases" / f"tall_{name}.png"
        if not path.is_file():
            pytest.skip(f"no reported pictures: {path} does not exist")
        assert len(default_detector.detect(path)) == count

    @pytest.mark.parametrize(("width", "height"), [(200, 1400), (2400, 200)])
    def test_a_network_of_one_size_finds_them_too(self, exact_detector: Any, width: int, height: int) -> None:
        resize = ResizePolicy("fixed", 1280, 736)
        bundle = Bundle.load()
        fixed = Detector(replace(bundle, spec=replace(bundle.spec, resize=resize)), exact_detector._network)
        check_recall(fixed, width, height, 16)

    @pytest.mark.parametrize(
        ("width", "height", "size", "turned"),
        [
            (3600, 450, 300, True),
            (3000, 600, 400, True),
            (2400, 300, 60, True),  # columns, in which the tiles see a line
            (6355, 307, 85, True),
        ],
    )
    def test_large_letters_are_found_whole(
        self, exact_detector: Any, width: int, height: int, size: int, turned: bool
    ) -> None:
        page, boxes = large_words(width, height, size, turned)
        found, others = found_words(exact_detector.detect(page), boxes, turned)
        assert (found, others) == (len(boxes), 0)

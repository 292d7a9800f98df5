# SPDX-License-Identifier: Apache-2.0
import asyncio
import io
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ocdserve.client import AsyncMockTransport, AsyncTextDetector, InferRequest, MockTransport, TextDetector
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.tiles import TiledImage, merge_tiles, tile_boxes, with_overview

# Two adjacent tiles, 0..200 and 150..350; their common strip is 150..200.
PAIR = np.array([[0, 0, 200, 100], [150, 0, 350, 100]])


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def found(*quads: list[list[float]], scores: tuple[float, ...] = (), polygons: bool = False) -> Detections:
    corners = np.array(quads, np.float32).reshape(-1, 4, 2)
    values = np.array(scores or [0.5] * len(corners), np.float32)
    return Detections(corners, values, 200, 100, tuple(corners) if polygons else None)


def merged(*parts: Detections) -> Detections:
    return merge_tiles(PAIR, parts, 350, 100)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(64, 900), st.data())
def test_tiles_cover_everything_and_overlap_enough(width: int, height: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile // 2))
    boxes = tile_boxes(width, height, tile, overlap)
    assert set(map(tuple, boxes[:, 2:] - boxes[:, :2])) == {(min(tile, width), min(tile, height))}
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    for axis, length in ((0, width), (1, height)):
        starts = np.unique(boxes[:, axis])
        assert starts[0] == 0
        assert starts[-1] == max(0, length - tile)
        # Spread over whole pixels, the overlap may lose one pixel to rounding.
        assert all(np.diff(starts) <= tile - overlap + 1) or len(starts) == 1
        assert all(np.diff(starts) <= tile)


def test_tiles_are_evenly_spread_row_by_row() -> None:
    assert tile_boxes(250, 180, tile=100, overlap=20).tolist() == [
        [0, 0, 100, 100],
        [75, 0, 175, 100],
        [150, 0, 250, 100],
        [0, 80, 100, 180],
        [75, 80, 175, 180],
        [150, 80, 250, 180],
    ]
    assert tile_boxes(90, 40).tolist() == [[0, 0, 90, 40]]


@pytest.mark.parametrize(
    ("tile", "overlap", "reason"),
    [
        (63, 0, "tile must be at least 64 pixels; got 63"),
        (100, 51, "overlap must be from 0 to half a tile, 50 pixels; got 51"),
        (100, -1, "got -1"),
    ],
)
def test_invalid_tiles_are_refused(tile: int, overlap: int, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        tile_boxes(500, 500, tile, overlap)


def test_tiles_are_parts_of_the_image() -> None:
    pixels = np.arange(150 * 100 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 150, 3)
    tiles = list(TiledImage.of(pixels, 100, 20).tiles())
    assert len(tiles) == 2
    np.testing.assert_array_equal(tiles[1], pixels[:, 50:])
    assert tiles[1].flags.c_contiguous


def test_text_in_one_tile_is_translated() -> None:
    result = merged(found(box(10, 20, 90, 40), scores=(0.6,)), found(box(100, 50, 180, 70), scores=(0.8,)))
    assert result.quads.tolist() == [box(250, 50, 330, 70), box(10, 20, 90, 40)]
    assert result.scores.tolist() == [np.float32(0.8), np.float32(0.6)]
    assert (result.width, result.height, result.polygons) == (350, 100, None)


def test_of_duplicates_the_better_score_is_kept() -> None:
    # 158..192, clear of both edges (200 and 150).
    result = merged(found(box(160, 20, 190, 28), scores=(0.6,)), found(box(9, 20, 40, 28), scores=(0.7,)))
    assert result.quads.tolist() == [box(159, 20, 190, 28)]
    assert result.scores.tolist() == [np.float32(0.7)]


def test_a_line_across_the_seam_is_merged() -> None:
    result = merged(found(box(20, 40, 200, 60), scores=(0.9,)), found(box(0, 40, 90, 60), scores=(0.6,)))
    assert result.quads.tolist() == [box(20, 40, 240, 60)]
    # By area: 180 and 90 pixels long.
    assert result.scores.tolist() == [pytest.approx(0.8)]


def test_a_rotated_line_across_the_seam_is_merged() -> None:
    slope = np.array([[0, 0], [100, 50], [95, 60], [-5, 10]], np.float32)  # 2 along, 1 down
    first, second = slope + np.array([100, 10]), slope + np.array([0, 30])
    result = merged(found(first.tolist()), found(second.tolist()))
    [quad] = result.quads
    np.testing.assert_allclose(quad, [[100, 10], [250, 80 + 5], [245, 95], [95, 20]], atol=6)


@pytest.mark.parametrize("lean", [-10, 10])
def test_a_leaning_column_across_the_seam_begins_at_its_top_left(lean: int) -> None:
    # 300 pixels high, 20 wide, its lower end `lean` pixels further to the right; each tile sees 200 pixels of it.
    tiles = np.array([[0, 0, 400, 200], [0, 100, 400, 300]])

    def part(top: float, bottom: float) -> list[list[float]]:
        left, right = 200 + lean * top / 300, 200 + lean * bottom / 300
        return [[left, top], [left + 20, top], [right + 20, bottom], [right, bottom]]

    ((quad,),) = (
        merge_tiles(
            tiles, [found(part(0, 200)), found((part(100, 300) - np.array([0, 100])).tolist())], 400, 300
        ).quads,
    )
    np.testing.assert_allclose(quad, part(0, 300), atol=1.5)


def test_a_cut_end_is_left_to_the_tile_that_contains_it_whole() -> None:
    # The first tile contains only the first letters.
    result = merged(found(box(160, 40, 200, 60), scores=(0.9,)), found(box(14, 39, 90, 61), scores=(0.6,)))
    assert result.quads.tolist() == [box(164, 39, 240, 61)]


def test_a_sliver_found_only_by_the_cutting_tile_is_dropped() -> None:
    assert len(merged(found(box(180, 40, 200, 60)), found())) == 0


def test_neighbouring_lines_across_the_seam_stay_separate() -> None:
    upper, lower = box(20, 20, 200, 42), box(0, 40, 90, 62)
    result = merged(found(upper, box(20, 40, 200, 62)), found(box(0, 20, 90, 42), lower))
    assert sorted(result.quads[:, 0].tolist()) == [[20, 20], [20, 40]]
    assert len(result) == 2


def test_words_of_one_tile_are_never_merged() -> None:
    result = merged(found(box(10, 40, 60, 60), box(50, 40, 120, 60)), found())
    assert len(result) == 2


def test_large_text_cut_lengthwise_by_a_horizontal_seam_is_merged() -> None:
    tiles = np.array([[0, 0, 400, 200], [0, 150, 400, 350]])
    result = merge_tiles(tiles, (found(box(20, 80, 380, 200)), found(box(22, 0, 378, 110))), 400, 350)
    assert result.quads.tolist() == [box(20, 80, 380, 260)]


def test_lines_stacked_across_a_horizontal_seam_stay_separate() -> None:
    tiles = np.array([[0, 0, 400, 200], [0, 150, 400, 350]])
    # 140..172 is cut by the lower tile, 170..204 by the upper one; both are whole in the other.
    result = merge_tiles(
        tiles,
        (found(box(20, 140, 380, 172), box(20, 170, 380, 200)), found(box(20, 0, 380, 22), box(20, 20, 380, 54))),
        400,
        350,
    )
    assert sorted(result.quads[:, 0, 1].tolist()) == [140, 170]


def test_a_line_through_many_tiles_is_one() -> None:
    boxes = tile_boxes(2000, 100, tile=200, overlap=50)
    line = np.array(box(30, 40, 1970, 60), np.float32)
    parts = []
    for left, _, right, _ in boxes:
        seen = np.clip(line[:, 0], left, right) - left
        parts.append(found(np.stack([seen, line[:, 1]], axis=1).tolist()))
    assert merge_tiles(boxes, parts, 2000, 100).quads.tolist() == [line.tolist()]


def test_polygons_across_the_seam_become_their_hull() -> None:
    result = merged(
        found(box(20, 40, 200, 60), box(20, 80, 60, 90), polygons=True), found(box(0, 40, 90, 60), polygons=True)
    )
    assert result.polygons is not None
    assert sorted(map(tuple, result.polygons[0].tolist())) == [(20, 40), (20, 60), (240, 40), (240, 60)]
    assert result.polygons[1].tolist() == box(20, 80, 60, 90)


def test_empty_tiles_have_no_detections() -> None:
    result = merged(found(), found())
    assert (len(result), result.quads.shape, result.polygons) == (0, (0, 4, 2), None)
    assert merged(found(polygons=True), found(polygons=True)).polygons == ()


# Each example is a page of some two hundred words and takes a fifth of a second.
@settings(max_examples=settings.default.max_examples // 4)
@given(st.integers(0, 10_000), st.sampled_from([128, 200, 333]))
def test_text_cut_into_tiles_is_recovered(seed: int, tile: int) -> None:
    """Random upright words, cut by tiles as a perfect detector would see them, are recovered."""
    rng = np.random.default_rng(seed)
    rows: list[NDArray[np.float32]] = []
    for top in range(5, 560, 30):
        left = int(rng.integers(5, 60))
        while (right := left + int(rng.integers(20, 400))) < 795:
            rows.append(np.array(box(left, top, right, top + 20), np.float32))
            left = right + int(rng.integers(12, 40))
    words = np.stack(rows)
    boxes = tile_boxes(800, 600, tile, 60)
    parts = []
    for tile_box in boxes:
        low, high = tile_box[:2], tile_box[2:]
        seen = np.clip(words, low, high) - low
        size = seen[:, 2] - seen[:, 0]
        parts.append(found(*seen[(size > 3).all(axis=1)].tolist()))
    result = merge_tiles(boxes, parts, 800, 600)
    assert sorted(map(tuple, result.quads[:, [0, 2]].reshape(-1, 4).tolist())) == sorted(
        map(tuple, words[:, [0, 2]].reshape(-1, 4).tolist())
    )


def bright(request: InferRequest) -> dict[str, NDArray[Any]]:
    """A server that detects each bright rectangle exactly; scores 0.5."""
    [pixels] = request.array
    label, count = labelled(pixels[..., 0] > 128)
    quads = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(label == number)
        quads.append(box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return {
        "QUADS": np.array([quads], np.float32).reshape(1, -1, 4, 2),
        "SCORES": np.full((1, count), 0.5, np.float32),
        "COUNT": np.array([[count]], np.int32),
        "SIZE": np.array([pixels.shape[:2]], np.int32),
    }


def labelled(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], int]:
    cv2 = pytest.importorskip("cv2", reason="OpenCV finds the rectangles for this test")
    count, label = cv2.connectedComponents(mask.astype(np.uint8))
    return label, count - 1


@pytest.fixture
def poster() -> NDArray[np.uint8]:
    pixels = np.zeros((600, 900, 3), np.uint8)
    pixels[50:80, 20:880] = 255  # over all columns of tiles
    pixels[200:450, 100:160] = 255  # over both rows
    pixels[500:530, 700:720] = 255
    return pixels


POSTER = [(20, 50, 880, 80), (100, 200, 160, 450), (700, 500, 720, 530)]


def corners(result: Detections) -> list[tuple[float, ...]]:
    return sorted(map(tuple, result.quads[:, [0, 2]].reshape(-1, 4).tolist()))


def test_the_client_detects_tiles_and_merges_them(poster: NDArray[np.uint8]) -> None:
    transport = MockTransport(bright)
    with TextDetector("grpc://h:1", transport=transport) as detector:
        result = detector.detect_tiled(poster, tile=320, overlap=60, concurrency=3, box_thresh=0.25)
    assert corners(result) == POSTER
    assert (result.width, result.height) == (900, 600)
    assert result.latency_ms is not None
    assert len(transport.requests) == 12
    assert {request.model for request in transport.requests} == {"ocdnet_raw"}
    assert {request.array.shape for request in transport.requests} == {(1, 320, 320, 3)}
    assert [dict(request.parameters) for request in transport.requests] == [{"box_thresh": 0.25}] * 12


def test_the_async_client_returns_the_same(poster: NDArray[np.uint8]) -> None:
    async def detect() -> Detections:
        async with AsyncTextDetector("grpc://h:1", transport=AsyncMockTransport(bright)) as detector:
            return await detector.detect_tiled(poster, tile=320, overlap=60)

    assert corners(asyncio.run(detect())) == POSTER


def test_encoded_images_and_bgr_are_detected_in_tiles(poster: NDArray[np.uint8]) -> None:
    poster[..., 1:] = 0  # red
    buffer = io.BytesIO()
    Image.fromarray(poster).save(buffer, "PNG")
    with TextDetector("grpc://h:1", transport=MockTransport(bright)) as detector:
        assert corners(detector.detect_tiled(buffer.getvalue(), tile=320, overlap=60)) == POSTER
        assert corners(detector.detect_tiled(poster[..., ::-1], tile=320, overlap=60, bgr=True)) == POSTER
        assert corners(detector.detect_tiled(poster[..., ::-1], tile=320, overlap=60)) == []


def test_a_failing_tile_ends_the_call(poster: NDArray[np.uint8]) -> None:
    def broken(request: InferRequest) -> dict[str, NDArray[Any]]:
        raise InvalidInputError("no")

    with TextDetector("grpc://h:1", transport=MockTransport(broken)) as detector, pytest.raises(InvalidInputError):
        detector.detect_tiled(poster, tile=320, overlap=60)


def test_a_failing_tile_leaves_no_thread_or_task(poster: NDArray[np.uint8]) -> None:
    def broken(request: InferRequest) -> dict[str, NDArray[Any]]:
        raise InvalidInputError("no")

    # The error keeps all frames that it passed through alive.
    with TextDetector("grpc://h:1", transport=MockTransport(broken)) as detector:
        with pytest.raises(InvalidInputError) as kept:
            detector.detect_tiled(poster, tile=320, overlap=60)
        assert [one.name for one in threading.enumerate() if one.name.startswith("ocdserve-detect")] == []

    async def other_tasks() -> int:
        async with AsyncTextDetector("grpc://h:1", transport=AsyncMockTransport(broken)) as detector:
            with pytest.raises(InvalidInputError) as kept:
                await detector.detect_tiled(poster, tile=320, overlap=60)
            found = len(asyncio.all_tasks()) - 1
            del kept
            return found

    assert asyncio.run(other_tasks()) == 0
    del kept


class TestOverview:
    """Boxes as left, top, right, bottom; an overview at a third of the scale of an image of 3000 x 300 pixels."""

    @staticmethod
    def found(*boxes: tuple[float, float, float, float], score: float = 0.8, part: int = 1) -> Detections:
        quads = [[(a, b), (c, b), (c, d), (a, d)] for a, b, c, d in boxes]
        return Detections(
            np.array(quads, np.float32).reshape(-1, 4, 2) / part,
            np.full(len(boxes), score, np.float32),
            3000 // part,
            300 // part,
        )

    def merged(
        self, pieces: Detections, *boxes: tuple[float, float, float, float], score: float = 0.8
    ) -> list[list[int]]:
        merged = with_overview(pieces, self.found(*boxes, score=score, part=3))
        assert (merged.width, merged.height) == (3000, 300)
        bounds = np.concatenate([merged.quads.min(axis=1), merged.quads.max(axis=1)], axis=1)
        return sorted(np.round(bounds).astype(int).tolist())

    def test_a_text_replaces_its_letters(self) -> None:
        letters = self.found((30, 30, 120, 240), (150, 60, 240, 240), (300, 30, 540, 240), (900, 30, 1500, 240))
        assert self.merged(letters, (30, 30, 570, 240)) == [[30, 30, 570, 240], [900, 30, 1500, 240]]

    def test_words_stay_though_the_overview_joins_them(self) -> None:
        words = self.found((30, 30, 450, 240), (600, 30, 1200, 240))
        assert self.merged(words, (30, 30, 1200, 240)) == [[30, 30, 450, 240], [600, 30, 1200, 240]]

    def test_a_text_is_added_where_nothing_is_found(self) -> None:
        assert self.merged(self.found(), (30, 30, 570, 240)) == [[30, 30, 570, 240]]

    def test_text_that_is_low_in_the_overview_is_left_to_the_tiles(self) -> None:
        letters = self.found((30, 30, 60, 105), (75, 30, 105, 105))
        assert self.merged(letters, (30, 30, 120, 105)) == [[30, 30, 60, 105], [75, 30, 105, 105]]

    def test_a_text_that_cuts_a_piece_is_not_taken(self) -> None:
        pieces = self.found((30, 30, 120, 240), (150, 30, 900, 240))
        assert self.merged(pieces, (30, 30, 480, 240)) == [[30, 30, 120, 240], [150, 30, 900, 240]]

    # What the default network saw of two words that were drawn at 62 to 953 and 1167 to 2365, 247 pixels high.
    WORDS = ((50, 0, 1142, 300), (1124, 0, 2397, 300))
    CUT = ((0, 0, 1111, 300), (1188, 25, 1490, 286), (1379, 64, 1842, 289), (1713, 0, 2647, 300))

    def test_better_texts_replace_the_large_pieces_that_they_cut_together(self) -> None:
        small, fragment = (2700, 200, 2900, 260), (600, 60, 660, 240)
        merged = self.merged(self.found(*self.CUT, small, fragment, score=0.74), *self.WORDS, score=0.83)
        assert merged == [*map(list, self.WORDS), list(small)]

    def test_large_pieces_stay_that_score_about_as_well_or_of_which_texts_show_little(self) -> None:
        assert self.merged(self.found(*self.CUT, score=0.77), *self.WORDS, score=0.83) == sorted(map(list, self.CUT))
        wide = (51, 3, 2900, 298)
        assert self.merged(self.found(wide, score=0.7), self.WORDS[0], score=0.9) == [list(wide)]

    def test_large_pieces_stay_of_which_one_is_hardly_shown(self) -> None:
        pieces = [(left, 0, right, 300) for left, right in ((0, 600), (500, 1500), (1400, 1990), (1900, 2300))]
        texts = [(0, 0, 1000, 300), (1010, 0, 1990, 300)]
        assert self.merged(self.found(*pieces, score=0.75), *texts, score=0.9) == sorted(map(list, pieces))
        # Without the last one they are replaced; an empty piece elsewhere stays.
        pieces[-1] = (2500, 100, 2500, 100)
        merged = self.merged(self.found(*pieces, score=0.75), *texts, score=0.9)
        assert merged == [*map(list, texts), list(pieces[-1])]

    def test_a_low_line_that_touches_a_large_piece_is_not_one_of_its_texts(self) -> None:
        words, heading = [(x, 240, x + 250, 290) for x in range(60, 1300, 300)], (51, 3, 1400, 262)
        pieces = self.found(heading, *words, score=0.75)
        merged = self.merged(pieces, (74, 25, 1377, 250), (60, 210, 1510, 300), score=0.89)
        assert merged == sorted([*map(list, words), [74, 25, 1377, 250]])

    def test_a_worse_text_is_not_taken(self) -> None:
        letters = self.found((30, 30, 120, 240), (150, 30, 240, 240), score=0.9)
        assert len(self.merged(letters, (30, 30, 240, 240), score=0.7)) == 2

    @pytest.mark.parametrize("pitch", [150, 300])
    def test_columns_are_not_a_line(self, pitch: int) -> None:
        columns = [(float(x), 30.0, x + 90.0, 270.0) for x in range(30, 2900, pitch)]
        assert len(self.merged(self.found(*columns), (0, 0, 3000, 300))) == len(columns)

    @pytest.mark.parametrize("sides", [(63, 201), (90, 90)])
    def test_columns_replace_the_line_that_tiles_see(self, sides: tuple[int, int]) -> None:
        line, rest = (30.0, 30.0, 2790.0, 240.0), (2820.0, 30.0, 2970.0, 240.0)
        width, height = sides
        columns = [(x, 36, x + width, 36 + height) for x in range(33, 2700, 102)]
        assert self.merged(self.found(line, rest), *columns) == [*map(list, columns), [2820, 30, 2970, 240]]

    def test_a_line_stays_though_the_overview_splits_it_into_words(self) -> None:
        words = [(float(x), 36.0, x + 300.0, 105.0) for x in range(33, 2500, 360)]
        assert self.merged(self.found((30, 30, 2790, 111)), *words) == [[30, 30, 2790, 111]]

    def test_a_line_stays_of_which_the_overview_shows_little(self) -> None:
        columns = [(float(x), 36.0, x + 60.0, 237.0) for x in range(33, 700, 120)]
        assert self.merged(self.found((30, 30, 2790, 240)), *columns) == [[30, 30, 2790, 240]]

    def test_a_word_stays_though_the_overview_splits_it_into_letters(self) -> None:
        letters = [(float(x), 36.0, x + 170.0, 246.0) for x in range(33, 1000, 200)]
        assert self.merged(self.found((30, 30, 1020, 252)), *letters) == [[30, 30, 1020, 252]]

    def test_worse_columns_are_not_taken(self) -> None:
        columns = [(float(x), 36.0, x + 63.0, 237.0) for x in range(33, 2700, 102)]
        line = self.found((30, 30, 2790, 240), score=0.9)
        assert self.merged(line, *columns, score=0.7) == [[30, 30, 2790, 240]]

    def test_lower_text_is_added_where_nothing_is_found(self) -> None:
        lower, lowest = (30, 30, 180, 99), (300, 30, 450, 90)
        assert self.merged(self.found(), lower, lowest) == [[30, 30, 180, 99]]

    def test_the_best_is_first_and_has_its_polygon(self) -> None:
        letters, text = self.found((900, 30, 990, 240), score=0.7), self.found((30, 30, 570, 240), part=3, score=0.9)
        merged = with_overview(
            replace(letters, polygons=tuple(letters.quads)), replace(text, polygons=tuple(text.quads))
        )
        assert merged.polygons is not None
        assert merged.scores.tolist() == pytest.approx([0.9, 0.7])
        np.testing.assert_allclose(merged.polygons[0], [(30, 30), (570, 30), (570, 240), (30, 240)], atol=1e-3)
        np.testing.assert_allclose(merged.polygons[1], letters.quads[0])

# SPDX-License-Identifier: Apache-2.0
"""Tiles compared with the whole page: the real network on 3840 x 2880 pixels, in process and through the server."""

import asyncio
import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ocdserve.backend import Detector
from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.figures import Counts
from ocdserve.backend.evaluation.matching import match
from ocdserve.backend.serve import TritonServer
from ocdserve.client import AsyncTextDetector, TextDetector
from ocdserve.perf.inputs.pictures import dense_page, receipt, street
from ocdserve.results.detections import Detections
from ocdserve.results.tiles import TiledImage

WIDTH, HEIGHT = 3840, 2880


@pytest.fixture(scope="module")
def page() -> NDArray[np.uint8]:
    """A page with text from 17 to 150 pixels, upright and rotated, and lines across all tiles."""
    sheet = Image.new("RGB", (WIDTH, HEIGHT), (250, 250, 246))
    pictures = {name: draw().image for name, draw in (("r", receipt), ("s", street), ("p", dense_page))}
    places: tuple[tuple[str, int, tuple[int, int]], ...] = (
        ("p", 0, (150, 520)),
        ("r", 0, (1500, 480)),
        ("s", 0, (2420, 560)),
        ("p", 0, (2380, 1400)),
        ("r", -7, (1420, 1600)),
        ("s", -3, (60, 1640)),
    )
    for name, turn, place in places:
        turned = pictures[name].convert("RGBA").rotate(-turn, Image.Resampling.BICUBIC, expand=True)
        sheet.paste(turned.convert("RGB"), place, turned.getchannel("A"))
    canvas = ImageDraw.Draw(sheet)
    canvas.text((WIDTH / 2, 40), "HARBOUR GAZETTE", (20, 20, 30), ImageFont.load_default(150), anchor="ma")
    sentence = "the tide turns twice each day and every harbour learns its own hour for it while boats wait at anchor "
    for y, size in ((270, 64), (380, 40), (2800, 36)):
        canvas.text((40, y), sentence * 2, (40, 38, 44), ImageFont.load_default(size))
    for row in range(8):  # footnotes, which scaling the page down to the network's usual size would make unreadable
        canvas.text((2300, 2480 + 30 * row), sentence + sentence[:40], (40, 38, 44), ImageFont.load_default(12))
    return np.asarray(sheet)


@pytest.fixture(scope="module")
def untiled(default_detector: Any, page: NDArray[np.uint8]) -> Detections:
    """Detections of the same network in the whole page, without tiles and without scaling."""
    spec = default_detector.spec
    whole = Detector.load()
    whole.spec = dataclasses.replace(spec, resize=dataclasses.replace(spec.resize, largest_side=4096))
    return whole.detect(page, max_candidates=5000)


def agreement(found: Detections, reference: Detections) -> Counts:
    """How many quads match one to one with an intersection over union of more than 0.5, ICDAR's measure."""
    return match(found.quads, Truth(tuple(reference.quads.astype(float)), (False,) * len(reference)))


def tiled(detector: Any, page: NDArray[np.uint8], **options: int) -> Detections:
    plan = TiledImage.of(page, options.get("tile", 1280), options.get("overlap", 192))
    return plan.merge([detector.detect(tile) for tile in plan.tiles()])


@pytest.fixture(scope="module")
def found_in_tiles(default_detector: Any, page: NDArray[np.uint8]) -> Detections:
    """Detections in tiles of the default size, in process."""
    return tiled(default_detector, page)


def lengths_that_agree(found: Detections, reference: Detections) -> float:
    """Share of the reference's quads with a counterpart whose corners are within half a text height."""
    apart = np.linalg.norm(found.quads[:, None] - reference.quads[None], axis=3).max(axis=2).min(axis=0)
    return float((apart <= np.maximum(0.5 * reference.heights, 8)).mean())


@pytest.mark.parametrize("small", [False, True], ids=["1280", "736"])
def test_tiles_find_the_same_text_as_the_whole_page(
    default_detector: Any, page: NDArray[np.uint8], untiled: Detections, found_in_tiles: Detections, small: bool
) -> None:
    found = tiled(default_detector, page, tile=736, overlap=96) if small else found_in_tiles
    result = agreement(found, untiled)
    assert result.truths > 220
    assert result.matched >= 0.985 * result.truths, "recall"
    assert result.matched >= 0.985 * result.detections, "precision"


def test_lines_across_all_tiles_end_where_they_end_untiled(untiled: Detections, found_in_tiles: Detections) -> None:
    assert sorted(found_in_tiles.widths)[-3:] == pytest.approx(sorted(untiled.widths)[-3:], rel=0.01)
    assert sorted(found_in_tiles.widths)[-3] > 2 * 1280
    assert lengths_that_agree(found_in_tiles, untiled) >= 0.95


def test_tiles_find_small_print_lost_by_scaling_down(
    default_detector: Any, page: NDArray[np.uint8], untiled: Detections, found_in_tiles: Detections
) -> None:
    def footnotes(found: Detections) -> int:
        return int(((found.quads[:, 0] > (2200, 2470)) & (found.quads[:, 0] < (2500, 2750))).all(axis=1).sum())

    assert (footnotes(untiled), footnotes(found_in_tiles)) == (8, 8)
    assert footnotes(default_detector.detect(page)) < 8


@pytest.mark.triton
def test_tiles_through_the_server_equal_those_in_process(
    default_server: TritonServer, page: NDArray[np.uint8], found_in_tiles: Detections
) -> None:
    # Those in process are compared with the whole page above.
    with TextDetector(default_server.grpc_url) as detector:
        found = detector.detect_tiled(page, concurrency=4)
    np.testing.assert_array_equal(found.quads, found_in_tiles.quads)
    np.testing.assert_array_equal(found.scores, found_in_tiles.scores)

    async def detect() -> Detections:
        async with AsyncTextDetector(default_server.http_url) as detector:
            return await detector.detect_tiled(page, concurrency=4)

    np.testing.assert_array_equal(asyncio.run(detect()).quads, found_in_tiles.quads)

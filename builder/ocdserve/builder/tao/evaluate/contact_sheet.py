# SPDX-License-Identifier: Apache-2.0
"""Contact sheet of the worst images of an evaluation, with labels and detections drawn in."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ocdserve.backend.stages.image import decode
from ocdserve.builder.tao.evaluate.measure import ImageResult, Region
from ocdserve.contract import InvalidInputError

_TILE = (560, 620)
_CAPTION = 44
_LEGEND = 36
_COLUMNS = 5
_GAP = 8
_BACKGROUND = (32, 32, 36)
_TEXT = (235, 235, 235)

_MATCHED_TRUTH = (90, 200, 255)
_COLOURS = {
    "matched": (0, 210, 70),
    "false": (255, 50, 50),
    "missed": (255, 190, 0),
    "ignored": (150, 150, 150),
    "invalid": (150, 150, 150),
}
_KEY = (
    (_COLOURS["matched"], "detection, matched"),
    (_MATCHED_TRUTH, "its ground truth"),
    (_COLOURS["false"], "detection, false"),
    (_COLOURS["missed"], "ground truth, missed"),
    (_COLOURS["ignored"], "don't-care"),
)


def worst(results: Sequence[ImageResult], most: int = 10) -> list[ImageResult]:
    """Select the images with the lowest hmean, then with the most mistakes; those without mistakes are left out."""
    faulty = [result for result in results if _mistakes(result)]
    return sorted(faulty, key=lambda result: (result.counts.hmean, -_mistakes(result)))[:most]


def draw_contact_sheet(results: Sequence[ImageResult], path: Path) -> None:
    """Write a PNG with one tile per image.

    Args:
        results: In the order of the tiles; at least one.
        path: File to write.
    """
    columns = min(_COLUMNS, len(results))
    width = _TILE[0]
    tiles = [_tile(result) for result in results]
    # A row is as high as its highest tile, so that landscape images leave no empty space.
    heights = [max(map(len, tiles[start : start + columns])) for start in range(0, len(tiles), columns)]
    tops = [_LEGEND + sum(heights[:row]) + row * (_CAPTION + _GAP) for row in range(len(heights) + 1)]
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, tops[-1] + _GAP), _BACKGROUND)
    canvas = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    _draw_legend(canvas, font)
    for index, (result, tile) in enumerate(zip(results, tiles, strict=True)):
        left, top = _GAP + index % columns * (width + _GAP), tops[index // columns]
        canvas.text((left, top), _shortened(result.path.name, canvas, font, width), _TEXT, font)
        canvas.text((left, top + 20), _figures(result), _TEXT, font)
        sheet.paste(Image.fromarray(tile), (left, top + _CAPTION))
    sheet.save(path, "PNG")


def _draw_legend(canvas: ImageDraw.ImageDraw, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont") -> None:
    left = _GAP
    for colour, meaning in _KEY:
        canvas.rectangle((left, 12, left + 18, 24), outline=colour, width=3)
        canvas.text((left + 24, 9), meaning, _TEXT, font)
        left += 24 + int(canvas.textlength(meaning, font)) + 24


def _tile(result: ImageResult) -> NDArray[np.uint8]:
    """The picture, scaled to fit, with its regions; detections on top."""
    try:
        pixels = decode(result.path.read_bytes())
    except (OSError, InvalidInputError):
        # It was readable before; the regions alone are useful as well.
        pixels = np.zeros((result.height, result.width, 3), np.uint8)
    scale = min(_TILE[0] / result.width, _TILE[1] / result.height)
    size = max(1, round(result.width * scale)), max(1, round(result.height * scale))
    shrunk = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    tile = np.ascontiguousarray(shrunk, np.uint8)
    for region in result.truths:
        colour = _MATCHED_TRUTH if region.state == "matched" else _COLOURS[region.state]
        _outline(tile, region, scale, colour, 1 if region.state in ("matched", "ignored") else 2)
    for region in result.detections:
        _outline(tile, region, scale, _COLOURS[region.state], 2)
    return tile


def _outline(tile: NDArray[np.uint8], region: Region, scale: float, colour: tuple[int, int, int], line: int) -> None:
    # OpenCV's fixed-point coordinates, with four fractional bits.
    points = np.round(region.polygon * scale * 16).astype(np.int32)
    cv2.polylines(tile, [points], True, colour, line, cv2.LINE_AA, 4)


def _figures(result: ImageResult) -> str:
    counts = result.counts
    return (
        f"hmean {counts.hmean:.3f}: {counts.truths - counts.matched} of {counts.truths} missed, "
        f"{counts.detections - counts.matched} of {counts.detections} false"
    )


def _mistakes(result: ImageResult) -> int:
    counts = result.counts
    return counts.truths + counts.detections - 2 * counts.matched


def _shortened(
    name: str, canvas: ImageDraw.ImageDraw, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int
) -> str:
    """The name, without its middle if it is too long."""
    kept = len(name)
    text = name
    while canvas.textlength(text, font) > width and kept > 2:
        kept -= 1
        text = f"{name[: kept // 2]}...{name[len(name) - (kept - kept // 2) :]}"
    return text

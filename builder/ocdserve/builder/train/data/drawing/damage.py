# SPDX-License-Identifier: Apache-2.0
"""What cameras, light and compression do to a page: shading, colour, blur, loss of detail, noise, JPEG."""

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.builder.train.data.drawing.grounds import octaves

# Standard deviation of the blur that leaves letters legible, in em of the smallest text.
_BLUR = 0.09


def damaged(random: np.random.Generator, page: NDArray[np.uint8], smallest: float, screen: bool) -> NDArray[np.uint8]:
    """A page as a camera or scanner sees it, uint8 RGB (H, W, 3); text of `smallest` pixels (em) stays legible.

    Args:
        random: Decides what happens, each with a probability of its own.
        page: uint8 RGB (H, W, 3).
        smallest: Font size of the smallest text in pixels; the page's height where there is none.
        screen: Whether it is a screenshot, which only compression damages.
    """
    if not screen:
        if random.random() < 0.6:
            page = _shaded(random, page)
        if random.random() < 0.5:
            page = _coloured(random, page)
        if random.random() < 0.5:
            page = _blurred(random, page, _BLUR * smallest)
        if random.random() < 0.6:
            page = _noisy(random, page)
    if random.random() < 0.2 and smallest > 14:
        height, width = page.shape[:2]
        factor = random.uniform(max(0.5, 9 / smallest), 1)
        small = cv2.resize(page, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        page = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return _compressed(random, page) if random.random() < 0.7 else page


def faded(random: np.random.Generator, sheet: NDArray[np.uint8], paper: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A printed sheet, uint8 RGB (H, W, 3), whose ink is unevenly faint, as that of thermal printers; still legible."""
    levels = octaves(random, sheet.shape[0], sheet.shape[1], 32)
    most = random.uniform(0.2, 0.6)
    share = np.rint(256 * most * np.arange(256) / 255).astype(np.int32)[levels][..., None]
    return (sheet + ((np.array(paper, np.int32) - sheet) * share >> 8)).astype(np.uint8)


def _shaded(random: np.random.Generator, page: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Uneven light: a slope in any direction, or the soft shadows of things that are not seen."""
    height, width = page.shape[:2]
    depth = random.uniform(0.1, 0.55)
    if random.random() < 0.5:
        turn = random.uniform(0, 2 * np.pi)
        x, y = np.linspace(-0.5, 0.5, width, dtype=np.float32), np.linspace(-0.5, 0.5, height, dtype=np.float32)
        light = 0.5 + 0.7 * (np.float32(np.cos(turn)) * x[None, :] + np.float32(np.sin(turn)) * y[:, None])
        levels = (255 * light.clip(0, 1)).astype(np.uint8)
    else:
        levels = octaves(random, height, width, max(height, width) // 4)
    factors = np.rint(256 * (1 - depth + depth * np.arange(256) / 255)).astype(np.uint16)[levels]
    return (page * factors[..., None].astype(np.uint32) >> 8).astype(np.uint8)


def _coloured(random: np.random.Generator, page: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """White balance, exposure and contrast."""
    levels = np.arange(256, dtype=np.float64)[:, None] / 255
    gains, gamma, lift = random.uniform(0.8, 1.1, 3), random.uniform(0.7, 1.5), random.uniform(0, 0.15)
    table = np.rint(255 * (lift + (1 - lift) * levels**gamma * gains).clip(0, 1)).astype(np.uint8)
    return np.asarray(cv2.LUT(page, table.reshape(256, 1, 3)), np.uint8)


def _blurred(random: np.random.Generator, page: NDArray[np.uint8], most: float) -> NDArray[np.uint8]:
    """Out of focus, or moved in one direction."""
    sigma = random.uniform(0.3, 1.0) * min(most, 2.5)
    if random.random() < 0.75:
        return np.asarray(cv2.GaussianBlur(page, (0, 0), max(sigma, 0.3)), np.uint8)
    length = max(2, round(2.5 * sigma)) | 1
    kernel = np.zeros((length, length), np.float32)
    end = np.rint(random.uniform(0, length - 1, 2)).astype(int)
    cv2.line(kernel, end.tolist(), (length - 1 - end).tolist(), (1.0,))
    return np.asarray(cv2.filter2D(page, -1, kernel / kernel.sum()), np.uint8)


def _noisy(random: np.random.Generator, page: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grain, the same in all channels, sometimes of two pixels."""
    height, width = page.shape[:2]
    strength = np.float32(random.uniform(1, 12))
    cell = int(random.choice((1, 1, 2)))
    grain = random.standard_normal((-(-height // cell), -(-width // cell)), np.float32) * strength
    whole = np.rint(grain).astype(np.int16)
    if cell > 1:
        whole = whole.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    return np.clip(page + whole[..., None], 0, 255).astype(np.uint8)


def _compressed(random: np.random.Generator, page: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """JPEG of some quality."""
    quality = int(random.integers(35, 96))
    _, encoded = cv2.imencode(".jpg", page[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])

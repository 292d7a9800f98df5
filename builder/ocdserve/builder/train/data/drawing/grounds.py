# SPDX-License-Identifier: Apache-2.0
"""Grounds without text: photographs, and drawn textures that tempt a detector to see letters."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError

Image = NDArray[np.uint8]
# Longest side of a photograph that is kept in memory, and how many are.
_LONGEST, _KEPT = 1600, 12


def ground(random: np.random.Generator, height: int, width: int, photographs: Sequence[Path]) -> Image:
    """A ground, uint8 RGB (height, width, 3): mostly a photograph where there are some, otherwise a texture."""
    if photographs and random.random() < 0.7:
        return _cut(random, _photograph(photographs[int(random.integers(len(photographs)))]), height, width)
    texture = _TEXTURES[int(random.integers(len(_TEXTURES)))]
    return texture(random, height, width)


def octaves(random: np.random.Generator, height: int, width: int, finest: int = 4, gain: float = 0.6) -> Image:
    """Noise of several scales, uint8 (height, width), spread over all levels; `finest` is its smallest detail in px."""
    total = np.zeros((height, width), np.float32)
    cell, weight = max(max(height, width) // 2, finest), 1.0
    while cell >= finest:
        grid = random.random((height // cell + 2, width // cell + 2), np.float32)
        total += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        cell, weight = cell // 2, weight * gain
    total -= total.min()
    return (total * (255 / total.max())).astype(np.uint8)


def colour(
    random: np.random.Generator, low: float = 0.0, high: float = 255.0, spread: float | None = None
) -> NDArray[np.float32]:
    """A colour, float32 (3,): a grey level and channels around it, by default seldom far from it."""
    if spread is None:
        spread = float(random.choice((25.0, 90.0), p=(0.75, 0.25)))
    grey = random.uniform(low, high)
    return np.clip(grey + random.uniform(-spread, spread, 3), 0, 255).astype(np.float32)


def mixed(levels: Image, dark: NDArray[np.float32], light: NDArray[np.float32]) -> Image:
    """Levels as a mixture of two colours, uint8 RGB (H, W, 3)."""
    steps = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    table = np.rint(dark + (light - dark) * steps).astype(np.uint8)
    return table[levels]


def _cut(random: np.random.Generator, photograph: Image, height: int, width: int) -> Image:
    """A part of a photograph at a random scale, perhaps mirrored."""
    scale = max(height / photograph.shape[0], width / photograph.shape[1]) * random.uniform(1.0, 1.8)
    inside = (min(int(height / scale), photograph.shape[0]), min(int(width / scale), photograph.shape[1]))
    top, left = (
        int(random.integers(whole - part + 1)) for whole, part in zip(photograph.shape[:2], inside, strict=True)
    )
    part = photograph[top : top + inside[0], left : left + inside[1]]
    if random.random() < 0.5:
        part = part[:, ::-1]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (width, height), interpolation=how), np.uint8)


@lru_cache(maxsize=_KEPT)
def _photograph(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise InvalidInputError(f"the photograph {path} cannot be read; give JPEG or PNG files")
    scale = _LONGEST / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _plain(random: np.random.Generator, height: int, width: int) -> Image:
    """Two colours that blend into each other."""
    across, down = np.linspace(0, 1, width, dtype=np.float32), np.linspace(0, 1, height, dtype=np.float32)
    share = random.random()
    levels = 255 * (share * across[None, :] + (1 - share) * down[:, None])
    first = colour(random)
    return mixed(levels.astype(np.uint8), first, np.clip(first + random.uniform(-60, 60, 3), 0, 255).astype(np.float32))


def _clouds(random: np.random.Generator, height: int, width: int) -> Image:
    """Stone, plaster or clouds."""
    levels = octaves(random, height, width, int(random.choice((2, 4, 16))), random.uniform(0.4, 0.8))
    return mixed(levels, colour(random, 0, 150), colour(random, 80, 255))


def _grain(random: np.random.Generator, height: int, width: int) -> Image:
    """Wood, brushed metal or cloth: noise that is stretched in one direction."""
    thin, long = int(random.integers(2, 7)), int(random.integers(60, 300))
    grid = random.random((height // thin + 1, width // long + 2), np.float32)
    levels = (255 * cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)).astype(np.uint8)
    if random.random() < 0.5:
        board = int(random.integers(40, 160))
        levels[::board] = 0
        levels[1::board] //= 2
    dark = colour(random, 30, 140, 50)
    result = mixed(levels, dark, np.clip(dark + random.uniform(20, 90), 0, 255).astype(np.float32))
    if random.random() < 0.5:
        return result
    return np.asarray(cv2.resize(result.transpose(1, 0, 2).copy(), (width, height)), np.uint8)


def _bricks(random: np.random.Generator, height: int, width: int) -> Image:
    """Bricks or tiles, each in a shade of its own."""
    tall, gap = int(random.integers(10, 60)), int(random.integers(1, 5))
    wide, shift = int(tall * random.uniform(1, 3.5)), float(random.choice((0.0, 0.5)))
    base, joint = colour(random, 60, 200, 60), colour(random, 60, 220, 10)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = joint
    spread = random.uniform(4, 30)
    for row in range(-(-height // tall)):
        for left in range(-int((row % 2) * shift * wide), width, wide):
            shade = np.clip(base + random.uniform(-spread, spread), 0, 255)
            image[row * tall : row * tall + tall - gap, max(left, 0) : max(left + wide - gap, 0)] = shade
    return np.asarray(cv2.GaussianBlur(image, (3, 3), 0), np.uint8)


def _leaves(random: np.random.Generator, height: int, width: int) -> Image:
    """Leaves, pebbles or confetti: many small ellipses above each other."""
    base = colour(random, 40, 160)
    image = mixed(octaves(random, height, width, 16), base * 0.3, base * 0.7)
    size = random.uniform(4, 16)
    slim, spread = random.uniform(0.2, 1.0), random.uniform(20, 80)
    count = min(int(1.2 * height * width / (size * size)), 1500)
    places = random.integers(0, (width, height), (count, 2)).tolist()
    sizes = (size * random.lognormal(0, 0.35, count)).tolist()
    angles = random.uniform(0, 360, count).tolist()
    shades = np.clip(base + random.normal(0, spread, (count, 1)) + random.normal(0, 12, (count, 3)), 0, 255).tolist()
    for place, radius, angle, shade in zip(places, sizes, angles, shades, strict=True):
        axes = (max(int(radius), 1), max(int(radius * slim), 1))
        cv2.ellipse(image, place, axes, angle, 0, 360, shade, -1, cv2.LINE_AA)
    return image


def _bars(random: np.random.Generator, height: int, width: int) -> Image:
    """Railings, blinds, keyboards or the windows of a facade: one cell, repeated."""
    image = mixed(octaves(random, height, width, 32), colour(random, 20, 120), colour(random, 90, 240))
    across, down = (int(value) for value in random.integers(8, 70, 2))
    wide, tall = (max(2, int(value)) for value in (across * random.uniform(0.2, 0.8), down * random.uniform(0.2, 1.0)))
    shade, edge = colour(random).tolist(), colour(random).tolist()
    top, bottom = sorted(int(value) for value in random.integers(0, height + 1, 2))
    for y in range(top, bottom, down):
        for x in range(0, width, across):
            cv2.rectangle(image, (x, y), (x + wide, y + tall), shade, -1)
            cv2.rectangle(image, (x, y), (x + wide, y + tall), edge, 1)
    return image


def _strokes(random: np.random.Generator, height: int, width: int) -> Image:
    """Twigs, cracks or scratches: curved strokes as thick as letters' are."""
    image = _clouds(random, height, width)
    thick, shade = int(random.integers(1, 6)), colour(random).tolist()
    for _ in range(int(random.integers(20, 160))):
        steps = random.normal(0, random.uniform(5, 30), (int(random.integers(3, 9)), 2))
        path = (random.uniform(0, (width, height)) + np.cumsum(steps, axis=0)).astype(np.int32)
        cv2.polylines(image, [path], False, shade, thick, cv2.LINE_AA)
    return image


def _shapes(random: np.random.Generator, height: int, width: int) -> Image:
    """Furniture, boxes and signs without text: polygons and discs of any size."""
    image = _plain(random, height, width)
    for _ in range(int(random.integers(5, 40))):
        centre, radius = random.uniform(0, (width, height)), 10 ** random.uniform(0.8, 2.2)
        corners = int(random.integers(3, 9))
        turns = (
            np.sort(random.uniform(0, 2 * np.pi, corners)) if random.random() < 0.7 else np.linspace(0, 2 * np.pi, 40)
        )
        points = centre + radius * np.stack([np.cos(turns), np.sin(turns)], 1) * random.uniform(0.3, 1, 2)
        cv2.fillPoly(image, [points.astype(np.int32)], colour(random).tolist(), cv2.LINE_AA)
    return image


_TEXTURES: tuple[Callable[[np.random.Generator, int, int], Image], ...] = (
    _plain,
    _clouds,
    _grain,
    _bricks,
    _leaves,
    _bars,
    _strokes,
    _shapes,
)

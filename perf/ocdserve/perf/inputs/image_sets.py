# SPDX-License-Identifier: Apache-2.0
"""Sets of images for load tests: photographs, or images drawn from a seed, each set with a digest of its bytes.

Drawn sets are reproducible byte for byte only with the same versions of Pillow and libjpeg.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ocdserve.contract import IMAGE_SUFFIXES, InvalidInputError, is_image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PHOTOGRAPHS = "photographs"

# fmt: off
_WORDS = (
    "harbour", "lamp", "quay", "1848", "fresh", "bread", "open", "EXIT", "gate", "north", "tide", "no.", "27",
    "STATION", "total", "12.50", "paper", "window", "salt", "boats", "parking", "market", "0.95", "street",
    "Hotel", "ticket", "apple", "stone", "platform", "WEST", "library", "fish",
)
# fmt: on
# Camera, scanner, phone and screen; portrait and landscape.
_MIXED_SIZES = ((1280, 720), (720, 1280), (1024, 768), (600, 800), (1600, 1200), (480, 640), (1240, 1754), (900, 300))


@dataclass(frozen=True)
class EncodedImage:
    """An image file in memory, with its name."""

    name: str
    encoded: bytes


@dataclass(frozen=True)
class ImageSet:
    """Images that are sent in order, repeatedly.

    Raises:
        InvalidInputError: There is no image.
    """

    name: str
    images: tuple[EncodedImage, ...]

    def __post_init__(self) -> None:
        if not self.images:
            raise InvalidInputError(f"the image set {self.name!r} must hold at least one image; got none")

    @cached_property
    def digest(self) -> str:
        """The first twelve hexadecimal digits of the SHA-256 of all images, in order."""
        total = hashlib.sha256()
        for image in self.images:
            total.update(hashlib.sha256(image.encoded).digest())
        return total.hexdigest()[:12]


@dataclass(frozen=True)
class _Recipe:
    """How images of a kind are drawn.

    Attributes:
        sizes: Width and height in pixels, used in turn.
        fonts: Smallest and largest font size in pixels.
        fill: Probability that a place for a word holds one.
    """

    sizes: tuple[tuple[int, int], ...]
    fonts: tuple[int, int]
    fill: float


DRAWN: Mapping[str, _Recipe] = {
    "scene": _Recipe(((1280, 720),), (20, 64), 0.12),
    "dense": _Recipe(((1240, 1754),), (14, 20), 0.95),
    "sparse": _Recipe(((1280, 720),), (24, 48), 0.01),
    "huge": _Recipe(((4000, 3000),), (40, 160), 0.15),
    "tiny": _Recipe(((160, 48), (96, 96), (240, 80)), (16, 32), 1.0),
    "mixed": _Recipe(_MIXED_SIZES, (16, 56), 0.2),
}


def draw_images(kind: str, count: int, seed: int) -> ImageSet:
    """Draw JPEG images of words on uneven paper.

    Args:
        kind: A key of `DRAWN`.
        count: Number of images.
        seed: The same seed draws the same images; a shorter set is the beginning of a longer one.

    Raises:
        InvalidInputError: The kind is unknown, or count or seed are too small.
    """
    if kind not in DRAWN:
        raise InvalidInputError(f"no kind of drawn images is called {kind!r}; known are {', '.join(DRAWN)}")
    if count < 1 or seed < 0:
        raise InvalidInputError(f"count must be at least 1 and seed at least 0; got {count} and {seed}")
    recipe = DRAWN[kind]
    images = (
        EncodedImage(f"{kind}-{seed}-{index}.jpg", _drawn(recipe, index, np.random.default_rng((seed, index))))
        for index in range(count)
    )
    return ImageSet(kind, tuple(images))


def load_images(folders: Sequence[Path], count: int | None = None) -> ImageSet:
    """Read image files: those in each folder, in its `img/`, or in the `img/` of its folders.

    Args:
        folders: The folders.
        count: Limit per folder, the first by name; None for all.

    Raises:
        InvalidInputError: A folder holds no image.
    """
    images = []
    for folder in folders:
        files = next(
            (found for pattern in ("*", "img/*", "*/img/*") if (found := _image_files(folder, pattern))),
            [],
        )
        if not files:
            raise InvalidInputError(
                f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}), nor does img/ in it or in one of its folders"
            )
        images += [EncodedImage(file.name, file.read_bytes()) for file in files[:count]]
    return ImageSet(PHOTOGRAPHS, tuple(images))


def _image_files(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if is_image(file) and file.is_file())


def _drawn(recipe: _Recipe, index: int, random: np.random.Generator) -> bytes:
    # Late: scenarios are also listed where Pillow is not installed.
    from PIL import ImageDraw, ImageFont

    from ocdserve.perf.inputs.pictures import encoded

    width, height = recipe.sizes[index % len(recipe.sizes)]
    image = _paper(width, height, random)
    canvas = ImageDraw.Draw(image)
    top = 6
    while top < height - recipe.fonts[0]:
        size = int(random.integers(recipe.fonts[0], recipe.fonts[1] + 1))
        font = ImageFont.load_default(size)
        left = 6
        while left < width - 2 * size:
            word = _WORDS[random.integers(len(_WORDS))]
            length = int(font.getlength(word))
            if random.random() < recipe.fill:
                canvas.text((left, top), word, font=font, fill=(30, 28, 40))
            left += length + size // 2
        top += int(1.5 * size)
    return encoded(image)


def _paper(width: int, height: int, random: np.random.Generator) -> "Picture":
    """Large soft blots in light colours, and grain."""
    from PIL import Image

    blots = Image.fromarray(random.integers(150, 250, (5, 7, 3), np.uint8))
    pixels = np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = random.integers(-6, 7, (height, width, 1), np.int16)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))

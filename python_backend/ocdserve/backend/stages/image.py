# SPDX-License-Identifier: Apache-2.0
"""Decoding: an encoded image to upright RGB pixels; unsuitable images are rejected before they are decoded."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ocdserve.contract import InvalidInputError

# Pillow itself rejects images above twice its own limit.
_PILLOW_MAX_PIXELS = 178_956_970
# Transposition that turns an image of each EXIF orientation (tag 274) upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")

_REMEDY = f"Send a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file, whole and not further encoded."


@dataclass(frozen=True)
class ImageLimits:
    """Limits of decoding.

    Attributes:
        max_pixels: Largest width times height, read from the header before anything is decoded.

    Raises:
        InvalidInputError: The limit is out of its range.
    """

    max_pixels: int = 80_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= _PILLOW_MAX_PIXELS:
            raise InvalidInputError(f"max_pixels must be from 1 to {_PILLOW_MAX_PIXELS}; got {self.max_pixels}")

    def check(self, width: int, height: int) -> None:
        """Raise InvalidInputError for an image over the limit."""
        if width * height > self.max_pixels:
            raise InvalidInputError(
                f"the image has {width} x {height} = {width * height} pixels; at most {self.max_pixels} are served. "
                "Scale it down or send it in tiles."
            )


def decode(data: bytes, limits: ImageLimits | None = None) -> NDArray[np.uint8]:
    """Decode an image to upright RGB.

    EXIF orientation is applied, transparency is composited over white, 16-bit channels keep their high byte, and the
    first page or frame is used.

    Args:
        data: A whole JPEG, PNG, WebP, BMP or TIFF file.
        limits: Size limits; the default ones if None.

    Returns:
        uint8 (H, W, 3) RGB, C-contiguous.

    Raises:
        InvalidInputError: The data is empty, no image of these formats, truncated or too large.
    """
    image = open_image(data, limits or ImageLimits())
    try:
        # First, because Pillow turns TIFF files upright while loading them, and then drops their tag.
        image.load()
        pixels = np.asarray(_to_rgb(_upright(image)))
    except (InvalidInputError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise InvalidInputError(
            f"the {image.format} image of {image.width} x {image.height} pixels cannot be decoded, it is truncated or "
            f"damaged: {error} ({len(data)} bytes). {_REMEDY}"
        ) from error
    return np.ascontiguousarray(pixels)


def open_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read an image's header without decoding.

    Raises:
        InvalidInputError: The data is empty, no image of these formats, or too large.
    """
    if not data:
        raise InvalidInputError(f"the image is empty (0 bytes). {_REMEDY}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInputError(
            f"the image is too large ({error}); at most {limits.max_pixels} pixels are served. "
            "Scale it down or send it in tiles."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        raise InvalidInputError(
            f"not an image that can be read: {len(data)} bytes starting with {data[:8]!r}. {_REMEDY}"
        ) from error
    limits.check(*image.size)
    return image


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an image, 1 to 8; 1 (upright) if it has none that can be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's readers of metadata raise many types; a bad tag does not spoil the image
        return 1
    return value if value in _TURNS else 1


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the tags, and fails on damaged ones.
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_high_byte(image)
    if image.mode == "F":
        raise InvalidInputError(
            f"floating-point pixels have no known range. Convert to 8 bits per channel first. {_REMEDY}"
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_high_byte(image: Image.Image) -> Image.Image:
    """16-bit grey (Pillow's modes I;16 and I): Pillow's own conversion would clip values at 255."""
    values: NDArray[Any] = np.asarray(image)
    return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")

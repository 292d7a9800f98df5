# SPDX-License-Identifier: Apache-2.0
"""Decoding: an encoded image to upright RGB pixels, refused early when it cannot be served."""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ocdserve.contract import InvalidInputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")

_REMEDY = f"Send a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file, whole and not further encoded."


@dataclass(frozen=True)
class ImageLimits:
    """What may be decoded.

    Attributes:
        max_pixels: Largest width times height, read from the header before anything is decoded.
    """

    max_pixels: int = 80_000_000

    def check(self, width: int, height: int) -> None:
        """Raise InvalidInputError for an image over the limit."""
        if width * height > self.max_pixels:
            raise InvalidInputError(
                f"the image has {width} x {height} = {width * height} pixels; at most {self.max_pixels} are served. "
                "Scale it down or send it in tiles."
            )


def decode(data: bytes, limits: ImageLimits | None = None) -> NDArray[np.uint8]:
    """Decode an image to upright RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit channels keep their high byte, the
    first page or frame of several is taken.

    Args:
        data: A whole JPEG, PNG, WebP, BMP or TIFF file.
        limits: Size limits; the default ones if None.

    Returns:
        uint8 (H, W, 3) RGB, C-contiguous.

    Raises:
        InvalidInputError: The data is empty, no image of these formats, truncated or too large.
    """
    if not data:
        raise InvalidInputError(f"the image is empty (0 bytes). {_REMEDY}")
    image = _open(data)
    (limits or ImageLimits()).check(*image.size)
    try:
        pixels = np.asarray(_to_rgb(_upright(image)))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise InvalidInputError(
            f"the {image.format} image of {image.width} x {image.height} pixels cannot be decoded, it is truncated or "
            f"damaged: {error} ({len(data)} bytes). {_REMEDY}"
        ) from error
    return np.ascontiguousarray(pixels)


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of large images from half its own limit on; ours is checked right after.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise InvalidInputError(f"the image is too large: {error}. Scale it down or send it in tiles.") from error
        except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
            raise InvalidInputError(
                f"not an image that can be read: {len(data)} bytes starting with {data[:8]!r}. {_REMEDY}"
            ) from error


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_high_byte(image)
    if image.mode == "F":
        raise InvalidInputError(
            f"floating-point pixels have no known range. Convert to 8 bits a channel first. {_REMEDY}"
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_high_byte(image: Image.Image) -> Image.Image:
    """16-bit grey (Pillow's modes I;16 and I): Pillow's own conversion would cut values off at 255."""
    values: NDArray[Any] = np.asarray(image)
    return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")

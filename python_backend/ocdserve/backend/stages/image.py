# SPDX-License-Identifier: Apache-2.0
"""Decoding: an encoded image to upright RGB pixels; unsuitable images are rejected before they are decoded."""

import base64
import re
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.contract import FORMATS, InvalidInputError, Limits, OcdserveError, exceeded
from ocdserve.results.decoding import Allocate, orientation, upright_pixels, upright_size
from ocdserve.results.pages import formats_text, open_encoded

# The characters by which base64 differs from its variant for URLs.
_TO_URL_SAFE = bytes.maketrans(b"+/", b"-_")

# Pillow's decoder of WebP needs 15 bytes per pixel, OpenCV's 4 to 7; both are libwebp, and their pixels are equal.
_LARGE_WEBP = 4_000_000

_REMEDY = f"Send a {formats_text()} file, whole and not further encoded."


def decode(
    data: bytes, limits: Limits | None = None, page: int | None = None, allocate: Allocate | None = None
) -> NDArray[np.uint8]:
    """Decode an image to upright RGB.

    Orientation, depth and transparency: `ocdserve.results.decoding.upright_rgb`.

    Args:
        data: A whole file of one of `ocdserve.results.pages.readable_formats`.
        limits: Size limits; the default ones if None.
        page: Page or frame, from 1; None: the only page, or the first frame of an animation.
        allocate: Makes the array that the pixels are put into; None: a new one.

    Returns:
        uint8 (H, W, 3) RGB, C-contiguous.

    Raises:
        InvalidInputError: The data is empty, no image of these formats, truncated or too large; it has several pages
            and none is chosen, or lacks the one chosen.
    """
    return _decoded(open_image(data, limits or Limits(), page), data, allocate)


def decode_for(
    policy: ResizePolicy, data: bytes, limits: Limits | None = None, page: int | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode an image for detection: as `decode`, but JPEG reduced where the policy allows it.

    Args:
        policy: Says how large the network's content will be, and whether JPEG is reduced (`reduce_jpeg`).
        data: See `decode`.
        limits: See `decode`; they apply to the whole size.
        page: See `decode`.

    Returns:
        uint8 (h, w, 3) RGB, C-contiguous, with sides of the whole image or the next whole number from a half, a quarter
        or an eighth of them on; and the upright image's whole height and width in pixels.

    Raises:
        InvalidInputError: See `decode`.
    """
    image = open_image(data, limits or Limits(), page)
    if not policy.reduce_jpeg or image.format not in ("JPEG", "MPO"):
        pixels = _decoded(image, data, None)
        return pixels, (pixels.shape[0], pixels.shape[1])
    size = upright_size(image)
    _, (height, width) = policy.sizes(*size)
    image.draft(None, (width, height) if size == image.size[::-1] else (height, width))
    try:
        return _decoded(image, data, None), size
    except InvalidInputError:
        # The message is to name the whole size.
        return decode(data, limits, page), size


def _decoded(image: Image.Image, data: bytes, allocate: Allocate | None) -> NDArray[np.uint8]:
    form, (width, height) = image.format, image.size
    if form == "WEBP" and width * height >= _LARGE_WEBP:
        pixels = _opaque_webp(image, data, allocate)
        if pixels is not None:
            return pixels
    try:
        return upright_pixels(image, data, allocate)
    except (OcdserveError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise InvalidInputError(
            f"the {form} image of {width} x {height} pixels cannot be decoded, it is truncated or "
            f"damaged: {error} ({len(data)} bytes). {_REMEDY}"
        ) from error


def _opaque_webp(image: Image.Image, data: bytes, allocate: Allocate | None) -> NDArray[np.uint8] | None:
    """The pixels of an upright still image without transparency; None for others and for damaged ones."""
    if image.mode != "RGB" or getattr(image, "is_animated", False) or orientation(image) != 1:
        return None
    # None for damaged files, which OpenCV's types leave out.
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        return None
    target: NDArray[np.uint8] = pixels if allocate is None else allocate(image.height, image.width)
    cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=target)
    return target


def open_image(data: bytes, limits: Limits, page: int | None = None) -> Image.Image:
    """Read an image's header without decoding; see `ocdserve.results.pages.open_encoded`.

    Raises:
        InvalidInputError: The data is empty, no image of these formats, or too large; or see `page` of `decode`.
    """
    if not data:
        raise InvalidInputError(f"the image is empty (0 bytes). {_REMEDY}")
    try:
        return open_encoded(data, page, limits)
    except (InvalidInputError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise exceeded(
            "max_pixels",
            f"the image is too large ({error}); at most {limits.max_pixels} pixels are served. "
            "Scale it down or send it in tiles.",
        ) from error
    except Exception as error:  # Pillow's readers raise many types
        start = f"{len(data)} bytes starting with {data[:8]!r}"
        if _is_base64(data):
            raise InvalidInputError(f"the image is base64 text, {start}. Decode it and send the bytes.") from error
        kind = " (TIFF files of floating-point colours or of unusual depths are not read)" if _is_tiff(data) else ""
        raise InvalidInputError(f"not an image that can be read: {start}{kind}. {_REMEDY}") from error


def _is_base64(data: bytes) -> bool:
    """Whether this is the base64 text of an image, possibly quoted or in a data URL."""
    text = re.sub(rb"^[\s\"']*(data:[^,]{0,100},)?\s*", b"", data[:200])[:16]
    try:
        start = base64.urlsafe_b64decode(text.translate(_TO_URL_SAFE))
    except ValueError:
        return False
    return any(form.begins(start) for form in FORMATS)


def _is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*")

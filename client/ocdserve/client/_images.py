# SPDX-License-Identifier: Apache-2.0
"""Any kind of image to what is sent: encoded bytes or RGB pixels."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._options import Downloads
from ocdserve.contract import InvalidInputError, is_url
from ocdserve.results.pictures import pixels_of


class BinaryFile(Protocol):
    """A file object opened for reading bytes."""

    def read(self, size: int = ..., /) -> bytes:
        """The rest of the file."""


class PilImage(Protocol):
    """A Pillow image (`PIL.Image.Image`)."""

    @property
    def mode(self) -> str:
        """Pixel format, such as "RGB"."""

    def convert(self, mode: str) -> Any:
        """The image in another mode."""

    def getexif(self) -> Any:
        """The image's EXIF tags."""


Image: TypeAlias = bytes | bytearray | memoryview | str | Path | NDArray[np.uint8] | BinaryFile | PilImage
Sendable: TypeAlias = bytes | NDArray[np.uint8]


def load_image(image: Image, *, bgr: bool = False, downloads: Downloads | None = None) -> Sendable:
    """Read an image: encoded bytes unchanged, the content of files and URLs, pixels as RGB.

    Args:
        image: Encoded bytes; a path; an http:// or https:// URL; a file object; uint8 (H, W, 3) RGB pixels; a Pillow
            image.
        bgr: Whether arrays hold BGR, as OpenCV reads them; other images are not affected.
        downloads: Limits for URLs; None: the defaults.

    Returns:
        Encoded bytes, or uint8 (H, W, 3) RGB pixels.

    Raises:
        InvalidInputError: The image cannot be read, or is of another type.
        UnavailableError: The URL's server cannot be reached.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        return image[..., ::-1] if bgr and image.ndim == 3 else image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str) and is_url(image):
        # Imported here: few programs need it, and Python's TLS takes time to load.
        from ocdserve.client._download import download

        return download(image, downloads or Downloads())
    if isinstance(image, str | Path):
        return bytes(_read(f"the image file {str(image)!r}", lambda: Path(image).read_bytes()))
    if _is_pil(image):
        return _pil_pixels(image)
    read = getattr(image, "read", None)
    if callable(read):
        content = _read(f"the image from {type(image).__name__}", read)
        if isinstance(content, bytes):
            return content
        raise InvalidInputError(
            f"a file object must be open for reading bytes; its read() returned {type(content).__name__}. "
            'Open it with mode "rb".'
        )
    raise InvalidInputError(
        "image must be encoded bytes, a path, a URL, a binary file object, a uint8 (H, W, 3) RGB array or a Pillow "
        f"image; got {type(image).__name__}"
    )


def takes_time(image: Image) -> bool:
    """Whether `load_image` reads a file or a connection, or converts an image."""
    return not isinstance(image, bytes | bytearray | memoryview | np.ndarray)


def _read(what: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InvalidInputError(f"cannot read {what}: {reason}") from error


def _is_pil(image: object) -> bool:
    # Only Pillow that is imported already counts: without it, nobody can have one of its images.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _pil_pixels(image: Any) -> NDArray[np.uint8]:
    """RGB pixels, as the server decodes them from a file."""
    pixels: NDArray[np.uint8] = _read("the Pillow image", lambda: pixels_of(image))
    return pixels

# SPDX-License-Identifier: Apache-2.0
"""Any kind of image to what is detected in, by a server or in this process: encoded bytes or RGB pixels."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import Downloads, InvalidInputError, is_url
from ocdserve.results.decoding import array_of, upright_rgb


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
Loaded: TypeAlias = bytes | NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")


def load_image(image: Image, *, bgr: bool = False, downloads: Downloads | None = None) -> Loaded:
    """Read an image: encoded bytes unchanged, the content of files and URLs, pixels as RGB.

    Args:
        image: Encoded bytes; a path; an http:// or https:// URL; a file object; uint8 (H, W, 3) RGB pixels; a Pillow
            image.
        bgr: Whether arrays hold BGR, as OpenCV reads them; other images are not affected.
        downloads: How URLs are fetched; None: they are refused.

    Returns:
        Encoded bytes, or uint8 (H, W, 3) RGB pixels.

    Raises:
        InvalidInputError: The image cannot be read, is empty, or is of another type, dtype or shape.
        UnavailableError: The URL's server cannot be reached.
    """
    loaded = _load(image, downloads)
    if not isinstance(loaded, np.ndarray):
        check_encoded(loaded)
        return loaded
    check_rgb(loaded)
    return np.ascontiguousarray(loaded[..., ::-1]) if bgr and loaded is image else loaded


def for_each(work: Callable[[Item], Result], images: Sequence[Item]) -> list[Result]:
    """What `work` returns for each image.

    Raises:
        InvalidInputError: As `work`; the message names the image's index where there are several.
    """
    results = []
    for index, image in enumerate(images):
        try:
            results.append(work(image))
        except InvalidInputError as error:
            raise with_index(error, index, len(images)) from error.__cause__
    return results


def with_index(error: InvalidInputError, index: int, count: int) -> InvalidInputError:
    """The error of one of `count` images, naming its index where there are several."""
    if count == 1:
        return error
    named = InvalidInputError(f"image {index} of {count} (counted from 0): {error}")
    named.limit, named.pixels = error.limit, error.pixels
    return named


def check_encoded(image: Any) -> None:
    """Raise InvalidInputError for anything but bytes, and for none of them."""
    if not isinstance(image, bytes):
        raise InvalidInputError(
            f"image must be encoded bytes or a uint8 (H, W, 3) RGB array; got {type(image).__name__}"
        )
    if not image:
        raise InvalidInputError("the image is empty (0 bytes); send an encoded JPEG, PNG or other image")


def check_rgb(pixels: NDArray[Any]) -> None:
    """Raise InvalidInputError for an array that is not uint8 (H, W, 3), or is empty."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise InvalidInputError(
            f"pixels must be a non-empty uint8 array of shape (H, W, 3), RGB; got {pixels.dtype} {pixels.shape}. "
            "Convert them, or give the encoded image instead."
        )


def takes_time(image: Image) -> bool:
    """Whether `load_image` reads a file or a connection, or converts an image."""
    return not isinstance(image, bytes | bytearray | memoryview | np.ndarray)


def _load(image: Image, downloads: Downloads | None) -> Loaded:
    if isinstance(image, bytes | np.ndarray):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str) and is_url(image):
        if downloads is None:
            raise InvalidInputError(
                f"the image {image!r} is a URL, and none is fetched unless the detector was made with "
                "downloads=Downloads(); allow it, or give the image's bytes"
            )
        # Imported here: few programs need it, and Python's TLS takes time to load.
        from ocdserve.results.download import download

        return download(image, downloads)
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
    return array_of(_read("the Pillow image", lambda: upright_rgb(image)))

# SPDX-License-Identifier: Apache-2.0
"""What the caller calls an image, to what travels: encoded bytes or RGB pixels."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._download import is_url
from ocdserve.client._options import Downloads
from ocdserve.contract import InvalidInputError

__all__ = ["BinaryFile", "Image", "PilImage", "Sendable", "load_image", "takes_time"]


class BinaryFile(Protocol):
    """A file object that is open for reading bytes."""

    def read(self, size: int = ..., /) -> bytes:
        """The rest of the file."""


class PilImage(Protocol):
    """A picture of Pillow (`PIL.Image.Image`)."""

    @property
    def mode(self) -> str:
        """Kind of pixels, such as "RGB"."""

    def convert(self, mode: str) -> Any:
        """The picture in another mode."""

    def getexif(self) -> Any:
        """The picture's EXIF tags."""


Image: TypeAlias = bytes | bytearray | memoryview | str | Path | NDArray[np.uint8] | BinaryFile | PilImage
Sendable: TypeAlias = bytes | NDArray[np.uint8]


def load_image(image: Image, *, bgr: bool = False, downloads: Downloads | None = None) -> Sendable:
    """Encoded bytes as they are, the content of files and URLs, pixels as RGB.

    Args:
        image: Encoded bytes; the path of a file; an http:// or https:// URL; a file object; uint8 (H, W, 3) RGB
            pixels; a picture of Pillow.
        bgr: Whether arrays hold BGR, as OpenCV reads them; they are turned around. Says nothing of other images.
        downloads: Limits for URLs; None: the defaults.

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
            f"a file object must be open for reading bytes; its read() gave {type(content).__name__}. "
            'Open it with mode "rb".'
        )
    raise InvalidInputError(
        "image must be encoded bytes, a path, a URL, a binary file object, a uint8 (H, W, 3) RGB array or a Pillow "
        f"picture; got {type(image).__name__}"
    )


def takes_time(image: Image) -> bool:
    """Whether `load_image` reads a file or a connection, or converts a picture."""
    return not isinstance(image, bytes | bytearray | memoryview | np.ndarray)


def _read(what: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InvalidInputError(f"cannot read {what}: {reason}") from error


def _is_pil(image: object) -> bool:
    # Pillow is looked for among what is imported already: without it, nobody can have one of its pictures.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _pil_pixels(image: Any) -> NDArray[np.uint8]:
    """RGB pixels, turned as the picture's EXIF says and transparency on white, as the server does with files."""
    import PIL.Image
    import PIL.ImageOps

    if image.mode.startswith(("I", "F")):
        raise InvalidInputError(
            f"a Pillow picture must have 8 bits a channel; got mode {image.mode!r}. Convert it, or send its file."
        )
    picture = _read("the Pillow picture", lambda: PIL.ImageOps.exif_transpose(image))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(white, picture)
    pixels: NDArray[np.uint8] = np.asarray(picture.convert("RGB"))
    return pixels

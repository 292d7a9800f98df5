# SPDX-License-Identifier: Apache-2.0
"""All that needs Pillow: reading a picture as the server sees it, drawing on it, warping parts of it."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.results.detections import Detections

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["POLYGON_COLOUR", "QUAD_COLOUR", "Image", "draw", "picture_of", "pixels_of", "warped"]

Image: TypeAlias = "bytes | bytearray | memoryview | str | Path | NDArray[np.uint8] | Picture"

QUAD_COLOUR = (0, 200, 60)
POLYGON_COLOUR = (255, 140, 0)

# One pixel of line for this many pixels of the shorter side, so that lines stay visible in a scaled-down view.
_SIDE_PER_LINE_PIXEL = 400
_THINNEST_LINE = 2
# Where an inverse of this norm is met, three corners lie on one line and there is nothing to see.
_LEAST_DETERMINANT = 1e-9


def pixels_of(image: Image) -> NDArray[np.uint8]:
    """Upright RGB pixels of an image, uint8 (H, W, 3), not copied where they are already that.

    Raises:
        InvalidInputError: The image is not valid.
        UnavailableError: It must be decoded and Pillow is not installed.
    """
    if isinstance(image, np.ndarray):
        return _checked(image)
    return np.asarray(picture_of(image), np.uint8)


def picture_of(image: Image) -> "Picture":
    """An image as an RGB picture of Pillow: EXIF orientation applied, laid over white, 16-bit samples scaled down.

    Raises:
        InvalidInputError: The image is not valid.
        UnavailableError: Pillow is not installed.
    """
    pillow = _pillow()
    if isinstance(image, np.ndarray):
        picture: Picture = pillow.Image.fromarray(np.ascontiguousarray(_checked(image)))
        return picture
    if not isinstance(image, str | Path | bytes | bytearray | memoryview):
        if not isinstance(image, pillow.Image.Image):
            raise InvalidInputError(
                "an image must be encoded bytes, a path, a uint8 (H, W, 3) RGB array or a Pillow image; "
                f"got {type(image).__name__}"
            )
        return _rgb(pillow.ImageOps.exif_transpose(image))
    encoded = _content(Path(image)) if isinstance(image, str | Path) else bytes(image)
    try:
        with pillow.Image.open(io.BytesIO(encoded)) as opened:
            opened.load()  # first, for TIFF files are turned upright while they are loaded, and then lose their tag
            return _rgb(pillow.ImageOps.exif_transpose(opened))
    except pillow.Image.DecompressionBombError as error:
        raise InvalidInputError(
            f"the image is larger than Pillow decodes ({error}); give its pixels instead"
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidInputError(f"cannot read the image: Pillow does not decode it ({error})") from error


def draw(image: Image, found: Detections) -> "Picture":
    """The image with the outline of every quad, and of every polygon where there are any.

    Args:
        image: What was detected in.
        found: What was found in it, in source pixels after EXIF orientation.

    Returns:
        An RGB picture of `found.width` x `found.height` pixels, never the one that was given.

    Raises:
        InvalidInputError: The image is not valid, or its size is not that of `found`.
        UnavailableError: Pillow is not installed.
    """
    picture = picture_of(image).copy()
    check_size(found, *picture.size)
    canvas = _pillow().ImageDraw.Draw(picture)
    line = max(_THINNEST_LINE, min(picture.size) // _SIDE_PER_LINE_PIXEL)
    for quad in found.quads:
        _outline(canvas, quad, QUAD_COLOUR, line)
    for polygon in found.polygons or ():
        _outline(canvas, polygon, POLYGON_COLOUR, line)
    return picture


def check_size(found: Detections, width: int, height: int) -> None:
    """Raise InvalidInputError where an image of this size is not the one that was detected in."""
    if (width, height) != (found.width, found.height):
        raise InvalidInputError(
            f"the detections belong to an image of {found.width}x{found.height} pixels; got one of {width}x{height}"
        )


def warped(
    picture: "Picture", quad: NDArray[np.float32], size: tuple[int, int], target: tuple[int, int]
) -> NDArray[np.uint8]:
    """One quad of a picture as an upright rectangle.

    Coordinates are of pixels' edges: the quad (0, 0), (W, 0), (W, H), (0, H) is the whole picture, untouched.

    Args:
        picture: RGB.
        quad: (4, 2), clockwise from the corner that becomes the top left.
        size: Width and height at which the quad is sampled (bicubic), about its own size.
        target: Width and height of the result; scaling down from `size` averages.

    Returns:
        uint8 (target height, target width, 3); black where three corners of the quad lie on one line.
    """
    pillow = _pillow()
    width, height = size
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    coefficients = _projection(corners, quad.astype(np.float64))
    if coefficients is None:
        return np.zeros((target[1], target[0], 3), np.uint8)
    resampling = pillow.Image.Resampling
    part = picture.transform(size, pillow.Image.Transform.PERSPECTIVE, coefficients, resampling.BICUBIC)
    return np.asarray(part if size == target else part.resize(target, resampling.BICUBIC), np.uint8)


def _projection(source: NDArray[np.float64], target: NDArray[np.float64]) -> list[float] | None:
    """The eight coefficients of the projective map that takes four points to four points; None: there is none."""
    (u, v), (x, y) = target.T, source.T
    zero, one = np.zeros(4), np.ones(4)
    rows = [np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=1)]
    rows.append(np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=1))
    matrix = np.concatenate(rows)
    if abs(np.linalg.det(matrix / np.abs(matrix).max(axis=0))) < _LEAST_DETERMINANT:
        return None
    return [float(value) for value in np.linalg.solve(matrix, np.concatenate([u, v]))]


def _checked(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise InvalidInputError(
            f"pixels must be a non-empty uint8 array of shape (H, W, 3), RGB; got {pixels.dtype} {pixels.shape}"
        )
    return pixels


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read the image file {str(path)!r}: {error.strerror}") from error


def _rgb(image: "Picture") -> "Picture":
    pillow = _pillow()
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit greyscale clips at 255.
        samples = np.asarray(image).astype(np.uint32) >> 8
        image = pillow.Image.fromarray(samples.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = pillow.Image.alpha_composite(pillow.Image.new("RGBA", image.size, "white"), rgba)
    return image.convert("RGB")


def _outline(canvas: Any, points: NDArray[np.float32], colour: tuple[int, int, int], line: int) -> None:
    if not len(points):
        return
    corners = [(float(x), float(y)) for x, y in points]
    # The first edge comes again so that the first corner is joined as the others are.
    canvas.line([*corners, *corners[:2]], fill=colour, width=line, joint="curve")


def _pillow() -> Any:
    """The package PIL with the modules used here."""
    try:
        import PIL.Image
        import PIL.ImageDraw
        import PIL.ImageOps
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "decoding, drawing and cropping need Pillow, which is not installed: pip install 'ocdserve[images]'"
        ) from error
    return PIL

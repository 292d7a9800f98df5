# SPDX-License-Identifier: Apache-2.0
"""Everything that needs Pillow: reading an image as the server does, drawing on it, warping parts of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError, check_count
from ocdserve.results.decoding import upright_pixels, upright_rgb
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image, check_rgb, load_image
from ocdserve.results.pages import check_only_page, open_encoded
from ocdserve.results.pages import pillow as _pillow
from ocdserve.results.quads import quad_sizes

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = [
    "POLYGON_COLOUR",
    "QUAD_COLOUR",
    "TEXT_COLOUR",
    "Image",
    "LimitedImage",
    "decoded",
    "draw",
    "picture_of",
    "pixels_of",
    "warped",
]

Decoded = TypeVar("Decoded")
Found = TypeVar("Found", bound=Detections)

QUAD_COLOUR = (0, 200, 60)
POLYGON_COLOUR = (255, 140, 0)
TEXT_COLOUR = (190, 0, 40)

# Least side to which images are scaled down, in pixels.
LEAST_SIDE = 32

# One pixel of line width per this many pixels of the shorter side, so that lines stay visible when scaled down.
_SIDE_PER_LINE_PIXEL = 400
_THINNEST_LINE = 2
# Size of a written text as a share of its quad's shorter side, and the least and largest size in pixels.
_TEXT_SHARE, _TEXT_SIZES = 0.7, (10, 40)
# Below this determinant three corners are collinear, and there is nothing to see.
_LEAST_DETERMINANT = 1e-9


def pixels_of(image: Image, page: int | None = None) -> NDArray[np.uint8]:
    """Upright RGB pixels of an image, uint8 (H, W, 3); such an array is returned without a copy.

    Raises:
        InvalidInputError: The image is not valid.
        UnavailableError: It must be decoded and Pillow is not installed.
    """
    if isinstance(image, np.ndarray):
        check_rgb(image)
        return image
    loaded = image if isinstance(image, _pillow().Image.Image) else load_image(image)
    if isinstance(loaded, bytes):
        return decoded(loaded, page, lambda opened: upright_pixels(opened, loaded))
    return np.asarray(picture_of(loaded, page), np.uint8)


def picture_of(image: Image, page: int | None = None) -> "Picture":
    """An image as an RGB Pillow image, as the server decodes it; see `ocdserve.results.decoding.upright_rgb`.

    Args:
        image: The image; of a Pillow image the frame that it is at.
        page: Page of a file of several, from 1; see `ocdserve.results.pages.open_encoded`.

    Raises:
        InvalidInputError: The image is not valid.
        UnavailableError: Pillow is not installed.
    """
    pillow = _pillow()
    if isinstance(image, pillow.Image.Image):
        return upright_rgb(image)
    loaded = load_image(image)
    if isinstance(loaded, np.ndarray):
        picture: Picture = pillow.Image.fromarray(np.ascontiguousarray(loaded))
        return picture
    return decoded(loaded, page, upright_rgb)


def decoded(encoded: bytes, page: int | None, decode: "Callable[[Picture], Decoded]") -> Decoded:
    """What `decode` makes of a file that Pillow has opened at a page, from 1.

    Raises:
        InvalidInputError: The file is not valid.
        UnavailableError: Pillow is not installed.
    """
    try:
        return decode(open_encoded(encoded, page))
    except InvalidInputError:
        raise
    except _pillow().Image.DecompressionBombError as error:
        raise _too_large(error) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidInputError(f"cannot read the image: Pillow does not decode it ({error})") from error


def _too_large(error: Exception) -> InvalidInputError:
    return InvalidInputError(f"the image is larger than Pillow decodes ({error}); give its pixels instead")


def check_max_side(max_side: int | None) -> None:
    """Raise InvalidInputError unless images can be scaled down to such a longer side."""
    if max_side is not None:
        check_count("max_side", max_side, least=LEAST_SIDE)


@dataclass(frozen=True, eq=False)
class LimitedImage:
    """An image that is scaled down where its longer side exceeds a limit.

    Attributes:
        image: What is detected: the encoded image, or the scaled one as uint8 (h, w, 3) RGB.
        size: Width and height of the image before it was scaled, upright; None: it was not.
        page: Page of a file that was decoded to `image`; None: it has no pages, or none was chosen.
    """

    image: bytes | NDArray[np.uint8]
    size: tuple[int, int] | None = None
    page: int | None = None

    @classmethod
    def of(cls, image: bytes | NDArray[np.uint8], max_side: int | None, page: int | None = None) -> "LimitedImage":
        """Scale an image down, with its aspect kept, if its longer side has more than `max_side` pixels.

        What is no image stays as it is, for the detector to say why.

        Args:
            image: Encoded, or uint8 (H, W, 3) RGB.
            max_side: The limit; None: there is none.
            page: Page of a file of several, from 1, which is decoded here if there is a limit.

        Raises:
            InvalidInputError: The image cannot be decoded, or has more pixels than Pillow decodes.
            UnavailableError: Pillow is not installed.
        """
        if max_side is None:
            return cls(image)
        pillow = _pillow()
        if isinstance(image, np.ndarray):
            check_only_page(page)
        try:
            longer = max(image.shape[:2] if isinstance(image, np.ndarray) else open_encoded(image, page).size)
        except pillow.Image.DecompressionBombError as error:
            raise _too_large(error) from error
        except Exception as error:  # Pillow raises many types for what it does not read
            if getattr(error, "limit", None) in ("max_pixels", "max_side"):
                raise
            return cls(image)
        if longer <= max_side:
            return cls(image if page is None else pixels_of(image, page), page=page)
        picture = picture_of(image, page)
        size = [max(1, round(side * max_side / longer)) for side in picture.size]
        # Bilinear with support scaled to the reduction, so that thin strokes are averaged and not skipped.
        small = picture.resize(size, pillow.Image.Resampling.BILINEAR)
        return cls(np.asarray(small, np.uint8), picture.size, page)

    def restore(self, found: Found) -> Found:
        """The detections in pixels of the image before it was scaled."""
        whole = found if self.size is None else found.scaled(*self.size)
        return whole if self.page is None else replace(whole, page=self.page)


def draw(
    image: Image, found: Detections, texts: Sequence[str] | None = None, font: str | Path | None = None
) -> "Picture":
    """Outline every quad, and every polygon if there are any.

    Args:
        image: The image of the detections; of a file of several pages, `found.page` is drawn on.
        found: Detections, in source pixels after EXIF orientation.
        texts: Written above each quad; None: nothing is.
        font: File of the font that they are written in; None: Pillow's own, which has Latin letters only.

    Returns:
        A new RGB image of `found.width` x `found.height` pixels.

    Raises:
        InvalidInputError: The image or the font is not valid, or the image's size is not that of `found`.
        UnavailableError: Pillow is not installed.
    """
    picture = picture_of(image, found.page).copy()
    check_size(found, *picture.size)
    canvas = _pillow().ImageDraw.Draw(picture)
    line = max(_THINNEST_LINE, min(picture.size) // _SIDE_PER_LINE_PIXEL)
    for quad in found.quads:
        _outline(canvas, quad, QUAD_COLOUR, line)
    for polygon in found.polygons or ():
        _outline(canvas, polygon, POLYGON_COLOUR, line)
    for quad, height, text in zip(found.quads, np.minimum(*quad_sizes(found.quads)), texts or (), strict=False):
        size = float(np.clip(_TEXT_SHARE * height, *_TEXT_SIZES))
        _write(canvas, quad.min(axis=0).tolist(), text, _font(font, size), size)
    return picture


def _font(file: str | Path | None, size: float) -> Any:
    from PIL import ImageFont

    if file is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(str(file), size)
    except OSError as error:
        raise InvalidInputError(f"font must be a TrueType or OpenType file; got {str(file)!r} ({error})") from error


def _write(canvas: Any, corner: list[float], text: str, font: Any, size: float) -> None:
    """Write a text above the left and upper end of its quad, or inside of it where the image ends."""
    place = (corner[0], corner[1] - size if corner[1] >= size else corner[1])
    canvas.rectangle(canvas.textbbox(place, text, font), fill=(255, 255, 255))
    canvas.text(place, text, fill=TEXT_COLOUR, font=font)


def check_size(found: Detections, width: int, height: int) -> None:
    """Raise InvalidInputError unless an image of this size is that of the detections."""
    if (width, height) != (found.width, found.height):
        raise InvalidInputError(
            f"the detections belong to an image of {found.width}x{found.height} pixels; got one of {width}x{height}"
        )


def warped(
    picture: "Picture", quad: NDArray[np.float32], size: tuple[int, int], target: tuple[int, int]
) -> NDArray[np.uint8]:
    """Warp one quad of an image to an upright rectangle.

    Coordinates are of pixel edges: the quad (0, 0), (W, 0), (W, H), (0, H) is the whole image, unchanged.

    Args:
        picture: RGB.
        quad: (4, 2), clockwise from the corner that becomes the top left.
        size: Width and height at which the quad is sampled (bicubic), close to its own size.
        target: Width and height of the result; scaling down from `size` averages.

    Returns:
        uint8 (target height, target width, 3); black if three corners of the quad are collinear.
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
    """The eight coefficients of the projective transform between two sets of four points; None if there is none."""
    (u, v), (x, y) = target.T, source.T
    zero, one = np.zeros(4), np.ones(4)
    rows = [np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=1)]
    rows.append(np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=1))
    matrix = np.concatenate(rows)
    if abs(np.linalg.det(matrix / np.abs(matrix).max(axis=0))) < _LEAST_DETERMINANT:
        return None
    return [float(value) for value in np.linalg.solve(matrix, np.concatenate([u, v]))]


def _outline(canvas: Any, points: NDArray[np.float32], colour: tuple[int, int, int], line: int) -> None:
    if not len(points):
        return
    corners = [(float(x), float(y)) for x, y in points]
    # The first edge is repeated so that the first corner is joined like the others.
    canvas.line([*corners, *corners[:2]], fill=colour, width=line, joint="curve")

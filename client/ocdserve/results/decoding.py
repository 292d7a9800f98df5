# SPDX-License-Identifier: Apache-2.0
"""Encoded images to upright RGB, the same way in client, server and process: depth, transparency, orientation.

Pillow decodes without Python's global lock, but packs the pixels into an array while it holds it: other threads wait
for 20 ms at 33 megapixels. Ordinary JPEG files are therefore decoded by simplejpeg, straight into the array. Both use
libjpeg-turbo with its accurate DCT and its smooth upsampling, and their pixels are equal.
"""

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError, Limits
from ocdserve.results.checks.damage import check_declared, check_rows
from ocdserve.results.checks.structure import check_directories

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["Allocate", "array_of", "orientation", "upright_pixels", "upright_rgb", "upright_size"]

# Height and width to an array uint8 (height, width, 3), C-contiguous, for the pixels of an image.
Allocate = Callable[[int, int], NDArray[np.uint8]]

_ORIENTATION = 274
# Values of it that swap height and width.
_TRANSPOSED = (5, 6, 7, 8)
# Of TIFF.
_PHOTOMETRIC = 262

# Where text on a transparent ground may be put, the first of the best being taken.
_GROUNDS = (255, 0, 128, 192, 64)
# Levels between text and ground that are read without doubt.
_CONTRAST = 64
# Alpha below this everywhere leaves less contrast than is found.
_LEAST_ALPHA = 16
# Side of the blocks looked at when the ground is chosen, which bounds the memory.
_BLOCK = 2048


def upright_pixels(image: "Picture", data: bytes, allocate: Allocate | None = None) -> NDArray[np.uint8]:
    """The upright RGB pixels of a file, uint8 (H, W, 3), those of `upright_rgb`.

    Args:
        image: The file, opened by Pillow and not decoded yet, of JPEG also reduced by its `draft`; not to be used
            afterwards.
        data: Its content.
        allocate: Makes the array that the pixels are put into; None: a new one.

    Raises:
        InvalidInputError: See `upright_rgb`.
        Exception: What Pillow's decoders raise for damaged files, which are of many types.
    """
    pixels = _jpeg_pixels(image, data, allocate or _new)
    if pixels is not None:
        return pixels
    upright = upright_rgb(image)
    if upright is not image:
        # Releases its pixels: the caller still refers to it.
        image.close()
    return array_of(upright, allocate)


def upright_rgb(image: "Picture") -> "Picture":
    """An image of Pillow, opened or in memory, as RGB.

    - EXIF orientation is applied.
    - Samples of more than 8 bits are scaled down from the least even number of bits that holds the largest, so that 10
      or 12 bits in 16 are seen; values up to 255 stay as they are.
    - Transparency is composited over white, or over the level of grey, black included, that stands out from what
      borders on the transparent parts.

    Raises:
        InvalidInputError: Floating-point or negative samples, whose range is unknown; alpha that hides a picture; a
            file without some of its rows (see `ocdserve.results.checks.damage`).
    """
    check_declared(image)
    low, stream, is_fresh = _low_bytes(image), getattr(image, "fp", None), bool(getattr(image, "tile", None))
    # First, because TIFF files are turned upright while they are loaded, and then lose their tag.
    image.load()
    check_rows(image, stream, is_fresh)
    turn = _turn(image)
    image = _rgb(image, low)
    return image if turn is None else image.transpose(turn)


def array_of(image: "Picture", allocate: Allocate | None = None) -> NDArray[np.uint8]:
    """The pixels of an RGB image, uint8 (H, W, 3): `np.asarray`, which holds large ones twice more meanwhile.

    Args:
        image: The image.
        allocate: See `upright_pixels`.
    """
    bands = list(_bands(image))
    if len(bands) == 1 and allocate is None:
        return np.asarray(image)
    pixels = (allocate or _new)(image.height, image.width)
    for top, bottom in bands:
        pixels[top:bottom] = np.asarray(image if len(bands) == 1 else image.crop((0, top, image.width, bottom)))
    return pixels


def orientation(image: "Picture") -> int:
    """EXIF orientation of an image, 1 to 8; 1 (upright) if it has none that can be read."""
    try:
        exif = image.info.get("exif") or bytes.fromhex(image.info.get("Raw profile type exif", "").split("\n", 3)[-1])
        check_directories(exif.removeprefix(b"Exif\0\0"), str(image.format), Limits(), 1)
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's readers of metadata raise many types; a bad tag does not spoil the image
        return 1
    return value if value in range(1, 9) else 1


def upright_size(image: "Picture") -> tuple[int, int]:
    """Height and width of an image that was opened and not decoded yet, turned by its EXIF orientation."""
    return image.size if orientation(image) in _TRANSPOSED else (image.height, image.width)


def _new(height: int, width: int) -> NDArray[np.uint8]:
    return np.empty((height, width, 3), np.uint8)


@cache
def _simplejpeg() -> Any:
    """The package; None where there is no build of it, and Pillow decodes."""
    with suppress(ImportError):
        import simplejpeg

        return simplejpeg
    return None


def _jpeg_pixels(image: "Picture", data: bytes, allocate: Allocate) -> NDArray[np.uint8] | None:
    """The pixels of an upright JPEG file of grey or RGB; None for others, and for what is refused.

    The library refuses what libjpeg warns of, such as data that end early (see `checks.damage`): what it decodes is
    complete.
    """
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    library = _simplejpeg()
    if library is None:
        return None
    factor = (getattr(image, "decoderconfig", ()) or (1,))[0]
    # Of images of a few pixels 7/8 of them are as many as all.
    reduced = {"min_height": image.height, "min_width": image.width, "min_factor": factor} if factor > 1 else {}
    # KeyError: of a sampling that it has no name for.
    with suppress(ValueError, KeyError):
        whole = library.decode_jpeg_header(data)[:2]
        # Its own check of the array's size overflows at 2 GiB, and it may read another size than Pillow has.
        if orientation(image) == 1 and (image.height, image.width) == tuple(-(-side // factor) for side in whole):
            pixels = allocate(image.height, image.width)
            library.decode_jpeg(data, "RGB", buffer=pixels, **reduced)
            return pixels
    return None


def _turn(image: "Picture") -> Any:
    # Not ImageOps.exif_transpose: it also rewrites the tags, and fails on damaged ones.
    from PIL.Image import Transpose as To

    turns = (
        None, None, To.FLIP_LEFT_RIGHT, To.ROTATE_180, To.FLIP_TOP_BOTTOM,
        To.TRANSPOSE, To.ROTATE_270, To.TRANSVERSE, To.ROTATE_90,
    )  # fmt: skip
    return turns[orientation(image)]


def _low_bytes(image: "Picture") -> "Picture | None":
    """The same file opened to be read with the low byte of each 16-bit sample, where Pillow would drop that byte."""
    tiles, stream = getattr(image, "tile", ()), getattr(image, "fp", None)
    names = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in tiles if tile.args]
    # Not "BGR;16": that is one sample of 5, 6 and 5 bits.
    is_deep = bool(names) and all(re.search(r";16[BLN]$", str(name)) for name in names)
    if stream is None or image.mode.startswith("I") or not is_deep:
        return None
    import PIL.Image

    place = stream.tell()
    stream.seek(0)
    twin = PIL.Image.open(io.BytesIO(stream.read()), formats=[str(image.format)])
    stream.seek(place)
    twin.seek(image.tell())
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    swapped = []
    for name, tile in zip(names, tiles, strict=True):
        # Of grey with alpha the two bytes of each sample are read as channels: red and green are those of grey.
        new = "RGBA" if name == "LA;16B" else name[:-1] + other[name[-1]]
        swapped.append(tile._replace(args=new if isinstance(tile.args, str) else (new, *tile.args[1:])))
    twin.tile = swapped
    twin.info["grey"] = names[0] == "LA;16B"
    return twin


def _rgb(image: "Picture", low: "Picture | None") -> "Picture":
    if image.mode == "F":
        raise InvalidInputError(
            "floating-point pixels have no known range. Convert to 8 bits per channel first, as they are to be seen."
        )
    if image.mode.startswith("I"):
        image = _eight_bits(image, None)
    elif low is not None and image.mode in ("RGB", "RGBA", "CMYK"):
        low.load()
        image = _eight_bits(image, low)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    return _opaque(image) if image.has_transparency_data else image.convert("RGB")


def _samples(image: "Picture", low: "Picture | None", top: int, bottom: int) -> NDArray[Any]:
    """Deep samples of some rows, (H, W) or (H, W, channels)."""
    box = (0, top, image.width, bottom)
    high = np.asarray(image.crop(box))
    if low is None:
        return high
    samples = high.astype(np.uint16)
    samples <<= 8
    colours = 4 if image.mode == "CMYK" else 3
    samples[..., :colours] |= np.asarray(low.crop(box))[..., [1, 1, 1] if low.info["grey"] else slice(colours)]
    return samples


def _eight_bits(image: "Picture", low: "Picture | None") -> "Picture":
    """An image of deep samples scaled down by the bits in use; `low` has the low bytes where `image` has the high."""
    import PIL.Image

    bands, extremes = list(_bands(image)), list[int]()
    for band in bands:
        samples = _samples(image, low, *band)
        colours = samples[..., :3] if image.mode == "RGBA" else samples
        extremes += int(colours.min()), int(colours.max())
    least, most = min(extremes), max(extremes)
    if least < 0:
        raise InvalidInputError(
            f"samples from {least} to {most}, negative or of more than 31 bits, have no known range. Convert to 8 bits "
            "per channel first, as they are to be seen."
        )
    depth = max(8, most.bit_length() + most.bit_length() % 2)  # 8, 10, 12, 14, 16 bits and so on
    whole = None
    for top, bottom in bands:
        part = _eight_bits_of(_samples(image, low, top, bottom), image, depth)
        whole = whole or PIL.Image.new(part.mode, image.size)
        whole.paste(part, (0, top))
    return whole or image


def _eight_bits_of(samples: NDArray[Any], image: "Picture", depth: int) -> "Picture":
    """Rows of an image from their deep samples, of which so many bits are in use."""
    import PIL.Image

    alpha = samples[..., 3] >> 8 if image.mode == "RGBA" else None
    colours = samples if alpha is None else samples[..., :3]
    levels = (colours >> depth - 8).astype(np.uint8)
    if image.mode.startswith("I") and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
        levels = ~levels  # white is zero, which Pillow regards for 8 bits only
    clear = image.info.get("transparency")
    if clear is not None and alpha is None and image.mode != "CMYK":
        alpha = np.where((samples == clear).reshape(*samples.shape[:2], -1).all(axis=2), 0, 255)
    if alpha is None:
        bands = [PIL.Image.fromarray(levels[..., band]) for band in range(4)] if image.mode == "CMYK" else []
        return PIL.Image.merge("CMYK", bands) if bands else PIL.Image.fromarray(levels)
    channels = np.broadcast_to(levels.reshape(*levels.shape[:2], -1), (*levels.shape[:2], 3))
    return PIL.Image.fromarray(np.dstack([channels, alpha.astype(np.uint8)]))


def _opaque(image: "Picture") -> "Picture":
    """An image with transparency on the ground that shows it."""
    import PIL.Image

    # Pillow converts premultiplied grey in two steps only.
    rgba = image.convert("LA") if image.mode == "La" else image
    if rgba.mode != "RGBA":
        rgba = rgba.convert("RGBA")
    # Without a copy of the pixels, as arrays are.
    extrema: Any = rgba.getextrema()
    *colours, (least, most) = extrema
    if least == 255:
        return rgba.convert("RGB")
    if most < _LEAST_ALPHA and any(low != high for low, high in colours):
        raise InvalidInputError(
            f"the image is transparent everywhere (alpha at most {most} of 255), which hides its colours. Remove its "
            "alpha channel if they are meant to be seen."
        )
    ground, opaque = _ground(rgba), PIL.Image.new("RGB", image.size)
    for top, bottom in _bands(image):
        band = rgba.crop((0, top, image.width, bottom))
        opaque.paste(PIL.Image.alpha_composite(PIL.Image.new("RGBA", band.size, (ground,) * 3), band), (0, top))
    return opaque


def _bands(image: "Picture") -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of each part of an image that is worked on at a time."""
    rows = max(1, _BLOCK**2 // max(image.width, 1))
    return ((top, min(top + rows, image.height)) for top in range(0, image.height, rows))


def _ground(rgba: "Picture") -> int:
    """The level that hides the least of what borders on more transparent pixels."""
    edges = np.zeros(256)
    for top, left in product(range(0, rgba.height, _BLOCK), range(0, rgba.width, _BLOCK)):
        right, bottom = min(left + _BLOCK + 1, rgba.width), min(top + _BLOCK + 1, rgba.height)
        block = rgba.crop((left, top, right, bottom))
        levels, opacity = np.asarray(block.convert("RGB").convert("L")), np.asarray(block.getchannel("A"), np.int16)
        for axis in (0, 1):
            step = np.diff(opacity, axis=axis)
            y, x = np.nonzero(step)
            steps = step[y, x]
            # The more opaque of the two neighbours.
            after = steps > 0
            shown = levels[y + after * (axis == 0), x + after * (axis == 1)]
            edges += np.bincount(shown, np.abs(steps), 256)
    return min(_GROUNDS, key=lambda ground: edges[max(0, ground - _CONTRAST + 1) : ground + _CONTRAST].sum())

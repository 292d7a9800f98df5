# SPDX-License-Identifier: Apache-2.0
"""A picture as a PDF holds it: a JPEG file as it is, anything else without loss, and shown upright."""

import io
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.results.decoding import orientation
from ocdserve.results.pdf import DEFAULT_DPI
from ocdserve.results.pictures import decoded, picture_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["PdfPicture"]

_POINTS_PER_INCH = 72
# Smallest and largest side of a page that PDF readers accept, in points.
_SHORTEST_SIDE, _LONGEST_SIDE = 3.0, 14_400.0
# What cameras and editors state where nobody chose a resolution; others state 1, or anything.
_UNCHOSEN_DPI = 72
_LEAST_DPI, _MOST_DPI = 20, 10_000
# Components and colour space of Pillow's modes, and components of colour spaces as ICC profiles name them.
_MODES = {"1": (1, "DeviceGray"), "L": (1, "DeviceGray"), "RGB": (3, "DeviceRGB"), "CMYK": (4, "DeviceCMYK")}
_PROFILES = {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}
# JPEG's frames that PDF readers decode: baseline, extended and progressive, all of Huffman codes. Other markers of this
# range begin no frame.
_FRAMES, _PLAIN_FRAMES, _NO_FRAMES = range(0xC0, 0xD0), (0xC0, 0xC1, 0xC2), (0xC4, 0xC8, 0xCC)
# The unit square, which PDF draws an image into, to that of the upright picture, by EXIF orientation.
_UPRIGHT = {
    1: (1, 0, 0, 1, 0, 0), 2: (-1, 0, 0, 1, 1, 0), 3: (-1, 0, 0, -1, 1, 1), 4: (1, 0, 0, -1, 0, 1),
    5: (0, -1, -1, 0, 1, 1), 6: (0, -1, 1, 0, 0, 1), 7: (0, 1, 1, 0, 0, 0), 8: (0, 1, -1, 0, 1, 0),
}  # fmt: skip


@dataclass(frozen=True)
class PdfPicture:
    """An image XObject of a PDF, and the page that it fills.

    Attributes:
        data: Of its stream.
        entries: Of its dictionary, without the colour space.
        colours: Name of the colour space.
        profile: ICC profile of the colours; None: they are the device's.
        size: Width and height of the upright picture in pixels.
        points: Width and height of its page in points.
        orientation: EXIF orientation of the stored picture, 1 to 8.
    """

    data: bytes
    entries: dict[str, Any]
    colours: str
    profile: bytes | None
    size: tuple[int, int]
    points: tuple[float, float]
    orientation: int = 1

    @classmethod
    def of(cls, image: bytes | NDArray[np.uint8], page: int | None = None, dpi: float | None = None) -> "PdfPicture":
        """Read a picture.

        Args:
            image: A file, or uint8 (H, W, 3) RGB.
            page: Page of a file of several, from 1.
            dpi: Pixels per inch; None: what the file states, otherwise `ocdserve.results.pdf.DEFAULT_DPI`.

        Raises:
            InvalidInputError: The image cannot be read.
            UnavailableError: Pillow is not installed.
        """
        if not isinstance(image, bytes):
            return _lossless(picture_of(image), None, dpi)
        stored = decoded(image, page, lambda opened: opened)
        if stored.format not in ("JPEG", "MPO") or stored.mode not in _MODES or not _is_plain_jpeg(image):
            upright = picture_of(image, page)
            return _lossless(upright.convert(stored.mode) if stored.mode in ("1", "L") else upright, stored, dpi)
        entries = _entries(stored) | {"/Filter": "/DCTDecode"}
        if stored.mode == "CMYK":
            entries["/Decode"] = [1, 0] * 4  # inverted, as Adobe's programs and all others store it
        turn = orientation(stored)
        size = stored.size[::-1] if turn > 4 else stored.size
        colours, profile = _MODES[stored.mode][1], _profile(stored, stored.mode)
        return cls(image, entries, colours, profile, size, _points(size, stored, dpi), turn)

    @property
    def matrix(self) -> tuple[float, ...]:
        """The six numbers of PDF's matrix by which the image fills its page."""
        across, down = self.points
        return tuple(value * (across, down)[place % 2] for place, value in enumerate(_UPRIGHT[self.orientation]))


def _lossless(upright: "Picture", stored: "Picture | None", dpi: float | None) -> PdfPicture:
    """The pixels as PNG stores them, whose filters and compression PDF has as well."""
    file = io.BytesIO()
    upright.save(file, "PNG")
    content, place, data = file.getvalue(), 8, b""
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        data += content[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += 12 + length
    entries = _entries(upright)
    layout = {"/Colors": _MODES[upright.mode][0], "/BitsPerComponent": entries["/BitsPerComponent"]}
    entries |= {
        "/Filter": "/FlateDecode",
        "/DecodeParms": {"/Predictor": 15, "/Columns": upright.width, **layout},
    }
    profile = _profile(stored, upright.mode) if stored else None
    points = _points(upright.size, stored, dpi)
    return PdfPicture(data, entries, _MODES[upright.mode][1], profile, upright.size, points)


def _entries(picture: "Picture") -> dict[str, Any]:
    bits = 1 if picture.mode == "1" else 8
    return {"/Width": picture.width, "/Height": picture.height, "/BitsPerComponent": bits}


def _profile(stored: "Picture", mode: str) -> bytes | None:
    """The file's ICC profile, if it is one of this mode's colours."""
    profile = stored.info.get("icc_profile") or b""
    return profile if _PROFILES.get(profile[16:20]) == _MODES[mode][0] else None


def _points(size: tuple[int, int], stored: "Picture | None", dpi: float | None) -> tuple[float, float]:
    """Width and height of the page of an upright picture of this size, in points."""
    across, down = (dpi, dpi) if dpi else _stated_dpi(stored)
    width, height = size[0] * _POINTS_PER_INCH / across, size[1] * _POINTS_PER_INCH / down
    scale = min(max(1.0, _SHORTEST_SIDE / min(width, height)), _LONGEST_SIDE / max(width, height))
    # Each within the bounds again: of rounding, and where a picture is too long for its narrowness.
    across, down = (min(max(side * scale, _SHORTEST_SIDE), _LONGEST_SIDE) for side in (width, height))
    return across, down


def _stated_dpi(stored: "Picture | None") -> tuple[float, float]:
    """Pixels per inch across and down the upright picture."""
    try:
        across, down = map(float, stored.info["dpi"]) if stored else (0.0, 0.0)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        across = down = 0.0
    is_known = all(math.isfinite(dpi) and _LEAST_DPI <= dpi <= _MOST_DPI for dpi in (across, down))
    if not is_known or round(across) == round(down) == _UNCHOSEN_DPI:
        return DEFAULT_DPI, DEFAULT_DPI
    return (down, across) if stored and orientation(stored) > 4 else (across, down)


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether the first frame of a JPEG file is of a kind that PDF's filter decodes."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES and marker not in _NO_FRAMES:
            return marker in _PLAIN_FRAMES
        if marker == 0xFF:  # filling
            place += 1
            continue
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False

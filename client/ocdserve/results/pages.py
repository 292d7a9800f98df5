# SPDX-License-Identifier: Apache-2.0
"""Encoded files to images: which formats are read, and the pages of files that have several.

TIFF and PDF files have pages: one must be chosen where one image is wanted. GIF, WebP, PNG and AVIF files may be
animations: their frames are counted as pages, and the first one is taken where none is chosen. Further pictures in a
JPEG file (previews, gain maps) are not pages.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import (
    FORMATS,
    MAX_PAGES,
    MAX_PIXELS,
    MOST_PIXELS,
    ImageFormat,
    InvalidInputError,
    Limits,
    UnavailableError,
    install_command,
)
from ocdserve.results.checks.structure import check_structure
from ocdserve.results.decoding import array_of, upright_rgb
from ocdserve.results.pdf import DEFAULT_DPI, Pdf, check_dpi, is_pdf

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = [
    "DEFAULT_DPI",
    "Page",
    "check_only_page",
    "count_pages",
    "formats_text",
    "open_encoded",
    "page_of",
    "pages_of",
    "pillow",
    "readable_formats",
]

_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
# A frame of an animation is made of all those before it: most pixels, of all together, for one request.
_MOST_COMPOSED = 10 * MAX_PIXELS
# Where a caller decodes its own picture: images above the server's limit may be sent in tiles.
_OWN_LIMITS = Limits(max_pixels=MOST_PIXELS)
# Bits of TIFF's NewSubfileType: a smaller copy of another page, a mask.
_SUBFILE_TYPE, _NO_PAGE = 254, 0b101


@dataclass(frozen=True, eq=False)
class Page:
    """One page of a file.

    Attributes:
        number: From 1.
        count: Number of pages of the file.
        image: The file itself if this is its only page, else uint8 (H, W, 3) RGB.
    """

    number: int
    count: int
    image: bytes | NDArray[np.uint8]


def pages_of(
    image: bytes | NDArray[np.uint8],
    pages: Sequence[int] | None = None,
    dpi: float = DEFAULT_DPI,
    limits: Limits | None = None,
) -> Iterator[Page]:
    """The pages of an image one after the other, each decoded or rendered when it is requested.

    A file of one page that is no PDF is not looked into: whether it can be read is left to its detection.

    Args:
        image: A whole file, an image or a PDF; or pixels, which are one page.
        pages: Numbers of the pages, from 1; None: all.
        dpi: Resolution of PDF pages, in pixels per inch.
        limits: Limits of a page of several, or of a PDF; None: the default ones.

    Raises:
        InvalidInputError: The file is encrypted, damaged, or lacks a page; a page is too large.
        UnavailableError: Pillow or pypdfium2 is needed and not installed.
    """
    check_dpi(dpi)
    limits = limits or Limits()
    if isinstance(image, bytes) and is_pdf(image):
        with Pdf(image) as pdf:
            for number in _chosen(pages, pdf.count, "PDF"):
                yield Page(number, pdf.count, pdf.render(number, dpi, limits.max_pixels))
        return
    count, form = (count_pages(image), _format_of(image)) if isinstance(image, bytes) else (1, None)
    label = form.label if form else "image"
    if count == 1 or not isinstance(image, bytes):
        yield from (Page(number, 1, image) for number in _chosen(pages, 1, label))
        return
    opened, library = None, pillow()
    frames = _tiff_pages(image) if label == "TIFF" else range(count)
    for number in _chosen(pages, count, label):
        try:
            opened = opened or open_encoded(image, number if label == "TIFF" else 1, limits)
            opened.seek(frames[number - 1])
            limits.check(*opened.size)
            pixels = array_of(upright_rgb(opened))
        except (InvalidInputError, MemoryError):
            raise
        except library.Image.DecompressionBombError as error:
            raise InvalidInputError(
                f"page {number} of {count} of the {label} file is not read, the first page is too large ({error}). "
                "Split the file."
            ) from error
        except Exception as error:  # Pillow's decoders raise many types for damaged files
            raise InvalidInputError(
                f"page {number} of {count} of the {label} file cannot be decoded, it is truncated or damaged: {error}"
            ) from error
        yield Page(number, count, pixels)


def page_of(encoded: bytes, page: int, dpi: float = DEFAULT_DPI) -> bytes | NDArray[np.uint8]:
    """One page of a file, from 1, as `detect` takes it; see `pages_of`."""
    [found] = pages_of(encoded, [page], dpi)
    return found.image


def count_pages(encoded: bytes) -> int:
    """Number of pages or frames of a file; 1 for one that cannot be read.

    Raises:
        InvalidInputError: A PDF is encrypted or damaged; a TIFF has more than 10,000 pages, or one beyond its end.
        UnavailableError: Pillow or pypdfium2 is needed and not installed.
    """
    if is_pdf(encoded):
        with Pdf(encoded) as pdf:
            return pdf.count
    form = _format_of(encoded)
    if form is None or not _may_have_pages(encoded, form.name):
        return 1
    if form.name == "TIFF":
        return len(_tiff_pages(encoded))
    library = pillow()
    with suppress(Exception):  # what is wrong with it, its detection says
        return int(library.Image.open(io.BytesIO(encoded), formats=[form.name]).n_frames)
    return 1


def open_encoded(data: bytes, page: int | None = None, limits: Limits | None = None) -> "Picture":
    """A file as Pillow's image at a page, its header read and nothing decoded (but the frames before it).

    Args:
        data: A whole file of one of `readable_formats`.
        page: Page or frame, from 1; None: the only page, or the first frame of an animation.
        limits: Limits of its file and size; None: the default ones, but for pixels, of which Pillow has its own.

    Raises:
        InvalidInputError: A PDF; several pages and none chosen, or one that the file lacks; too large.
        UnavailableError: Pillow is not installed.
        Exception: What Pillow raises for damaged files, or for other content.
    """
    library, limits = pillow(), limits or _OWN_LIMITS
    check_structure(data, limits, page)
    try:
        image: Picture = library.Image.open(io.BytesIO(data), formats=[form.name for form in readable_formats()])
    except library.UnidentifiedImageError:
        if is_pdf(data):
            raise InvalidInputError(
                "not an image that can be read: this is a PDF document. Split it into images with detect_pages of the "
                "client or of the Detector, or with the command ocdserve detect; it needs "
                + install_command("ocdserve[pdf]")
                + "."
            ) from None
        raise
    if image.format != "TIFF":  # its pages may differ in size, and none is decoded to reach another
        limits.check(*image.size)
    if frame := _frame(image, data, page):
        image.seek(frame)
    limits.check(*image.size)
    return image


def check_only_page(page: int | None) -> None:
    """Raise InvalidInputError for any page but the first: pixels are one image."""
    if page not in (None, 1):
        raise InvalidInputError(f"pixels are one image without pages; leave out page, or send the file; got {page}")


@cache
def readable_formats() -> tuple[ImageFormat, ...]:
    """The formats that the installed Pillow decodes."""
    pillow()
    from PIL import features

    return tuple(form for form in FORMATS if not form.feature or features.check(form.feature))


def formats_text() -> str:
    """The names of `readable_formats`, for messages."""
    *others, last = (form.label for form in readable_formats())
    return f"{', '.join(others)} or {last}"


def pillow() -> Any:
    """The package PIL with the modules used here.

    Raises:
        UnavailableError: It is not installed.
    """
    try:
        import PIL.Image
        import PIL.ImageDraw
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "decoding, drawing and cropping need Pillow, which is not installed: " + install_command("ocdserve[images]")
        ) from error
    return PIL


def _format_of(data: bytes) -> ImageFormat | None:
    return next((form for form in FORMATS if form.begins(data)), None)


def _may_have_pages(data: bytes, form: str) -> bool:
    """Whether the header of a file of this format leaves open that it has several pages."""
    if form == "PNG":
        return b"acTL" in data[: max(data.find(b"IDAT"), 0)]
    if form == "WEBP":
        return data[12:16] == b"VP8X" and bool(data[20:21]) and bool(data[20] & 2)
    if form == "AVIF":
        return b"avis" in data[8:64]
    return form in ("TIFF", "GIF")


def _chosen(pages: Sequence[int] | None, count: int, label: str) -> Sequence[int]:
    for page in pages or ():
        _check_page(page, count, label)
    return range(1, count + 1) if pages is None else pages


def _check_page(page: int, count: int, label: str) -> None:
    if type(page) is not int or not 1 <= page <= count:
        rule = f"from 1 to {count}, the pages" if count > 1 else "1, the only page"
        raise InvalidInputError(f"page must be {rule} of this {label} file; got {page!r}")


def _frame(image: "Picture", data: bytes, page: int | None) -> int:
    """Index of the frame of a page, among what Pillow calls frames."""
    label = next((form.label for form in FORMATS if form.name == image.format), "JPEG")
    if label == "TIFF":
        frames = _tiff_pages(data, page)
        if page is None and len(frames) > 1:
            raise InvalidInputError(
                f"the TIFF file has {len(frames)} pages, and one image is detected at a time. Choose one by page=1 to "
                f"page={len(frames)}, or detect in all of them with detect_pages or the command ocdserve detect."
            )
        _check_page(page or 1, len(frames), label)
        return frames[(page or 1) - 1]
    if page is None or page == 1:
        return 0
    if image.format not in _ANIMATED:
        _check_page(page, 1, label)
    if page * image.width * image.height > _MOST_COMPOSED:
        raise InvalidInputError(
            f"frame {page} of this {label} animation of {image.width} x {image.height} pixels is made of more than "
            f"{_MOST_COMPOSED} pixels of those before it. Split it with detect_pages or the command ocdserve detect."
        )
    try:
        image.seek(page - 1)
    except EOFError:
        _check_page(page, getattr(image, "n_frames", 1), label)
        raise
    return page - 1


def _tiff_pages(data: bytes, wanted: int | None = None) -> list[int]:
    """Indices of the image file directories that are pages: neither smaller copies nor masks of others.

    Args:
        data: A TIFF or BigTIFF file.
        wanted: Ends the search at this page; None: all are found.

    Raises:
        InvalidInputError: There are more than 10,000, or one lies beyond the end of the file.
    """
    order = "<" if data[:1] == b"I" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    counts, pointer, entry, value = ("Q", "Q", 20, 12) if is_big else ("H", "I", 12, 8)
    seen: set[int] = set()
    pages: list[int] = []
    try:
        (place,) = struct.unpack_from(order + pointer, data, 8 if is_big else 4)
        while place and place not in seen and len(pages) != wanted:
            if len(seen) == MAX_PAGES:
                raise InvalidInputError(f"the TIFF file has more than {MAX_PAGES} pages. Split it.")
            (entries,) = struct.unpack_from(order + counts, data, place)
            first = place + struct.calcsize(counts)
            tag, kind = struct.unpack_from(order + "HH", data, first)
            # Tags are sorted, and no other that is in use is smaller.
            (bits,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, first + value)
            if tag != _SUBFILE_TYPE or not bits & _NO_PAGE:
                pages.append(len(seen))
            seen.add(place)
            end = first + entries * entry
            (place,) = struct.unpack_from(order + pointer, data, end) if end < len(data) else (0,)
    except struct.error:
        if seen:  # without the first page, Pillow says what is wrong
            raise InvalidInputError(
                f"the TIFF file is truncated or damaged: after page {len(pages)} it names another beyond its "
                f"{len(data)} bytes. Send it whole, or choose one of the pages before by page=1 to page={len(pages)}."
            ) from None
    return pages or [0]

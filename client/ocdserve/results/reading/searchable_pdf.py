# SPDX-License-Identifier: Apache-2.0
"""Searchable PDF files: pictures, or the pages of a PDF, with what was read as invisible text; by pikepdf."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError, UnavailableError, install_command
from ocdserve.results.images import Image, Loaded, load_image
from ocdserve.results.pdf import check_dpi, is_pdf
from ocdserve.results.reading import invisible_font as font
from ocdserve.results.reading.layout import Layout, layouts_of, pages_of
from ocdserve.results.reading.pdf_picture import PdfPicture
from ocdserve.results.reading.pdf_text import text_operators
from ocdserve.results.reading.reading import Reading

__all__ = ["require_pikepdf", "to_searchable_pdf"]

Float64 = NDArray[np.float64]

# Largest difference between the height of a picture and that of a page of its width: in pixels, and as a share.
_ROUNDING, _LIKENESS = 2.0, 0.01
_LETTER = (0.0, 0.0, 612.0, 792.0)


class _Sheet(NamedTuple):
    """A page of the document, and the matrix (3, 2) from (x, y, 1) in pixels of its picture to the page's units."""

    page: Any
    to_points: Float64


def to_searchable_pdf(
    readings: Reading | Sequence[Reading], image: Image | Sequence[Image], *, dpi: float | None = None
) -> bytes:
    """A PDF of what was read, whose text is found, selected and copied; needs pikepdf, and Pillow for pictures.

    Of a picture, a page is made: a JPEG file is kept as it is, others are stored without loss. Of a PDF, all pages stay
    as they are, and those that were read get the text, also where they have some already; a digital signature becomes
    invalid.

    Args:
        readings: One page, or several. A reading's `page` is the page of its file.
        image: The file that all pages are of; or a list of the picture or file of each page, which become one document.
        dpi: Pixels per inch of pictures, from which the sizes of their pages follow; None: what the file states,
            otherwise `ocdserve.results.pdf.DEFAULT_DPI`.

    Raises:
        InvalidInputError: There is no page, or not one image per page; an image cannot be read, or is another one than
            was read.
        UnavailableError: A package is not installed.
    """
    pages, layouts = pages_of(readings), layouts_of(readings)
    if dpi is not None:
        check_dpi(dpi)
    pikepdf = require_pikepdf()
    try:
        with ExitStack() as stack:
            pdf, mode, sheets = _laid_out(image, pages, layouts, dpi, stack)
            _add_text(pdf, layouts, sheets)
            target = io.BytesIO()
            is_encrypted = bool(pdf.is_encrypted)
            pdf.save(target, object_stream_mode=mode, encryption=is_encrypted, deterministic_id=not is_encrypted)
    except pikepdf.PdfError as error:
        raise InvalidInputError(
            f"the PDF cannot be copied, it is damaged ({error}). Repair it, or give pictures."
        ) from error
    return target.getvalue()


def _laid_out(
    image: Any, pages: Sequence[Reading], layouts: Sequence[Layout], dpi: float | None, stack: ExitStack
) -> tuple[Any, Any, list[_Sheet]]:
    """The document without text, how its objects are written, and the pages that were read.

    Args:
        image: See `to_searchable_pdf`.
        pages: What was read.
        layouts: Of the pages.
        dpi: See `to_searchable_pdf`.
        stack: Closes what was opened.
    """
    pikepdf = require_pikepdf()
    if isinstance(image, list | tuple):
        files = [(load_image(one), page.page) for one, page in zip(_each(image, len(pages)), pages, strict=True)]
    else:
        whole = load_image(image)
        if _is_document(whole):
            pdf = stack.enter_context(_opened(whole))
            return pdf, pikepdf.ObjectStreamMode.preserve, _sheets_of(pdf, layouts)
        files = [(whole, page.number if len(pages) > 1 else pages[0].page) for page in layouts]
    pdf = stack.enter_context(pikepdf.new())
    return pdf, pikepdf.ObjectStreamMode.generate, _new_sheets(pdf, layouts, files, dpi, stack)


def _each(images: Any, count: int) -> Sequence[Image]:
    if len(images) != count:
        raise InvalidInputError(f"image must be one file, or one per page; got {len(images)} for {count} pages")
    return cast(Sequence[Image], images)


def require_pikepdf() -> Any:
    """The package pikepdf.

    Raises:
        UnavailableError: It is not installed.
    """
    try:
        import pikepdf
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "searchable PDF files need pikepdf, which is not installed: " + install_command("ocdserve[pdf]")
        ) from error
    return pikepdf


def _is_document(image: Loaded) -> bool:
    return isinstance(image, bytes) and is_pdf(image)


def _opened(data: Loaded) -> Any:
    pikepdf = require_pikepdf()
    try:
        return pikepdf.open(io.BytesIO(bytes(data)))
    except pikepdf.PasswordError as error:
        raise InvalidInputError("the PDF is encrypted. Remove its password first.") from error
    except pikepdf.PdfError as error:
        raise InvalidInputError(
            f"the PDF of {len(data)} bytes cannot be read, it is truncated or damaged ({error}). Give it whole."
        ) from error


def _sheets_of(pdf: Any, layouts: Sequence[Layout]) -> list[_Sheet]:
    """The pages of a PDF that were read."""
    for number, count in Counter(page.number for page in layouts).items():
        if count > 1:
            raise InvalidInputError(f"page {number} has several readings; give each page once")
    return [_sheet(_page_of(pdf, page.number), page) for page in layouts]


def _new_sheets(
    pdf: Any,
    layouts: Sequence[Layout],
    files: Sequence[tuple[Loaded, int | None]],
    dpi: float | None,
    stack: ExitStack,
) -> list[_Sheet]:
    """The pages of a new PDF: of pictures, and copies of pages of other PDF files.

    Args:
        pdf: The new PDF.
        layouts: What was read.
        files: The file of each, and the page in it; None: its only one.
        dpi: See `to_searchable_pdf`.
        stack: Closes files whose pages were copied, once they are saved.
    """
    sources: dict[int, Any] = {}
    sheets = []
    for page, (image, number) in zip(layouts, files, strict=True):
        if _is_document(image):
            if id(image) not in sources:
                sources[id(image)] = stack.enter_context(_opened(image))
            pdf.pages.append(_page_of(sources[id(image)], number or 1))
            sheets.append(_sheet(pdf.pages[-1], page))
        else:
            sheets.append(_picture_sheet(pdf, PdfPicture.of(image, number, dpi), page))
    return sheets


def _page_of(pdf: Any, number: int) -> Any:
    if not 1 <= number <= len(pdf.pages):
        raise InvalidInputError(f"the PDF has {len(pdf.pages)} pages; the reading is of page {number}")
    return pdf.pages[number - 1]


def _picture_sheet(pdf: Any, picture: PdfPicture, read: Layout) -> _Sheet:
    """A new page that a picture fills."""
    pikepdf = require_pikepdf()
    if picture.size != (read.width, read.height):
        raise InvalidInputError(
            f"the reading is of an image of {read.width}x{read.height} pixels; got one of "
            f"{picture.size[0]}x{picture.size[1]}"
        )
    (width, height), name = picture.points, pikepdf.Name
    colours: Any = name(f"/{picture.colours}")
    if picture.profile:
        components = {"DeviceGray": 1, "DeviceRGB": 3, "DeviceCMYK": 4}[picture.colours]
        profile = pikepdf.Stream(pdf, picture.profile, N=components, Alternate=colours)
        colours = pikepdf.Array([name.ICCBased, pdf.make_indirect(profile)])
    entries = {key: name(value) if isinstance(value, str) else value for key, value in picture.entries.items()}
    stream = pikepdf.Stream(
        pdf,
        picture.data,
        pikepdf.Dictionary({**entries, "/Type": name.XObject, "/Subtype": name.Image, "/ColorSpace": colours}),
    )
    page = pdf.add_blank_page(page_size=(width, height))
    page.Resources = pikepdf.Dictionary(XObject=pikepdf.Dictionary(Picture=pdf.make_indirect(stream)))
    matrix = " ".join(f"{value:.4f}" for value in picture.matrix)
    page.Contents = pdf.make_stream(f"q {matrix} cm /Picture Do Q\n".encode("ascii"))
    return _Sheet(page, np.array([(width / read.width, 0), (0, -height / read.height), (0, height)]))


def _sheet(page: Any, read: Layout) -> _Sheet:
    """A page of a PDF, as readers show it: cropped and rotated."""
    left, bottom, right, top = _visible(page)
    turn = _turns(page)
    width, height = (right - left, top - bottom) if turn % 2 == 0 else (top - bottom, right - left)
    if abs(read.height - read.width * height / width) > max(
        _ROUNDING * max(1, height / width), _LIKENESS * read.height
    ):
        raise InvalidInputError(
            f"the reading is of an image of {read.width}x{read.height} pixels, page {read.number} of the PDF has "
            f"{width:g}x{height:g} points; give the file that was read"
        )
    across, down = width / read.width, height / read.height
    # By /Rotate, clockwise: where x, y and the origin of the picture, its top left, go.
    to_points = (
        [(across, 0), (0, -down), (left, top)],
        [(0, across), (down, 0), (left, bottom)],
        [(-across, 0), (0, down), (right, bottom)],
        [(0, -across), (-down, 0), (right, top)],
    )[turn]
    return _Sheet(page, np.array(to_points))


def _turns(page: Any) -> int:
    """Quarters of a circle by which a page is shown turned clockwise."""
    try:
        return int(page.obj.get("/Rotate", 0)) // 90 % 4
    except (TypeError, ValueError):
        return 0


def _visible(page: Any) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of what is shown of a page: its crop box, within its media box."""
    boxes = [_rectangle(page.obj.get(key)) for key in ("/MediaBox", "/CropBox")]
    media = boxes[0] or _LETTER
    crop = boxes[1] or media
    lower, upper = np.maximum(media[:2], crop[:2]), np.minimum(media[2:], crop[2:])
    if (lower >= upper).any():
        raise InvalidInputError(f"the PDF's page has a crop box outside its media box ({crop} of {media})")
    return float(lower[0]), float(lower[1]), float(upper[0]), float(upper[1])


def _rectangle(box: Any) -> tuple[float, ...] | None:
    """Left, bottom, right and top of a rectangle of PDF, whose corners may be any two; None if it is none."""
    try:
        values = [float(value) for value in box]
        left, right, bottom, top = *sorted(values[::2]), *sorted(values[1::2])
    except (TypeError, ValueError):
        return None
    return (left, bottom, right, top) if left < right and bottom < top else None


def _add_text(pdf: Any, layouts: Sequence[Layout], sheets: Sequence[_Sheet]) -> None:
    """Put the text under the content of the pages, whose state of graphics it thus neither meets nor changes."""
    pikepdf = require_pikepdf()
    codes = font.CharacterCodes()
    shared = pdf.make_indirect(pikepdf.Dictionary())
    for sheet, read in zip(sheets, layouts, strict=True):
        page = sheet.page.obj
        # Copies: several pages may share one dictionary.
        resources, fonts = _copied(page.get("/Resources")), _copied(_copied(page.get("/Resources")).get("/Font"))
        name = next(name for name in _font_names() if f"/{name}" not in fonts)
        operators = text_operators(read, sheet.to_points, codes, name)
        if not operators:
            continue
        fonts[f"/{name}"] = shared
        resources["/Font"] = fonts
        page["/Resources"] = resources
        content = page.get("/Contents")
        streams = list(content) if isinstance(content, pikepdf.Array) else [content]
        kept = [stream for stream in streams if isinstance(stream, pikepdf.Stream)]
        page["/Contents"] = pikepdf.Array([pdf.make_stream(operators), *kept])
    for key, value in _font(pdf, codes).items():
        shared[key] = value


def _copied(dictionary: Any) -> Any:
    """A copy of a dictionary of a PDF, empty if it is none."""
    pikepdf = require_pikepdf()
    return pikepdf.Dictionary(dictionary if isinstance(dictionary, pikepdf.Dictionary) else {})


def _font_names() -> Iterator[str]:
    yield "Text"
    number = 1
    while True:
        number += 1
        yield f"Text{number}"


def _font(pdf: Any, codes: font.CharacterCodes) -> Any:
    """The composite font of a document, as 9.7 of ISO 32000-2 describes it."""
    pikepdf = require_pikepdf()
    name = pikepdf.Name
    file = font.font_file()
    descriptor = pikepdf.Dictionary(
        Type=name.FontDescriptor,
        FontName=name(f"/{font.NAME}"),
        Flags=4,  # symbolic
        FontBBox=[0, font.DESCENDER, font.EM, font.ASCENDER],
        ItalicAngle=0,
        Ascent=font.ASCENDER,
        Descent=font.DESCENDER,
        CapHeight=font.ASCENDER,
        StemV=80,
        FontFile2=pdf.make_stream(file, Length1=len(file)),
    )
    descendant = pikepdf.Dictionary(
        Type=name.Font,
        Subtype=name.CIDFontType2,
        BaseFont=name(f"/{font.NAME}"),
        CIDSystemInfo=pikepdf.Dictionary(
            Registry=pikepdf.String("Adobe"), Ordering=pikepdf.String("Identity"), Supplement=0
        ),
        FontDescriptor=pdf.make_indirect(descriptor),
        DW=font.EM // 2,
        W=codes.widths,
        CIDToGIDMap=pdf.make_stream(codes.glyphs),
    )
    return pikepdf.Dictionary(
        Type=name.Font,
        Subtype=name.Type0,
        BaseFont=name(f"/{font.NAME}"),
        Encoding=name("/Identity-H"),
        DescendantFonts=[pdf.make_indirect(descendant)],
        ToUnicode=pdf.make_stream(codes.to_unicode),
    )

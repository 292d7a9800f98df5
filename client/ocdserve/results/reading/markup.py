# SPDX-License-Identifier: Apache-2.0
"""Readings as hOCR and ALTO documents, built as element trees of the standard library, which escapes what it writes."""

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.results.reading.characters import clean
from ocdserve.results.reading.layout import Box, Layout, PlacedLine, PlacedWord, layouts_of
from ocdserve.results.reading.reading import Reading

__all__ = ["to_alto", "to_hocr"]

_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_DOCTYPE = (
    '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"\n'
    '    "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">\n'
)
_CAPABILITIES = "ocr_page ocr_carea ocr_par ocr_line ocrx_word ocrp_wconf ocrp_poly ocrp_dir"
# hOCR separates the properties of a title by semicolons, and quotes names.
_NAME = str.maketrans({";": "%3B", '"': "%22", "\\": "/"})
_ALTO = "http://www.loc.gov/standards/alto/ns-v4#"
_ALTO_VERSION = "4.4"
_SCHEMA = f"{_ALTO} http://www.loc.gov/standards/alto/v4/alto-4-4.xsd"
# Lines at most this steep have a baseline in hOCR, steeper ones an angle.
_STEEPEST_DEG = 45.0
# Edges that deviate by more from the box that is given anyway are worth a polygon, in pixels.
_LEAST_DEVIATION = 1.0


def to_hocr(readings: Reading | Sequence[Reading], image: str | Sequence[str] | None = None) -> str:
    """An hOCR 1.2 document of one page or several, as XHTML.

    Pages hold paragraphs (`ocr_carea` with one `ocr_par`), lines (`ocr_line`, with `baseline` or, if they are steep,
    `textangle`) and words (`ocrx_word`, with `x_wconf` and, if they are oblique, `poly`).

    Args:
        readings: One page, or several.
        image: Name of the picture or file, or one for each page.

    Raises:
        InvalidInputError: There is no page, or not one name per page.
    """
    pages = layouts_of(readings)
    html = Element("html", {"xmlns": "http://www.w3.org/1999/xhtml"})
    html.text = "\n"
    head = _block(html, "head")
    _block(head, "title").text = "Text"
    described = {
        "ocr-system": f"ocdserve {_version()}",
        "ocr-capabilities": _CAPABILITIES,
        "ocr-number-of-pages": str(len(pages)),
    }
    _block(head, "meta", {"http-equiv": "Content-Type", "content": "text/html; charset=utf-8"}).text = None
    for name, content in described.items():
        _block(head, "meta", {"name": name, "content": content}).text = None
    body = _block(html, "body")
    for place, (page, name) in enumerate(zip(pages, _names(image, len(pages)), strict=True), 1):
        named = f'image "{name.translate(_NAME)}"; ' if name else ""
        title = f"{named}bbox 0 0 {page.width} {page.height}; ppageno {page.number - 1}"
        _hocr_page(_block(body, "div", {"class": "ocr_page", "id": f"page_{place}", "title": title}), page, place)
    return _XML + _DOCTYPE + tostring(html, "unicode") + "\n"


def to_alto(readings: Reading | Sequence[Reading], image: str | Sequence[str] | None = None) -> str:
    """An ALTO 4 document of one page or several, in pixels.

    Each paragraph is a `ComposedBlock` with one `TextBlock`, as Tesseract writes them. Oblique lines and words have a
    polygon (`Shape`) too.

    Args:
        readings: One page, or several.
        image: Name of the picture or file, or one for each page; the file's name is stated if it is only one.

    Raises:
        InvalidInputError: There is no page, or not one name per page.
    """
    pages = layouts_of(readings)
    alto = Element("alto", {
        "xmlns": _ALTO, "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance", "xsi:schemaLocation": _SCHEMA,
        "SCHEMAVERSION": _ALTO_VERSION,
    })  # fmt: skip
    description = SubElement(alto, "Description")
    SubElement(description, "MeasurementUnit").text = "pixel"
    names = set(_names(image, len(pages)))
    source = SubElement(description, "sourceImageInformation")
    SubElement(source, "fileName").text = names.pop() if len(names) == 1 else ""
    processing = SubElement(description, "Processing", {"ID": "processing_1"})
    SubElement(processing, "processingCategory").text = "contentGeneration"
    software = SubElement(processing, "processingSoftware")
    SubElement(software, "softwareName").text = "ocdserve"
    SubElement(software, "softwareVersion").text = _version()
    layout = SubElement(alto, "Layout")
    for place, page in enumerate(pages, 1):
        _alto_page(layout, page, place)
    indent(alto, " ")
    return _XML + tostring(alto, "unicode") + "\n"


def _hocr_page(parent: Element, page: Layout, place: int) -> None:
    counts = {"line": 0, "word": 0}
    for number, paragraph in enumerate(page.paragraphs, 1):
        box = f"bbox {_spaced(page.box(*paragraph))}"
        area = _block(parent, "div", {"class": "ocr_carea", "id": f"block_{place}_{number}", "title": box})
        block = _block(area, "p", {"class": "ocr_par", "id": f"par_{place}_{number}", "title": box})
        for line in paragraph:
            counts["line"] += 1
            identity = {"class": "ocr_line", "id": f"line_{place}_{counts['line']}"}
            direction = {"dir": "rtl"} if line.is_right_to_left else {}
            span = _block(block, "span", {**identity, **direction, "title": _hocr_line(page, line)})
            span.text = None
            for word in line.words:
                counts["word"] += 1
                title = f"bbox {_spaced(page.box(word))}; x_wconf {100 * word.score:.2f}"
                if _is_oblique(word.quad):
                    title += f"; poly {_spaced(np.rint(word.quad).astype(int).ravel().tolist())}"
                identity = {"class": "ocrx_word", "id": f"word_{place}_{counts['word']}"}
                found = SubElement(span, "span", {**identity, "title": title})
                found.text, found.tail = word.text, " " * word.has_space


def _block(parent: Element, tag: str, attributes: dict[str, str] | None = None) -> Element:
    """A new element, with line breaks inside and behind it; white space elsewhere would be text."""
    block = SubElement(parent, tag, attributes or {})
    block.text = block.tail = "\n"
    return block


def _hocr_line(page: Layout, line: PlacedLine) -> str:
    box, angle = page.box(line), line.angle_deg
    if abs(angle) > _STEEPEST_DEG:
        return f"bbox {_spaced(box)}; textangle {-angle % 360:.4g}"
    (left, first), (right, last) = line.baseline
    slope = (last - first) / max(right - left, 1e-9)
    return f"bbox {_spaced(box)}; baseline {slope:.4f} {first + slope * (box.left - left) - box.bottom:.2f}"


def _alto_page(parent: Element, page: Layout, place: int) -> None:
    size = {"WIDTH": str(page.width), "HEIGHT": str(page.height)}
    sheet = SubElement(parent, "Page", {"ID": f"page_{place}", "PHYSICAL_IMG_NR": str(page.number), **size})
    space = SubElement(sheet, "PrintSpace", {"HPOS": "0", "VPOS": "0", **size})
    counts = {"line": 0, "word": 0}
    for number, paragraph in enumerate(page.paragraphs, 1):
        box = _alto_box(page.box(*paragraph))
        composed = SubElement(space, "ComposedBlock", {"ID": f"cblock_{place}_{number}", **box})
        block = SubElement(composed, "TextBlock", {"ID": f"block_{place}_{number}", **box})
        for line in paragraph:
            counts["line"] += 1
            baseline = " ".join(f"{x:g},{y:g}" for x, y in np.rint(line.baseline).tolist())
            direction = {"BASEDIRECTION": "rtl"} if line.is_right_to_left else {}
            identity = {"ID": f"line_{place}_{counts['line']}", **_alto_box(page.box(line))}
            row = SubElement(block, "TextLine", {**identity, "BASELINE": baseline, **direction})
            _shape(row, line.quad)
            for index, word in enumerate(line.words):
                counts["word"] += 1
                _alto_word(row, page, word, f"string_{place}_{counts['word']}")
                if word.has_space:
                    gap = _gap(page.box(word), page.box(line.words[index + 1]))
                    SubElement(row, "SP", {"WIDTH": str(gap.width), "HPOS": str(gap.left), "VPOS": str(gap.top)})


def _alto_word(row: Element, page: Layout, word: PlacedWord, identity: str) -> None:
    box = _alto_box(page.box(word))
    string = SubElement(row, "String", {"ID": identity, **box, "WC": f"{word.score:.4f}", "CONTENT": word.text})
    _shape(string, word.quad)


def _gap(before: Box, after: Box) -> Box:
    """What lies between the boxes of two words, or nothing at the edge of the first."""
    left, right = sorted((before, after))
    return Box(left.right, before.top, max(left.right, right.left), before.bottom)


def _shape(parent: Element, quad: NDArray[np.float64]) -> None:
    if _is_oblique(quad):
        points = " ".join(f"{x:g},{y:g}" for x, y in np.rint(quad).tolist())
        SubElement(SubElement(parent, "Shape"), "Polygon", {"POINTS": points})


def _is_oblique(quad: NDArray[np.float64]) -> bool:
    """Whether a corner is not one of the upright box around the quad."""
    sides = np.abs(quad[:, None] - [quad.min(axis=0), quad.max(axis=0)])
    return bool(sides.min(axis=1).max() > _LEAST_DEVIATION)


def _alto_box(box: Box) -> dict[str, str]:
    return {"HPOS": str(box.left), "VPOS": str(box.top), "WIDTH": str(box.width), "HEIGHT": str(box.height)}


def _names(image: str | Sequence[str] | None, count: int) -> list[str]:
    names = [image or ""] * count if image is None or isinstance(image, str) else list(image)
    if len(names) != count:
        raise InvalidInputError(f"image must be one name, or one per page; got {len(names)} for {count} pages")
    return [clean(name) for name in names]


def _spaced(values: Iterable[int]) -> str:
    return " ".join(map(str, values))


def _version() -> str:
    # Imported here: it takes time, and most who read write no documents.
    from importlib import metadata

    return metadata.version("ocdserve")

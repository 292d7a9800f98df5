# SPDX-License-Identifier: Apache-2.0
"""Searchable PDF files, read by PDFium and, where it is installed, by Poppler's pdftotext."""

import ctypes
import io
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pikepdf
import pypdfium2
import pypdfium2.raw as pdfium
import pytest
from fontTools.ttLib import TTFont
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw, TiffImagePlugin

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.results.pdf import Pdf
from ocdserve.results.pictures import pixels_of
from ocdserve.results.reading import Reading
from ocdserve.results.reading.invisible_font import font_file
from ocdserve.results.reading.layout import layouts_of
from ocdserve.results.reading.searchable_pdf import to_searchable_pdf
from tests.results.reading.pages import RECEIPT, box, reading, turned

NEAR = 2.0  # pixels
TEXTS = (
    "Hello wörld", "谢谢 再见 ABC中文", "שלום עולם 12.50", "مرحبا بالعالم", "कि नमस्ते", "e\u0301te\u0301 x",
    "ﬁn oﬃce", "<(\\)> $5", "Ωμέγα Жук", "สวัสดี ครับ", "ありがとう 3", "한국어 문서",
)  # fmt: skip
BEYOND_BMP = ("😀👍🏽 party", "𠅤𠙶 𐍈", "👩\u200d🚀 go")


@contextmanager
def page_of(pdf: bytes, number: int = 0) -> Iterator[tuple[Any, Any]]:
    """A page by PDFium, and its text."""
    document = pypdfium2.PdfDocument(pdf)
    page = document[number]
    text = page.get_textpage()
    try:
        yield page, text
    finally:
        text.close()
        page.close()
        document.close()


def place(page: Any, text: Any, first: int, count: int, size: tuple[int, int]) -> NDArray[np.float64]:
    """Left, top, right and bottom of characters, in pixels of the page as it is shown at a size."""
    corners = []
    for index in range(first, first + count):
        left, bottom, right, top = text.get_charbox(index)
        for x, y in ((left, bottom), (right, top)):
            across, down = ctypes.c_int(), ctypes.c_int()
            pdfium.FPDF_PageToDevice(page, 0, 0, 100 * size[0], 100 * size[1], 0, x, y, across, down)
            corners.append((across.value / 100, down.value / 100))
    return np.array([np.min(corners, axis=0), np.max(corners, axis=0)]).ravel()


def searched(page: Any, text: Any, word: str, size: tuple[int, int]) -> NDArray[np.float64] | None:
    """Where PDFium's search finds a word."""
    found = text.search(word, match_case=True).get_next()
    return None if found is None else place(page, text, *found, size)


def expected(page: Reading) -> dict[str, NDArray[np.float64]]:
    """Words and their boxes, unclipped."""
    words = [word for line in layouts_of(page)[0].lines for word in line.words]
    return {word.text: np.array([word.quad.min(axis=0), word.quad.max(axis=0)]).ravel() for word in words}


def lines_of(texts: Sequence[str], degrees: float = 0.0) -> Reading:
    """A page of 400 x 520 pixels with a line per text, each of a width that suits it."""
    places = [box(20, 10 + 40 * index, 40 + 14 * len(text), 34 + 40 * index) for index, text in enumerate(texts)]
    return reading([(text, turned(quad, degrees)) for text, quad in zip(texts, places, strict=True)], (400, 520))


def jpeg(size: tuple[int, int] = (400, 300), **options: Any) -> bytes:
    """A JPEG file of a picture without symmetry."""
    file = io.BytesIO()
    picture(size).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def picture(size: tuple[int, int] = (400, 300)) -> Image.Image:
    made = Image.new("RGB", size, (250, 240, 200))
    draw = ImageDraw.Draw(made)
    draw.rectangle((10, 20, 120, 60), (200, 0, 0))
    draw.rectangle((size[0] - 60, size[1] - 100, size[0] - 10, size[1] - 10), (0, 0, 200))
    return made


def rendered(pdf: bytes, width: int, number: int = 0) -> NDArray[np.uint8]:
    with page_of(pdf, number) as (page, _):
        return np.asarray(page.render(scale=width / page.get_size()[0]).to_pil().convert("RGB"))


# --- what is found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dpi", [None, 300])
def test_pdfium_finds_every_word_where_it_is(dpi: float | None) -> None:
    page = lines_of(TEXTS)
    pdf = to_searchable_pdf(page, np.full((520, 400, 3), 255, np.uint8), dpi=dpi)
    # PDFium takes ligatures apart, as whoever searches for them does.
    with page_of(pdf) as (sheet, text):
        for word, quad in expected(page).items():
            found = searched(sheet, text, word.replace("ﬁ", "fi").replace("ﬃ", "ffi"), (400, 520))
            assert found is not None, word
            np.testing.assert_allclose(found, quad, atol=NEAR, err_msg=word)
        assert text.get_text_range().split("\r\n") == [one.replace("ﬁ", "fi").replace("ﬃ", "ffi") for one in TEXTS]


def test_spaces_fill_the_gaps_between_words() -> None:
    words = [[("one", box(20, 20, 80, 40)), ("two", box(130, 20, 190, 40))]]
    page = reading([("one two", box(20, 20, 190, 40))], words=words)
    with page_of(to_searchable_pdf(page, jpeg())) as (sheet, text):
        np.testing.assert_allclose(place(sheet, text, 3, 1, (400, 300)), (80, 20, 130, 40), atol=NEAR)


def test_pdfium_has_the_characters_beyond_the_first_plane_where_they_are() -> None:
    # Its search takes the needle's surrogates together, and those of the page apart.
    page = lines_of(BEYOND_BMP)
    with page_of(to_searchable_pdf(page, np.full((520, 400, 3), 255, np.uint8))) as (sheet, text):
        units = [pdfium.FPDFText_GetUnicode(text, index) for index in range(text.count_chars())]
        for word, quad in expected(page).items():
            needle = np.frombuffer(word.encode("utf-16-le"), "<u2").tolist()
            (first,) = [at for at in range(len(units)) if units[at : at + len(needle)] == needle]
            np.testing.assert_allclose(place(sheet, text, first, len(needle), (400, 520)), quad, atol=NEAR)
        assert text.get_text_range().split("\r\n") == list(BEYOND_BMP)


@pytest.mark.parametrize("degrees", range(0, 360, 15))
def test_words_of_rotated_lines_are_found_where_they_are(degrees: int) -> None:
    line = [("Hello", turned(box(60, 140, 190, 160), degrees)), ("中文字", turned(box(210, 140, 340, 160), degrees))]
    page = reading([("Hello 中文字", turned(box(60, 140, 340, 160), degrees))], words=[line])
    with page_of(to_searchable_pdf(page, np.full((300, 400, 3), 255, np.uint8))) as (sheet, text):
        for word, quad in line:
            corners = np.array(quad)
            found = searched(sheet, text, word, (400, 300))
            assert found is not None
            np.testing.assert_allclose(found, [*corners.min(axis=0), *corners.max(axis=0)], atol=NEAR)
        # PDFium reads from left to right what is upside down.
        assert sorted(text.get_text_range().split()) == ["Hello", "中文字"]


WORDS = st.text(st.sampled_from("aÄЖ中1"), min_size=1, max_size=6) | st.text(
    st.sampled_from("שמ"), min_size=1, max_size=6
)


@given(st.lists(WORDS, min_size=1, max_size=4), st.floats(0, 360), st.integers(0, 3))
def test_words_of_any_line_are_found_where_they_are(words: list[str], degrees: float, turns: int) -> None:
    page = reading([(" ".join(words), turned(box(60, 140, 340, 170), degrees))])
    sheet = to_searchable_pdf(page, document(turns, (0, 0, 200, 150) if turns % 2 == 0 else (0, 0, 150, 200)))
    with page_of(sheet) as (shown, text):
        every = [
            place(shown, text, index, 1, (400, 300)) for index in range(text.count_chars()) if not is_space(text, index)
        ]
        low, high = np.min(every, axis=0)[:2], np.max(every, axis=0)[2:]
        np.testing.assert_allclose([*low, *high], [*page.quads[0].min(axis=0), *page.quads[0].max(axis=0)], atol=NEAR)
        characters = sorted(text.get_text_range().replace("\r\n", "").replace(" ", ""))
        assert characters == sorted("".join(words))


def is_space(text: Any, index: int) -> bool:
    return chr(pdfium.FPDFText_GetUnicode(text, index)).isspace()


# --- pages of a PDF ----------------------------------------------------------------------------------------------


def document(
    turn: int = 0, media: Sequence[float] = (0, 0, 200, 150), crop: Sequence[float] | None = None, **more: Any
) -> bytes:
    """A PDF page with a black mark, whose place on the page as it is shown is left to those who draw it."""
    pdf = pikepdf.new()
    page = pdf.add_blank_page(page_size=(10, 10))
    page.obj.MediaBox = list(media)
    if crop is not None:
        page.obj.CropBox = list(crop)
    if turn:
        page.obj.Rotate = 90 * turn
    left, bottom = (crop or media)[:2]
    # It leaves the state of graphics changed, as some programs do.
    page.Contents = pdf.make_stream(
        b"q 0 g %d %d 60 14 re f 3 0 0 3 50 50 cm 0.5 0 0 0.5 7 7 cm q" % (left + 30, bottom + 40)
    )
    for key, value in more.items():
        page.obj["/" + key] = value
    file = io.BytesIO()
    pdf.save(file)
    return file.getvalue()


def marked(pdf: bytes, dpi: float = 144, number: int = 1) -> Reading:
    """A reading of the black mark, found in the page as PDFium draws it."""
    with Pdf(pdf) as opened:
        pixels = opened.render(number, dpi, 10_000_000)
    rows, columns = np.nonzero(pixels[..., 0] < 128)
    sides = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    height, width = pixels.shape[:2]
    return reading([("mark", box(*map(float, sides)))], (width, height), page=number)


@pytest.mark.parametrize("turn", [0, 1, 2, 3, -1])
@pytest.mark.parametrize(
    ("media", "crop"),
    [
        ((0, 0, 200, 150), None),
        ((-100, 300, 157.3, 460.7), None),
        ((0, 0, 400, 400), (50, 120, 250.5, 270.3)),
        ((200, 400, 10, 10), (-20, 20, 190, 900)),  # corners in another order, and partly outside
    ],
)
def test_the_text_of_a_page_is_where_the_page_shows_it(
    turn: int, media: Sequence[float], crop: Sequence[float] | None
) -> None:
    original = document(turn, media, crop)
    page = marked(original)
    pdf = to_searchable_pdf(page, original)
    with page_of(pdf) as (sheet, text):
        found = searched(sheet, text, "mark", (page.width, page.height))
    assert found is not None
    np.testing.assert_allclose(found, [*page.quads[0, 0], *page.quads[0, 2]], atol=NEAR)


def test_pages_look_as_before_and_keep_what_they_have() -> None:
    source = pikepdf.open(io.BytesIO(document()))
    shared = source.make_indirect(
        pikepdf.Dictionary(Font=pikepdf.Dictionary(Text=pikepdf.Dictionary(Type=pikepdf.Name.Font)))
    )
    source.pages.append(source.pages[0])
    for page in source.pages:
        page.obj.Resources = shared
    source.docinfo["/Title"] = "Kept"
    file = io.BytesIO()
    source.save(file)
    original = file.getvalue()

    pdf = to_searchable_pdf(marked(original, number=2), original)
    for number in (0, 1):
        assert np.array_equal(rendered(pdf, 400, number), rendered(original, 400, number))
    opened = pikepdf.open(io.BytesIO(pdf))
    assert str(opened.docinfo["/Title"]) == "Kept"
    assert [sorted(page.resources.Font.keys()) for page in opened.pages] == [["/Text"], ["/Text", "/Text2"]]
    twice = to_searchable_pdf(marked(pdf, number=1), pdf)
    for number in (0, 1):
        with page_of(twice, number) as (_, text):
            assert text.get_text_range() == "mark"


def test_a_page_has_what_its_tree_says() -> None:
    with pikepdf.open(io.BytesIO(document()), inherit_page_attributes=False) as source:
        tree, page = source.Root.Pages, source.pages[0].obj
        del page["/MediaBox"], page["/Resources"]
        tree.MediaBox, tree.Rotate = [5, 5, 205, 155], 90
        tree.Resources = pikepdf.Dictionary(Font=pikepdf.Dictionary(Own=pikepdf.Dictionary(Type=pikepdf.Name.Font)))
        file = io.BytesIO()
        source.save(file)
    read = marked(file.getvalue())
    assert read.height > read.width
    pdf = to_searchable_pdf(read, file.getvalue())
    with page_of(pdf) as (sheet, text):
        found = searched(sheet, text, "mark", (read.width, read.height))
    np.testing.assert_allclose(found, [*read.quads[0, 0], *read.quads[0, 2]], atol=NEAR)
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        assert sorted(opened.pages[0].resources.Font.keys()) == ["/Own", "/Text"]


@pytest.mark.parametrize(
    ("key", "value"), [("Contents", 12), ("Rotate", "x"), ("Resources", 3), ("CropBox", [1, 2, 3])]
)
def test_what_a_page_has_wrong_is_as_if_it_had_none(key: str, value: Any) -> None:
    pdf = to_searchable_pdf(marked(document()), document(**{key: value}))
    with page_of(pdf) as (_, text):
        assert text.get_text_range() == "mark"


def test_content_in_parts_is_kept() -> None:
    with pikepdf.open(io.BytesIO(document())) as source:
        content = source.pages[0].obj.Contents
        source.pages[0].obj.Contents = [content, 7, content]
        file = io.BytesIO()
        source.save(file)
    with pikepdf.open(io.BytesIO(to_searchable_pdf(marked(document()), file.getvalue()))) as opened:
        parts = [part.read_bytes() for part in opened.pages[0].obj.Contents]
    assert b" Tj" in parts[0] and parts[1] == parts[2] and b" re f" in parts[1] and len(parts) == 3


def test_pages_of_several_files_become_one_document() -> None:
    first, second = document(), document(1)
    pages = [marked(first), reading(RECEIPT), marked(second), marked(first)]
    pdf = to_searchable_pdf(pages, [first, jpeg(), second, first])
    texts = []
    for number in range(4):
        with page_of(pdf, number) as (_, text):
            texts.append(text.get_text_range())
    assert texts[0] == texts[2] == texts[3] == "mark" and "TOTAL" in texts[1] and "谢谢" in texts[1]


def test_an_owner_s_restrictions_stay_and_a_user_s_password_is_named() -> None:
    for owner, user in (("owner", ""), ("owner", "user")):
        with pikepdf.open(io.BytesIO(document())) as source:
            file = io.BytesIO()
            source.save(
                file, encryption=pikepdf.Encryption(owner=owner, user=user, allow=pikepdf.Permissions(extract=False))
            )
        page = marked(document())
        if user:
            with pytest.raises(InvalidInputError, match="encrypted"):
                to_searchable_pdf(page, file.getvalue())
        else:
            with pikepdf.open(io.BytesIO(to_searchable_pdf(page, file.getvalue()))) as result:
                assert result.is_encrypted and not result.allow.extract


@pytest.mark.parametrize(
    ("page", "pdf", "message"),
    [
        (
            reading([], (400, 300)),
            b"%PDF-1.7\nnothing",
            "the PDF of 16 bytes cannot be read, it is truncated or damaged",
        ),
        (reading([], (400, 300), page=2), document(), "the PDF has 1 pages; the reading is of page 2"),
        (reading([], (300, 400)), document(), "page 1 of the PDF has 200x150 points; give the file that was read"),
        (reading([], (400, 300)), document(crop=(300, 300, 400, 400)), "a crop box outside its media box"),
    ],
)
def test_a_pdf_that_was_not_read_is_refused(page: Reading, pdf: bytes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        to_searchable_pdf(page, pdf)


def test_a_page_has_one_reading() -> None:
    with pytest.raises(InvalidInputError, match="page 1 has several readings"):
        to_searchable_pdf([marked(document()), marked(document())], document())


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_jpeg_file_is_kept_and_shown_upright(turn: int) -> None:
    exif = Image.Exif()
    exif[274] = turn
    file = jpeg(exif=exif, dpi=(100, 200))
    width, height = (300, 400) if turn > 4 else (400, 300)
    page = reading([("mark", box(20, 30, 90, 50))], (width, height))
    pdf = to_searchable_pdf(page, file, dpi=144)
    assert file in pdf and len(pdf) < len(file) + 3000
    assert np.abs(rendered(pdf, width).astype(int) - pixels_of(file)).mean() < 1
    with page_of(pdf) as (sheet, text):
        np.testing.assert_allclose(searched(sheet, text, "mark", (width, height)), (20, 30, 90, 50), atol=NEAR)
        assert sheet.get_size() == pytest.approx((width / 2, height / 2))


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("RGB", "PNG"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGB", "WEBP"), ("L", "TIFF"),
        ("RGB", "BMP"), ("CMYK", "TIFF"),
    ],
)  # fmt: skip
def test_other_pictures_are_stored_without_loss(mode: str, form: str) -> None:
    file = io.BytesIO()
    picture().convert(mode).save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    pdf = to_searchable_pdf(reading([], (400, 300)), file.getvalue(), dpi=144)
    assert np.array_equal(rendered(pdf, 400), pixels_of(file.getvalue()))
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        assert opened.pages[0].resources.XObject.Picture.BitsPerComponent == (1 if mode == "1" else 8)


def test_pixels_and_pillow_images_are_pictures() -> None:
    pixels = np.asarray(picture())
    for image in (pixels, picture()):
        assert np.array_equal(rendered(to_searchable_pdf(reading([], (400, 300)), image), 400), pixels)


def test_grey_and_cmyk_jpeg_files_are_kept_as_they_are_seen() -> None:
    for mode in ("L", "CMYK"):
        file = io.BytesIO()
        picture().convert(mode).save(file, "JPEG", quality=95)
        pdf = to_searchable_pdf(reading([], (400, 300)), file.getvalue())
        assert file.getvalue() in pdf
        assert np.abs(rendered(pdf, 400).astype(int) - pixels_of(file.getvalue())).mean() < 12


def test_a_jpeg_file_with_arithmetic_codes_is_stored_anew() -> None:
    file = jpeg()
    arithmetic = file.replace(b"\xff\xc0", b"\xff\xc9", 1)
    assert to_searchable_pdf(reading([], (400, 300)), file).count(b"DCTDecode") == 1
    assert b"DCTDecode" not in to_searchable_pdf(reading([], (400, 300)), arithmetic)


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({}, (144, 108)),
        ({"dpi": (72, 72)}, (144, 108)),
        ({"dpi": (300, 300)}, (96, 72)),
        ({"dpi": (100, 200)}, (288, 108)),
        (
            {"dpi": (100, 200), "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
            (108, 288),
        ),
    ],
)
def test_the_size_of_a_page_follows_from_the_resolution_that_the_picture_states(
    options: dict[str, Any], points: tuple[float, float]
) -> None:
    upright = (300, 400) if "exif" in options else (400, 300)
    with page_of(to_searchable_pdf(reading([], upright), jpeg(**options))) as (page, _):
        assert page.get_size() == pytest.approx(points, abs=0.01)


@pytest.mark.parametrize(
    ("size", "dpi", "points"),
    [
        ((300, 3), 1, (14400, 144)),
        ((34724, 100), 144, (14400, 41.47)),  # 34724 / 2 * (14400 / (34724 / 2)) is above 14400
        ((1, 1), 150, (3, 3)),
        ((8, 4), 150, (6, 3)),
        ((9000, 1), 1, (14400, 3)),
    ],
)
def test_a_page_is_as_large_as_readers_accept(size: tuple[int, int], dpi: float, points: tuple[float, float]) -> None:
    width, height = size
    pdf = to_searchable_pdf(reading([], size), np.zeros((height, width, 3), np.uint8), dpi=dpi)
    with page_of(pdf) as (page, _):
        assert page.get_size() == pytest.approx(points, abs=0.01)


def test_a_colour_profile_is_kept() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for file in (jpeg(icc_profile=profile), jpeg(icc_profile=b"x" * 200)):
        with pikepdf.open(io.BytesIO(to_searchable_pdf(reading([], (400, 300)), file))) as opened:
            colours = opened.pages[0].resources.XObject.Picture.ColorSpace
            assert (profile in file) == isinstance(colours, pikepdf.Array)
            if profile in file:
                assert colours[1].N == 3 and colours[1].read_bytes() == profile


def test_pages_of_a_tiff_file_become_pages() -> None:
    file = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(file) as writer:
        for width in (400, 200):
            picture((width, 300)).save(writer, "TIFF")
            writer.newFrame()
    pages = [reading(RECEIPT, page=1), reading([], (200, 300), page=2)]
    with pypdfium2.PdfDocument(to_searchable_pdf(pages, file.getvalue())) as document:
        assert [page.get_width() for page in document] == pytest.approx([144, 72])
    with pytest.raises(InvalidInputError, match="page"):
        to_searchable_pdf(reading(RECEIPT), file.getvalue())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", "cannot read the image"),
        (b"", "the image is empty"),
        (jpeg((200, 300)), "the reading is of an image of 400x300 pixels; got one of 200x300"),
        ([jpeg(), jpeg()], "one file, or one per page; got 2 for 1 pages"),
        ([], "one file, or one per page; got 0 for 1 pages"),
        (None, "image must be"),
    ],
)
def test_a_picture_that_was_not_read_is_refused(image: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        to_searchable_pdf(reading(RECEIPT), image)


@pytest.mark.parametrize("dpi", [0, -1, 1e9, "200"])
def test_a_resolution_out_of_range_is_refused(dpi: Any) -> None:
    with pytest.raises(InvalidInputError, match="dpi must be a number"):
        to_searchable_pdf(reading(RECEIPT), jpeg(), dpi=dpi)


def test_without_pikepdf_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pikepdf", None)
    with pytest.raises(
        UnavailableError, match=r"need pikepdf, which is not installed: `pip install 'ocdserve\[pdf\]'`"
    ):
        to_searchable_pdf(reading(RECEIPT), jpeg())


# --- the file ----------------------------------------------------------------------------------------------------


def test_an_empty_page_has_no_font_and_no_text() -> None:
    pdf = to_searchable_pdf(reading([]), jpeg())
    with page_of(pdf) as (_, text):
        assert text.get_text_range() == ""
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        assert "/Font" not in opened.pages[0].resources
        assert opened.check_pdf_syntax() == [] if hasattr(opened, "check_pdf_syntax") else True


def test_the_text_is_small_and_the_same_reading_gives_the_same_file() -> None:
    lines = [
        (f"Item {index} of the list 12.{index:02}", box(20, 12 * index, 390, 11 + 12 * index)) for index in range(50)
    ]
    page, image = reading(lines, (400, 620)), jpeg((400, 620))
    pdf = to_searchable_pdf(page, image)
    assert len(pdf) - len(to_searchable_pdf(reading([], (400, 620)), image)) < 10_000  # 300 words
    assert to_searchable_pdf(page, image) == pdf


def test_the_text_is_invisible_and_its_operators_are_well_formed() -> None:
    page = lines_of((*TEXTS, *BEYOND_BMP)[:12], 3)
    pdf = to_searchable_pdf(page, np.full((520, 400, 3), 255, np.uint8))
    assert (rendered(pdf, 800) == 255).all()
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        assert opened.check_pdf_syntax() == []
        content = pikepdf.parse_content_stream(opened.pages[0])
        operators = [str(one.operator) for one in content]
        assert list(content[2].operands) == [3]
        assert operators[:3] == ["q", "BT", "Tr"] and operators[-4:] == ["q", "cm", "Do", "Q"]
        assert {"Tf", "Tz", "Tm", "Tj"} == set(operators[3:-6])


def test_control_characters_and_parts_of_characters_are_replaced() -> None:
    page = reading([("a\0b \ud800c", box(20, 20, 200, 40))])
    with page_of(to_searchable_pdf(page, jpeg())) as (_, text):
        assert text.get_text_range() == "a\ufffdb \ufffdc"


def test_the_font_is_one_that_other_programs_load() -> None:
    file = font_file()
    font = TTFont(io.BytesIO(file), checkChecksums=2, lazy=False)
    assert sorted(font.keys()) == sorted(
        ["GlyphOrder", "OS/2", "cmap", "glyf", "head", "hhea", "hmtx", "loca", "maxp", "name", "post"]
    )
    font.ensureDecompiled()
    boxes = [(one.xMin, one.yMin, one.xMax, one.yMax) for one in (font["glyf"][name] for name in font.getGlyphOrder())]
    assert boxes == [(0, -200, 1000, 800), (0, -200, 500, 800), (0, -200, 1000, 800)]
    assert [font["hmtx"][name][0] for name in font.getGlyphOrder()] == [1000, 500, 1000]
    assert len(zlib.compress(file)) < 500


# --- Poppler -----------------------------------------------------------------------------------------------------


def poppler(pdf: bytes, folder: Path, *options: str) -> str:
    program = shutil.which("pdftotext")
    if program is None:
        pytest.skip("pdftotext (poppler-utils) is not installed")
    file = folder / "page.pdf"
    file.write_bytes(pdf)
    result = subprocess.run([program, *options, str(file), "-"], capture_output=True, check=True, timeout=60)
    assert result.stderr == b""
    return result.stdout.decode()


def poppler_words(pdf: bytes, folder: Path) -> dict[str, NDArray[np.float64]]:
    """Words and their boxes, in points from the top left of the page as it is shown."""
    tree = ElementTree.fromstring(re.sub("<!DOCTYPE.*?>", "", poppler(pdf, folder, "-bbox")))
    sides = ("xMin", "yMin", "xMax", "yMax")
    words = tree.iter("{http://www.w3.org/1999/xhtml}word")
    return {str(word.text): np.array([float(word.get(side, "nan")) for side in sides]) for word in words}


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_pdftotext_finds_every_word_where_it_is(turn: int, tmp_path: Path) -> None:
    page = lines_of((*TEXTS[:2], *TEXTS[4:], *BEYOND_BMP[:2]))
    sides = (200, 260) if turn % 2 == 0 else (260, 200)
    pdf = to_searchable_pdf(page, document(turn, (10, 20, 10 + sides[0], 20 + sides[1])))
    found = {word: 2 * quad for word, quad in poppler_words(pdf, tmp_path).items()}
    for word, quad in expected(page).items():
        np.testing.assert_allclose(found[word], quad, atol=NEAR, err_msg=word)


def test_pdftotext_has_lines_in_their_order_from_right_to_left_too(tmp_path: Path) -> None:
    page = lines_of(TEXTS)
    text = poppler(to_searchable_pdf(page, np.full((520, 400, 3), 255, np.uint8)), tmp_path, "-layout")
    marks = re.compile("[\u202a-\u202e\f]")
    found = [line.split() for line in marks.sub("", text).split("\n") if line.strip()]
    # A line without letters from left to right has its numbers first.
    assert found == [line.split() if line != "שלום עולם 12.50" else ["12.50", "שלום", "עולם"] for line in TEXTS]


@pytest.mark.parametrize("degrees", [-5, -2, 1, 3, 5, 88, 92, 183])
def test_pdftotext_finds_words_of_slightly_oblique_lines(degrees: float, tmp_path: Path) -> None:
    """It takes words apart whose letters are not on one level."""
    line = [("Hello", turned(box(60, 140, 158, 160), degrees)), ("world", turned(box(168, 140, 265, 160), degrees))]
    page = reading([("Hello world", turned(box(60, 140, 265, 160), degrees))], words=[line])
    pdf = to_searchable_pdf(page, np.full((300, 400, 3), 255, np.uint8), dpi=72)
    found = poppler_words(pdf, tmp_path)
    for word, quad in expected(page).items():
        np.testing.assert_allclose(found[word], quad, atol=NEAR)

# SPDX-License-Identifier: Apache-2.0
"""Formats and pages: what is read, what is refused, and one rule for server, process and client."""

import gc
import io
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from ocdserve.backend.stages.image import decode
from ocdserve.contract import FORMATS, InvalidInputError, Limits
from ocdserve.results import pages as pages_module
from ocdserve.results import pixels_of
from ocdserve.results.pages import count_pages, open_encoded, page_of, pages_of, readable_formats

COLOURS = [(200, 30, 90), (20, 130, 40), (40, 60, 180), (250, 240, 10)]
ANIMATED = {"GIF": {}, "WEBP": {"lossless": True}, "PNG": {}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}

# Server and process; the client for tiles, crops and drawing.
READERS: list[Callable[..., NDArray[np.uint8]]] = [lambda data, page=None: decode(data, None, page), pixels_of]
everywhere = pytest.mark.parametrize("read", READERS, ids=["server", "client"])


def saved(images: Any, form: str, **options: Any) -> bytes:
    first, *others = images if isinstance(images, list) else [images]
    more = {"save_all": True, "append_images": others} if others else {}
    stream = io.BytesIO()
    first.save(stream, form, **more, **options)
    return stream.getvalue()


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (48, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def tiff(count: int = 4, **options: Any) -> bytes:
    """A TIFF whose pages have different widths: 48, 49, 50..."""
    return saved([plain(COLOURS[index % 4], (48 + index, 32)) for index in range(count)], "TIFF", **options)


def animation(form: str) -> bytes:
    duration = {} if form == "AVIF" else {"duration": 40}
    return saved([plain(colour) for colour in COLOURS], form, **duration, **ANIMATED[form])


def pdf(*contents: str, media: str = "0 0 72 36", page: str = "", trailer: str = "", objects: str = "") -> bytes:
    """A PDF with a page per content stream; `page`, `trailer` and `objects` are added as they are."""
    kids = " ".join(f"{10 + 2 * index} 0 R" for index in range(len(contents)))
    text = f"1 0 obj<</Type/Catalog/Pages 2 0 R{trailer}>>endobj\n"
    text += f"2 0 obj<</Type/Pages/Kids[{kids}]/Count {len(contents)}>>endobj\n{objects}\n"
    for index, content in enumerate(contents):
        number = 10 + 2 * index
        text += f"{number} 0 obj<</Type/Page/Parent 2 0 R/MediaBox[{media}]/Contents {number + 1} 0 R{page}>>endobj\n"
        text += f"{number + 1} 0 obj<</Length {len(content)}>>stream\n{content}\nendstream endobj\n"
    return f"%PDF-1.4\n{text}trailer<</Root 1 0 R/Size 99>>\n%%EOF\n".encode()


BLACK_BAR = "0 g 10 10 20 5 re f"


class TestFormats:
    @everywhere
    @pytest.mark.parametrize("form", [form.name for form in FORMATS])
    def test_each_format_is_read_as_pillow_shows_it(self, read: Callable[..., Any], form: str) -> None:
        data = saved(plain((200, 30, 90)), form)
        pixels = read(data)
        assert pixels.shape == (32, 48, 3)
        assert np.abs(pixels.astype(int) - (200, 30, 90)).max() <= 3
        assert [item.name for item in FORMATS if item.begins(data)] == [form]

    @everywhere
    def test_what_is_not_declared_is_refused_everywhere(self, read: Callable[..., Any]) -> None:
        with pytest.raises(InvalidInputError):
            read(saved(plain((1, 2, 3)), "PPM"))

    @everywhere
    def test_a_transparent_palette_of_a_gif_is_seen_on_its_ground(self, read: Callable[..., Any]) -> None:
        image = Image.new("P", (40, 20), 0)
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.paste(1, (10, 5, 30, 15))  # white text on nothing
        pixels = read(saved(image, "GIF", transparency=0))
        assert pixels[10, 20].tolist() == [255, 255, 255]
        assert pixels[2, 2].tolist() == [0, 0, 0]

    @everywhere
    def test_16_bits_of_jpeg_2000_are_scaled_as_those_of_other_formats(self, read: Callable[..., Any]) -> None:
        levels = np.linspace(0, 1023, 64).astype(np.uint16) * np.ones((16, 1), np.uint16)
        assert np.ptp(read(saved(Image.fromarray(levels), "JPEG2000"))) > 250
        np.testing.assert_array_equal(
            read(saved(Image.fromarray(levels), "JPEG2000")), read(saved(Image.fromarray(levels), "TIFF"))
        )

    @everywhere
    def test_the_orientation_of_an_avif_is_applied(self, read: Callable[..., Any]) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        assert read(saved(plain((1, 2, 3)), "AVIF", exif=exif)).shape == (48, 32, 3)

    @pytest.mark.parametrize("form", ["GIF", "JPEG2000", "AVIF"])
    def test_the_limit_holds_before_anything_is_decoded(self, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
        data = saved(plain((1, 2, 3), (101, 64)), form)
        monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
        with pytest.raises(InvalidInputError, match="101 x 64 = 6464 pixels; at most 6463 are served"):
            decode(data, Limits(6463))

    def test_a_frame_that_swells_over_the_limit_is_refused(self) -> None:
        data = bytearray(saved([plain(COLOURS[0]), plain(COLOURS[1])], "GIF"))
        second = data.index(b"\x2c", data.index(b"\x2c") + 1)
        data[second + 5 : second + 9] = struct.pack("<HH", 9000, 9000)
        assert decode(bytes(data)).shape == (32, 48, 3)
        with pytest.raises(InvalidInputError, match="9000 x 9000 = 81000000 pixels"):
            decode(bytes(data), None, 2)

    @pytest.mark.parametrize("form", ["GIF", "JPEG2000", "AVIF"])
    def test_a_truncated_file_is_refused_or_complete(self, form: str, rng: np.random.Generator) -> None:
        data = saved(Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)), form)
        whole, refused = decode(data), 0
        for length in [*range(0, len(data), 97), *range(len(data) - 30, len(data))]:
            try:
                np.testing.assert_array_equal(decode(data[:length]), whole)
            except InvalidInputError:
                refused += 1
        assert refused > 30

    def test_the_messages_list_what_this_installation_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(features, "check", lambda name: name != "avif")
        readable_formats.cache_clear()
        try:
            assert pages_module.formats_text() == "JPEG, PNG, WebP, BMP, TIFF, GIF or JPEG 2000"
        finally:
            readable_formats.cache_clear()


class TestPagesOfImages:
    @everywhere
    @pytest.mark.parametrize("options", [{}, {"big_tiff": True}, {"compression": "tiff_lzw"}])
    def test_a_page_of_a_tiff_is_chosen(self, read: Callable[..., Any], options: dict[str, Any]) -> None:
        for page in (1, 2, 4):
            pixels = read(tiff(**options), page)
            assert pixels.shape == (32, 47 + page, 3)
            assert pixels[5, 5].tolist() == list(COLOURS[page - 1])

    @everywhere
    def test_several_pages_without_a_choice_are_refused_with_their_number(self, read: Callable[..., Any]) -> None:
        with pytest.raises(
            InvalidInputError, match=r"has 4 pages, .* Choose one by page=1 to page=4, or .*detect_pages"
        ):
            read(tiff())

    @everywhere
    @pytest.mark.parametrize(
        ("data", "page", "rule"),
        [
            (tiff(), 5, "from 1 to 4, the pages of this TIFF file; got 5"),
            (tiff(1), 2, "1, the only page of this TIFF file; got 2"),
            (saved(plain((1, 2, 3)), "JPEG"), 2, "1, the only page of this JPEG file; got 2"),
            (saved(plain((1, 2, 3)), "PNG"), 3, "1, the only page of this PNG file; got 3"),
            (animation("GIF"), 5, "from 1 to 4, the pages of this GIF file; got 5"),
            (animation("WEBP"), 5, "from 1 to 4, the pages of this WebP file; got 5"),
        ],
    )
    def test_a_page_out_of_range_is_refused(self, read: Callable[..., Any], data: bytes, page: int, rule: str) -> None:
        with pytest.raises(InvalidInputError, match=rule):
            read(data, page)

    @everywhere
    def test_an_only_page_needs_no_choice_and_may_be_chosen(self, read: Callable[..., Any]) -> None:
        for form in ("TIFF", "JPEG", "GIF"):
            data = saved(plain((1, 2, 3)), form)
            np.testing.assert_array_equal(read(data), read(data, 1))

    @everywhere
    @pytest.mark.parametrize("form", ANIMATED)
    def test_of_an_animation_the_first_frame_is_taken_and_others_chosen(
        self, read: Callable[..., Any], form: str
    ) -> None:
        data = animation(form)
        for page, colour in ((None, COLOURS[0]), (1, COLOURS[0]), (3, COLOURS[2])):
            assert np.abs(read(data, page)[5, 5].astype(int) - colour).max() <= 8

    @pytest.mark.parametrize("form", ["TIFF", *ANIMATED])
    def test_all_pages_come_one_by_one(self, form: str) -> None:
        data = tiff() if form == "TIFF" else animation(form)
        assert count_pages(data) == 4
        found = list(pages_of(data))
        assert [(page.number, page.count) for page in found] == [(number, 4) for number in (1, 2, 3, 4)]
        for page, colour in zip(found, COLOURS, strict=True):
            assert isinstance(page.image, np.ndarray)
            assert np.abs(page.image[5, 5].astype(int) - colour).max() <= 8
            np.testing.assert_array_equal(page.image, decode(data, None, page.number))
            np.testing.assert_array_equal(page.image, page_of(data, page.number))

    @pytest.mark.parametrize("page", [0, -1, True, 1.0, "1"])
    def test_only_whole_numbers_are_pages(self, page: Any) -> None:
        with pytest.raises(InvalidInputError, match="page must be from 1 to 4, the pages of this TIFF file; got "):
            list(pages_of(tiff(), [page]))

    def test_chosen_pages_come_in_the_order_of_the_choice(self) -> None:
        assert [page.number for page in pages_of(tiff(), [3, 1])] == [3, 1]

    def test_a_single_page_is_not_decoded(self) -> None:
        for data in (tiff(1), saved(plain((1, 2, 3)), "GIF"), b"\xff\xd8\xff no image", b"anything", b"II*\0"):
            [page] = pages_of(data)
            assert (page.number, page.count, page.image) == (1, 1, data)

    def test_smaller_copies_and_masks_are_no_pages(self) -> None:
        images = [plain(colour) for colour in COLOURS]
        for image, kind in zip(images[1:], (1, 4, 0), strict=True):
            image.encoderinfo = {"tiffinfo": {254: kind}}
        data = saved(images, "TIFF")
        assert [page.number for page in pages_of(data)] == [1, 2]
        assert decode(data, None, 2)[5, 5].tolist() == list(COLOURS[3])
        images[3].encoderinfo = {"tiffinfo": {254: 1}}
        assert decode(saved(images, "TIFF"))[5, 5].tolist() == list(COLOURS[0])

    def test_each_page_has_its_own_depth_and_orientation(self) -> None:
        deep = Image.fromarray((np.arange(64, dtype=np.uint16) * 1024 * np.ones((8, 1), np.uint16)).astype(np.uint16))
        turned = plain(COLOURS[1])
        turned.encoderinfo = {"tiffinfo": {274: 6}}
        found = [page.image for page in pages_of(saved([plain(COLOURS[0]), deep, turned], "TIFF"))]
        assert [image.shape for image in found if isinstance(image, np.ndarray)] == [
            (32, 48, 3),
            (8, 64, 3),
            (48, 32, 3),
        ]
        assert np.ptp(np.asarray(found[1])) > 250

    def test_the_low_bytes_of_deep_colours_are_those_of_the_page(self) -> None:
        def deep(level: int) -> bytes:
            import cv2

            samples = np.full((4, 6, 3), level, np.uint16)
            samples[0, 0] = 1023
            return cv2.imencode(".tiff", samples, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()

        alone = [decode(deep(level)) for level in (400, 700)]
        assert alone[0][2, 2].tolist() == [100] * 3
        both = joined(deep(400), deep(700))
        np.testing.assert_array_equal(decode(both, None, 1), alone[0])
        np.testing.assert_array_equal(decode(both, None, 2), alone[1])

    def test_a_missing_page_is_reported_and_those_before_it_can_be_chosen(self) -> None:
        data = tiff(3)
        second = struct.unpack_from("<I", data, chain(data)[0])[0]
        for length in (second - 1, second + 1):
            with pytest.raises(InvalidInputError, match="truncated or damaged: after page 1 it names another"):
                decode(data[:length])
            assert decode(data[:length], None, 1).shape == (32, 48, 3)

    def test_a_chain_of_pages_that_is_a_ring_ends(self) -> None:
        data = bytearray(tiff(2))
        _, second = chain(bytes(data))
        data[second : second + 4] = data[4:8]
        assert count_pages(bytes(data)) == 2

    def test_too_many_pages_are_refused_quickly(self) -> None:
        entry = struct.pack("<HHHII", 1, 256, 3, 1, 1)
        data = b"II*\0" + struct.pack("<I", 8)
        for index in range(10_001):
            data += entry + struct.pack("<I", 8 + 18 * (index + 1))
        with pytest.raises(InvalidInputError, match="more than 10000 pages"):
            count_pages(data + entry + bytes(4))

    def test_a_late_frame_of_a_large_animation_is_not_composed_for_one_request(self) -> None:
        data = bytearray(animation("GIF"))
        data[6:10] = struct.pack("<HH", 16_000, 5_000)
        with pytest.raises(InvalidInputError, match="frame 11 of this GIF animation of 16000 x 5000 pixels is made of"):
            open_encoded(bytes(data), 11, Limits())

    def test_a_large_page_is_refused_before_it_is_decoded(self) -> None:
        data = saved([plain((1, 2, 3), (8, 8)), plain((1, 2, 3), (101, 64))], "TIFF")
        with pytest.raises(InvalidInputError, match="101 x 64 = 6464 pixels; at most 6463"):
            decode(data, Limits(6463), 2)
        found = pages_of(data, limits=Limits(6463))
        assert next(found).number == 1
        with pytest.raises(InvalidInputError, match="101 x 64 = 6464 pixels; at most 6463"):
            next(found)

    def test_a_large_page_leaves_the_others(self) -> None:
        data = saved([plain((1, 2, 3), (101, 64)), plain((1, 2, 3), (8, 8))], "TIFF")
        assert decode(data, Limits(6463), 2).shape == (8, 8, 3)
        [found] = pages_of(data, [2], limits=Limits(6463))
        assert found.image.shape == (8, 8, 3)  # type: ignore[union-attr]

    def test_a_file_that_pillow_does_not_open_is_refused_in_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
        with pytest.raises(InvalidInputError, match=r"page 2 of 2 of the TIFF file .* too large .*1536 pixels"):
            list(pages_of(tiff(2), [2]))

    def test_a_damaged_page_is_named(self) -> None:
        data = tiff(2, compression="tiff_lzw")
        second = struct.unpack_from("<I", data, chain(data)[0])[0]
        damaged = bytearray(data)
        offset = next(
            struct.unpack_from("<I", data, entry + 8)[0]
            for entry in range(second + 2, second + 2 + 12 * struct.unpack_from("<H", data, second)[0], 12)
            if struct.unpack_from("<H", data, entry)[0] == 273
        )
        damaged[offset : offset + 8] = b"\xff" * 8
        found = pages_of(bytes(damaged))
        assert next(found).number == 1
        with pytest.raises(InvalidInputError, match="page 2 of 2 of the TIFF file cannot be decoded"):
            next(found)


def chain(data: bytes) -> list[int]:
    """Places of the pointers from each directory of a little-endian TIFF to the next."""
    (place,) = struct.unpack_from("<I", data, 4)
    found = []
    while place:
        found.append(place + 2 + 12 * struct.unpack_from("<H", data, place)[0])
        (place,) = struct.unpack_from("<I", data, found[-1])
    return found


def joined(first: bytes, second: bytes) -> bytes:
    """Two little-endian TIFFs of one page as one: offsets of the second are moved."""
    from PIL import TiffImagePlugin

    stream = io.BytesIO(first)
    stream.name = ""
    with TiffImagePlugin.AppendingTiffWriter(stream) as writer:
        writer.write(second)
        writer.newFrame()
    return stream.getvalue()


class TestPdf:
    def test_a_page_is_rendered_at_the_resolution_asked_for(self) -> None:
        [page] = pages_of(pdf(BLACK_BAR), dpi=144)
        image = np.asarray(page.image)
        assert (page.number, page.count, image.shape, image.dtype) == (1, 1, (72, 144, 3), np.dtype(np.uint8))
        inside, outside = image[43:51, 21:59], image.copy()
        outside[41:53, 19:61] = 255
        assert inside.max() == 0
        assert outside.min() == 255

    def test_the_resolution_is_200_if_none_is_asked_for(self) -> None:
        [page] = pages_of(pdf(BLACK_BAR))
        assert np.asarray(page.image).shape == (100, 200, 3)

    def test_colours_come_as_rgb(self) -> None:
        assert np.asarray(page_of(pdf("1 0 0 rg 0 0 72 36 re f"), 1))[50, 100].tolist() == [255, 0, 0]

    def test_all_pages_come_one_by_one_and_each_can_be_chosen(self) -> None:
        data = pdf(BLACK_BAR, "", BLACK_BAR)
        assert count_pages(data) == 3
        found = list(pages_of(data))
        assert [(page.number, page.count) for page in found] == [(1, 3), (2, 3), (3, 3)]
        assert [int(np.asarray(page.image).min()) for page in found] == [0, 255, 0]
        assert [page.number for page in pages_of(data, [2])] == [2]
        with pytest.raises(InvalidInputError, match="page must be from 1 to 3, the pages of this PDF file; got 4"):
            next(iter(pages_of(data, [4])))

    def test_a_rotated_page_is_upright(self) -> None:
        assert np.asarray(page_of(pdf(BLACK_BAR, page="/Rotate 90"), 1)).shape == (200, 100, 3)

    def test_what_is_written_into_a_form_is_drawn(self) -> None:
        field = "/Type/Annot/Subtype/Widget/FT/Tx/T(a)/F 4/Rect[10 10 30 15]/AP<</N 5 0 R>>"
        form = f"4 0 obj<<{field}>>endobj\n5 0 obj<</Subtype/Form/BBox[0 0 20 5]/Length 17>>stream\n0 g 0 0 20 5 re f\n"
        data = pdf("", page="/Annots[4 0 R]", trailer="/AcroForm<</Fields[4 0 R]>>", objects=f"{form}endstream endobj")
        assert np.asarray(page_of(data, 1)).min() == 0

    def test_junk_before_the_header_is_skipped_as_readers_do(self) -> None:
        assert count_pages(b"\r\n\r\n" + pdf(BLACK_BAR)) == 1

    def test_a_page_over_the_limit_is_refused_before_it_is_drawn_with_the_resolution_that_fits(self) -> None:
        data = pdf("", media="0 0 7200 7200")
        with pytest.raises(
            InvalidInputError, match=r"20000 x 20000 = 400000000 .* at most 80000000 .* Use dpi=88 or less"
        ):
            page_of(data, 1)
        assert np.asarray(next(iter(pages_of(data, dpi=10, limits=Limits(1_000_000)))).image).shape == (1000, 1000, 3)

    @pytest.mark.parametrize("dpi", [0, -1, 2401, float("nan"), True, "200"])
    def test_a_resolution_out_of_range_is_refused(self, dpi: Any) -> None:
        with pytest.raises(InvalidInputError, match="dpi must be a number from 1 to 2400"):
            list(pages_of(pdf(BLACK_BAR), dpi=dpi))

    def test_a_page_that_shows_nothing_is_damaged(self) -> None:
        with pytest.raises(InvalidInputError, match=r"page 1 of 1 of the PDF is damaged \(its crop box lies outside"):
            list(pages_of(pdf(BLACK_BAR, page="/CropBox[500 500 600 600]")))

    def test_an_encrypted_pdf_is_refused_in_one_line(self) -> None:
        key = "00" * 32
        encryption = f"<</Filter/Standard/V 1/R 2/O<{key}>/U<{key}>/P -4>>"
        data = pdf(BLACK_BAR).replace(b"trailer<<", f"trailer<</ID[<00><00>]/Encrypt {encryption}".encode())
        with pytest.raises(InvalidInputError, match=r"^the PDF is encrypted\. Remove its password first\.$"):
            list(pages_of(data))

    @pytest.mark.parametrize("data", [b"%PDF-1.4 junk", b"%PDF-1.7\n" + bytes(100)])
    def test_a_damaged_pdf_is_refused_in_one_line(self, data: bytes) -> None:
        with pytest.raises(
            InvalidInputError, match=r"the PDF of \d+ bytes cannot be read, it is truncated or damaged"
        ) as caught:
            list(pages_of(data))
        assert "\n" not in str(caught.value)

    @everywhere
    def test_where_one_image_is_wanted_a_pdf_is_called_a_pdf(self, read: Callable[..., Any]) -> None:
        for page in (None, 1):
            with pytest.raises(InvalidInputError, match=r"this is a PDF document\. .*detect_pages .*'ocdserve\[pdf\]'"):
                read(pdf(BLACK_BAR), page)

    def test_documents_are_rendered_from_several_threads_and_abandoned(self) -> None:
        data = pdf(*[BLACK_BAR] * 4)
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(5):
                    found: Iterator[Any] = pages_of(data, dpi=20)
                    assert next(found).image.min() < 50
                    del found
                    gc.collect(0)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_without_pillow_or_pypdfium2_the_extra_is_named_and_single_images_are_passed_on() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("PIL", "pypdfium2")))
from ocdserve.results.pages import pages_of
from ocdserve.contract import UnavailableError
single = bytes.fromhex(sys.argv[1])
assert [page.image for page in pages_of(single)] == [single]
for data in sys.argv[2:]:
    try:
        list(pages_of(bytes.fromhex(data)))
    except UnavailableError as error:
        print(error)
"""
    files = [saved(plain((1, 2, 3)), "PNG"), tiff(2), animation("PNG"), pdf(BLACK_BAR)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *(data.hex() for data in files)],
        capture_output=True,
        text=True,
        check=True,
    )
    pillow = (
        "decoding, drawing and cropping need Pillow, which is not installed: `pip install 'ocdserve[images]'` "
        "(in a source tree: `make extra NAME=images`)"
    )
    assert done.stdout.splitlines() == [
        pillow,
        pillow,
        "PDF files need pypdfium2, which is not installed: `pip install 'ocdserve[pdf]'` (in a source tree: "
        "`make extra NAME=pdf`)",
    ]


def test_the_limit_of_pixels_is_inclusive() -> None:
    Limits().check(8_000, 10_000)
    with pytest.raises(InvalidInputError, match="8001 x 10000"):
        Limits().check(8_001, 10_000)

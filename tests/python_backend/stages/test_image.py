# SPDX-License-Identifier: Apache-2.0
import base64
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ocdserve.backend.stages.image import decode
from ocdserve.contract import InvalidInputError, Limits

ORIENTATION, DESCRIPTION = 0x0112, 0x010E

# How a camera that was held the other way stores an upright picture, by EXIF orientation.
STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def picture(height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    """A smooth picture with a block in it: no two of its corners are alike."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 220, width)
    pixels[..., 1] = np.linspace(0, 240, height)[:, None]
    pixels[height // 4 : height // 2, width // 6 : width // 2] = (200, 30, 90)
    return pixels


def encoded(image: Any, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def by_opencv(pixels: NDArray[Any], suffix: str, *flags: int) -> bytes:
    """Encoded by OpenCV, given RGB(A) or grey."""
    stored = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]] if pixels.ndim == 3 else pixels
    return cv2.imencode(suffix, stored, list(flags))[1].tobytes()


def decoded_by_opencv(data: bytes) -> NDArray[Any]:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def oriented(orientation: int, form: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(np.ascontiguousarray(STORED[orientation](picture())), form, exif=exif, **options)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(bytes(height * (3 * width + 1) if height * width < 1000 else 100)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + png_chunk(b"IEND", b"")


LOSSLESS = {
    "PNG": encoded(picture(), "PNG"),
    "PNG by OpenCV": by_opencv(picture(), ".png"),
    "BMP": encoded(picture(), "BMP"),
    "lossless WebP": encoded(picture(), "WEBP", lossless=True),
    "TIFF": encoded(picture(), "TIFF"),
    "TIFF with LZW": encoded(picture(), "TIFF", compression="tiff_lzw"),
    "TIFF with deflate": encoded(picture(), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF by OpenCV": by_opencv(picture(), ".tiff"),
    "JPEG 2000": encoded(picture(), "JPEG2000"),
    "JPEG 2000 without boxes": encoded(picture(), "JPEG2000", no_jp2=True, tile_size=(32, 32)),
}
LOSSY = {
    "JPEG": encoded(picture(), "JPEG", quality=95),
    "JPEG without subsampling": encoded(picture(), "JPEG", quality=95, subsampling=0),
    "progressive JPEG": encoded(picture(), "JPEG", quality=95, progressive=True),
    "JPEG by OpenCV": by_opencv(picture(), ".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "WebP": encoded(picture(), "WEBP", quality=90),
    "MPO": encoded(picture(), "MPO", save_all=True, append_images=[Image.fromarray(picture()[::-1])]),
}
FILES = {**LOSSLESS, **LOSSY, "GIF": encoded(picture(), "GIF"), "AVIF": encoded(picture(), "AVIF")}
ALL = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF")
WIDE = {form: encoded(Image.new("RGB", (101, 1)), form) for form in ALL}


LARGE_WEBP: dict[str, dict[str, Any]] = {
    "lossy": {"quality": 60},
    "lossless": {"lossless": True, "method": 0},
    "turned": {"quality": 60, "exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
    "animated": {"quality": 60, "save_all": True, "append_images": [Image.new("RGB", (2240, 2000), "red")]},
}


class TestFormats:
    @pytest.mark.parametrize("name", LOSSLESS)
    def test_lossless_files_give_the_very_pixels(self, name: str) -> None:
        pixels = decode(LOSSLESS[name])
        np.testing.assert_array_equal(pixels, picture())
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous

    @pytest.mark.parametrize("name", LOSSY)
    def test_lossy_files_give_what_opencv_reads(self, name: str) -> None:
        pixels = decode(LOSSY[name]).astype(int)
        difference = np.abs(pixels - decoded_by_opencv(LOSSY[name]))
        assert pixels.shape == (40, 56, 3)
        assert difference.max() <= 4
        assert difference.mean() < 0.5

    def test_a_single_pixel_is_an_image(self) -> None:
        assert decode(encoded(Image.new("RGB", (1, 1), (200, 30, 90)), "PNG")).tolist() == [[[200, 30, 90]]]

    def test_a_tiff_of_two_pages_asks_for_one_of_them(self) -> None:
        pages = [Image.fromarray(picture()), Image.new("RGB", (9, 9), "red")]
        data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
        np.testing.assert_array_equal(decode(data, page=1), picture())
        with pytest.raises(InvalidInputError, match="the TIFF file has 2 pages"):
            decode(data)

    def test_the_first_frame_of_an_animated_webp_is_taken(self) -> None:
        frames = [Image.fromarray(picture()), Image.new("RGB", (56, 40), "red")]
        data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(decode(data), picture())


class TestPixelTypes:
    @pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
    def test_grey_becomes_three_equal_channels(self, form: str) -> None:
        grey = picture()[..., 0]
        np.testing.assert_array_equal(decode(encoded(grey, form)), np.stack([grey] * 3, axis=-1))

    def test_grey_jpeg_becomes_three_equal_channels(self) -> None:
        pixels = decode(encoded(picture()[..., 1], "JPEG", quality=95))
        assert (pixels == pixels[..., :1]).all()
        assert np.abs(pixels[..., 0].astype(int) - picture()[..., 1]).max() <= 8

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
    def test_one_bit_pixels_are_black_and_white(self, form: str) -> None:
        bits = Image.fromarray((np.indices((5, 7)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("1")
        pixels = decode(encoded(bits, form))
        assert pixels[0, :4].tolist() == [[0, 0, 0], [255, 255, 255], [0, 0, 0], [255, 255, 255]]

    @pytest.mark.parametrize("kind", LARGE_WEBP)
    def test_a_large_webp_has_the_pixels_that_pillow_decodes(self, kind: str) -> None:
        large = np.tile(picture(200, 280), (10, 8, 1))
        data = encoded(large, "WEBP", **LARGE_WEBP[kind])
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(opened.convert("RGB"))
        if kind == "turned":
            expected = np.rot90(expected, -1)
        pixels = decode(data)
        assert pixels.shape[0] * pixels.shape[1] > 4_000_000 and pixels.flags.c_contiguous
        assert np.array_equal(pixels, expected)
        with pytest.raises(InvalidInputError, match=f"{len(data) // 2} bytes"):
            decode(data[: len(data) // 2])

    def test_a_large_webp_takes_at_most_ten_bytes_per_pixel(self, bytes_per_pixel: Callable[..., float]) -> None:
        assert bytes_per_pixel("WEBP", method=0) < 10

    @pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
    def test_transparency_is_composited_over_white(self, form: str) -> None:
        rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        assert decode(encoded(rgba, form, **options)).tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]

    def test_transparent_grey_is_composited_over_white(self) -> None:
        grey_alpha = Image.merge("LA", [Image.new("L", (1, 1), 100), Image.new("L", (1, 1), 0)])
        assert decode(encoded(grey_alpha, "PNG")).tolist() == [[[255, 255, 255]]]

    @pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
    def test_a_transparent_colour_of_a_palette_becomes_white(self, transparency: Any) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        assert decode(encoded(image, "PNG")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
        data = encoded(image, "PNG", transparency=transparency)
        assert decode(data).tolist() == [[[10, 20, 30], [255, 255, 255]]]

    def test_a_transparent_colour_of_rgb_or_grey_becomes_white(self) -> None:
        rgb = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
        assert decode(encoded(rgb, "PNG", transparency=(40, 50, 60))).tolist() == [[[10, 20, 30], [255, 255, 255]]]
        assert decode(encoded(rgb[..., 0], "PNG", transparency=40)).tolist() == [[[10, 10, 10], [255, 255, 255]]]

    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_sixteen_bits_keep_their_high_byte(self, suffix: str, channels: int) -> None:
        levels = np.array([[0x0000, 0x00FF, 0x0100], [0x1234, 0x7FFF, 0xFFFF]], np.uint16)
        stored = levels if channels == 1 else np.repeat(levels[..., None], channels, axis=2)
        if channels == 4:
            stored[..., 3] = 0xFFFF
        pixels = decode(by_opencv(stored, suffix))
        assert pixels[..., 0].tolist() == [[0x00, 0x00, 0x01], [0x12, 0x7F, 0xFF]]
        assert (pixels == pixels[..., :1]).all()

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_sixteen_bit_grey_by_pillow_keeps_its_high_byte(self, form: str) -> None:
        levels = np.array([[0x0000, 0x1234, 0xFFFF]], np.uint16)
        assert decode(encoded(Image.fromarray(levels), form))[..., 1].tolist() == [[0x00, 0x12, 0xFF]]

    @pytest.mark.parametrize(
        ("ink", "rgb"),
        [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))],
    )
    def test_the_inks_of_a_cmyk_jpeg_become_colours(self, ink: tuple[int, ...], rgb: tuple[int, ...]) -> None:
        pixels = decode(encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95))
        assert np.abs(pixels.astype(int) - rgb).max() <= 4

    def test_floating_point_pixels_are_refused_with_the_remedy(self) -> None:
        data = encoded(np.array([[0.5, 1.0]], np.float32), "TIFF")
        with pytest.raises(InvalidInputError, match=r"floating-point pixels have no known range\. Convert to 8 bits"):
            decode(data)


class TestOrientation:
    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_every_exif_orientation_becomes_upright(self, orientation: int, form: str) -> None:
        np.testing.assert_array_equal(decode(oriented(orientation, form)), picture())

    @pytest.mark.parametrize("orientation", STORED)
    def test_every_exif_orientation_of_a_jpeg_is_what_opencv_sees(self, orientation: int) -> None:
        data = oriented(orientation, "JPEG", quality=95, subsampling=0)
        pixels = decode(data)
        assert pixels.shape == (40, 56, 3)
        assert np.abs(pixels.astype(int) - decoded_by_opencv(data)).max() <= 4

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_an_orientation_that_does_not_exist_is_none(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        np.testing.assert_array_equal(decode(encoded(picture(), "PNG", exif=exif)), picture())

    @pytest.mark.filterwarnings("ignore:Truncated File Read|Corrupt EXIF data:UserWarning")
    @pytest.mark.parametrize("tag", [0x0120, 0x0142, 0x8769])
    def test_a_turned_photograph_with_a_strange_tag_is_still_a_photograph(self, tag: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION], exif[DESCRIPTION] = 6, "a text of some length"
        stored = np.ascontiguousarray(STORED[6](picture()))
        data = bytearray(encoded(stored, "PNG", exif=exif))
        # Text under a tag that ought to hold a number, as cameras write it.
        start = data.index(b"eXIf")
        length = struct.unpack(">I", data[start - 4 : start])[0]
        body = data[start + 4 : start + 4 + length]
        for order in (">", "<"):
            body = body.replace(struct.pack(order + "HH", DESCRIPTION, 2), struct.pack(order + "HH", tag, 2))
        data[start - 4 : start + 8 + length] = png_chunk(b"eXIf", bytes(body))
        np.testing.assert_array_equal(decode(bytes(data)), picture())


class TestNoImage:
    @pytest.mark.parametrize(
        "data",
        [
            b"hello, this is text",
            b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
            b"\x00" * 500,
            b"\xff\xd8\xff",
            b"BM",
            b"RIFF\x10\x00\x00\x00WEBP",
            b"II*\x00",
            encoded(picture(), "PCX"),
            encoded(picture(), "PPM"),
            encoded(picture(), "ICO"),
            encoded(picture(), "PNG").hex().encode(),
        ],
        ids=lambda data: repr(data[:12]),
    )
    def test_other_data_is_refused_with_its_start_and_the_formats(self, data: bytes) -> None:
        with pytest.raises(
            InvalidInputError, match=r"Send a JPEG, PNG, WebP, BMP, TIFF, GIF, JPEG 2000 or AVIF file"
        ) as caught:
            decode(data)
        assert repr(data[:8]) in str(caught.value)
        assert f"{len(data)} bytes" in str(caught.value)

    def test_empty_data_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match=r"the image is empty \(0 bytes\)\. Send a JPEG"):
            decode(b"")


class TestDamage:
    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("name", FILES)
    def test_a_truncated_file_is_refused_or_complete_and_never_grey(self, name: str) -> None:
        data, whole = FILES[name], decode(FILES[name])
        refused = 0
        for length in [*range(0, len(data) - 40, 7), *range(max(0, len(data) - 40), len(data))]:
            try:
                pixels = decode(data[:length])
            except InvalidInputError:
                refused += 1
            else:
                np.testing.assert_array_equal(pixels, whole, err_msg=f"{name} cut to {length} bytes")
        assert refused > 5

    def test_the_refusal_of_a_truncated_file_says_so(self) -> None:
        data = FILES["JPEG"]
        with pytest.raises(InvalidInputError, match=r"JPEG image of 56 x 40 pixels .*truncated.*bytes\)\. Send a"):
            decode(data[: len(data) // 2])

    @pytest.mark.parametrize("name", FILES)
    def test_garbage_after_the_end_does_no_harm(self, name: str) -> None:
        np.testing.assert_array_equal(decode(FILES[name] + b"garbage" * 100), decode(FILES[name]))

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("name", [*FILES, "EXIF"])
    def test_any_flipped_bytes_give_pixels_or_a_refusal(self, name: str, rng: np.random.Generator) -> None:
        whole = oriented(6, "JPEG") if name == "EXIF" else FILES[name]
        for _ in range(150):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), int(rng.choice([40, 200, 10_000]))), 3):
                data[place] = rng.integers(0, 256)
            try:
                pixels = decode(bytes(data), Limits(max_pixels=1_000_000))
            except InvalidInputError:
                continue
            assert pixels.ndim == 3


class TestLimits:
    @pytest.fixture
    def no_decoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(self: Any) -> None:
            raise AssertionError("an image over the limit was decoded")

        monkeypatch.setattr(Image.Image, "load", load)
        monkeypatch.setattr(ImageFile.ImageFile, "load", load)

    def test_the_limit_itself_is_served(self) -> None:
        assert decode(encoded(picture(10, 10), "PNG"), Limits(100)).shape == (10, 10, 3)

    @pytest.mark.usefixtures("no_decoding")
    @pytest.mark.parametrize("form", WIDE)
    def test_one_pixel_more_is_refused_from_the_header(self, form: str) -> None:
        with pytest.raises(InvalidInputError, match=r"101 x 1 = 101 pixels; at most 100 are served\. Scale it down"):
            decode(WIDE[form], Limits(100))

    @pytest.mark.usefixtures("no_decoding")
    @pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (10_000, 10_000), (80_000_001, 1)])
    def test_a_huge_png_is_refused_from_its_header_by_the_rule_that_is_in_force(self, width: int, height: int) -> None:
        with pytest.raises(InvalidInputError, match=r"80000000.* Scale it down or send it in tiles"):
            decode(png_of(width, height))

    def test_a_text_that_swells_does_not_fill_the_memory(self) -> None:
        swelling = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000)))
        with pytest.raises(InvalidInputError):
            decode(png_of(8, 8, swelling))

    def test_the_default_limit_is_80_megapixels(self) -> None:
        Limits().check(8_000, 10_000)
        with pytest.raises(InvalidInputError, match="10000 x 8001 = 80010000 pixels; at most 80000000"):
            Limits().check(10_000, 8_001)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("form", ["{}", "data:image/png;base64,{}", ' "{}"\n'])
def test_base64_text_is_recognised(kind: str, form: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (255, 254, 253)).save(buffer, kind)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = form.format(encode(buffer.getvalue()).decode()).encode()
        with pytest.raises(InvalidInputError, match=r"is base64 text, \d+ bytes .* Decode it and send the bytes"):
            decode(text)


@pytest.mark.parametrize("data", [b"plain text, no image at all", b"%PDF-1.4", b"abc", b"====", b"\x00" * 40])
def test_other_content_is_not_taken_for_base64(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="not an image that can be read"):
        decode(data)

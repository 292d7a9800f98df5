# SPDX-License-Identifier: Apache-2.0
"""Depth, transparency and missing rows: one rule in the server, in the client and for Pillow's images."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ocdserve.backend import Detector
from ocdserve.backend.stages.image import decode
from ocdserve.contract import InvalidInputError
from ocdserve.results import decoding, pixels_of
from ocdserve.results.images import load_image

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


def by_client(data: bytes) -> Any:
    return load_image(Image.open(io.BytesIO(data)))


# Server and process; the client for tiles, crops and drawing; the client with an image of Pillow.
READERS = [decode, pixels_of, by_client]
everywhere = pytest.mark.parametrize("read", READERS, ids=["server", "client", "pillow"])
Read = Callable[[bytes], Any]


def saved(image: Any, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def tiff(strips: list[bytes], size: tuple[int, int], rows: int, bits: int, **options: Any) -> bytes:
    """A little-endian TIFF of given strips; `options`: samples, photometric, planar, kind (1 unsigned, 2 signed,
    3 floating point), compression, and `tiles` (width, height) in place of strips."""
    samples = options.get("samples", 1)
    offsets = [8 + sum(map(len, strips[:index])) if strip else 0 for index, strip in enumerate(strips)]
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [size[0]]),
        257: ("I", [size[1]]),
        258: ("H", [bits] * samples),
        259: ("H", [options.get("compression", 1)]),
        262: ("H", [options.get("photometric", 1 if samples == 1 else 2)]),
        273: ("I", offsets),
        277: ("H", [samples]),
        278: ("I", [rows]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [options.get("planar", 1)]),
        339: ("H", [options.get("kind", 1)] * samples),
    }
    if "tiles" in options:
        tags[324], tags[325] = tags.pop(273), tags.pop(279)
        tags[322], tags[323] = (("I", [side]) for side in options["tiles"])
    body = b"".join(strips)
    body += b"\0" * (len(body) % 2)
    entries, extra = b"", b""
    start = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, (form, values) in sorted(tags.items()):
        value = struct.pack(f"<{len(values)}{form}", *values)
        if len(value) > 4:
            value, extra = struct.pack("<I", start + len(extra)), extra + value
        entries += struct.pack("<HHI", tag, 3 if form == "H" else 4, len(values)) + value.ljust(4, b"\0")
    return (
        b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4) + extra
    )


def png(colour: int, samples: NDArray[Any], *chunks: tuple[bytes, bytes], missing: int = 0) -> bytes:
    """A 16-bit PNG of (H, W) or (H, W, channels) samples; its header declares `missing` more rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height + missing, 16, colour, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


TEN_BITS = np.array([[0, 4, 256, 1020]], np.uint16)
COLOURS = np.stack([TEN_BITS, TEN_BITS // 2, TEN_BITS // 4], axis=-1)
OPAQUE = np.full_like(TEN_BITS, 65535)[..., None]
GREY_SEEN = [[[0] * 3, [1] * 3, [64] * 3, [255] * 3]]
COLOURS_SEEN = [[[0, 0, 0], [1, 0, 0], [64, 32, 16], [255, 127, 63]]]


def deflated(samples: NDArray[Any]) -> list[bytes]:
    return [zlib.compress(samples.tobytes())]


DEEP = {
    "grey PNG": (saved(Image.fromarray(TEN_BITS)), GREY_SEEN),
    "grey PNG with alpha": (png(4, np.dstack([TEN_BITS[..., None], OPAQUE])), GREY_SEEN),
    "RGB PNG": (cv2.imencode(".png", COLOURS[..., ::-1])[1].tobytes(), COLOURS_SEEN),
    "RGBA PNG": (png(6, np.dstack([COLOURS, OPAQUE])), COLOURS_SEEN),
    "grey TIFF": (tiff([TEN_BITS.tobytes()], (4, 1), 1, 16), GREY_SEEN),
    "grey TIFF, white is zero": (
        tiff([(1023 - TEN_BITS).tobytes()], (4, 1), 1, 16, photometric=0),
        GREY_SEEN,
    ),
    "RGB TIFF": (tiff([COLOURS.tobytes()], (4, 1), 1, 16, samples=3), COLOURS_SEEN),
    "deflated RGB TIFF": (tiff(deflated(COLOURS), (4, 1), 1, 16, samples=3, compression=8), COLOURS_SEEN),
    "RGBA TIFF": (tiff([np.dstack([COLOURS, OPAQUE]).tobytes()], (4, 1), 1, 16, samples=4), COLOURS_SEEN),
    "CMYK TIFF": (
        tiff([np.array([0, 0, 0, 0, 0, 0, 0, 1020], "<u2").tobytes()], (2, 1), 1, 16, samples=4, photometric=5),
        [[[255] * 3, [0] * 3]],
    ),
    "signed TIFF": (tiff([TEN_BITS.tobytes()], (4, 1), 1, 16, kind=2), GREY_SEEN),
    "12-bit TIFF": (
        tiff([bytes([0x00, 0x00, 0x10, 0x40, 0x0F, 0xFF])], (4, 1), 1, 12),
        GREY_SEEN,
    ),
    "0 to 255 in 32 bits": (
        tiff([np.array([0, 4, 128, 255], "<u4").tobytes()], (4, 1), 1, 32),
        [[[0] * 3, [4] * 3, [128] * 3, [255] * 3]],
    ),
    "32 bits": (
        tiff([np.array([0, 1 << 23, 1 << 30, (1 << 31) - 1], "<u4").tobytes()], (4, 1), 1, 32),
        [[[0] * 3, [0] * 3, [64] * 3, [127] * 3]],
    ),
}


@everywhere
@pytest.mark.parametrize("name", DEEP)
def test_the_bits_in_use_are_the_ones_that_are_seen(name: str, read: Read) -> None:
    data, seen = DEEP[name]
    assert read(data).tolist() == seen


@everywhere
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff([np.array([0, 1], "<f4").tobytes()], (2, 1), 1, 32, kind=3), "floating-point pixels have no known range"),
        (
            tiff([np.array([-4, 9], "<i2").tobytes()], (2, 1), 1, 16, kind=2),
            "samples from -4 to 9, negative or of more",
        ),
        (tiff([np.array([1 << 31, 9], "<u4").tobytes()], (2, 1), 1, 32), "negative or of more than 31 bits"),
        (tiff([b"abcd"] * 3, (2, 1), 1, 16, samples=3, planar=2), "each colour in a plane of its own, is not read"),
    ],
)
def test_samples_without_a_known_range_are_refused(data: bytes, reason: str, read: Read) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        read(data)


def test_a_tiff_of_floating_point_colours_is_refused_as_such() -> None:
    data = tiff([bytes(24)], (2, 1), 1, 32, samples=3, kind=3)
    with pytest.raises(InvalidInputError, match="TIFF files of floating-point colours or of unusual depths"):
        decode(data)


@everywhere
def test_a_transparent_colour_is_compared_in_all_bits(read: Read) -> None:
    grey = png(0, TEN_BITS, (b"tRNS", struct.pack(">H", 4)))
    assert read(grey).tolist() == [[[0] * 3, [255] * 3, [64] * 3, [255] * 3]]
    colours = png(2, COLOURS // 4 * 4, (b"tRNS", struct.pack(">HHH", 256, 128, 64)))
    assert read(colours).tolist()[0][2] == [255, 255, 255]


def layer(*colours: tuple[int, ...], mode: str = "RGBA") -> Image.Image:
    """Words of each colour on a transparent ground."""
    image = Image.new(mode, (360, 60 * len(colours) + 40), (0,) * len(mode))
    draw = ImageDraw.Draw(image)
    for index, colour in enumerate(colours):
        draw.text((20, 20 + 60 * index), "Invoice total", fill=colour, font=ImageFont.load_default(36))
    return image


@everywhere
@pytest.mark.parametrize(
    ("image", "ground"),
    [
        (layer((0, 0, 0, 255)), 255),
        (layer((180, 0, 0, 255)), 255),
        (layer((255, 255, 255, 255)), 0),
        (layer((255, 230, 0, 255)), 0),
        (layer((255, 255, 255, 90)), 0),
        (layer((0, 0, 0, 255), (255, 255, 255, 255)), 128),
        (layer((255, 255), mode="LA"), 0),
        (layer((0, 255), mode="LA"), 255),
        (layer((255, 255, 255, 255)).convert("RGBA").quantize(8), 0),
    ],
    ids=["black", "red", "white", "yellow", "faint white", "black and white", "white grey", "black grey", "palette"],
)
def test_the_ground_of_transparent_parts_stands_out_from_what_is_on_it(
    image: Image.Image, ground: int, read: Read
) -> None:
    assert read(saved(image))[0, 0].tolist() == [ground] * 3


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (2100, 2100)])
def test_the_ground_of_large_pictures_counts_each_part(shape: tuple[int, int]) -> None:
    pixels = np.zeros((*shape, 4), np.uint8)
    pixels[-1, -1] = 255
    assert pixels_of(Image.fromarray(pixels))[0, 0].tolist() == [0] * 3


@everywhere
@pytest.mark.parametrize("alpha", [0, 15])
def test_alpha_that_hides_a_picture_is_refused(alpha: int, read: Read) -> None:
    image = layer((0, 0, 0, 255), (255, 255, 255, 255))
    image.putalpha(alpha)
    with pytest.raises(
        InvalidInputError, match=rf"transparent everywhere \(alpha at most {alpha} of 255\).*Remove its"
    ):
        read(saved(image))


@everywhere
def test_opaque_alpha_changes_nothing(read: Read) -> None:
    rgba = np.random.default_rng(3).integers(0, 256, (30, 40, 4), np.uint8)
    rgba[..., 3] = 255
    np.testing.assert_array_equal(read(saved(rgba)), rgba[..., :3])


def test_premultiplied_grey_is_read() -> None:
    assert load_image(Image.new("La", (1, 1), (0, 255))).tolist() == [[[0, 0, 0]]]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load(threads=1)


def test_text_is_found_in_every_colour_and_depth(detector: Detector) -> None:
    grey = np.asarray(layer((0, 0, 0, 255)).getchannel("A"))
    deep = saved(Image.fromarray((255 - grey).astype(np.uint16) * 4))
    for data in (saved(layer((255, 255, 255, 255))), saved(layer((255, 255), mode="LA")), deep):
        assert 1 <= len(detector.detect(data)) <= 2
    assert 2 <= len(detector.detect(saved(layer((0, 0, 0, 255), (255, 255, 255, 255))))) <= 4


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases of the wild are not beside this checkout")
@pytest.mark.parametrize("name", ["white_on_transparent_rgba.png", "gray_10bit_in_16.png"])
def test_cases_of_the_wild_are_found(name: str, detector: Detector) -> None:
    assert len(detector.detect(CASES / name)) == 3  # lines


PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
STRIPS = [PIXELS[top : top + 8].tobytes() for top in range(0, 32, 8)]
TILES = [np.ascontiguousarray(PIXELS[y : y + 16, x : x + 16]).tobytes() for y in (0, 16) for x in (0, 16)]
PLANES = [np.ascontiguousarray(PIXELS[..., band]).tobytes() for band in range(3)]


@everywhere
@pytest.mark.parametrize(
    ("parts", "options", "rows"),
    [
        (STRIPS, {}, 8),
        ([zlib.compress(strip) for strip in STRIPS], {"compression": 8}, 8),
        (TILES, {"tiles": (16, 16)}, 8),
        (PLANES, {"planar": 2}, 32),
    ],
    ids=["strips", "deflated strips", "tiles", "planes"],
)
def test_a_tiff_without_some_of_its_rows_is_refused(
    parts: list[bytes], options: dict[str, Any], rows: int, read: Read
) -> None:
    def made(parts: list[bytes], height: int = 32) -> bytes:
        return tiff(parts, (32, height), rows, 8, samples=3, **options)

    np.testing.assert_array_equal(read(made(parts)), PIXELS)
    for damaged in (made(parts[:-1]), made(parts, 48), made([parts[0], b"", *parts[2:]])):
        with pytest.raises(InvalidInputError, match=r"truncated or damaged: it needs \d+ (strips|tiles) of pixels and"):
            read(damaged)


@everywhere
def test_a_tiff_whose_strips_are_too_short_is_refused(read: Read) -> None:
    data = tiff([STRIPS[0], STRIPS[1][:100], *STRIPS[2:]], (32, 32), 8, 8, samples=3)
    with pytest.raises(InvalidInputError, match="its strips hold 2404 of 3072 bytes"):
        read(data)


@pytest.mark.parametrize("read", [decode, pixels_of])
def test_a_png_without_some_of_its_rows_is_refused(read: Read) -> None:
    samples = PIXELS.astype(np.uint16) << 8
    with pytest.raises(InvalidInputError, match="it holds 6176 of 6369 bytes of rows"):
        read(png(2, samples, missing=1))


def test_what_follows_the_rows_of_a_png_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rows of the level that the last ones are marked with, which is looked after.
    rows = zlib.compress((b"\0" + struct.pack(">H", 167) * 4) * 4 + bytes(18_000_000))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    read = 0

    class Counting:
        unconsumed_tail = b""

        def __init__(self) -> None:
            self.inflate = real()

        def decompress(self, content: bytes, most: int) -> bytes:
            nonlocal read
            inflated = self.inflate.decompress(content, most)
            self.unconsumed_tail = self.inflate.unconsumed_tail
            read += len(inflated)
            return inflated

    real = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    assert decode(data).shape == (4, 4, 3)
    assert 36 <= read <= 1 << 20


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 9), (64, 33)])
def test_a_black_png_is_whole(mode: str, size: tuple[int, int]) -> None:
    image = Image.new(mode, size)
    if mode == "RGBA":
        image.putalpha(255)
    assert not decode(saved(image)).any()


# 5 x 6 black grey pixels in Adam7's passes, of 1x1, 1x1, 2x1, 1x2, 3x1, 2x3 and 5x3 pixels, each row with its filter.
INTERLACED = bytes(2 + 2 + 3 + 2 * 2 + 4 + 3 * 3 + 3 * 6)


@pytest.mark.parametrize("lacking", [0, 1, 6])
def test_an_interlaced_png_is_refused_if_rows_are_missing(lacking: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 8, 0, 0, 0, 1))
    data += chunk(b"IDAT", zlib.compress(INTERLACED[: len(INTERLACED) - lacking])) + chunk(b"IEND", b"")
    if lacking:
        with pytest.raises(InvalidInputError, match=r"truncated or damaged"):
            decode(data)
    else:
        assert decode(data).shape == (6, 5, 3)


def test_a_bitmap_of_5_6_5_bits_is_read() -> None:
    # BITMAPINFOHEADER of 2 x 1 pixels with the masks of red, green and blue; both pixels are red and blue.
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0) + struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    start = b"BM" + struct.pack("<IHHI", 14 + len(header) + 4, 0, 0, 14 + len(header))
    assert decode(start + header + struct.pack("<HH", 0xF81F, 0xF81F)).tolist() == [[[255, 0, 255], [255, 0, 255]]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "I;16", "I"])
def test_large_images_are_decoded_in_bands_to_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(5)
    if mode in ("I;16", "I"):
        dtype = np.uint16 if mode == "I;16" else np.int32
        image = Image.fromarray(noise.integers(0, 5000, (97, 61)).astype(dtype))
    else:
        image = Image.fromarray(noise.integers(0, 256, (97, 61, 4), np.uint8), "RGBA")
        image = Image.merge("CMYK", image.split()) if mode == "CMYK" else image.convert(mode)
    data = saved(image, "TIFF")
    monkeypatch.setattr(decoding, "_BLOCK", 20)
    decoded = decode(data)
    assert any(np.array_equal(decoded, expected) for expected in by_pillow(image))


def by_pillow(image: Image.Image) -> Iterator[NDArray[Any]]:
    """The pixels of an image, converted by Pillow as a whole; of a transparent one over each ground."""
    if image.mode.startswith("I"):
        # Samples below 5000 take 13 bits; depths are even.
        yield np.repeat(np.asarray(image)[..., None] >> 14 - 8, 3, axis=2)
    elif image.mode in ("RGBA", "LA"):
        for level in range(256):
            ground = Image.new("RGBA", image.size, (level, level, level, 255))
            yield np.asarray(Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB"))
    else:
        yield np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("colours", [2, 4, 6])
def test_large_deep_images_are_decoded_in_bands_to_the_same_pixels(
    colours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The largest sample is in the last band, and decides on the depth of all.
    channels = {2: 3, 4: 2, 6: 4}[colours]
    samples = np.random.default_rng(6).integers(0, 1 << 10, (97, 61, channels)).astype(np.uint16)
    samples[-1, -1, 0] = (1 << 12) - 1
    if colours > 2:
        samples[..., -1] <<= 6
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", 61, 97, 16, colours, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )
    whole = decode(data)
    if colours == 2:
        np.testing.assert_array_equal(whole, samples >> 4)
    monkeypatch.setattr(decoding, "_BLOCK", 20)
    np.testing.assert_array_equal(decode(data), whole)


PEAK = """
import re, sys
from pathlib import Path
from ocdserve.backend.stages.image import decode
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
data = sys.stdin.buffer.read()
before = peak()
decode(data)
print(peak() - before)
"""


def test_decoding_holds_little_more_than_two_copies_of_the_pixels() -> None:
    data = saved(Image.new("RGBA", (4000, 4000), (10, 20, 30, 200)))
    found = subprocess.run([sys.executable, "-c", PEAK], input=data, capture_output=True, check=True)
    assert 16_000_000 * 8 < 1024 * int(found.stdout) < 16_000_000 * 13

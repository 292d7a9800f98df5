# SPDX-License-Identifier: Apache-2.0
"""Small files that cost much: each is refused before anything of it is decoded."""

import io
import re
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ocdserve.backend.stages.image import decode
from ocdserve.contract import InvalidInputError, Limits
from ocdserve.results.checks.structure import check_structure
from ocdserve.results.decoding import upright_rgb
from ocdserve.results.pages import open_encoded
from ocdserve.results.pictures import pixels_of

DATA = Path(__file__).parents[3] / "shared" / "data"


def saved(image: Any, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def scans(size: tuple[int, int], extra: int, mode: str = "L") -> bytes:
    """A progressive JPEG that says that it is of this size, with its last scan repeated."""
    data = saved(Image.new(mode, (64, 64)), "JPEG", progressive=True)
    place = data.index(b"\xff\xc2") + 5
    data = data[:place] + struct.pack(">HH", *size[::-1]) + data[place + 4 :]
    scan = data[data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda")) : -2]
    return data[:-2] + scan * extra + b"\xff\xd9"


def behind_start(segments: bytes) -> bytes:
    data = saved(Image.new("RGB", (8, 8)), "JPEG")
    return data[:2] + segments + data[2:]


def segment(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body


def png(width: int, height: int, rows: bytes, *chunks: bytes, bits: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")])


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def directory(tags: list[tuple[int, int, int, int]], body: bytes = b"") -> bytes:
    """A TIFF of one directory: tag, type, count and value, or place of the values, of each."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + body


def tiff(width: int, height: int, *more: tuple[int, int, int, int], body: bytes = b"") -> bytes:
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, 8), 279: (4, 1, 64)}
    return directory([(tag, *rest) for tag, rest in (tags | {tag: rest for tag, *rest in more}).items()], body)


def overlapping(count: int, size: int) -> bytes:
    """A directory whose tags all name the same bytes."""
    return directory([(40_000 + index, 7, size, 16) for index in range(count)], bytes(size))


def flat(width: int, height: int) -> bytes:
    rows = zlib.compressobj(1)
    return rows.compress(bytes(height * (1 + -(-width // 8)))) + rows.flush()


EMPTY = zlib.compress(bytes(9 * 8))
MANY_STRIPS = tiff(8, 8, (273, 4, 10**6, 200), (279, 4, 10**6, 200), body=bytes(4 * 10**6))
OVERLAPPING_STRIPS = tiff(
    8, 8, (273, 4, 200, 200), (279, 4, 200, 1000), body=bytes(914) + struct.pack("<I", 10**6) * 200 + bytes(10**6)
)
GIF = saved(Image.new("L", (8, 8)), "GIF")
GIF_TABLE = 13 + (3 << (GIF[10] & 7) + 1)
WEBP = saved(Image.new("RGB", (8, 8)), "WEBP")
JP2, J2K = (saved(Image.new("RGB", (8, 8)), "JPEG2000", no_jp2=bare) for bare in (False, True))

BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: scans((1000, 1000), 5000), r"5006 scans; at most 100 are decoded \(max_scans\)\. Save it as a"),
    "colour scans": (lambda: scans((64, 64), 91, "RGB"), "101 scans; at most 100"),
    "large scans": (
        lambda: scans((8000, 8000), 20),
        r"26 scans of 64000000 pixels, 1664000000 in all; at most 1600000000 are decoded \(max_work\)",
    ),
    "markers": (
        lambda: behind_start(segment(0xE1, b"Exif\0\0II*\0") * 300_000),
        r"2\d* or more parts, .*; at most 20000 are read \(max_parts\)\. Save it again without its metadata",
    ),
    "fill bytes": (lambda: behind_start(b"\xff" * 5_000_000), "at most 20000 are read"),
    "only fill bytes": (lambda: b"\xff\xd8" + b"\xff" * 5_000_000, "at most 20000 are read"),
    "bytes between": (lambda: behind_start(segment(0xE5, b"a") + b"a" * 5_000_000), "at most 20000 are read"),
    "long Exif": (
        lambda: behind_start(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 900),
        "bytes of Exif metadata; at most 4194304",
    ),
    "overlapping Exif": (
        lambda: behind_start(segment(0xE1, b"Exif\0\0" + overlapping(2500, 30_000))),
        r"2500 tags of 75000000 bytes, parts that overlap; .* and 67108864 bytes \(max_bytes\)",
    ),
    "texts": (lambda: png(8, 8, EMPTY, chunk(b"tEXt", b"a\0b") * 10**6), "the PNG file has 20001 or more parts"),
    "empty rows": (lambda: png(8, 8, EMPTY, chunk(b"IDAT", b"") * 10**6), "the PNG file has 20001 or more parts"),
    "column": (lambda: png(1, 80_000_000, flat(1, 80_000_000), bits=1), "side of 80000000 pixels; at most 65535"),
    "row": (lambda: png(80_000_000, 1, flat(80_000_000, 1), bits=1), "side of 80000000 pixels; at most 65535"),
    "tags": (lambda: directory([(1000 + index, 3, 1, 1) for index in range(20_001)]), "20001 or more parts"),
    "overlapping tags": (lambda: overlapping(4000, 10**6), "4000 tags of 4000000000 bytes"),
    "strips": (lambda: MANY_STRIPS, r"1000000 strips or tiles; at most 100000 are read \(max_strips\)"),
    "overlapping strips": (lambda: OVERLAPPING_STRIPS, "strips or tiles of 200000000 bytes"),
    "large tile": (
        lambda: tiff(8, 8, (322, 3, 1, 30_000), (323, 3, 1, 30_000), (324, 4, 1, 8), (325, 4, 1, 64)),
        r"tiles of 30000 x 30000 = 900000000 pixels; at most \d+ are read \(max_pixels\)",
    ),
    "comments": (
        lambda: GIF[:GIF_TABLE] + b"!\xfe\x01a\0" * 10**6 + GIF[GIF_TABLE:],
        "the GIF file has 20001 or more parts",
    ),
    "comment of parts": (
        lambda: GIF[:GIF_TABLE] + b"!\xfe" + b"\x01a" * 10**6 + b"\0" + GIF[GIF_TABLE:],
        "the GIF file has 20001 or more parts",
    ),
    "WebP": (
        lambda: WEBP[:4] + struct.pack("<I", len(WEBP) + 8 * 10**6 - 8) + WEBP[8:] + b"abcd\0\0\0\0" * 10**6,
        "the WebP file has 20001 or more parts",
    ),
    "boxes": (lambda: JP2[:12] + b"\0\0\0\x08free" * 10**6 + JP2[12:], "the JPEG 2000 file has 20001 or more parts"),
    "inner boxes": (
        lambda: JP2[:12] + struct.pack(">I4s", 8 + 8 * 10**6, b"jp2h") + b"\0\0\0\x08free" * 10**6 + JP2[12:],
        "the JPEG 2000 file has 20001 or more parts",
    ),
    "code stream": (lambda: J2K[:2] + b"\xff\x51\0\x02" * 10**6 + J2K[2:], "the JPEG 2000 file has 20001 or more"),
    "bytes": (lambda: png(8, 8, EMPTY) + bytes(64 * 2**20), r"has 67108933 bytes; at most 67108864 .*\(max_bytes\)"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once_and_without_memory(name: str) -> None:
    build, message = BOMBS[name]
    data = build()
    tracemalloc.start()
    try:
        started = time.thread_time()
        with pytest.raises(InvalidInputError, match=message):
            decode(data)
        # Without limits: from 8 to 60 s. On a busy machine thread time goes up too.
        assert time.thread_time() - started < 2
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    with pytest.raises(InvalidInputError, match=message):
        pixels_of(data)


SOUND: dict[str, Callable[[], bytes]] = {
    "80 megapixels": lambda: png(8000, 10_000, flat(8000, 10_000), bits=1),
    "long": lambda: png(34_000, 400, flat(34_000, 400), bits=1),
    "longest": lambda: png(65_535, 1, flat(65_535, 1), bits=1),
    "baseline": lambda: saved(Image.new("RGB", (64, 64)), "JPEG"),
    "20 scans of 80 megapixels": lambda: scans((10_000, 8000), 14),
    "100 scans": lambda: scans((64, 64), 94),
    "profile of 255 segments": lambda: behind_start(segment(0xE2, b"a" * 60_000) * 255),
    "chunks of FFmpeg, 4 KB each": lambda: png(8, 8, EMPTY, *[chunk(b"caNv", bytes(4096))] * 16_000),
    "an animation": lambda: saved(
        Image.new("L", (8, 8)), "GIF", save_all=True, append_images=[Image.new("L", (8, 8), n) for n in range(1, 250)]
    ),
    "strips of a row": lambda: saved(Image.new("L", (4, 65_535)), "TIFF", compression="raw", tiffinfo={278: 1}),
    "code stream of JPEG 2000": lambda: J2K,
    "JPEG 2000": lambda: JP2,
    "WebP": lambda: WEBP,
    "scans in metadata": lambda: behind_start(segment(0xE1, b"a" + b"\xff\xda" * 30_000)),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_file_is_opened(name: str) -> None:
    data = SOUND[name]()
    open_encoded(data, limits=Limits()).close()


@pytest.mark.parametrize("page", [None, 1])
def test_thumbnails_and_scans_behind_the_end_do_not_count(page: int | None) -> None:
    whole = scans((16, 16), 0)
    thumbnail = segment(0xE1, b"Exif\0\0MM\0*" + whole)
    limits = Limits(max_scans=6)
    check_structure(whole[:2] + thumbnail + whole[2:] + whole * 3, limits, page)
    with pytest.raises(InvalidInputError, match="has 7 scans; at most 6"):
        check_structure(scans((16, 16), 1), limits, page)


def test_exif_that_names_its_bytes_again_and_again_is_left_alone() -> None:
    exif = overlapping(20_000, 10_000_000)
    data = png(8, 8, EMPTY, chunk(b"eXIf", exif))
    started = time.thread_time()
    assert decode(data).shape == (8, 8, 3)
    assert time.thread_time() - started < 0.5


def test_a_page_behind_a_bomb_is_not_reached_through_it() -> None:
    pages = saved(Image.new("L", (8, 8)), "TIFF", save_all=True, append_images=[Image.new("L", (8, 8))])
    (first,) = struct.unpack_from("<I", pages, 4)
    (count,) = struct.unpack_from("<H", pages, first)
    tags = [(40_000 + index, 7, 10**6, 16) for index in range(500)]
    bomb = struct.pack("<H", 500) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    data = bytearray(pages + bytes(len(pages) % 2))
    struct.pack_into("<I", data, first + 2 + 12 * count, len(data))
    with pytest.raises(InvalidInputError, match="tags of 500000000 bytes"):
        open_encoded(bytes(data) + bomb + bytes(10**6), 2)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_a_png_that_ends_in_black_is_inflated_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new(mode, (40, 30)), "PNG")
    monkeypatch.setattr(zlib, "decompressobj", None)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.tile
        upright_rgb(opened)
        assert not np.asarray(opened.crop((0, 28, 40, 30))).any()


def test_a_transparent_picture_takes_little_more_memory_than_its_pixels() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3000, 3000, 8, 6, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(3000 * 12_001), 1))
    data = b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b"")
    tracemalloc.start()
    try:
        assert decode(data).shape == (3000, 3000, 3)
        # Of NumPy and bytes: pixels of the answer, twice, and a byte per pixel of grey and alpha.
        assert tracemalloc.get_traced_memory()[1] < 9_000_000 * 7
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the photographs of ../shared/data")
def test_photographs_pass_all_limits() -> None:
    files = [path for path in DATA.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png", ".webp", ".tif")]
    assert len(files) > 80
    for path in files:
        check_structure(path.read_bytes(), Limits(), 1)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_side": 0},
            r"max_side \(width or height of an image, in pixels\) must be a whole number from 1 .*; got 0",
        ),
        ({"max_pixels": 178_956_971}, "max_pixels .* from 1 to 178956970; got 178956971"),
        ({"max_bytes": 1.5}, "max_bytes .*; got 1.5"),
        ({"max_scans": True}, "max_scans .*; got True"),
    ],
)
def test_limits_are_validated(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Limits(**limits)


def test_limits_are_read_from_text() -> None:
    assert Limits.parse({"max_side": "100", "threads": "2", "max_scans": ""}) == Limits(max_side=100)
    for text in ("1_0", "\u0661", "-1", "many", "1.0", "9" * 25):
        with pytest.raises(InvalidInputError, match=f"max_side .*; got {re.escape(repr(text))}"):
            Limits.parse({"max_side": text})


def test_arrays_are_images_of_any_bytes() -> None:
    assert pixels_of(np.zeros((4, 5, 3), np.uint8)).shape == (4, 5, 3)

# SPDX-License-Identifier: Apache-2.0
"""Files that end before their last row are refused on every path, and sound ones of every kind are not."""

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ocdserve.backend.stages.image import decode
from ocdserve.contract import IMAGE_SUFFIXES, InvalidInputError
from ocdserve.results import pixels_of
from ocdserve.results.decoding import upright_rgb

SHARED = Path(__file__).resolve().parents[3] / "shared"


def drawn(mode: str = "RGB", ground: Any = "white", size: tuple[int, int] = (203, 151)) -> Image.Image:
    """Lines of text up to the bottom."""
    image = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(image)
    for y in range(5, size[1], 12):
        pen.text((7, y), f"line {y} of some text and more", fill=(y % 200, 30, 90))
    return image.convert(mode)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def lazily(path: Path) -> Any:
    return pixels_of(Image.open(path))


def loaded(path: Path) -> Any:
    with Image.open(path) as image:
        image.load()
        return pixels_of(image)


def from_an_open_file(path: Path) -> Any:
    with path.open("rb") as file:
        return pixels_of(Image.open(file))


READERS = {
    "server": lambda path: decode(path.read_bytes()),
    "client": lambda path: pixels_of(path.read_bytes()),
    "Pillow's image by path": lazily,
    "Pillow's image by path, loaded and closed": loaded,
    "Pillow's image of an open file": from_an_open_file,
}
everywhere = pytest.mark.parametrize("read", READERS.values(), ids=READERS)

GREY = (128, 128, 128)
JPEG_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("RGB", {}),
    "not subsampled": ("RGB", {"subsampling": 0}),
    "optimised": ("RGB", {"optimize": True}),
    "of low quality": ("RGB", {"quality": 20}),
    "restarts by row": ("RGB", {"restart_marker_rows": 1}),
    "restarts by block": ("RGB", {"restart_marker_blocks": 3}),
    "RGB": ("RGB", {"keep_rgb": True}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
    "progressive": ("RGB", {"progressive": True}),
    "progressive of low quality": ("RGB", {"progressive": True, "quality": 20}),
    "progressive with restarts": ("RGB", {"progressive": True, "restart_marker_rows": 1}),
    "progressive grey": ("L", {"progressive": True}),
    "progressive CMYK": ("CMYK", {"progressive": True}),
}


class TestJpeg:
    @pytest.mark.parametrize("ground", ["white", GREY, (127, 128, 128)], ids=str)
    @pytest.mark.parametrize("name", JPEG_OPTIONS)
    def test_sound_files_are_accepted(self, name: str, ground: Any) -> None:
        mode, options = JPEG_OPTIONS[name]
        for size in ((203, 151), (64, 48), (1, 1), (17, 33)):
            data = saved(drawn(mode, ground, size), "JPEG", **options)
            for whole in (data, data + b"appended \xff\xd9", data[:-2] + b"\xff\xff\xff\xd9"):
                assert decode(whole).shape == (size[1], size[0], 3)

    def test_sound_files_with_more_in_them_are_accepted(self) -> None:
        exif = Image.Exif()
        exif[0x010E] = "\xff\xd9 \xff\xda"
        image = drawn("RGB", GREY)
        for options in ({"exif": exif}, {"comment": b"\xff\xd9\xff\xda"}, {"progressive": True, "exif": exif}):
            assert decode(saved(image, "JPEG", **options)).shape == (151, 203, 3)
        assert decode(saved(image, "MPO", save_all=True, append_images=[drawn()])).shape == (151, 203, 3)

    @pytest.mark.parametrize("name", JPEG_OPTIONS)
    def test_a_file_cut_and_closed_is_refused(self, name: str, rng: np.random.Generator) -> None:
        mode, options = JPEG_OPTIONS[name]
        data = saved(drawn(mode), "JPEG", **options)
        first, last = data.index(b"\xff\xda") + 14, len(data) - 60
        for cut in [*rng.integers(first, last, 12), (first + last) // 2]:
            if options.get("progressive") and _is_between_scans(data, int(cut)):
                continue
            with pytest.raises(
                InvalidInputError, match=r"JPEG image of 203 x 151 pixels is truncated or damaged: its last scan"
            ):
                decode(data[:cut] + b"\xff\xd9")

    @everywhere
    @pytest.mark.parametrize("name", ["baseline", "progressive"])
    def test_it_is_refused_on_every_path(self, read: Callable[[Path], Any], name: str, tmp_path: Path) -> None:
        data = saved(drawn(), "JPEG", **JPEG_OPTIONS[name][1])
        file = tmp_path / "a.jpg"
        file.write_bytes(data)
        read(file)
        file.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
        with pytest.raises(InvalidInputError, match="its last scan is cut off"):
            read(file)

    def test_a_smaller_draft_of_a_sound_file_is_accepted(self) -> None:
        image = Image.open(io.BytesIO(saved(drawn("RGB", GREY, (400, 400)), "JPEG")))
        image.draft("RGB", (100, 100))
        assert pixels_of(image).shape == (100, 100, 3)


def _is_between_scans(data: bytes, cut: int) -> bool:
    """Whether a cut leaves whole scans, perhaps with the beginning of the next one's header."""
    before = data.rfind(b"\xff", 0, cut)
    while before > 0 and data[before + 1] not in (0xC4, 0xDA, 0xDD):
        before = data.rfind(b"\xff", 0, before)
    length = int.from_bytes(data[before + 2 : before + 4], "big")
    following = data[cut : cut + 2]
    is_marker = following[:1] == b"\xff" and following[1] not in (0, *range(0xD0, 0xD8))
    return cut < before + 2 + length or is_marker or data[cut - 1 : cut] == b"\xff"


def cut_png(rows: int, interlace: bool = False) -> bytes:
    """A PNG of 40 x 30 white pixels that holds some of its rows, closed."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 30, 8, 0, 0, 0, int(interlace)))
    body = chunk(b"IDAT", zlib.compress((b"\0" + b"\xff" * 40) * rows))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


class TestPng:
    @everywhere
    def test_missing_rows_are_refused_on_every_path(self, read: Callable[[Path], Any], tmp_path: Path) -> None:
        file = tmp_path / "a.png"
        file.write_bytes(cut_png(30))
        assert read(file).min() == 255
        file.write_bytes(cut_png(12))
        with pytest.raises(
            InvalidInputError, match="PNG image of 40 x 30 pixels is truncated or damaged: it holds 492 of"
        ):
            read(file)

    @everywhere
    def test_a_black_bottom_is_no_missing_row(self, read: Callable[[Path], Any], tmp_path: Path) -> None:
        Image.new("L", (40, 30)).save(tmp_path / "a.png")
        assert read(tmp_path / "a.png").max() == 0

    def test_where_the_file_is_gone_the_pixels_are_taken(self, tmp_path: Path) -> None:
        Image.new("L", (40, 30)).save(tmp_path / "a.png")
        image = Image.open(tmp_path / "a.png")
        image.load()
        (tmp_path / "a.png").unlink()
        assert pixels_of(image).max() == 0


FAX: dict[str, dict[str, Any]] = {
    "group 4": {"compression": "group4"},
    "group 4, bits reversed": {"compression": "group4", "tiffinfo": {266: 2}},
    "group 3": {"compression": "group3"},
    "group 3, two-dimensional": {"compression": "group3", "tiffinfo": {292: 1}},
    "group 3, aligned": {"compression": "group3", "tiffinfo": {292: 4}},
    "run lengths": {"compression": "tiff_ccitt"},
}


def fax(name: str, image: Image.Image, rows: int) -> bytes:
    options = FAX[name]
    return saved(image, "TIFF", **{**options, "tiffinfo": {278: rows, **options.get("tiffinfo", {})}})


def shortened(data: bytes, share: float, strip: int) -> bytes:
    """A TIFF of Pillow, one of whose strips is declared shorter."""
    changed = bytearray(data)
    (place,) = struct.unpack_from("<I", data, 4)
    for entry in range(place + 2, place + 2 + 12 * struct.unpack_from("<H", data, place)[0], 12):
        tag, kind, count, value = struct.unpack_from("<HHII", data, entry)
        if tag == 279:
            form = "<I" if kind == 4 else "<H"
            at = entry + 8 if count == 1 else value + strip % count * struct.calcsize(form)
            struct.pack_into(form, changed, at, int(struct.unpack_from(form, data, at)[0] * share))
    return bytes(changed)


class TestFax:
    @pytest.mark.parametrize("rows", [1000, 40, 1])
    @pytest.mark.parametrize("name", FAX)
    def test_sound_files_are_accepted(self, name: str, rows: int, rng: np.random.Generator) -> None:
        noise = Image.fromarray(rng.integers(0, 2, (50, 61)).astype(bool))
        for image in (drawn("1"), Image.new("1", (33, 90), 1), Image.new("1", (33, 90), 0), noise):
            pixels = decode(fax(name, image, rows))
            np.testing.assert_array_equal(pixels[..., 0], np.asarray(image.convert("L")))

    @pytest.mark.parametrize("rows", [1000, 40])
    @pytest.mark.parametrize("name", FAX)
    def test_a_strip_that_ends_early_is_refused(self, name: str, rows: int) -> None:
        data = fax(name, drawn("1"), rows)
        for share in (0.3, 0.6, 0.9):
            for strip in (0, -1):
                with pytest.raises(InvalidInputError, match=r"TIFF image of 203 x 151 pixels .*truncated or\s+damaged"):
                    decode(shortened(data, share, strip))

    def test_many_strips_are_checked_in_a_time_linear_in_their_number(self) -> None:
        data = fax("group 4", Image.new("1", (8, 30_000), 1), 1)
        begin = time.perf_counter()
        assert decode(data).shape == (30_000, 8, 3)
        assert time.perf_counter() - begin < 5

    def test_strips_that_share_their_data_are_not_copied(self) -> None:
        data = bytearray(fax("group 4", Image.new("1", (8, 2000), 1), 1))
        entries = struct.unpack_from("<I", data, 4)[0] + 2
        for entry in range(entries, entries + 12 * struct.unpack_from("<H", data, entries - 2)[0], 12):
            tag, _, count, _ = struct.unpack_from("<HHII", data, entry)
            if tag in (273, 279):  # all 2000 strips are the same 256 KiB
                struct.pack_into("<HHII", data, entry, tag, 4, count, len(data))
                data += struct.pack("<2000I", *[8 if tag == 273 else 1 << 18] * count)
        data[8:12] = bytes.fromhex("80080080")
        data += bytes(1 << 18)
        tracemalloc.start()
        try:
            with pytest.raises(InvalidInputError, match="parts that overlap"):
                decode(bytes(data))
            # Opened by the caller, whose file is not looked at.
            assert upright_rgb(Image.open(io.BytesIO(data))).size == (8, 2000)
            assert tracemalloc.get_traced_memory()[1] < 50 << 20
        finally:
            tracemalloc.stop()

    @everywhere
    @pytest.mark.parametrize("name", ["group 4", "group 3"])
    def test_rows_that_are_declared_behind_a_proper_end_are_refused(
        self, read: Callable[[Path], Any], name: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "a.tif"
        data = bytearray(fax(name, drawn("1"), 1000))
        file.write_bytes(data)
        read(file)
        (place,) = struct.unpack_from("<I", data, 4)
        for entry in range(place + 2, place + 2 + 12 * struct.unpack_from("<H", data, place)[0], 12):
            if struct.unpack_from("<H", data, entry)[0] in (257, 278):
                struct.pack_into("<HHII", data, entry, struct.unpack_from("<H", data, entry)[0], 4, 1, 300)
        file.write_bytes(data)
        with pytest.raises(InvalidInputError, match="a strip of fax data ends before its last row"):
            read(file)


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs the pictures of ../shared/data")
def test_photographs_and_scans_are_accepted() -> None:
    files = [file for file in SHARED.glob("data/**/*") if file.suffix.lower() in IMAGE_SUFFIXES]
    assert len(files) > 50
    for file in files[::4]:
        decode(file.read_bytes())

# SPDX-License-Identifier: Apache-2.0
"""Parts of an encoded image, counted before it is opened: Pillow and the libraries under it bound none of them.

A small file may have millions of parts, each of which costs a reader time or memory. What is damaged is left to the
readers.
"""

import re
import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import FORMATS, MAX_PAGES, InvalidInputError, Limits, exceeded

__all__ = ["check_directories", "check_structure"]

# Of JPEG (ITU-T T.81, table B.1): a marker that is neither a stuffed byte nor a restart.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_START, _END, _SCAN, _EXIF = 0xD8, 0xD9, 0xDA, 0xE1
_NO_LENGTH = {0xC8, _START, _END, *range(0xF0, 0xFE)}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)

# Of TIFF: bytes of a value by its type; tags that lay out the pixels.
_SIZES = np.zeros(2**16, np.int64)
_SIZES[[1, 2, 6, 7, 3, 8, 4, 9, 11, 13, 5, 10, 12, 16]] = [1, 1, 1, 1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8]
_LAYOUT = (258, 273, 277, 278, 279, 324, 325, 338, 339)
_COUNTS, _TILE_SIDES = (279, 325), (322, 323)


def check_structure(data: bytes, limits: Limits, page: int | None = None) -> None:
    """Refuse a file of too many bytes, or of too many parts for its format.

    Args:
        data: A whole file.
        limits: The limits.
        page: Page that is read; None: the first directory of a TIFF is looked at, else all.

    Raises:
        InvalidInputError: It is over a limit.
    """
    if len(data) > limits.max_bytes:
        raise exceeded(
            "max_bytes",
            f"the image has {len(data)} bytes; at most {limits.max_bytes} are read (max_bytes). Compress it more or "
            "scale it down.",
        )
    form = next((form for form in FORMATS if form.begins(data)), None)
    if form is None:
        return
    if form.name == "JPEG":
        _check_jpeg(data, limits)
    elif form.name == "TIFF":
        check_directories(data, "TIFF", limits, 1 if page is None else MAX_PAGES)
    elif form.name in _PARTS:
        _check_parts(form.label, sum(1 for _ in islice(_PARTS[form.name](data), limits.max_parts + 1)), limits)


def _check_parts(label: str, count: int, limits: Limits) -> None:
    if count > limits.max_parts:
        raise exceeded(
            "max_parts",
            f"the {label} file has {count} or more parts, with what lies between them; at most {limits.max_parts} are "
            "read (max_parts). Save it again without its metadata.",
        )


def _check_jpeg(data: bytes, limits: Limits) -> None:
    place, parts, frame, components, pixels = 2, 0, 0, 0, 0
    exif: list[slice] = []
    while found := _MARKER.search(data, place):
        kind, start = found[1][0], found.end()
        parts += 1 + found.start() - place
        _check_parts("JPEG", parts, limits)
        place = start
        if kind in _NO_LENGTH:
            continue
        if kind == _SCAN:
            if frame in _PROGRESSIVE or data[start + 2 : start + 3] != bytes((components,)):
                _check_scans(data, found.start(), pixels, limits)
            break
        place += max(2, int.from_bytes(data[start : start + 2], "big"))
        if kind == _EXIF and data[start + 2 : start + 6] == b"Exif":
            exif.append(slice(start + 8, place))
        elif kind in _FRAMES and len(head := data[start + 3 : start + 8]) == 5:
            frame, (height, width, components) = kind, struct.unpack(">HHB", head)
            pixels = width * height
    _check_parts("JPEG", parts + (len(data) - place if not found else 0), limits)
    if (size := sum(part.stop - part.start for part in exif)) > limits.max_bytes // 16:
        raise exceeded(
            "max_bytes",
            f"the JPEG file has {size} bytes of Exif metadata; at most {limits.max_bytes // 16}, a "
            "sixteenth of max_bytes, are read. Save it again without its metadata.",
        )
    if size * (size // 12) > limits.max_bytes:  # fewer could not name so many
        check_directories(b"".join(data[part] for part in exif), "JPEG", limits, 1)


def _check_scans(data: bytes, place: int, pixels: int, limits: Limits) -> None:
    most = min(limits.max_scans, limits.max_work // max(pixels, 1))
    # Fast, and never too few: thumbnails, other pictures and metadata may have the same bytes.
    if data.count(b"\xff\xda", place) <= most:
        return
    scans = 0
    while (found := _MARKER.search(data, place)) and found[1][0] != _END:
        scans += found[1][0] == _SCAN
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    if scans > limits.max_scans:
        raise exceeded(
            "max_scans",
            f"the JPEG file has {scans} scans; at most {limits.max_scans} are decoded (max_scans). Save it as a "
            "baseline JPEG, not a progressive one.",
        )
    if scans > most:
        raise exceeded(
            "max_work",
            f"the JPEG file has {scans} scans of {pixels} pixels, {scans * pixels} in all; at most {limits.max_work} "
            "are decoded (max_work). Save it as a baseline JPEG, not a progressive one, or scale it down.",
        )


def check_directories(data: bytes, label: str, limits: Limits, most: int) -> None:
    """Check the first `most` directories of a TIFF file, or of metadata in its form.

    Raises:
        InvalidInputError: They have too many tags, strips or tiles, or name too many bytes.
    """
    order, is_big = "<" if data[:1] == b"I" else ">", data[2:4] in (b"+\0", b"\0+")
    number, pointer, kind = ("Q", "Q", f"{order}u8") if is_big else ("H", "I", f"{order}u4")
    fields = np.dtype([("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", kind), ("value", kind)])
    seen: set[int] = set()
    tags = read = 0
    try:
        (place,) = struct.unpack_from(order + pointer, data, 8 if is_big else 4)
        while place and place not in seen and len(seen) < most:
            seen.add(place)
            (count,) = struct.unpack_from(order + number, data, place)
            place += struct.calcsize(number)
            _check_parts(label, count, limits)
            entries = np.frombuffer(data, fields, min(count, (len(data) - place) // fields.itemsize), place)
            tags, read = tags + count, read + _check_tags(data, entries, label, limits)
            # Pages have the same tags each, few of which are large.
            if tags > 10 * limits.max_parts or read > limits.max_bytes:
                raise _too_much(
                    "max_bytes" if read > limits.max_bytes else "max_parts",
                    label,
                    f"{tags} tags of {read} bytes",
                    limits,
                )
            end = place + count * fields.itemsize
            (place,) = struct.unpack_from(order + pointer, data, end) if end < len(data) else (0,)
    except struct.error:
        return


def _check_tags(data: bytes, entries: NDArray[np.void], label: str, limits: Limits) -> int:
    """Check one directory; returns the bytes that its tags name, overlapping ones as often as they do."""
    layout = entries[np.isin(entries["tag"], _LAYOUT)]["count"]
    if layout.size and int(layout.max()) > limits.max_strips:
        raise exceeded(
            "max_strips",
            f"the {label} image has {int(layout.max())} strips or tiles; at most {limits.max_strips} are read "
            "(max_strips). Save it with larger ones.",
        )
    sides = [int(side) for entry in entries[np.isin(entries["tag"], _TILE_SIDES)] for side in _values(data, entry)[:1]]
    if len(sides) == 2 and sides[0] * sides[1] > limits.max_pixels:
        raise exceeded(
            "max_pixels",
            f"the {label} image has tiles of {sides[0]} x {sides[1]} = {sides[0] * sides[1]} pixels; at most "
            f"{limits.max_pixels} are read (max_pixels). Save it with smaller ones.",
            sides[0] * sides[1],
        )
    for entry in entries[np.isin(entries["tag"], _COUNTS)]:
        held = int(np.minimum(_values(data, entry), len(data)).sum(dtype=np.float64))
        if held > limits.max_bytes:
            raise _too_much("max_bytes", label, f"strips or tiles of {held} bytes", limits)
    sizes = entries["count"].astype(np.float64) * _SIZES[entries["type"]]
    return int(np.minimum(sizes[sizes > entries.dtype["value"].itemsize], len(data)).sum())


def _values(data: bytes, entry: np.void) -> NDArray[np.unsignedinteger[Any]]:
    """Whole numbers of a tag; none if it is damaged."""
    size, count = int(_SIZES[entry["type"]]), int(entry["count"])
    value = entry["value"]
    order = entry.dtype["value"].byteorder
    order = order if order in "<>" else "="
    if size not in (2, 4, 8) or entry["type"] in (5, 10, 11, 12):
        return np.zeros(0, np.uint8)
    kind = np.dtype(f"{order}u{size}")
    if count * size <= entry.dtype["value"].itemsize:
        return np.frombuffer(value.tobytes(), kind, count)
    place = int(value)
    return np.frombuffer(data, kind, count, place) if place + count * size <= len(data) else np.zeros(0, np.uint8)


def _too_much(limit: str, label: str, what: str, limits: Limits) -> InvalidInputError:
    return exceeded(
        limit,
        f"the {label} file has {what}, parts that overlap; at most {10 * limits.max_parts} tags (ten times max_parts) "
        f"and {limits.max_bytes} bytes (max_bytes) are read. Save it again.",
    )


def _png_chunks(data: bytes) -> Iterator[None]:
    place, kind = 8, b""
    while place + 8 <= len(data) and kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, place)
        place += 12 + size
        yield


def _webp_chunks(data: bytes) -> Iterator[None]:
    place = 12
    while place + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, place + 4)
        place += 8 + size + size % 2
        yield


def _gif_blocks(data: bytes) -> Iterator[None]:
    """Blocks before the first image, those inside of extensions, and other bytes."""
    if len(data) < 13:
        return
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while place < len(data) and data[place : place + 1] not in b",;":
        place += 1
        yield
        if data[place - 1] == ord("!"):
            place += 1
            while place < len(data) and data[place]:
                place += 1 + data[place]
                yield
            place += 1


def _boxes(data: bytes) -> Iterator[None]:
    """Boxes of a JPEG 2000 file and of its header; markers of a bare code stream."""
    if not data.startswith(b"\0\0\0\x0c"):
        place = 2
        while place + 4 <= len(data) and data[place + 1] not in (0x90, _END):
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
            yield
        return
    place = 0
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"jp2h" and size != 1:
            size = 8
        elif size == 1:
            size = int.from_bytes(data[place + 8 : place + 16], "big")
            size = 16 if kind == b"jp2h" else size
        place += max(size or len(data), 8)
        yield


_PARTS: dict[str, Callable[[bytes], Iterator[None]]] = {
    "PNG": _png_chunks,
    "WEBP": _webp_chunks,
    "GIF": _gif_blocks,
    "JPEG2000": _boxes,
}

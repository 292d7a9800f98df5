# SPDX-License-Identifier: Apache-2.0
"""Files without some of their rows, which Pillow and the libraries under it fill with grey, black or white.

JPEG and fax decoders do not report that their data have ended. Where that is possible, the file is decoded again with
other data behind its own: a complete one does not change.
"""

import io
import math
import re
import struct
import zlib
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ocdserve.contract import InvalidInputError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["check_declared", "check_rows"]

# Of TIFF.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_STRIPS = (273, 279)
_TILES = (324, 325)
_FILL_ORDER, _ROWS_PER_STRIP, _PLANES, _TILE_WIDTH, _TILE_HEIGHT = 266, 278, 284, 322, 323
_FAX_OPTIONS, _FAX_2, _FAX_3, _FAX_4 = 292, 2, 3, 4

# Of PNG: channels by colour type; first column, first row and their steps in each pass of an interlaced file.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MOST_INFLATED = 1 << 20
# A level that hardly ever fills the last row of a picture.
_MARK = 167

# Of JPEG (ITU-T T.81, table B.1): a marker that is neither a stuffed byte nor a restart; frames coded by Huffman.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_END, _SCAN, _RESTART, _HUFFMAN_FRAMES = 0xD9, 0xDA, 0xD0, (0xC0, 0xC1, 0xC2)
# Mostly ones, because the shortest codes, which end a block, begin with zeros.
_NOISE = bytes(min(167 * index & 0xFF | 91 * index & 0xFF, 0xFE) for index in range(1, 256)) * 8

# Fax codes (ITU-T T.4 and T.6), as text of bits: end of line; end of block; two pixels of white, three of black; a
# horizontal run of both.
_EOL, _EOFB, _RUNS, _HORIZONTAL = "000000000001", "000000000001000000000001", "011110", "001011110"
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def check_rows(image: "Picture", stream: IO[bytes] | None, is_fresh: bool) -> None:
    """Refuse a JPEG, PNG or fax TIFF file that ends before its last row.

    A progressive JPEG that was cut behind its first scan has all rows, with less detail; it is refused as well, unless
    the cut is between two scans, which the format allows. Of an image that was loaded before, from an open file that
    Pillow has let go, nothing can be said.

    Args:
        image: Decoded by Pillow; of any format.
        stream: The file that it was decoded from; None or closed: it is opened again by its name, if that is known.
        is_fresh: Whether its pixels are those of the file, and were not loaded by the caller before.

    Raises:
        InvalidInputError: Rows are missing.
    """
    if image.format == "PNG" and getattr(image, "tell", int)() == 0:
        rows = 2 if image.info.get("interlace") else 1  # interlaced files end with the odd rows
        last = np.asarray(image.crop((0, max(0, image.height - rows), image.width, image.height)))
        left = _MARK if is_fresh and _is_marked(image) else 0
        if (last.reshape(len(last), -1) == left).all(axis=1).any() and (data := _content(image, stream)):
            _check_png(image, data)
    elif image.format in ("JPEG", "MPO") and getattr(image, "tell", int)() == 0:
        corner = np.asarray(image.crop((image.width - 1, image.height - 1, image.width, image.height)))
        is_grey = bool((abs(corner - 127.5) < 1).all())  # as libjpeg leaves what it has no data for
        if (is_grey or image.info.get("progressive")) and (data := _content(image, stream)):
            # `draft` decodes at another size.
            is_whole = is_fresh and not getattr(image, "decoderconfig", ())
            _check_jpeg(image, data, image.tobytes() if is_whole else _decoded(data, "JPEG"))
    elif getattr(image, "tag_v2", {}).get(_COMPRESSION) in (_FAX_2, _FAX_3, _FAX_4) and (
        data := _content(image, stream)
    ):
        _check_fax(image, data)


def check_declared(image: "Picture") -> None:
    """Refuse a TIFF whose tags name too little data for its rows, and planes of deep samples, read wrongly by Pillow.

    The last rows of a PNG are marked for `check_rows`: black ones are common, and looking after them takes time.

    Args:
        image: Opened by Pillow and not decoded yet; of any format.

    Raises:
        InvalidInputError: It is damaged, or of such planes.
    """
    if getattr(image, "tile", None) and _is_marked(image):
        _mark(image)
    tags = getattr(image, "tag_v2", None)
    if tags is None or not getattr(image, "tile", None):
        return
    width, height = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANES, 1) == 2 else 1
    if _TILES[0] in tags:
        (offsets, counts), kind = (tags.get(tag, ()) for tag in _TILES), "tiles"
        across, down = tags.get(_TILE_WIDTH, width), tags.get(_TILE_HEIGHT, height)
        needed = planes * math.ceil(width / max(across, 1)) * math.ceil(height / max(down, 1))
    else:
        (offsets, counts), kind = (tags.get(tag, ()) for tag in _STRIPS), "strips"
        needed = planes * math.ceil(height / max(tags.get(_ROWS_PER_STRIP, height), 1))
    if planes > 1 and max(tags.get(_BITS, (1,))) > 8:
        raise InvalidInputError(
            "a TIFF image of more than 8 bits per sample, each colour in a plane of its own, is not read. Save it with "
            "interleaved samples (PlanarConfiguration 1) or with 8 bits."
        )
    present = sum(map(bool, offsets))
    compressed = tags.get(_COMPRESSION, 1) != 1
    if compressed or any(counts):  # writers of plain pixels may leave all counts out
        present = min(present, sum(map(bool, counts)))
    if present < needed:
        raise _missing(image, "TIFF", f"it needs {needed} {kind} of pixels and has {present}")
    # Of a single strip the count is often wrong, and readers correct it.
    total = height * math.ceil(width * sum(tags.get(_BITS, (1,))) / 8)
    if kind == "strips" and needed > 1 and not compressed and 0 < sum(counts) < total:
        raise _missing(image, "TIFF", f"its strips hold {sum(counts)} of {total} bytes")


def _is_marked(image: "Picture") -> bool:
    """Whether rows that its file does not fill are left as `_mark` made them, not black."""
    return image.format == "PNG" and image.mode != "1" and not getattr(image, "is_animated", False)


def _mark(image: "Picture") -> None:
    from PIL.ImageFile import ImageFile

    # What Pillow would do at the beginning of `load`, and then leaves as it is.
    ImageFile.load_prepare(image)  # type: ignore[arg-type]
    ink = _MARK if len(image.getbands()) == 1 else (_MARK,) * len(image.getbands())
    image.im.paste(ink, (0, max(0, image.height - 2), *image.size))


def _check_png(image: "Picture", data: bytes) -> None:
    """Compare the length of the compressed rows with that of all rows: Pillow leaves missing ones zero."""
    stream = io.BytesIO(data)
    stream.seek(8)
    inflate, held, needed = zlib.decompressobj(), 0, 0
    while len(head := stream.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        content = stream.read(size)
        stream.seek(4, io.SEEK_CUR)
        if kind == b"IHDR":
            width, height, bits, colour, interlaced = struct.unpack(">IIBBxxB", content)
            bits *= _PNG_CHANNELS[colour]
            for left, top, right, down in _ADAM7 if interlaced else [(0, 0, 1, 1)]:
                columns, rows = -((left - width) // right), -((top - height) // down)
                needed += max(rows, 0) * (1 + math.ceil(columns * bits / 8)) if columns > 0 else 0
        while kind == b"IDAT" and content and held < needed:  # a bomb behind the rows is left alone
            held += len(inflate.decompress(content, _MOST_INFLATED))
            content = inflate.unconsumed_tail
    if held < needed:
        raise _missing(image, "PNG", f"it holds {held} of {needed} bytes of rows")


def _check_jpeg(image: "Picture", data: bytes, pixels: bytes | None) -> None:
    """Decode with noise behind the data of the last scan, and compare with the pixels of the file as it is."""
    frame, begin, end = _jpeg_scan(data)
    if frame not in _HUFFMAN_FRAMES:
        return
    restarts = re.findall(rb"\xff([\xd0-\xd7])", data[begin:end])
    following = (restarts[-1][0] - _RESTART + 1 if restarts else 0) + np.arange(8)
    noise = _NOISE + b"".join(bytes((0xFF, _RESTART + int(index) % 8)) + _NOISE for index in following)
    if pixels not in (None, _decoded(data[:end].rstrip(b"\xff") + noise + data[end:], "JPEG")):
        raise _missing(image, "JPEG", "its last scan is cut off")


def _jpeg_scan(data: bytes) -> tuple[int, int, int]:
    """Kind of the frame, 0 if there is none; and where the data of the last scan begin and end."""
    frame, begin, place = 0, 0, 2
    while found := _MARKER.search(data, place):
        kind, place = found[1][0], found.end()
        if kind == _END:
            return frame, begin, found.start()
        place += int.from_bytes(data[place : place + 2], "big")
        if kind == _SCAN:
            begin = place
        elif kind in range(0xC0, 0xD0) and kind not in (0xC4, 0xC8, 0xCC):
            frame = kind
    return frame, begin, len(data)


def _check_fax(image: "Picture", data: bytes) -> None:
    """Decode with other runs behind the data of each strip."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    needed = math.ceil(tags[_HEIGHT] / max(tags.get(_ROWS_PER_STRIP, tags[_HEIGHT]), 1))
    places = list(zip(*(tags.get(tag, ())[:needed] for tag in _STRIPS), strict=False))
    if sum(max(min(count, len(data) - offset), 0) for offset, count in places) > len(data):
        return  # strips that share their data would be large without being so in the file
    strips = [data[offset : offset + count] for offset, count in places]
    if tags.get(_FILL_ORDER, 1) == 2:
        strips = [strip.translate(_REVERSED) for strip in strips]
    compression, codes = tags[_COMPRESSION], tags[_WIDTH] // 5 + 1
    # Behind a row that is cut, more of it; behind a whole one, two rows.
    more = _HORIZONTAL * codes * 3
    if compression == _FAX_3:
        more = _RUNS * codes + f"{_EOL}{tags.get(_FAX_OPTIONS, 0) & 1 or ''}{_RUNS * codes}" * 2
    elif compression == _FAX_2:
        more = (_RUNS * codes + "0" * (-len(_RUNS) * codes % 8)) * 2
    longer = []
    for strip in strips:
        bits = f"{int.from_bytes(strip[-8:], 'big'):0{8 * len(strip[-8:])}b}"
        if compression == _FAX_4 and (end := bits.rfind(_EOFB)) >= 0 and not bits[end + len(_EOFB) :].strip("0"):
            bits = bits[:end]
        bits += more
        bits += "0" * (-len(bits) % 8)
        longer.append(strip[:-8] + int(bits, 2).to_bytes(len(bits) // 8, "big"))
    pixels = _decoded(_fax_file(tags, strips), "TIFF")
    if pixels not in (None, _decoded(_fax_file(tags, longer), "TIFF")):
        raise _missing(image, "TIFF", "a strip of fax data ends before its last row")


def _fax_file(tags: Any, strips: list[bytes]) -> bytes:
    """A TIFF of these strips."""
    places = list(accumulate(map(len, strips[:-1]), initial=8))
    height, rows = tags[_HEIGHT], tags.get(_ROWS_PER_STRIP, tags[_HEIGHT])
    fields = {_WIDTH: [tags[_WIDTH]], _HEIGHT: [height], _BITS: [1], _COMPRESSION: [tags[_COMPRESSION]]}
    fields |= {_PHOTOMETRIC: [1], _STRIPS[0]: places, _SAMPLES: [1], _ROWS_PER_STRIP: [min(rows, height)]}
    fields |= {_STRIPS[1]: list(map(len, strips)), _FAX_OPTIONS: [tags.get(_FAX_OPTIONS, 0)]}
    if tags[_COMPRESSION] != _FAX_3:
        fields.pop(_FAX_OPTIONS)
    body = b"".join(strips)
    body += b"\0" * (len(body) % 2)
    entries, extra, start = b"", b"", 8 + len(body) + 6 + 12 * len(fields)
    for tag, values in sorted(fields.items()):
        value = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            value, extra = struct.pack("<I", start + len(extra)), extra + value
        entries += struct.pack("<HHI", tag, 4, len(values)) + value
    head = b"II*\0" + struct.pack("<I", 8 + len(body))
    return head + body + struct.pack("<H", len(fields)) + entries + bytes(4) + extra


def _decoded(data: bytes, form: str) -> bytes | None:
    """The pixels of a file; None if it is not decoded."""
    import PIL.Image

    with suppress(Exception):
        return PIL.Image.open(io.BytesIO(data), formats=[form]).tobytes()
    return None


def _content(image: "Picture", stream: IO[bytes] | None) -> bytes:
    """The image's file; empty if it is not known any more."""
    if stream is not None and not stream.closed:
        place = stream.tell()
        stream.seek(0)
        data = stream.read()
        stream.seek(place)
        return data
    with suppress(OSError, ValueError):
        return Path(getattr(image, "filename", "") or "").read_bytes()
    return b""


def _missing(image: "Picture", form: str, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"the {form} image of {image.width} x {image.height} pixels is truncated or damaged: {what}. Send it whole."
    )

# SPDX-License-Identifier: Apache-2.0
"""A font of any script for text that is searched and copied, not seen: boxes of two widths, and what they stand for.

A searchable PDF needs no outlines. Its characters (clusters) are numbered as they come, each number is shown by the
half-width or the full-width glyph of one small TrueType font, and the ToUnicode map says which text a number is.
"""

import struct
from collections.abc import Iterable
from itertools import groupby

from ocdserve.results.reading.characters import width_of
from ocdserve.results.reading.layout import DESCENT

__all__ = ["ASCENDER", "DESCENDER", "EM", "NAME", "CharacterCodes", "font_file"]

NAME = "OcdserveInvisible"
# Units of a font's em square; a glyph fills it from the descender to the ascender.
EM = 1000
DESCENDER = -round(EM * DESCENT)
ASCENDER = EM + DESCENDER
# Widths of the glyphs 1 and 2; glyph 0 stands for what is missing.
_ADVANCES = (EM, EM // 2, EM)
_MOST_CODES = 0xFFFF
# Entries of one `beginbfchar` block.
_BLOCK = 100


class CharacterCodes:
    """The numbers of the clusters of a document, from 1."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def encoded(self, clusters: Iterable[str]) -> str:
        """Codes of two bytes, as hexadecimal digits; new clusters get the next ones."""
        # No document has more; further clusters would share the last code, and be found as that one.
        codes = (self._codes.setdefault(one, min(len(self._codes) + 1, _MOST_CODES)) for one in clusters)
        return "".join(f"{code:04X}" for code in codes)

    @property
    def glyphs(self) -> bytes:
        """PDF's CIDToGIDMap: the glyph of each code from 0, in two bytes."""
        return struct.pack(f">{len(self._codes) + 1}H", 0, *map(width_of, self._codes))

    @property
    def widths(self) -> list[int]:
        """PDF's array W: first and last code and width of each run of full-width characters; others have half of it."""
        runs = []
        for is_full, run in groupby(self._codes, lambda cluster: width_of(cluster) == 2):
            codes = [self._codes[cluster] for cluster in run]
            runs += [codes[0], codes[-1], EM] if is_full else []
        return runs

    @property
    def to_unicode(self) -> bytes:
        """PDF's ToUnicode map: a CMap from codes to UTF-16."""
        entries = [
            f"<{code:04X}> <{cluster.encode('utf-16-be').hex().upper()}>" for cluster, code in self._codes.items()
        ]
        blocks = [entries[start : start + _BLOCK] for start in range(0, len(entries), _BLOCK)]
        lines = [
            "/CIDInit /ProcSet findresource begin",
            "12 dict begin",
            "begincmap",
            "/CIDSystemInfo << /Registry (Adobe) /Ordering (UCS) /Supplement 0 >> def",
            "/CMapName /Adobe-Identity-UCS def",
            "/CMapType 2 def",
            "1 begincodespacerange",
            "<0000> <FFFF>",
            "endcodespacerange",
            *(line for block in blocks for line in (f"{len(block)} beginbfchar", *block, "endbfchar")),
            "endcmap",
            "CMapName currentdict /CMap defineresource pop",
            "end",
            "end",
        ]
        return "\n".join(lines).encode("ascii")


def font_file() -> bytes:
    """The TrueType font: three glyphs, each a contour of two points, which has a box and no area.

    It has all the tables that the OpenType specification requires, since some programs load no font without them.
    """
    outlines = [_glyph(width) for width in _ADVANCES]
    ends = [sum(map(len, outlines[:count])) for count in range(len(outlines) + 1)]
    tables = {
        b"OS/2": _os2(),
        b"cmap": _cmap(),
        b"glyf": b"".join(outlines),
        # Version, revision, checksum (filled in below), magic number, flags, em, dates, box, style, smallest size,
        # direction, format of loca and of glyf.
        b"head": struct.pack(
            ">4I2H2q4h2H3h",
            0x10000, 0x10000, 0, 0x5F0F3CF5, 3, EM, 0, 0, 0, DESCENDER, EM, ASCENDER, 0, 8, 2, 1, 0,
        ),
        # Version, ascender, descender, gap, widest, bearings, extent, caret, reserved, format, number of widths.
        b"hhea": struct.pack(
            ">I3hH11hH", 0x10000, ASCENDER, DESCENDER, 0, EM, 0, 0, EM, 1, 0, 0, *(0,) * 5, len(_ADVANCES)
        ),
        b"hmtx": b"".join(struct.pack(">Hh", width, 0) for width in _ADVANCES),
        b"loca": struct.pack(f">{len(ends)}I", *ends),
        # Version, glyphs, most points and contours of one, none composed, zones, no instructions.
        b"maxp": struct.pack(">I14H", 0x10000, len(_ADVANCES), 2, 1, 0, 0, 1, *(0,) * 8),
        b"name": _names(),
        # Version 3: glyphs have no names.
        b"post": struct.pack(">IihhIIIII", 0x30000, 0, -100, 50, 0, 0, 0, 0, 0),
    }  # fmt: skip
    return _assembled(tables)


def _glyph(width: int) -> bytes:
    """A simple glyph: its box, and one contour from corner to corner, without instructions."""
    header = struct.pack(">5h", 1, 0, DESCENDER, width, ASCENDER)
    points = struct.pack(">HH2B4h", 1, 0, 1, 1, 0, width, DESCENDER, ASCENDER - DESCENDER)
    return header + points


def _cmap() -> bytes:
    """Windows' Unicode map (format 4) of the space alone, to glyph 1."""
    segments = struct.pack(">2HH2H2h2H", 0x20, 0xFFFF, 0, 0x20, 0xFFFF, 1 - 0x20, 1, 0, 0)
    table = struct.pack(">7H", 4, 14 + len(segments), 0, 4, 4, 1, 0) + segments
    return struct.pack(">4HI", 0, 1, 3, 1, 12) + table


def _names() -> bytes:
    """Family, style, identity, full, version and PostScript's name, for Windows in English."""
    names = {1: NAME, 2: "Regular", 3: NAME, 4: NAME, 5: "Version 1.0", 6: NAME}
    texts = {number: text.encode("utf-16-be") for number, text in names.items()}
    records, place = b"", 0
    for number, text in texts.items():
        records += struct.pack(">6H", 3, 1, 0x409, number, len(text), place)
        place += len(text)
    return struct.pack(">3H", 0, len(names), 6 + len(records)) + records + b"".join(texts.values())


def _os2() -> bytes:
    """Version 4: widths, weight, sizes of sub- and superscripts, panose, coverage, vendor, heights."""
    head = struct.pack(">HhHHH", 4, EM // 2, 400, 5, 0)
    sizes = struct.pack(">11h", 650, 700, 0, 140, 650, 700, 0, 480, 50, 250, 0)
    coverage = struct.pack(">10s4I4s3H", b"", 1, 0, 0, 0, b"NONE", 0x40, 0x20, 0x20)
    metrics = struct.pack(
        ">3h2H2I2h3H", ASCENDER, DESCENDER, 0, ASCENDER, -DESCENDER, 1, 0, EM // 2, ASCENDER, 0, 0x20, 1
    )
    return head + sizes + coverage + metrics


def _assembled(tables: dict[bytes, bytes]) -> bytes:
    """The font of these tables, which are in the order of their tags."""
    count = len(tables)
    power = 1 << (count.bit_length() - 1)
    directory = struct.pack(">I4H", 0x10000, count, 16 * power, power.bit_length() - 1, 16 * (count - power))
    place = len(directory) + 16 * count
    body = b""
    for tag, table in tables.items():
        padded = table + bytes(-len(table) % 4)
        directory += struct.pack(">4s3I", tag, _checksum(padded), place + len(body), len(table))
        body += padded
    font = directory + body
    adjustment = 0xB1B0AFBA - _checksum(font) & 0xFFFFFFFF
    at = place + sum(len(table) + -len(table) % 4 for tag, table in tables.items() if tag < b"head") + 8
    return font[:at] + struct.pack(">I", adjustment) + font[at + 4 :]


def _checksum(data: bytes) -> int:
    words: tuple[int, ...] = struct.unpack(f">{len(data) // 4}I", data)
    return sum(words) & 0xFFFFFFFF

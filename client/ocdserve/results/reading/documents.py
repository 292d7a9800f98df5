# SPDX-License-Identifier: Apache-2.0
"""Readings as documents of text: plain, Markdown, and the table of Tesseract's TSV."""

import re
from collections.abc import Iterator, Sequence

from ocdserve.results.order import Columns
from ocdserve.results.reading.layout import Box, Layout, layouts_of, pages_of
from ocdserve.results.reading.reading import Reading

__all__ = ["TSV_COLUMNS", "to_markdown", "to_text", "to_tsv"]

TSV_COLUMNS = (
    "level", "page_num", "block_num", "par_num", "line_num", "word_num",
    "left", "top", "width", "height", "conf", "text",
)  # fmt: skip
# Tesseract's: page, block, paragraph, line, word.
_PAGE, _BLOCK, _PARAGRAPH, _LINE, _WORD = 1, 2, 3, 4, 5

# What Markdown (CommonMark, GitHub's tables and formulas) takes as its own anywhere, and at the start of a line.
_ANYWHERE = re.compile(r"([\\`*_\[\]<>&~|$])")
_AT_THE_START = re.compile(r"^(?:([#+=:-])|(\d{1,9})([.)])(?=\s|$))")


def to_text(readings: Reading | Sequence[Reading], *, columns: Columns = False) -> str:
    """The plain text of one page or several, with a form feed between pages as pdftotext has it.

    Args:
        readings: One page, or several.
        columns: Whether to read columns one after the other, and from where; as in `Reading.to_text`.

    Raises:
        InvalidInputError: There is no page, or `columns` is not one of these.
    """
    texts = [page.to_text(columns=columns) for page in pages_of(readings)]
    return "\f".join(text + "\n" * bool(text) for text in texts)


def to_markdown(readings: Reading | Sequence[Reading]) -> str:
    """Paragraphs of one page or several, column by column, with what Markdown would interpret escaped.

    Lines of a paragraph stay lines of the file. Pages are separated by a rule (`---`).

    Raises:
        InvalidInputError: There is no page.
    """
    pages = [
        "\n\n".join("\n".join(_escaped(line.text) for line in paragraph) for paragraph in page.paragraphs)
        for page in layouts_of(readings)
    ]
    return "\n\n---\n\n".join(pages).strip("\n") + "\n"


def to_tsv(readings: Reading | Sequence[Reading]) -> str:
    """Tesseract's TSV: `TSV_COLUMNS`, and a row per page, block, paragraph, line and word.

    Boxes are upright and in whole pixels, `conf` is 0 to 100 for words and -1 for other rows. A paragraph is a block of
    its own. Nothing is quoted: read it with `csv.QUOTE_NONE`.

    Raises:
        InvalidInputError: There is no page.
    """
    rows = [TSV_COLUMNS, *(row for page in layouts_of(readings) for row in _rows(page))]
    return "".join("\t".join(row) + "\n" for row in rows)


def _rows(page: Layout) -> Iterator[tuple[str, ...]]:
    def row(level: int, place: tuple[int, ...], box: Box, conf: str = "-1", text: str = "") -> tuple[str, ...]:
        numbers = (level, page.number, *place, *(0,) * (4 - len(place)), box.left, box.top, box.width, box.height)
        return (*map(str, numbers), conf, text)

    yield row(_PAGE, (), Box(0, 0, page.width, page.height))
    for block, paragraph in enumerate(page.paragraphs, 1):
        yield row(_BLOCK, (block,), page.box(*paragraph))
        yield row(_PARAGRAPH, (block, 1), page.box(*paragraph))
        for number, line in enumerate(paragraph, 1):
            yield row(_LINE, (block, 1, number), page.box(line))
            for place, word in enumerate(line.words, 1):
                confidence = f"{100 * word.score:.2f}"
                yield row(_WORD, (block, 1, number, place), page.box(word), confidence, word.text)


def _escaped(text: str) -> str:
    return _AT_THE_START.sub(r"\2\\\1\3", _ANYWHERE.sub(r"\\\1", text))

# SPDX-License-Identifier: Apache-2.0
import csv
import io
import re
import sys
from html import unescape

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ocdserve.contract import InvalidInputError
from ocdserve.results.reading import to_alto, to_hocr, to_markdown, to_searchable_pdf, to_text, to_tsv
from ocdserve.results.reading.characters import clean
from tests.results.reading.pages import RECEIPT, box, reading

ANY_TEXT = st.text(st.characters(max_codepoint=sys.maxunicode), max_size=8)
MARKDOWN = (
    "*a* _b_ `c`", "[x](y) <b> &amp; ~~z~~ \\*", "# h", "- i", "+ j", "1. k", "2) l", "x", "===", "y", "---", "> q",
    "a|b", "|-|-|", "c|d",
)  # fmt: skip
OF_MARKDOWN = st.text(st.sampled_from("a1 .)(#*_-+=>`~\\<&;[]!|$:/@"), max_size=12)


def test_pages_of_plain_text_are_separated_by_form_feeds() -> None:
    page = reading(RECEIPT)
    assert to_text(page) == "TOTAL 4.20 €\nThank you <&>\n谢谢 再见\n"
    assert to_text([page, reading([]), page]) == f"{to_text(page)}\f\f{to_text(page)}"


def test_a_table_has_tesseract_s_columns_and_levels() -> None:
    assert to_tsv(reading(RECEIPT[:1] + RECEIPT[2:])).splitlines() == [
        "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext",
        "1\t1\t0\t0\t0\t0\t0\t0\t400\t300\t-1\t",
        "2\t1\t1\t0\t0\t0\t20\t20\t100\t20\t-1\t",
        "3\t1\t1\t1\t0\t0\t20\t20\t100\t20\t-1\t",
        "4\t1\t1\t1\t1\t0\t20\t20\t100\t20\t-1\t",
        "5\t1\t1\t1\t1\t1\t20\t20\t100\t20\t75.00\tTOTAL",
        "2\t1\t2\t0\t0\t0\t20\t80\t260\t46\t-1\t",
        "3\t1\t2\t1\t0\t0\t20\t80\t260\t46\t-1\t",
        "4\t1\t2\t1\t1\t0\t20\t80\t260\t20\t-1\t",
        "5\t1\t2\t1\t1\t1\t20\t80\t100\t20\t75.00\tThank",
        "5\t1\t2\t1\t1\t2\t140\t80\t60\t20\t75.00\tyou",
        "5\t1\t2\t1\t1\t3\t220\t80\t60\t20\t75.00\t<&>",
        "4\t1\t2\t1\t2\t0\t20\t104\t180\t22\t-1\t",
        "5\t1\t2\t1\t2\t1\t20\t104\t80\t22\t75.00\t谢谢",
        "5\t1\t2\t1\t2\t2\t120\t104\t80\t22\t75.00\t再见",
    ]


def test_an_empty_page_is_a_row() -> None:
    rows = to_tsv([reading([]), reading(RECEIPT[:1], page=5)]).splitlines()
    assert rows[1] == "1\t1\t0\t0\t0\t0\t0\t0\t400\t300\t-1\t"
    assert [row.split("\t")[1] for row in rows[2:]] == ["5"] * 5


@given(st.lists(ANY_TEXT, max_size=5))
def test_any_text_is_read_back_from_a_table(texts: list[str]) -> None:
    lines = [(text, box(10, 30 * index, 190, 20 + 30 * index)) for index, text in enumerate(texts)]
    rows = csv.reader(io.StringIO(to_tsv(reading(lines)), newline="\n"), delimiter="\t", quoting=csv.QUOTE_NONE)
    words = [row[-1] for row in rows if row[0] == "5"]
    assert sorted(words) == sorted(word for text in texts for word in clean(text).split())


def test_markdown_has_paragraphs_and_rules_between_pages() -> None:
    page = reading([*RECEIPT[2:], ("# *1*", box(20, 200, 90, 220)), ("1. a", box(20, 260, 90, 280))])
    text = "Thank you \\<\\&\\>\n谢谢 再见\n\n\\# \\*1\\*\n\n1\\. a"
    assert to_markdown(page) == text + "\n"
    assert to_markdown([page, reading([]), page]) == f"{text}\n\n---\n\n\n\n---\n\n{text}\n"


@given(st.lists(OF_MARKDOWN | ANY_TEXT, min_size=1, max_size=4), st.booleans())
@example(list(MARKDOWN), True)
@example(list(MARKDOWN), False)
def test_markdown_shows_the_text_itself(texts: list[str], is_paragraph: bool) -> None:
    """CommonMark, by markdown-it, with GitHub's tables, makes nothing of it but paragraphs of the same text."""
    step = 23 if is_paragraph else 60
    lines = [(text, box(10, step * index, 190, 20 + step * index)) for index, text in enumerate(texts)]
    written = to_markdown(reading(lines, (400, 1000)))
    shown = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"]).render(written)
    paragraphs = re.findall(r"<p>(.*?)</p>\n", shown, re.S)
    assert re.sub(r"<p>.*?</p>\n", "", shown, flags=re.S) == ""
    assert "<" not in "".join(paragraphs)
    assert unescape("\n".join(paragraphs)).split("\n") == [text for text in map(clean, texts) if text] or not paragraphs


def test_a_reading_writes_itself() -> None:
    page, white = reading(RECEIPT), np.full((300, 400, 3), 255, np.uint8)
    assert page.to_tsv() == to_tsv([page]) and page.to_markdown() == to_markdown([page])
    assert page.to_hocr("a.jpg") == to_hocr([page], ["a.jpg"]) and page.to_alto("a.jpg") == to_alto([page], ["a.jpg"])
    assert page.to_searchable_pdf(white, dpi=100) == to_searchable_pdf([page], [white], dpi=100)


@pytest.mark.parametrize("write", [to_text, to_tsv, to_markdown])
def test_a_document_needs_a_page(write: object) -> None:
    assert callable(write)
    with pytest.raises(InvalidInputError, match="at least one; got none"):
        write([])

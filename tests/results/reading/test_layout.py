# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.contract import InvalidInputError
from ocdserve.results.reading.characters import clean, clusters, is_right_to_left, visual_order
from ocdserve.results.reading.layout import Layout, PlacedLine, layouts_of
from tests.results.reading.pages import RECEIPT, Corners, box, reading, turned


def only_line(page: Layout) -> PlacedLine:
    (line,) = page.lines
    return line


def test_a_page_is_paragraphs_of_lines_of_words() -> None:
    (page,) = layouts_of(reading(RECEIPT))
    texts = [[[word.text for word in line.words] for line in paragraph] for paragraph in page.paragraphs]
    assert texts == [[["TOTAL"]], [["4.20", "€"]], [["Thank", "you", "<&>"], ["谢谢", "再见"]]]
    assert (page.width, page.height, page.number) == (400, 300, 1)


def test_detections_next_to_each_other_are_one_line() -> None:
    (page,) = layouts_of(reading([("you", box(75, 11, 120, 31)), ("Thank", box(10, 10, 70, 30))]))
    line = only_line(page)
    assert line.text == "Thank you" and [word.has_space for word in line.words] == [True, False]
    assert page.box(line) == (10, 10, 120, 31)


def test_the_words_of_a_text_share_its_box_by_their_widths() -> None:
    (page,) = layouts_of(reading([("ab 上海 c", box(100, 10, 180, 30))]))
    boxes = [page.box(word) for word in only_line(page).words]
    # 2 + 1 + 4 + 1 + 1 halves of 80 pixels.
    assert boxes == [(100, 10, 118, 30), (127, 10, 162, 30), (171, 10, 180, 30)]


def test_full_width_characters_are_as_wide_as_ideographs() -> None:
    (page,) = layouts_of(reading([("\uff21\uff22 a", box(100, 10, 160, 30))]))
    assert [page.box(word)[::2] for word in only_line(page).words] == [(100, 140), (150, 160)]


def test_words_that_were_read_keep_their_boxes_scores_and_spaces() -> None:
    words = [[("上", box(10, 10, 29, 30)), ("海", box(30, 11, 50, 31)), ("x", box(60, 10, 70, 30))]]
    (page,) = layouts_of(reading([("上海 x", box(10, 10, 70, 31))], words=words))
    line = only_line(page)
    assert line.text == "上海 x"
    assert [(page.box(word), word.score) for word in line.words] == [
        ((10, 10, 29, 30), 0.5), ((30, 11, 50, 31), 0.5), ((60, 10, 70, 30), 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize("degrees", [0, 15, 60, 90, 135, 180, 225, 270, 345])
def test_a_line_s_quad_begins_where_it_is_read_whatever_the_order_of_the_detector_s_corners(degrees: int) -> None:
    """The detector's corners begin at the top left of the picture; the words say where the text begins."""
    whole, first, last = (
        turned(box(*sides), degrees) for sides in ((100, 140, 300, 160), (100, 140, 180, 160), (200, 140, 300, 160))
    )
    for turn in range(4):
        found, *parts = (np.roll(quad, turn, axis=0).tolist() for quad in (whole, first, last))
        tall = [[("one", parts[0]), ("two", parts[1])]]
        (page,) = layouts_of(reading([("one two", found)], words=tall))
        if turn in (0, 2):  # of the others the first edge is a short one: no line of a detector
            np.testing.assert_allclose(only_line(page).quad, whole, atol=1e-3)
            np.testing.assert_allclose(only_line(page).words[0].quad, first, atol=1e-3)


def test_a_column_is_read_downwards() -> None:
    (page,) = layouts_of(reading([("one two", box(100, 20, 120, 160))]))
    one, two = only_line(page).words
    assert (page.box(one), page.box(two)) == ((100, 20, 120, 80), (100, 100, 120, 160))
    assert only_line(page).angle_deg == 90
    np.testing.assert_allclose(one.quad, [[120, 20], [120, 80], [100, 80], [100, 20]])


def test_an_upside_down_column_is_read_upwards() -> None:
    words = [[("one", box(100, 100, 120, 160)), ("two", box(100, 20, 120, 80))]]
    (page,) = layouts_of(reading([("one two", box(100, 20, 120, 160))], words=words))
    assert only_line(page).angle_deg == -90


def test_a_single_word_that_begins_at_the_right_is_upside_down() -> None:
    upside_down = [[("one", turned(box(100, 140, 300, 160), 180))]]
    (page,) = layouts_of(reading([("one", box(100, 140, 300, 160))], words=upside_down))
    assert abs(only_line(page).angle_deg) == 180


def test_words_of_right_to_left_scripts_begin_at_the_right() -> None:
    (page,) = layouts_of(reading([("שלום עולם", box(100, 10, 190, 30)), ("12.50", box(40, 10, 95, 30))]))
    line = only_line(page)
    assert line.is_right_to_left and line.text == "שלום עולם 12.50"
    assert [page.box(word) for word in line.words] == [(150, 10, 190, 30), (100, 10, 140, 30), (40, 10, 95, 30)]


def test_boxes_end_at_the_edges_of_the_page() -> None:
    (page,) = layouts_of(reading([("x", box(-5, -5, 500, 20.6))]))
    assert page.box(only_line(page)) == (0, 0, 400, 21)


def test_lines_without_text_are_left_out() -> None:
    (page,) = layouts_of(reading([("", box(0, 0, 50, 20)), (" \t", box(0, 100, 50, 120))]))
    assert page.paragraphs == ()


@pytest.mark.parametrize("pages", [[], ["text"], [None]])
def test_a_document_without_pages_is_refused(pages: list[object]) -> None:
    with pytest.raises(
        InvalidInputError, match=r"a document is made of one Reading .*at least one; got (none|str|NoneType)"
    ):
        layouts_of(pages)  # type: ignore[arg-type]


def test_pages_without_numbers_are_counted() -> None:
    pages = layouts_of([reading([]), reading([], page=7), reading([])])
    assert [page.number for page in pages] == [1, 7, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tea\t 4.20\r\n", "Tea 4.20"),
        ("a\0b\x1bc\x7fd\x85e", "a�b�c�d e"),
        ("\ud800\ufffe😀\U000e0001", "��😀\U000e0001"),
        ("a\u3000b\u00a0c", "a b c"),
    ],
)
def test_texts_are_cleaned_of_what_documents_cannot_hold(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e\u0301a", ["e\u0301", "a"]),
        ("कि", ["कि"]),
        ("👩\u200d🚀x", ["👩\u200d🚀", "x"]),
        ("👍🏽", ["👍🏽"]),
        ("\u0301a \u0301", ["\u0301", "a", " ", "\u0301"]),
        ("a\u200d b", ["a\u200d", " ", "b"]),
    ],
)
def test_marks_and_joined_characters_stay_together(text: str, expected: list[str]) -> None:
    assert clusters(text) == expected


# Logical text and what is seen from left to right, as python-bidi (FriBidi) has it.
@pytest.mark.parametrize(
    ("logical", "seen"),
    [
        ("abc 12", "abc 12"),
        ("אבג", "גבא"),
        ("car אבג 12 בא.", "car אב 12 גבא."),
        ("אבג abc 12.50 ד", "ד abc 12.50 גבא"),
        ('סה"כ 12.50 ₪', '₪ 12.50 כ"הס'),
        ("١٢٫٥٠ درهم", "مهرد ١٢٫٥٠"),  # noqa: RUF001 they are Arabic digits
        ("total: אב, גד!", "total: דג ,בא!"),
        ("12/05 אב", "בא 12/05"),
    ],
)
def test_right_to_left_text_is_seen_in_the_order_of_unicode(logical: str, seen: str) -> None:
    found = clusters(logical)
    assert "".join(found[index] for index in visual_order(found)) == seen


def test_the_first_letter_decides_the_direction() -> None:
    assert [is_right_to_left(text) for text in ("12 אב a", "a אב", "12.50", "", "درهم")] == [
        True,
        False,
        False,
        False,
        True,
    ]


texts = st.text(st.characters(min_codepoint=0, max_codepoint=sys.maxunicode), max_size=12)


@given(texts)
def test_the_visual_order_is_a_permutation(text: str) -> None:
    found = clusters(clean(text))
    assert sorted(visual_order(found)) == list(range(len(found)))
    assert "".join(found) == clean(text)


@given(st.lists(texts, max_size=4), st.floats(0, 360), st.booleans())
def test_every_word_is_placed_within_its_line(lines: list[str], degrees: float, is_tall: bool) -> None:
    sides = (190, 20, 210, 220) if is_tall else (100, 20, 300, 40)
    places: list[Corners] = [
        turned(np.add(box(*sides), (0, 30 * index)).tolist(), degrees) for index in range(len(lines))
    ]
    source = reading(list(zip(lines, places, strict=True)), (400, 400))
    (page,) = layouts_of(source)
    words = [word for line in page.lines for word in line.words]
    assert sorted(word.text for word in words) == sorted(part for text in lines for part in clean(text).split())
    for line in page.lines:
        assert np.isfinite(line.quad).all()
        low, high = source.quads.reshape(-1, 2).min(axis=0), source.quads.reshape(-1, 2).max(axis=0)
        for word in line.words:
            assert (word.quad >= low - 0.01).all() and (word.quad <= high + 0.01).all()
            assert np.linalg.norm(word.quad[1] - word.quad[0]) > 0

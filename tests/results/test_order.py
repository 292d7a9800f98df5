# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError
from ocdserve.results import lines, merged_quads, paragraphs, reading_order
from ocdserve.results.detections import Detections
from ocdserve.results.quads import order_corners


def box(x: float, y: float, width: float, height: float = 10) -> list[list[float]]:
    return [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]


def quads(*boxes: list[list[float]]) -> NDArray[np.float32]:
    return np.array(boxes, np.float32)


def turn(page: NDArray[np.float32], angle_deg: float) -> NDArray[np.float32]:
    """The page rotated clockwise around (500, 500), by complex numbers."""
    points = (page[..., 0] + 1j * page[..., 1] - (500 + 500j)) * np.exp(1j * np.deg2rad(angle_deg)) + (500 + 500j)
    return np.stack([points.real, points.imag], axis=-1).astype(np.float32)


# Two columns of three lines each under a heading that spans both, and a page number below.
NEWSPAPER = quads(
    box(100, 50, 800, 30),
    *(box(100, y, 380) for y in (100, 115, 130)),
    *(box(520, y, 380) for y in (104, 119, 134)),
    box(480, 170, 40),
)
# Items on the left, prices on the right.
RECEIPT = quads(
    box(100, 50, 200, 20), box(40, 100, 150), box(400, 101, 50), box(40, 120, 90), box(405, 119, 45), box(40, 140, 60)
)
# A heading, a paragraph of three lines (the last one short) and one of two, the second with two words in a line.
TEXT = quads(
    box(50, 20, 200, 24),
    *(box(50, y, width) for y, width in ((80, 400), (95, 395), (110, 90))),
    *(box(50, 150, 250), box(306, 150, 140), box(50, 165, 380)),
)


def test_rows_are_read_across() -> None:
    assert reading_order(RECEIPT).tolist() == [0, 1, 2, 3, 4, 5]
    assert reading_order(RECEIPT[[4, 5, 1, 0, 3, 2]]).tolist() == [3, 2, 5, 4, 0, 1]


def test_columns_are_read_down_one_after_the_other() -> None:
    shuffled = [7, 4, 1, 5, 0, 6, 3, 2]
    order = reading_order(NEWSPAPER[shuffled], columns=True)
    assert [shuffled[index] for index in order] == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("angle", [-60, -12, 3, 25, 75])
def test_a_rotated_page_is_read_like_an_upright_one(angle: float, columns: bool) -> None:
    for page in (RECEIPT, NEWSPAPER, TEXT):
        straight = reading_order(page, columns=columns)
        assert reading_order(turn(page, angle), columns=columns).tolist() == straight.tolist()


@given(st.floats(-80, 80), st.permutations(range(12)), st.lists(st.integers(20, 90), min_size=12, max_size=12))
def test_the_order_is_invariant_to_rotation_and_permutation(
    angle: float, shuffled: list[int], widths: list[int]
) -> None:
    page = quads(*(box(100 * (index % 4), 40 * (index // 4), widths[index]) for index in range(12)))
    order = reading_order(turn(page, angle)[shuffled])
    assert [shuffled[index] for index in order] == list(range(12))


# Five columns of a vertical book, from the right; the second is in two pieces, the last one short.
BOOK = quads(
    box(820, 100, 30, 700),
    box(750, 100, 30, 300),
    box(750, 440, 30, 360),
    box(680, 100, 30, 700),
    box(610, 130, 30, 670),
    box(540, 100, 30, 90),
)
# Two tiers of three columns each under a heading; the upper tier is read first.
TIERS = quads(
    box(500, 20, 350, 40),
    *(box(x, 140, 30, 300) for x in (820, 750, 680)),
    *(box(x, 520, 30, height) for x, height in ((815, 300), (745, 300), (675, 120))),
)
# An Arabic page: two columns of two lines, the first of which consists of two words.
ARABIC = quads(
    box(100, 50, 800, 30),
    *(box(760, 100, 140), box(520, 100, 220), box(520, 115, 380)),
    *(box(100, 104, 380), box(300, 119, 180)),
)


def as_detected(page: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([order_corners(quad) for quad in page])


@pytest.mark.parametrize("angle", [-10, -5, -3, -1, 0, 1, 3, 5, 10])
@pytest.mark.parametrize("page", [BOOK, TIERS, ARABIC], ids=["book", "tiers", "Arabic"])
def test_right_to_left_columns_begin_at_the_right(page: NDArray[np.float32], angle: float) -> None:
    tilted = as_detected(turn(page, angle))
    shuffled = np.random.default_rng(1).permutation(len(page))
    for given_angle in (None, angle):
        order = reading_order(tilted[shuffled], columns="right-to-left", angle_deg=given_angle)
        assert shuffled[order].tolist() == list(range(len(page)))


@given(st.floats(-10, 10), st.permutations(range(12)), st.lists(st.integers(220, 240), min_size=12, max_size=12))
def test_pieces_of_vertical_columns_are_read_downwards(angle: float, shuffled: list[int], lengths: list[int]) -> None:
    page = quads(*(box(900 - 60 * (index // 4), 260 * (index % 4), 30, lengths[index]) for index in range(12)))
    order = reading_order(as_detected(turn(page, angle))[shuffled], columns="right-to-left")
    assert [shuffled[index] for index in order] == list(range(12))


def test_vertical_columns_are_read_from_the_left_unless_the_right_is_asked_for() -> None:
    assert reading_order(BOOK, columns=True).tolist()[0] == 5
    assert len(reading_order(np.empty((0, 4, 2)), columns="right-to-left")) == 0


def test_another_word_for_columns_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"columns must be True, False or 'right-to-left'; got 'rtl'"):
        reading_order(BOOK, columns="rtl")  # type: ignore[arg-type]


def test_a_given_angle_reads_an_upside_down_page() -> None:
    # The detector's corners start at the visual top left, so they do not give the text's direction.
    page = turn(RECEIPT, 180)[:, [2, 3, 0, 1]]
    assert reading_order(page, angle_deg=180).tolist() == [0, 1, 2, 3, 4, 5]
    assert reading_order(page).tolist()[0] == 5


def test_a_given_angle_reads_a_sideways_page() -> None:
    page = turn(RECEIPT, 90)[:, [3, 0, 1, 2]]
    assert reading_order(page, angle_deg=90).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_drifting_line_stays_one_line() -> None:
    # Each word is 3 pixels lower than the one before: after five words by more than a height.
    page = quads(*(box(100 * index, 3 * index, 90) for index in range(5)), box(0, 14, 95))
    assert [row.tolist() for row in lines(page)] == [[0, 1, 2, 3, 4], [5]]


def test_a_wide_space_splits_lines_but_not_rows() -> None:
    assert [row.tolist() for row in lines(RECEIPT)] == [[0], [1], [2], [4], [3], [5]]


def test_lines_close_below_each_other_make_a_paragraph() -> None:
    assert [group.tolist() for group in paragraphs(TEXT)] == [[0], [1, 2, 3], [4, 5, 6]]
    assert [group.tolist() for group in paragraphs(turn(TEXT, 30))] == [[0], [1, 2, 3], [4, 5, 6]]


def test_columns_form_separate_paragraphs() -> None:
    assert [group.tolist() for group in paragraphs(NEWSPAPER)] == [[0], [1, 2, 3], [4, 5, 6], [7]]


def test_a_merged_group_has_the_enclosing_rectangle_and_the_area_weighted_mean_score() -> None:
    merged, scores = merged_quads(TEXT, np.array([1, 0.9, 0.9, 0.9, 1, 0.5, 0], np.float32), [np.array([4, 5])])
    assert merged.tolist() == [box(50, 150, 396)]
    assert scores.tolist() == [pytest.approx((250 * 1 + 140 * 0.5) / 390)]


def test_no_quads_form_no_groups() -> None:
    nothing = np.empty((0, 4, 2), np.float32)
    assert reading_order(nothing).tolist() == []
    assert (lines(nothing), paragraphs(nothing)) == ((), ())


def test_the_methods_sort_and_merge_all_fields() -> None:
    polygons = tuple(np.full((3, 2), index, np.float32) for index in range(6))
    found = Detections(RECEIPT[::-1].copy(), np.linspace(0.4, 0.9, 6, dtype=np.float32), 500, 200, polygons, 3.0, "id")
    ordered = found.reading_order()
    assert ordered.quads.tolist() == RECEIPT.tolist()
    assert ordered.scores.tolist() == found.scores[::-1].tolist()
    assert ordered.polygons is not None
    assert [int(polygon[0, 0]) for polygon in ordered.polygons] == [5, 4, 3, 2, 1, 0]
    assert (ordered.width, ordered.latency_ms, ordered.request_id) == (500, 3.0, "id")
    from_the_right = found.reading_order(columns="right-to-left")
    assert from_the_right.quads.tolist() == RECEIPT[[2, 4, 0, 1, 3, 5]].tolist()
    assert len(found.merged(found.paragraphs())) == len(found.paragraphs())
    assert found.merged(found.lines()).polygons is None

# SPDX-License-Identifier: Apache-2.0
"""Which lines of a page are upside down."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.results.reading.direction import Direction, from_their_text
from ocdserve.results.reading.lines import LinePlace

# Width, whether it is a column, and its scores as it is and turned.
Case = tuple[int, bool, float, float]


def decided(*cases: Case) -> tuple[list[list[int]], list[bool]]:
    """What was read turned, one after the other, and which lines are upside down."""
    places = [LinePlace((48, width), np.zeros((4, 2), np.float32), column, np.eye(3)) for width, column, *_ in cases]
    direction, asked = Direction([upright for *_, upright, _ in cases], places, 0.9), []
    while indices := direction.next_lines():
        asked.append(indices)
        direction.add(indices, [cases[index][3] for index in indices])
    return asked, direction.turned()


def test_lines_that_read_well_are_read_once() -> None:
    assert decided((200, False, 0.9, 1.0), (200, False, 1.0, 1.0)) == ([], [False, False])
    assert decided() == ([], [])


def test_a_line_that_reads_better_turned_is_turned_in_an_upright_page() -> None:
    lines = [(100, False, 0.5, 0.95), (100, False, 0.8, 0.85), (300, False, 0.99, 0.1)]
    assert decided(*lines) == ([[0, 1]], [True, False, False])


def test_the_lines_of_an_upside_down_page_follow_the_majority_by_width() -> None:
    lines = [
        (300, False, 0.4, 0.95),
        (100, False, 0.95, 0.9),  # reads well both ways: within the margin it follows
        (150, False, 0.99, 0.5),  # does not
        (60, False, 1.0, 0.2),  # a narrow one has no say
    ]
    assert decided(*lines) == ([[0], [1, 2, 3]], [True, True, False, True])


def test_narrow_lines_are_not_turned_by_themselves() -> None:
    assert decided((95, False, 0.1, 1.0)) == ([], [False])
    assert decided((96, False, 0.1, 1.0)) == ([[0]], [True])


def test_columns_vote_apart_from_horizontal_lines() -> None:
    lines = [(300, True, 0.3, 0.99), (500, False, 0.99, 0.2), (50, True, 0.7, 0.6), (50, False, 0.7, 0.6)]
    assert decided(*lines) == ([[0], [2]], [True, False, True, False])


@given(
    st.lists(
        st.tuples(st.integers(1, 600), st.booleans(), *[st.sampled_from([0, 0.2, 0.5, 0.85, 0.95, 1.0])] * 2),
        max_size=12,
    )
)
def test_every_line_is_read_turned_at_most_once_and_only_read_ones_are_turned(lines: list[Case]) -> None:
    asked, turned = decided(*lines)
    flat = [index for indices in asked for index in indices]
    assert len(flat) == len(set(flat)) and len(asked) <= 2
    assert {index for index, is_turned in enumerate(turned) if is_turned} <= set(flat)


def test_quads_begin_where_their_text_does() -> None:
    tall = np.array([[0, 0], [10, 0], [10, 90], [0, 90]], np.float32)
    cases = [
        (200, True, "Total 42", False, 1),  # down a page that is turned clockwise
        (200, True, "Total 42", True, 3),
        (200, True, "出口 2", False, 0),  # a column
        (60, True, "7", False, 0),  # a narrow character
        (200, False, "Total 42", False, 0),
        (200, False, "Total 42", True, 2),
    ]
    widths, columns, texts, upside_down, first = zip(*cases, strict=True)
    places = [LinePlace((48, width), tall, column, np.eye(3)) for width, column in zip(widths, columns, strict=True)]
    quads = from_their_text(np.stack([tall] * len(cases)), places, texts, upside_down)
    assert quads[:, 0].tolist() == [tall[index].tolist() for index in first]
    assert [quad.sum(axis=0).tolist() for quad in quads] == [[20, 180]] * len(cases)

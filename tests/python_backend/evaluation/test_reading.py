# SPDX-License-Identifier: Apache-2.0
"""The figures of reading, against distances by the textbook's recursion and counts by hand."""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.figures import Counts
from ocdserve.backend.evaluation.reading import (
    ReadingCounts,
    edit_distance,
    match_reading,
    total_reading,
)


@cache
def _by_recursion(first: str, second: str) -> int:
    """The distance by its definition."""
    if not first or not second:
        return len(first) + len(second)
    replaced = _by_recursion(first[1:], second[1:]) + (first[0] != second[0])
    return min(replaced, _by_recursion(first[1:], second) + 1, _by_recursion(first, second[1:]) + 1)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("intention", "execution", 5),
        ("TOTAL 29.20", "T0TAL 29,2", 3),
        ("東京駅", "東京都駅", 1),
        ("a" * 200, "a" * 130 + "b" * 70, 70),
        ("x" + "ab" * 100, "ab" * 100 + "y", 2),
    ],
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


def test_edit_distance_of_random_texts_is_that_of_its_definition() -> None:
    random = np.random.default_rng(18)
    for _ in range(200):
        first, second = ("".join(random.choice(list("abc "), random.integers(0, 9))) for _ in range(2))
        assert edit_distance(first, second) == _by_recursion(first, second), (first, second)


def _box(x: float, y: float, width: float = 100, height: float = 20) -> NDArray[np.float64]:
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)


def test_a_page_is_counted_by_boxes_and_texts() -> None:
    truth = Truth(
        (_box(0, 0), _box(0, 40), _box(0, 80), _box(0, 120), _box(0, 160), _box(0, 200)),
        (False, False, False, False, True, False),
        ("TOTAL  4.50", "Cash", "Change", "missing", None, None),
    )
    quads = np.array([_box(4, 2), _box(0, 40), _box(0, 89), _box(0, 80), _box(0, 160), _box(0, 200), _box(500, 0)])
    texts = ["total 4.50 ", "Cosh", "Change", "Chang e", "anything", "anything", "ghost"]
    counts = match_reading(quads, texts, truth)
    # The first two are paired, of the third's two boxes the one with an IoU above 0.5; the fourth is missed, the
    # last box is a false one, and two are don't-care. Exact is the first.
    assert counts == ReadingCounts(
        lines=Counts(matched=1, detections=5, truths=4),
        # Read: total 4.50 cosh change chang e ghost; truth: total 4.50 cash change missing.
        words=Counts(matched=3, detections=7, truths=5),
        paired=3,
        edits=0 + 1 + 1,
        characters=10 + 4 + 6,
        missed=7,
    )
    assert counts.lines.hmean == pytest.approx(2 / 9)
    assert (counts.cer, counts.end_to_end_cer, counts.exact) == pytest.approx((2 / 20, 9 / 27, 1 / 3))


def test_counts_are_summed_and_empty_ones_give_zeros() -> None:
    page = match_reading(np.array([_box(0, 0)]), ["EXIT"], Truth((_box(0, 0),), (False,), ("Exit",)))
    nothing = match_reading(np.empty((0, 4, 2)), [], Truth((), (), ()))
    both = total_reading([page, nothing, page])
    assert both == ReadingCounts(Counts(2, 2, 2), Counts(2, 2, 2), 2, 0, 8, 0)
    assert both.to_dict() == {
        "reading_hmean": 1.0,
        "reading_precision": 1.0,
        "reading_recall": 1.0,
        "words_hmean": 1.0,
        "exact_lines": 1.0,
        "cer": 0.0,
        "end_to_end_cer": 0.0,
    }
    assert (nothing.cer, nothing.end_to_end_cer, nothing.exact, nothing.lines.hmean) == (0.0, 0.0, 0.0, 0.0)


def test_labels_without_transcriptions_are_dont_care() -> None:
    counts = match_reading(np.array([_box(0, 0)]), ["EXIT"], Truth((_box(0, 0),), (False,)))
    assert counts == ReadingCounts()

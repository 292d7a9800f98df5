# SPDX-License-Identifier: Apache-2.0
"""The trial of a network: which maps of a drawn page pass."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.backend import PostprocessParams
from ocdserve.builder.graph.trial import finds_words, trial_pages

_, WORDS = trial_pages(192, 320, 1)


def drawn(columns: list[tuple[int, int]]) -> NDArray[np.float32]:
    """A map of the rows of the page with words at these columns, shrunk as DB's maps are."""
    probability = np.zeros((192, 320), np.float32)
    for top, bottom in sorted({(int(word[0, 1]), int(word[2, 1])) for word in WORDS.polygons}):
        for left, right in columns:
            probability[top + 7 : bottom - 7, left:right] = 1
    return probability


@pytest.mark.parametrize(
    ("columns", "passes"),
    [
        ([(20, 125), (180, 285)], True),
        # One box for both words of a row, as networks have that learnt lines.
        ([(20, 285)], True),
        # One word of two.
        ([(20, 125)], True),
        ([(60, 80), (220, 240)], False),
        ([], False),
    ],
)
def test_half_of_the_words_are_covered(columns: list[tuple[int, int]], passes: bool) -> None:
    assert finds_words(drawn(columns), WORDS, PostprocessParams()) is passes


def test_a_page_that_is_all_text_does_not_pass() -> None:
    assert not finds_words(np.ones((192, 320), np.float32), WORDS, PostprocessParams())

# SPDX-License-Identifier: Apache-2.0
"""The protocol of ICDAR 2015: literals, an exhaustive search, and `tao_reference` for TAO's order."""

import itertools
from typing import Any

import numpy as np
import pytest
import tao_reference
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.builder.tao.matching import Counts, Truths, count, match, overlaps, total


def box(x: float, y: float, width: float, height: float) -> Any:
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], float)


def laid(truths: list[Any], detections: list[Any], ignored: list[bool] | None = None, scores: Any = None) -> Any:
    values = np.ones(len(detections)) if scores is None else np.array(scores)
    return overlaps(Truths.of(truths, ignored or [False] * len(truths)), detections, values)


class TestPairs:
    def test_half_is_not_enough(self) -> None:
        # Shifted by a third of the width: 2/3 in common of 4/3.
        assert count(laid([box(0, 0, 30, 10)], [box(10, 0, 30, 10)]), "most") == Counts(0, 1, 1)
        assert count(laid([box(0, 0, 30, 10)], [box(9, 0, 30, 10)]), "most") == Counts(1, 1, 1)

    def test_one_detection_matches_one_instance(self) -> None:
        same = box(0, 0, 30, 10)
        assert count(laid([same, same], [same]), "most") == Counts(1, 1, 2)
        assert count(laid([same], [same, same]), "greedy") == Counts(1, 2, 1)

    def test_polygons_with_any_number_of_points_are_compared(self) -> None:
        hexagon = np.array([[0, 0], [20, 0], [30, 5], [20, 10], [0, 10], [-10, 5]], float)
        # The box holds 200 of the hexagon's 300.
        assert match(laid([box(0, 0, 20, 10)], [hexagon]), "most") == [(0, 0)]

    def test_nothing_on_either_side_is_counted_too(self) -> None:
        assert count(laid([], []), "most") == Counts()
        assert count(laid([], [box(0, 0, 3, 3)]), "greedy") == Counts(0, 1, 0)
        assert count(laid([box(0, 0, 3, 3)], []), "greedy") == Counts(0, 0, 1)

    @pytest.mark.parametrize(
        "polygon", [np.zeros((4, 2)), np.array([[0, 0], [5, 5], [5, 0], [0, 5.0]]), np.zeros((2, 2))]
    )
    def test_polygons_without_area_or_with_crossings_count_on_neither_side(self, polygon: Any) -> None:
        assert count(laid([polygon], [polygon]), "greedy") == Counts(0, 0, 0)

    def test_low_scores_can_be_left_out(self) -> None:
        found = laid([box(0, 0, 9, 9)], [box(0, 0, 9, 9), box(50, 0, 9, 9)], scores=[0.6, 0.9])
        assert count(found, "most", 0.6) == Counts(1, 2, 1)
        assert count(found, "most", 0.7) == Counts(0, 1, 1)


class TestDontCare:
    def test_a_detection_that_lies_in_it_for_more_than_half_does_not_count(self) -> None:
        region = box(0, 0, 100, 100)
        assert count(laid([region], [box(90, 0, 20, 10)], [True]), "most") == Counts(0, 1, 0)
        assert count(laid([region], [box(89, 0, 20, 10)], [True]), "most") == Counts(0, 0, 0)

    def test_the_share_is_of_one_region_not_of_several(self) -> None:
        regions = [box(0, 0, 10, 10), box(10, 0, 10, 10)]
        assert count(laid(regions, [box(0, 0, 20, 10)], [True, True]), "most") == Counts(0, 1, 0)

    def test_a_don_t_care_instance_is_never_matched(self) -> None:
        assert match(laid([box(0, 0, 9, 9)], [box(0, 0, 9, 9)], [True]), "greedy") == []


class TestOrder:
    def test_tao_s_count_depends_on_the_order_ours_does_not(self) -> None:
        """Fault 12: the wide detection fits both instances, the narrow one only the first."""
        truths = [box(0, 0, 20, 10), box(0, 0, 30, 10)]
        wide, narrow = box(0, 0, 29, 10), box(0, 0, 14, 10)
        assert count(laid(truths, [wide, narrow]), "greedy") == Counts(1, 2, 2)
        assert count(laid(truths, [narrow, wide]), "greedy") == Counts(2, 2, 2)
        for detections in itertools.permutations([wide, narrow]):
            for order in itertools.permutations(truths):
                assert count(laid(list(order), list(detections)), "most") == Counts(2, 2, 2)

    def test_of_two_that_fit_the_better_is_taken(self) -> None:
        found = [box(0, 0, 16, 10), box(0, 0, 20, 10)]
        assert match(laid([box(0, 0, 20, 10)], found), "most") == [(0, 1)]
        assert match(laid([box(0, 0, 20, 10)], found), "greedy") == [(0, 0)]


BOXES = st.builds(box, st.integers(0, 12), st.integers(0, 6), st.integers(4, 14), st.integers(4, 10))


class TestAgainstIndependentCounts:
    @given(st.lists(BOXES, max_size=5), st.lists(BOXES, max_size=5))
    def test_as_many_are_matched_as_an_exhaustive_search_finds(self, truths: list[Any], detections: list[Any]) -> None:
        found = laid(truths, detections)
        allowed = {(int(t), int(d)) for t, d in found.pairs}
        most = 0
        for chosen in itertools.permutations(range(len(detections)), min(len(truths), len(detections))):
            for picked in itertools.combinations(range(len(truths)), len(chosen)):
                most = max(most, sum(pair in allowed for pair in zip(picked, chosen, strict=True)))
        assert count(found, "most").matched == most
        pairs = match(found, "most")
        assert set(pairs) <= allowed
        assert len({t for t, _ in pairs}) == len({d for _, d in pairs}) == len(pairs)

    @given(st.lists(st.tuples(BOXES, st.booleans()), max_size=6), st.lists(BOXES, max_size=6))
    def test_greedy_counts_equal_tao_s(self, labels: list[tuple[Any, bool]], detections: list[Any]) -> None:
        expected = tao_reference.counts_of(labels, detections)
        found = laid([polygon for polygon, _ in labels], detections, [ignored for _, ignored in labels])
        counts = count(found, "greedy")
        assert (counts.matched, counts.detections, counts.truths) == expected


class TestFigures:
    def test_they_follow_from_the_sums_over_all_images(self) -> None:
        counts = total([Counts(3, 4, 6), Counts(0, 1, 0), Counts(1, 1, 2)])
        assert (counts.precision, counts.recall) == (4 / 6, 4 / 8)
        assert counts.hmean() == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
        assert counts.hmean(tao=True) == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5 + 1e-8), abs=1e-15)

    def test_nothing_at_all_is_zero(self) -> None:
        assert (Counts().precision, Counts().recall, Counts().hmean(), Counts().hmean(tao=True)) == (0, 0, 0, 0)

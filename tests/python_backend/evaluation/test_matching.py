# SPDX-License-Identifier: Apache-2.0
"""The protocol of ICDAR 2015: literals, an exhaustive search, and `tao_reference` for TAO's order."""

import itertools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tao_reference
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.backend.evaluation.dataset import Truth, load_dataset
from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.matching import assign, count, covered, find_overlaps, match


def box(x: float, y: float, width: float = 10, height: float = 10) -> Any:
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], float)


def truth(*polygons: Any, ignored: tuple[Any, ...] = ()) -> Truth:
    arrays = tuple(np.array(polygon, np.float64) for polygon in (*polygons, *ignored))
    return Truth(arrays, (False,) * len(polygons) + (True,) * len(ignored))


def counts(quads: list[Any], known: Truth) -> tuple[int, int, int]:
    result = match(np.array(quads, np.float32).reshape(-1, 4, 2), known)
    return result.matched, result.detections, result.truths


def laid(truths: list[Any], detections: list[Any], ignored: list[bool] | None = None, scores: Any = None) -> Any:
    known = Truth(tuple(truths), tuple(ignored or [False] * len(truths)))
    return find_overlaps(known, detections, None if scores is None else np.array(scores))


class TestMatch:
    def test_the_same_box_matches(self) -> None:
        assert counts([box(0, 0)], truth(box(0, 0))) == (1, 1, 1)

    def test_the_orientation_of_the_corners_does_not_matter(self) -> None:
        assert counts([box(0, 0)[::-1]], truth(box(0, 0))) == (1, 1, 1)

    def test_an_overlap_of_half_is_not_more_than_half(self) -> None:
        # Intersection 50, union 100.
        assert counts([box(0, 0, 5, 10)], truth(box(0, 0, 10, 10))) == (0, 1, 1)
        assert counts([box(0, 0, 5.1, 10)], truth(box(0, 0, 10, 10))) == (1, 1, 1)

    def test_the_overlap_is_a_share_of_the_union_not_of_the_detection(self) -> None:
        # Wholly inside of the truth, but only two fifths of it.
        assert counts([box(0, 0, 4, 10)], truth(box(0, 0, 10, 10))) == (0, 1, 1)

    def test_a_truth_is_matched_once(self) -> None:
        assert counts([box(0, 0), box(0, 0)], truth(box(0, 0))) == (1, 2, 1)

    def test_a_detection_matches_once(self) -> None:
        assert counts([box(0, 0)], truth(box(0, 0), box(0, 0))) == (1, 1, 2)

    def test_the_first_that_overlaps_enough_is_taken_not_the_best(self) -> None:
        # The first truth takes the first detection, though the second truth fits that one only.
        first, second = box(0, 0, 10, 10), box(0, 0, 10, 14)
        detections = [box(0, 0, 10, 12), box(0, 0, 10, 9)]
        assert counts(detections, truth(first, second)) == (2, 2, 2)
        # Turned around, the wide truth takes it and the narrow one is left with the other.
        assert counts([box(0, 0, 10, 12), box(0, 0, 10, 6)], truth(first, second)) == (1, 2, 2)
        assert counts([box(0, 0, 10, 6), box(0, 0, 10, 12)], truth(first, second)) == (2, 2, 2)

    def test_a_detection_in_a_don_t_care_region_does_not_count(self) -> None:
        assert counts([box(0, 0), box(50, 50)], truth(box(0, 0), ignored=(box(45, 45, 40, 40),))) == (1, 1, 1)

    def test_a_detection_half_in_a_don_t_care_region_counts(self) -> None:
        region = box(0, 0, 100, 100)
        assert counts([box(95, 0, 10, 10)], truth(ignored=(region,))) == (0, 1, 0)
        assert counts([box(94.9, 0, 10, 10)], truth(ignored=(region,))) == (0, 0, 0)

    def test_the_shares_in_two_don_t_care_regions_are_not_summed(self) -> None:
        regions = (box(0, 0, 4, 10), box(6, 0, 4, 10))
        assert counts([box(0, 0)], truth(ignored=regions)) == (0, 1, 0)

    def test_don_t_care_truths_are_not_missed(self) -> None:
        assert counts([], truth(ignored=(box(0, 0),))) == (0, 0, 0)

    def test_a_detection_in_a_don_t_care_region_does_not_match_a_truth(self) -> None:
        assert counts([box(0, 0)], truth(box(0, 0), ignored=(box(0, 0),))) == (0, 0, 1)

    def test_no_detections_and_no_truths_are_counted(self) -> None:
        assert counts([], truth()) == (0, 0, 0)
        assert counts([], truth(box(0, 0))) == (0, 0, 1)
        assert counts([box(0, 0)], truth()) == (0, 1, 0)

    @pytest.mark.parametrize(
        "invalid",
        [
            [[0, 0], [10, 10], [10, 0], [0, 10]],  # crosses itself
            [[0, 0], [10, 0], [10, 0], [0, 0]],  # no area
            [[3, 3]] * 4,
        ],
    )
    def test_invalid_polygons_are_left_out_on_both_sides(self, invalid: list[list[float]]) -> None:
        assert counts([invalid, box(50, 50)], truth(invalid, box(50, 50))) == (1, 1, 1)
        assert counts([box(0, 0)], truth(ignored=(invalid,))) == (0, 1, 0)

    def test_a_slanted_pair_is_measured_exactly(self) -> None:
        # Two diamonds of area 200, shifted by half their diagonal along the axis: a quarter in common.
        diamond = [[10, 0], [20, 10], [10, 20], [0, 10]]
        shifted = [[x + 10, y] for x, y in diamond]
        assert counts([shifted], truth(diamond)) == (0, 1, 1)
        near = [[x + 2, y] for x, y in diamond]
        # In common: a diamond of diagonals 18 and 18, 162 of 400 - 162.
        assert counts([near], truth(diamond)) == (1, 1, 1)


class TestCount:
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
        assert assign(laid([box(0, 0, 20, 10)], [hexagon]), "most") == [(0, 0)]

    def test_an_empty_side_is_counted(self) -> None:
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
    def test_a_detection_more_than_half_inside_does_not_count(self) -> None:
        region = box(0, 0, 100, 100)
        assert count(laid([region], [box(90, 0, 20, 10)], [True]), "most") == Counts(0, 1, 0)
        assert count(laid([region], [box(89, 0, 20, 10)], [True]), "most") == Counts(0, 0, 0)

    def test_the_share_is_of_one_region_not_of_several(self) -> None:
        regions = [box(0, 0, 10, 10), box(10, 0, 10, 10)]
        assert count(laid(regions, [box(0, 0, 20, 10)], [True, True]), "most") == Counts(0, 1, 0)

    def test_a_don_t_care_instance_is_never_matched(self) -> None:
        assert assign(laid([box(0, 0, 9, 9)], [box(0, 0, 9, 9)], [True]), "greedy") == []


class TestOrder:
    def test_greedy_counts_depend_on_the_order_maximum_ones_do_not(self) -> None:
        """Fault 12: the wide detection fits both instances, the narrow one only the first."""
        truths = [box(0, 0, 20, 10), box(0, 0, 30, 10)]
        wide, narrow = box(0, 0, 29, 10), box(0, 0, 14, 10)
        assert count(laid(truths, [wide, narrow]), "greedy") == Counts(1, 2, 2)
        assert count(laid(truths, [narrow, wide]), "greedy") == Counts(2, 2, 2)
        for detections in itertools.permutations([wide, narrow]):
            for order in itertools.permutations(truths):
                assert count(laid(list(order), list(detections)), "most") == Counts(2, 2, 2)

    def test_the_better_of_two_candidates_is_chosen(self) -> None:
        found = [box(0, 0, 16, 10), box(0, 0, 20, 10)]
        assert assign(laid([box(0, 0, 20, 10)], found), "most") == [(0, 1)]
        assert assign(laid([box(0, 0, 20, 10)], found), "greedy") == [(0, 0)]


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
        pairs = assign(found, "most")
        assert set(pairs) <= allowed
        assert len({t for t, _ in pairs}) == len({d for _, d in pairs}) == len(pairs)

    @given(st.lists(st.tuples(BOXES, st.booleans()), max_size=6), st.lists(BOXES, max_size=6))
    def test_greedy_counts_equal_tao_s(self, labels: list[tuple[Any, bool]], detections: list[Any]) -> None:
        expected = tao_reference.counts_of(labels, detections)
        found = laid([polygon for polygon, _ in labels], detections, [ignored for _, ignored in labels])
        counts = count(found, "greedy")
        assert (counts.matched, counts.detections, counts.truths) == expected


class TestCovered:
    TEXTS: ClassVar[list[Any]] = [box(0, 0, 40), box(60, 0, 40), box(0, 100, 40)]

    @pytest.mark.parametrize(
        ("boxes", "expected"),
        [
            ([], (False, False, False)),
            # One box over two texts, two boxes of one text, and one of which 10 of 20 rows are text.
            ([box(0, 0, 100)], (True, True, False)),
            ([box(0, 0, 15), box(20, 0, 15), box(-100, -100)], (True, False, False)),
            ([box(0, 90, 40, 20)], (False, False, True)),
            # Too much of it is no text; too little of the text is in it.
            ([box(0, 90, 40, 21)], (False, False, False)),
            ([box(0, 100, 19)], (False, False, False)),
            ([box(0, 100, 20)], (False, False, True)),
        ],
    )
    def test_boxes_may_split_and_join_texts(self, boxes: list[Any], expected: tuple[bool, ...]) -> None:
        assert tuple(covered(self.TEXTS, boxes)) == expected

    def test_a_margin_around_a_text_is_as_good_as_text(self) -> None:
        small = [box(0, 0, 20, 4)]
        # 80 of 588 pixels are text, 372 are at most 5 from it.
        around = [box(-4, -5, 28, 21)]
        assert not covered(small, around).any()
        assert covered(small, around, margin=5.0).all()
        assert not covered(small, [box(-4, -15, 28, 40)], margin=5.0).any()

    def test_corners_in_any_order_are_those_of_the_same_box(self) -> None:
        crossed = box(0, 0, 40)[[0, 2, 1, 3]]
        assert tuple(covered(self.TEXTS, np.array([crossed], np.float32))) == (True, False, False)


class TestSharedData:
    @pytest.mark.parametrize("name", ["receipts", "scene"])
    def test_truth_as_detections_matches_itself(self, shared_data: Path, name: str) -> None:
        results = [
            match(np.array([p for p, i in zip(s.truth.polygons, s.truth.ignored, strict=True) if not i]), s.truth)
            for s in load_dataset(shared_data / name)
        ]
        # A truth that lies in a don't-care region is lost, by the rules.
        assert total(results).recall > 0.97
        assert total(results).precision > 0.97

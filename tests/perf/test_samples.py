# SPDX-License-Identifier: Apache-2.0
"""Statistics of interleaved samples, on numbers worked out by hand."""

import pytest

from ocdserve.contract import InvalidInputError
from ocdserve.perf.measurement import Measurement
from ocdserve.perf.samples import Sample, in_turns, median_difference_ms, median_ms, median_ratio, series

# The second image costs ten times the first, for both.
SAMPLES = [
    Sample("slow", "set", "a", 0, 30.0),
    Sample("fast", "set", "a", 0, 10.0),
    Sample("fast", "set", "b", 0, 100.0),
    Sample("slow", "set", "b", 0, 200.0),
    Sample("slow", "set", "a", 1, 60.0),
    Sample("fast", "set", "a", 1, 15.0),
    Sample("slow", "other set", "a", 0, 1.0),
]


def test_a_median_is_that_of_one_subject_in_one_group() -> None:
    assert median_ms(SAMPLES, "slow", "set") == 60.0
    assert median_ms(SAMPLES, "fast", "set") == 15.0
    assert median_ms(SAMPLES, "slow", "other set") == 1.0


def test_a_ratio_is_the_median_of_pairs_and_not_of_medians() -> None:
    # The pairs give 3, 2 and 4; the medians 60 / 15 would give 4.
    assert median_ratio(SAMPLES, "slow", "fast", "set") == 3.0


def test_a_difference_is_the_median_of_pairs() -> None:
    # The pairs give 20, 100 and 45.
    assert median_difference_ms(SAMPLES, "slow", "fast", "set") == 45.0


def test_unpaired_samples_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="not measured on the same cases of 'set'"):
        median_ratio(SAMPLES[:3], "slow", "fast", "set")


def test_a_subject_without_samples_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no sample of 'fast' in 'other set'"):
        median_ratio(SAMPLES, "slow", "fast", "other set")


def test_every_turn_begins_with_another_call() -> None:
    calls = {"a": lambda: 1, "b": lambda: 2, "c": lambda: 3}
    orders = [[(name, result) for name, _, result in in_turns(calls, turn)] for turn in range(4)]
    assert orders[0] == [("a", 1), ("b", 2), ("c", 3)]
    assert orders[1] == [("b", 2), ("c", 3), ("a", 1)]
    assert orders[2] == [("c", 3), ("a", 1), ("b", 2)]
    assert orders[3] == orders[0]


def test_samples_become_a_series_of_one_subject() -> None:
    assert series(SAMPLES, "pipeline", "fast", "set", baseline="slow", facts={"boxes": 3}) == Measurement(
        "pipeline", "fast", "set", "ms", (10.0, 100.0, 15.0), ("a#0", "b#0", "a#1"), {}, {"boxes": 3}, "slow"
    )

# SPDX-License-Identifier: Apache-2.0
"""Calls in alternation, and series of their samples."""

import pytest

from ocdserve.contract import InvalidInputError
from ocdserve.perf.series.measurement import Measurement
from ocdserve.perf.series.samples import Sample, in_turns, series

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


def test_a_subject_without_samples_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'fast' in 'pipeline': samples must hold at least one number"):
        series(SAMPLES, "pipeline", "fast", "other set")

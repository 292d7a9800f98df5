# SPDX-License-Identifier: Apache-2.0
"""Series of samples: validation, and lookup."""

from dataclasses import replace

import pytest

from ocdserve.contract import InvalidInputError
from ocdserve.perf.series.measurement import Measurement, case_of, find, name_of_case

SERIES = Measurement(
    "load",
    "ocdnet",
    "receipts",
    "ms",
    samples=(10.0, 12.5),
    cases=("a.jpg#0", "a.jpg#1"),
    factors={"protocol": "grpc", "concurrency": 8},
    facts={"errors": 0},
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"section": ""}, "section of a measurement must not be empty"),
        ({"subject": ""}, "subject of a measurement must not be empty"),
        ({"unit": "hours"}, "'ocdnet' in 'load': unit must be one of ms, images/s, .*; got 'hours'"),
        ({"samples": (), "cases": ()}, "samples must hold at least one number; got none"),
        ({"samples": (1.0, -2.0)}, r"samples must be finite numbers from 0 up; got -2\.0"),
        ({"samples": (float("nan"), 1.0)}, "samples must be finite numbers from 0 up; got nan"),
        ({"cases": ("a#0",)}, "cases must name each of the 2 samples or be empty; got 1"),
        ({"cases": ("a#0", "a#0")}, "cases must differ; 'a#0' is there twice"),
        ({"factors": {"fast": True}}, "factors must be texts or finite numbers; 'fast' is True"),
        ({"facts": {"hmean": float("inf")}}, "facts must be texts or finite numbers; 'hmean' is inf"),
    ],
)
def test_an_invalid_series_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        replace(SERIES, **changes)


def test_the_key_does_not_depend_on_the_order_of_factors_nor_on_facts() -> None:
    other = replace(SERIES, factors={"concurrency": 8, "protocol": "grpc"}, facts={"errors": 3}, samples=(1.0, 2.0))
    assert other.key == SERIES.key
    assert replace(SERIES, factors={"concurrency": 4, "protocol": "grpc"}).key != SERIES.key


def test_samples_are_found_by_their_case() -> None:
    assert SERIES.by_case == {"a.jpg#0": 10.0, "a.jpg#1": 12.5}
    assert replace(SERIES, cases=()).by_case == {}


def test_the_image_of_a_case_is_recovered() -> None:
    assert case_of("page#2.jpg", 3) == "page#2.jpg#3"
    assert name_of_case("page#2.jpg#3") == "page#2.jpg"
    assert name_of_case("page.jpg") == "page.jpg"


def test_series_are_found_by_fields_and_factors() -> None:
    series = [SERIES, replace(SERIES, subject="ocdnet_fused"), replace(SERIES, factors={"concurrency": 4})]
    assert find(series, concurrency=8) == (series[0], series[1])
    assert find(series, subject="ocdnet", section="load") == (series[0], series[2])
    assert find(series, section="serving") == ()

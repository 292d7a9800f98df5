# SPDX-License-Identifier: Apache-2.0
"""Scenarios: what is valid, what changes their version, and when requests of an open loop arrive."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.contract import InvalidInputError
from ocdserve.perf.load.scenarios import SCENARIOS, Scenario, arrivals_s, scenario_named

CLOSED = Scenario("closed", concurrency=2, requests=10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": "cats"}, "images must be one of photographs, scene"),
        ({"protocol": "smtp"}, "protocol must be one of grpc, http"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1"),
        ({"concurrency": True}, "concurrency must be a whole number"),
        ({"requests": 0}, "requests must be"),
        ({"rate": 2.0}, "exactly one of concurrency and rate"),
        ({"concurrency": None}, "exactly one of concurrency and rate"),
        ({"duration_s": 1.0}, "exactly one of requests and duration_s"),
        ({"requests": None, "duration_s": float("inf")}, "duration_s must be a number above 0"),
        ({"concurrency": None, "rate": float("nan")}, "rate must be a number above 0"),
        ({"batch": 9}, "batch must be a whole number from 1 to 8"),
        ({"batch": 2, "model": "ocdnet_raw"}, "batch must be 1 for ocdnet_raw"),
        ({"shared_memory": "system"}, "only pixels go through shared memory"),
        ({"shared_memory": "disk", "model": "ocdnet_raw"}, "shared_memory must be one of none, system, cuda"),
        ({"model": ""}, "model must be the name"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_a_scenario_that_cannot_be_run_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        replace(CLOSED, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"images": "dense"},
        {"count": 9},
        {"protocol": "http"},
        {"model": "ocdnet_fused"},
        {"concurrency": 3},
        {"concurrency": None, "rate": 2.0},
        {"requests": 11},
        {"batch": 2},
        {"seed": 1},
    ],
)
def test_every_field_but_the_name_changes_the_version(fields: dict[str, Any]) -> None:
    assert replace(CLOSED, **fields).version != CLOSED.version
    assert replace(CLOSED, name="other").version == CLOSED.version


def test_versions_are_the_same_in_every_process_and_release() -> None:
    # Results that were kept are compared by it. A change of what a field means raises the format instead.
    assert CLOSED.version == "989cdf049376"


def test_results_over_other_images_are_filed_under_another_name() -> None:
    assert CLOSED.group("a") == replace(CLOSED, concurrency=5, protocol="http").group("a")
    assert CLOSED.group("a") != CLOSED.group("b")
    assert CLOSED.group("a") != replace(CLOSED, requests=11).group("a")
    assert CLOSED.group("a").startswith("closed@")


def test_the_scenarios_have_distinct_names_and_cover_every_kind_of_load() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    assert {scenario.images for scenario in SCENARIOS} >= {
        "photographs",
        "dense",
        "sparse",
        "huge",
        "tiny",
        "mixed",
    }
    assert {scenario.shared_memory for scenario in SCENARIOS} == {"none", "system", "cuda"}
    assert {scenario.protocol for scenario in SCENARIOS} == {"grpc", "http"}
    assert any(scenario.is_open for scenario in SCENARIOS) and any(scenario.batch > 1 for scenario in SCENARIOS)
    assert scenario_named("endurance").requests == 10_000


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match="known are quick, scene"):
        scenario_named("nonsense")


def test_photographs_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="--data"):
        replace(CLOSED, images="photographs").image_set()
    (tmp_path / "a.jpg").write_bytes(b"image")
    assert [image.name for image in replace(CLOSED, images="photographs").image_set([tmp_path]).images] == ["a.jpg"]


@given(rate=st.floats(0.1, 1000), seed=st.integers(0, 1000), requests=st.integers(1, 200))
def test_arrivals_ascend_and_are_reproducible(rate: float, seed: int, requests: int) -> None:
    arrivals = arrivals_s(rate, seed, requests, None)
    assert len(arrivals) == requests and arrivals == arrivals_s(rate, seed, requests, None)
    assert all(a < b for a, b in zip((0.0, *arrivals), arrivals, strict=False))
    assert arrivals == arrivals_s(rate, seed, requests + 5, None)[:requests]


@given(rate=st.floats(0.1, 100), seed=st.integers(0, 1000), duration_s=st.floats(0.1, 20))
def test_arrivals_for_a_duration_are_those_within_it(rate: float, seed: int, duration_s: float) -> None:
    arrivals = arrivals_s(rate, seed, None, duration_s)
    longer = arrivals_s(rate, seed, None, 2 * duration_s)
    assert arrivals == longer[: len(arrivals)]
    assert len(arrivals) == 1 or arrivals[-1] < duration_s
    assert all(due >= duration_s for due in longer[len(arrivals) :])


def test_arrivals_are_a_poisson_process() -> None:
    gaps = np.diff(arrivals_s(50.0, 7, 20_000, None), prepend=0.0)
    # An exponential distribution: mean and standard deviation 1 / rate, and of all gaps 1 / e are longer than it.
    assert gaps.mean() == pytest.approx(0.02, rel=0.03)
    assert gaps.std() == pytest.approx(0.02, rel=0.05)
    assert (gaps > 0.02).mean() == pytest.approx(0.3679, abs=0.01)

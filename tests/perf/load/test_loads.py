# SPDX-License-Identifier: Apache-2.0
"""What follows from the answers of a load run."""

import pytest

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.load.loads import Answer, LoadResult, load_measurements
from ocdserve.perf.load.scenarios import Scenario
from ocdserve.perf.series.measurement import find

CLOSED = Scenario("closed", concurrency=2, requests=4, batch=2)
OPEN = Scenario("open", rate=2.0, requests=4)


def result(scenario: Scenario = CLOSED, driver: str = "sdk") -> LoadResult:
    answers = (
        Answer(0.5, 250.0),
        Answer(0.5, 500.0, late_ms=11.0),
        Answer(0.75, 750.0, late_ms=9.0),
        Answer(1.0, 1500.0, "UnavailableError"),
        Answer(1.5, 1000.0),
    )
    return LoadResult(driver, scenario, "digest", answers)


def test_throughput_counts_images_over_the_whole_run() -> None:
    # Four answers of two images from 0.5 s to 2.5 s.
    assert result().seconds == pytest.approx(2.0)
    assert result().images_per_second == pytest.approx(4.0)


def test_only_answers_have_latencies_and_errors_have_kinds() -> None:
    assert result().latencies_ms == (250.0, 500.0, 750.0, 1000.0)
    assert result().errors == {"UnavailableError": 1}
    assert result().percentile_ms(50) == pytest.approx(625.0)
    assert result(OPEN).late == 1


def test_a_run_without_answers_says_what_happened() -> None:
    lost = LoadResult("sdk", OPEN, "digest", (Answer(0.0, 1.0, "DeadlineError"), Answer(1.0, 0.0, "dropped")))
    with pytest.raises(UnavailableError, match=r"none of 2 requests was answered \(1 DeadlineError, 1 dropped\)"):
        lost.percentile_ms(99)
    with pytest.raises(UnavailableError):
        load_measurements([lost])
    with pytest.raises(InvalidInputError, match="at least one request"):
        LoadResult("sdk", OPEN, "digest", ())


def test_passes_of_drivers_become_a_pair_of_series_each() -> None:
    series = load_measurements([result(), result(driver="locust"), result()])
    assert [(one.factors["driver"], one.unit, len(one.samples)) for one in series] == [
        ("sdk", "ms", 8),
        ("sdk", "images/s", 2),
        ("locust", "ms", 4),
        ("locust", "images/s", 1),
    ]
    assert series[1].cases == ("pass#0", "pass#1")
    assert series[0].factors["concurrency"] == 2 and "rate" not in series[0].factors
    assert series[0].facts["errors"] == 2 and series[0].facts["requests"] == 10
    (rates,) = find(load_measurements([result(OPEN)]), unit="images/s", rate=2.0)
    assert rates.facts["late"] == 1 and rates.subject == "ocdnet"

# SPDX-License-Identifier: Apache-2.0
"""Two runs compared: verdicts on constructed samples, environments, and the command's exit codes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ocdserve.cli import main
from ocdserve.contract import InvalidInputError
from ocdserve.perf.report.compare import Verdict, compare, comparison_text
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.measurement import Measurement, case_of
from ocdserve.perf.series.results import Results, save_results

ENVIRONMENT = Environment("Some CPU", 2, 23.5, "Linux", "3.11.7", {"numpy": "1.26.4"}, (0.5, 1.0, 2.0))
CASES = tuple(case_of(name, 0) for name in "abcdefgh")
# Slowdown of each image on a busy machine, the same for all subjects measured in alternation.
NOISE = (1.0, 1.4, 0.9, 1.2, 1.0, 0.8, 1.3, 1.1)
TIMES = (100.0, 250.0, 90.0, 400.0, 120.0, 80.0, 300.0, 150.0)


def times(
    subject: str, factor: float = 1.0, noise: Sequence[float] = (1.0,) * 8, hmean: float = 0.9, unit: str = "ms"
) -> Measurement:
    samples = tuple(factor * time * extra for time, extra in zip(TIMES, noise, strict=True))
    return Measurement("pipeline", subject, "receipts", unit, samples, CASES, facts={"hmean": hmean})


def results(*measurements: Measurement, environment: Environment = ENVIRONMENT) -> Results:
    return Results("2026-11-24T10:00:00+00:00", environment, measurements)


@pytest.mark.parametrize(
    ("unit", "factor", "verdict", "loss"),
    [
        ("ms", 1.25, "worse", 0.25),
        ("ms", 0.5, "better", -0.5),
        ("images/s", 0.8, "worse", 0.25),
        ("images/s", 2.0, "better", -0.5),
        ("MiB", 2.0, "worse", 1.0),
    ],
)
def test_more_is_better_or_worse_by_the_unit(unit: str, factor: float, verdict: Verdict, loss: float) -> None:
    (change,) = compare(results(times("ours", unit=unit)), results(times("ours", factor, unit=unit))).changes
    assert change.verdict == verdict
    assert change.ratio.value == pytest.approx(factor)
    assert change.loss == pytest.approx(loss)


@pytest.mark.parametrize(("factor", "verdict"), [(1.005, "not significant"), (1.02, "worse"), (0.5, "better")])
def test_a_single_count_is_significant_if_it_differs_by_more_than_a_percent(factor: float, verdict: Verdict) -> None:
    counted = Measurement("stages", "ours", "map", "instructions", (1_000_000.0,), ("map#0",))
    (change,) = compare(results(counted), results(replace(counted, samples=(1_000_000.0 * factor,)))).changes
    assert change.verdict == verdict


def test_noise_is_not_significant() -> None:
    comparison = compare(
        results(times("ours")), results(times("ours", 1.0, (0.9, 1.1, 1.2, 0.8, 1.05, 0.95, 1.0, 1.1)))
    )
    assert comparison.changes[0].verdict == "not significant"
    assert "ours, receipts: not significant, ratio 1.025 [0.9" in comparison_text(comparison, "median")


def test_the_text_states_factor_and_direction() -> None:
    text = comparison_text(compare(results(times("ours")), results(times("ours", 1.5))), "median")
    assert text.splitlines()[1:] == [
        "",
        "Encoded image to boxes: time",
        "  ours, receipts: 1.500 times slower, ratio 1.500 [1.500 – 1.500]",
    ]
    faster = comparison_text(compare(results(times("ours")), results(times("ours", 0.5))), "median")
    assert "ours, receipts: 2 times faster, ratio 0.500" in faster


def test_a_yardstick_cancels_the_speed_of_the_machine() -> None:
    # The second run was made in a slow hour; ours became faster all the same.
    before = results(times("ours"), times("plain", 3.0))
    after = results(times("ours", 1.6, NOISE), times("plain", 6.0, NOISE))
    assert [change.verdict for change in compare(before, after).changes] == ["worse", "worse"]
    (change,) = compare(before, after, yardstick="plain").changes
    assert change.after.subject == "ours"
    assert change.ratio.value == pytest.approx(0.8)
    assert change.verdict == "better"


def test_an_unknown_yardstick_is_refused_with_the_known_subjects() -> None:
    with pytest.raises(InvalidInputError, match="no series of the yardstick 'theirs'; there are those of ours, plain"):
        compare(results(times("ours"), times("plain")), results(times("ours")), yardstick="theirs")


def test_lost_accuracy_is_reported() -> None:
    text = comparison_text(compare(results(times("ours")), results(times("ours", 0.5, hmean=0.85))), "median")
    assert text.splitlines()[-1] == "    hmean 0.9 -> 0.85"


def test_different_environments_are_refused_and_named() -> None:
    other = replace(ENVIRONMENT, cpu="Other CPU", versions={"numpy": "1.24.0"})
    before, after = results(times("ours")), results(times("ours"), environment=other)
    with pytest.raises(InvalidInputError, match=r"cpu: Some CPU and Other CPU; numpy: 1\.26\.4 and 1\.24\.0\)"):
        compare(before, after)
    comparison = compare(before, after, anyway=True)
    assert comparison.notices == (
        "the environments differ: cpu: Some CPU and Other CPU",
        "the environments differ: numpy: 1.26.4 and 1.24.0",
    )


def test_a_busy_machine_is_reported() -> None:
    busy = replace(ENVIRONMENT, load_average=(5.0, 1.0, 1.0))
    (notice,) = compare(results(times("ours")), results(times("ours"), environment=busy)).notices
    assert notice.startswith("the machine was busy before the second run (load average 5.00 on 2 cores)")


def test_series_of_one_run_only_are_listed_and_runs_without_common_ones_refused() -> None:
    comparison = compare(results(times("ours"), times("old")), results(times("ours"), times("new")))
    lines = comparison_text(comparison, "median").splitlines()
    assert "only in the first run: old, receipts" in lines
    assert "only in the second run: new, receipts" in lines
    with pytest.raises(InvalidInputError, match="no series in common"):
        compare(results(times("old")), results(times("new")))


@pytest.mark.parametrize(
    ("factor", "options", "code"),
    [
        (1.25, [], 0),
        (1.25, ["--fail-if-slower"], 1),
        (1.25, ["--fail-if-slower", "0.2"], 1),
        (1.25, ["--fail-if-slower", "0.3"], 0),
        (0.5, ["--fail-if-slower"], 0),
        (1.25, ["--fail-if-slower", "-1"], 2),
        (1.25, ["--statistic", "p99", "--yardstick", "none"], 1),
    ],
)
def test_the_command_fails_only_if_asked_to(
    factor: float, options: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    save_results(results(times("ours")), a)
    save_results(results(times("ours", factor)), b)
    assert main(["bench", "compare", str(a), str(b), *options]) == code
    output = capsys.readouterr()
    assert ("receipts: " in output.out) is ("--yardstick" not in options and "-1" not in options)


def test_the_command_compares_unequal_environments_only_with_anyway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    save_results(results(times("ours")), a)
    save_results(results(times("ours"), environment=replace(ENVIRONMENT, cores=8)), b)
    assert main(["bench", "compare", str(a), str(b)]) == 1
    assert "different environments (cores: 2 and 8)" in capsys.readouterr().err
    assert main(["bench", "compare", str(a), str(b), "--anyway"]) == 0
    assert "notice: the environments differ: cores: 2 and 8" in capsys.readouterr().err


def test_shares_that_may_be_0_are_left_out() -> None:
    share = Measurement("robustness", "ours", "blur 4 px", "recall", (0.0, 0.0), ("page 0#0", "page 1#0"))
    comparison = compare(results(times("ours"), share), results(times("ours"), share))
    assert [change.after.unit for change in comparison.changes] == ["ms"]
    with pytest.raises(InvalidInputError, match="shares of texts found are not compared"):
        compare(results(share), results(share))

# SPDX-License-Identifier: Apache-2.0
"""`ocdserve bench capacity`: what it refuses, writes and prints."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend.publish.tuning import Tuning
from ocdserve.cli import main
from ocdserve.perf.capacity import bench
from ocdserve.perf.load.loads import Answer, LoadResult
from ocdserve.perf.load.scenarios import Scenario, arrivals_s
from ocdserve.perf.series.measurement import find
from ocdserve.perf.series.results import load_results


class Bench:
    """One server that answers in 100 ms, whatever the machine is doing."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario

    def closed(self, concurrency: int, requests: int) -> LoadResult:
        scenario = replace(self._scenario, concurrency=concurrency, requests=requests)
        return LoadResult("sdk", scenario, "digest", tuple(Answer(0.1 * n, 100.0) for n in range(requests)))

    def open(self, rate: float, seed: int) -> LoadResult:
        free, answers = 0.0, []
        for due in arrivals_s(rate, seed, 2000, None):
            free = max(due, free) + 0.1
            answers.append(Answer(due, 1000 * (free - due)))
        scenario = replace(self._scenario, concurrency=None, rate=rate, requests=2000)
        return LoadResult("sdk", scenario, "digest", tuple(answers))


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def served_bench(tuning: Tuning, bundle: object, scenario: Scenario, *_: Any) -> Iterator[Bench]:
        yield Bench(scenario)

    monkeypatch.setattr(bench, "served_bench", served_bench)


def test_the_tuning_and_all_runs_are_written(
    simulated: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "folder"
    assert main(["bench", "capacity", "--output", str(output), "--model", "ocdnet_fused", "--as-it-is"]) == 0
    out = capsys.readouterr().out
    # p99 under 3 services: by Erlang's formula 32 % of the 10 per second that it serves when saturated.
    found = re.search(r"capacity: ([0-9.]+) images/s with p99 under 300 ms", out)
    assert found and float(found[1]) == pytest.approx(3.2, abs=0.8)
    assert f"serve with it: ocdserve serve --tuning {output}/tuning.json" in out
    assert Tuning.load(output / "tuning.json").queue_size == 16
    results = load_results(output / "capacity.json")
    assert {one.section for one in results.measurements} == {"capacity"}
    (last,) = find(results.measurements, unit="ms", at="80 % of capacity")
    assert last.factors["rate"] == pytest.approx(0.8 * float(found[1]), abs=0.01)
    assert main(["bench", "report", str(output / "capacity.json")]) == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--trial", "0"], 2, "--trial must be"),
        (["--p99-ms", "-5"], 1, "limit of p99 must be a number of milliseconds above 0"),
        (["--scenario", "nonsense"], 1, "known are quick"),
        (["--scenario", "photographs"], 1, "name their folders with --data"),
    ],
)
def test_an_invalid_search_is_refused_before_a_server_starts(
    options: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "capacity", "--output", str(tmp_path / "out"), *options]) == code
    assert message in capsys.readouterr().err


def test_results_are_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tuning.json").write_text("kept")
    assert main(["bench", "capacity", "--output", str(tmp_path), "--scenario", "tiny"]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "tuning.json").read_text() == "kept"

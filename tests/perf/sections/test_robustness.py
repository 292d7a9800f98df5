# SPDX-License-Identifier: Apache-2.0
"""The section `robustness` with detectors whose answers are known, and a tenth of it with ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.backend import Detector
from ocdserve.cli import main
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.inputs.conditions import Condition, conditions
from ocdserve.perf.report.text import text
from ocdserve.perf.sections.robustness import measure_conditions, share_found
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.measurement import OURS, Measurement, find
from ocdserve.perf.series.results import Results, load_results, merged
from ocdserve.perf.subjects import Competitor

RESULTS = Path(__file__).parents[3] / "perf" / "results"
GRID = {condition.name: condition for condition in conditions()}
AXES = tuple(dict.fromkeys(condition.axis for condition in GRID.values()))
# Of a page's texts, what another processor's rounding may change.
_VARIES = 0.03


def competitor(name: str, find_in: Callable[[bytes], Any]) -> Competitor[NDArray[Any]]:
    return Competitor(name, lambda threads: lambda encoded: np.array(find_in(encoded), np.float32).reshape(-1, 4, 2))


def run(ours: Callable[[bytes], Any], theirs: Callable[[bytes], Any], *grid: Condition) -> tuple[Measurement, ...]:
    pair = [competitor(OURS, ours), competitor("RapidOCR", theirs)]
    return measure_conditions(pair, grid, 1, lambda done, total: None)


def fail(error: Exception) -> Callable[[bytes], Any]:
    def detect(encoded: bytes) -> Any:
        raise error

    return detect


@pytest.fixture(scope="module")
def truths() -> dict[bytes, list[NDArray[np.float64]]]:
    """Quads of the pages of one condition by their bytes."""
    large = GRID["height 48 px"]
    pages = (large.draw(index) for index in range(large.pages()))
    return {page.encoded: list(page.truth.polygons) for page in pages}


def test_the_share_of_texts_is_sampled_page_by_page(truths: dict[bytes, list[NDArray[np.float64]]]) -> None:
    ours, theirs = run(truths.__getitem__, lambda encoded: truths[encoded][:9], GRID["height 48 px"])
    assert (ours.subject, ours.group, ours.unit, ours.baseline) == ("ocdserve", "height 48 px", "recall", "RapidOCR")
    assert ours.samples == (1.0,) * 6
    assert theirs.samples == (0.25,) * 6
    assert ours.cases == theirs.cases == tuple(f"page {index}#0" for index in range(6))
    assert ours.facts == {"texts": 216, "errors": 0}


def test_a_refused_page_is_one_without_boxes(truths: dict[bytes, list[NDArray[np.float64]]]) -> None:
    ours, theirs = run(fail(InvalidInputError("no")), fail(ValueError("no")), GRID["height 48 px"])
    assert [(one.samples, one.facts["errors"]) for one in (ours, theirs)] == [((0.0,) * 6, 6)] * 2
    with pytest.raises(ValueError, match="a fault of ours"):
        run(fail(ValueError("a fault of ours")), truths.__getitem__, GRID["height 48 px"])


@pytest.mark.parametrize("name", ["angle 0°", "height 6 px", "aspect 1:40, tall", "script Greek"])
def test_a_box_around_the_whole_page_finds_nothing_and_boxes_three_pixels_around_small_ink_do(name: str) -> None:
    condition = GRID[name]
    page, (width, height) = condition.draw(0), condition.page
    whole = np.array([[(0, 0), (width, 0), (width, height), (0, height)]], np.float32)
    assert share_found(page, whole) == 0
    around = np.array(page.truth.polygons) + np.array([(-3, -3), (3, -3), (3, 3), (-3, 3)])
    assert share_found(page, around.astype(np.float32)) == 1


def test_what_cannot_be_drawn_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocdserve.perf.inputs.conditions.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="no page can be drawn: CJK: its font is in the package"):
        run(lambda encoded: [], lambda encoded: [], GRID["script CJK"])


def test_the_table_has_a_line_per_condition_with_both_shares_and_their_difference(
    truths: dict[bytes, list[NDArray[np.float64]]],
) -> None:
    measured = run(lambda encoded: truths[encoded][:9], truths.__getitem__, GRID["height 48 px"])
    environment = Environment("Some CPU", 2, 23.5, "Linux", "3.11.7", {}, (0.5, 1.0, 2.0))
    shown = text(Results("2026-11-28T10:00:00+00:00", environment, measured))
    assert "The deficit is what RapidOCR finds more; intervals hold with 95 % confidence" in shown
    line = next(line for line in shown.splitlines() if line.startswith("height 48 px"))
    assert line.split()[3:] == ["0", "216", "0", "0.250", "1.000", "+0.750", "+0.750", "–", "+0.750"]


def test_an_unknown_axis_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "robustness", "--axes", "angle,colour"]) == 2
    assert "--axes: unknown 'colour'; known are angle, height, contrast, aspect, blur" in capsys.readouterr().err


@pytest.fixture(scope="module")
def committed() -> Results:
    """The newest full run in the repository, in one file or in several of one day (`robustness-DATE-aspect.json`)."""
    files = sorted(RESULTS.glob("robustness-*.json"))
    if not files:
        pytest.skip(f"no full run of the section is in {RESULTS}; `ocdserve bench robustness --json` makes one")
    date = len("robustness-0000-00-00")
    return merged([load_results(file) for file in files if file.name[:date] == files[-1].name[:date]])


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load()


def every_tenth_page() -> list[tuple[Condition, int]]:
    """Of all pages that can be drawn here, in the order of the full run."""
    drawable = [condition for condition in GRID.values() if not condition.lacks()]
    return [(condition, index) for condition in drawable for index in range(condition.pages())][::10]


@pytest.mark.parametrize("axis", AXES)
def test_a_tenth_of_the_pages_is_found_as_in_the_full_run(axis: str, detector: Detector, committed: Results) -> None:
    worse = {}
    for condition, index in every_tenth_page():
        if condition.axis == axis:
            (series,) = find(committed.measurements, section="robustness", subject=OURS, group=condition.name)
            page = condition.draw(index)
            share, before = share_found(page, detector.detect(page.encoded).quads), series.by_case[f"page {index}#0"]
            if share < before - _VARIES:
                worse[condition.name] = (share, before)
    assert worse == {}


def test_the_full_run_has_every_condition(committed: Results) -> None:
    measured = {one.group for one in find(committed.measurements, section="robustness", subject=OURS)}
    assert measured == GRID.keys(), json.dumps(sorted(GRID.keys() - measured))

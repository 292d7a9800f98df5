# SPDX-License-Identifier: Apache-2.0
"""The file of results: round trip, no overwriting, and errors for other files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ocdserve.contract import InvalidInputError
from ocdserve.perf.series.environment import Environment, Gpu
from ocdserve.perf.series.measurement import Measurement
from ocdserve.perf.series.results import Part, Results, load_results, merged, save_results, to_json

ENVIRONMENT = Environment(
    "Some CPU",
    2,
    23.5,
    "Linux",
    "3.11.7",
    {"numpy": "1.26.4"},
    (0.5, 1.25, 2.0),
    (1.5, 1.0, 0.5),
    ("avx2",),
    "performance",
    1.5,
    "0123abc",
)
SERIES = Measurement(
    "pipeline", "ocdserve", "receipts", "ms", (10.25, 1 / 3), ("a#0", "b#0"), {"threads": 1}, {"hmean": 0.9}, "ocdserve"
)
RESULTS = Results(
    "2026-11-24T10:00:00+00:00",
    ENVIRONMENT,
    (SERIES, replace(SERIES, subject="RapidOCR"), replace(SERIES, section="load", cases=(), factors={})),
    "bench pipeline",
)


def test_results_survive_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    save_results(RESULTS, path)
    assert load_results(path) == RESULTS


def test_results_in_parts_survive_a_round_trip(tmp_path: Path) -> None:
    gpu = Gpu("NVIDIA L4", "sm_89", "580.1, CUDA 13.0", {"pycuda": "2026.1"}, {"clocks.sm": "2040 MHz"})
    part = Part("gpu-stages", "stopped", "its time was up", 12.5, ["one"], {"PyTorch": "it is not installed"}, "log")
    results = Results("2026-11-24T10:00:00+00:00", replace(ENVIRONMENT, gpu=gpu), (), parts=(part,))
    path = tmp_path / "folder" / "results.json"
    save_results(results, path, overwrite=True)
    assert load_results(path) == results
    later = replace(results, measurements=RESULTS.measurements)
    save_results(later, path, overwrite=True)
    assert load_results(path) == later
    assert later.sections == ("gpu-stages", "pipeline", "load")
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_a_file_without_parts_and_gpu_is_read(tmp_path: Path) -> None:
    document = json.loads(json.dumps(to_json(RESULTS)))
    del document["parts"], document["environment"]["gpu"]
    (tmp_path / "older.json").write_text(json.dumps(document))
    assert load_results(tmp_path / "older.json") == RESULTS


def test_the_document_has_raw_samples_and_their_environment() -> None:
    document = json.loads(json.dumps(to_json(RESULTS)))
    assert document["schema"] == "ocdserve.bench"
    assert document["schema_version"] == 2
    assert document["environment"]["flags"] == ["avx2"]
    assert document["environment"]["load_average_after"] == [1.5, 1.0, 0.5]
    assert document["measurements"][0] == {
        "section": "pipeline",
        "subject": "ocdserve",
        "group": "receipts",
        "unit": "ms",
        "samples": [10.25, 0.3333333333333333],
        "cases": ["a#0", "b#0"],
        "factors": {"threads": 1},
        "facts": {"hmean": 0.9},
        "baseline": "ocdserve",
    }


def test_sections_keep_their_order() -> None:
    assert RESULTS.sections == ("pipeline", "load")
    assert RESULTS.section("pipeline") == RESULTS.measurements[:2]


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    save_results(RESULTS, path)
    before = path.read_bytes()
    with pytest.raises(InvalidInputError, match="exists, and results are never overwritten; name another file"):
        save_results(replace(RESULTS, command="other"), path)
    assert path.read_bytes() == before


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot write the results to .*No such file"):
        save_results(RESULTS, tmp_path / "absent" / "results.json")


def test_keys_of_series_are_unique() -> None:
    with pytest.raises(InvalidInputError, match=r"results must hold each series once; .*'ocdserve'"):
        replace(RESULTS, measurements=(SERIES, replace(SERIES, samples=(1.0, 2.0))))
    with pytest.raises(InvalidInputError, match="at least one measurement"):
        replace(RESULTS, measurements=())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no results of `ocdserve bench`"),
        ('{"kind": "gpu-check", "format_version": 1, "environment": {}}', "holds no results of `ocdserve bench`"),
        (
            '{"format_version": 1, "environment": {}, "pipeline": {}}',
            "has version 1 of the results' format, and this ocdserve reads version 2; measure again",
        ),
        ('{"schema": "ocdserve.bench", "schema_version": 3}', "has version 3 of the results' format"),
        ('{"schema": "ocdserve.bench"}', "has version unknown"),
        ('{"schema": "ocdserve.bench", "schema_version": 2}', "the field 'created' is missing"),
    ],
)
def test_files_of_other_formats_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, "utf-8")
    with pytest.raises(InvalidInputError, match=message):
        load_results(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda document: document["measurements"][1].pop("unit"), "measurement 1: the field 'unit' is missing"),
        (
            lambda document: document["measurements"][1].update(samples=["fast", 1]),
            "measurement 1: a field has a value of the wrong kind",
        ),
        (
            lambda document: document["measurements"][1].update(samples=[-1, 1]),
            r"measurement 1: measurement of 'RapidOCR' in 'pipeline': samples must be finite numbers from 0 up; got -1",
        ),
        (lambda document: document["environment"].update(load_average=[1]), "a field has a value of the wrong kind"),
        (lambda document: document.update(environment=3), "a field has a value of the wrong kind"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place_of_the_damage(
    damage: Callable[[Any], object], message: str, tmp_path: Path
) -> None:
    document = json.loads(json.dumps(to_json(RESULTS)))
    damage(document)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(InvalidInputError, match=f"damaged.json: .*{message}|damaged.json: {message}"):
        load_results(path)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read the results .*: No such file"):
        load_results(tmp_path / "absent.json")


def test_runs_of_one_machine_are_merged() -> None:
    later = Results(
        "2026-11-24T11:00:00+00:00",
        replace(ENVIRONMENT, load_average=(4.0, 1.0, 1.0), load_average_after=(2.0, 2.0, 2.0), commit="fedcba9"),
        (replace(SERIES, section="capacity"),),
        "bench capacity",
    )
    both = merged([later, RESULTS])
    assert both.created == "2026-11-24T11:00:00+00:00"
    assert both.measurements == (*later.measurements, *RESULTS.measurements)
    assert both.command == "bench capacity && ocdserve bench pipeline"
    assert both.environment == replace(
        ENVIRONMENT, load_average=(4.0, 1.0, 1.0), load_average_after=(2.0, 2.0, 2.0), commit=None
    )
    assert merged([RESULTS]) == RESULTS


def test_runs_of_different_environments_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"different environments \(cores: 2 and 8\); show each by itself"):
        merged([RESULTS, replace(RESULTS, environment=replace(ENVIRONMENT, cores=8))])
    with pytest.raises(InvalidInputError, match="each series once"):
        merged([RESULTS, RESULTS])
    with pytest.raises(InvalidInputError, match="at least one; got none"):
        merged([])

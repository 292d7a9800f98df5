# SPDX-License-Identifier: Apache-2.0
"""The file with the tuning of a machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend.publish.tuning import Tuning
from ocdserve.contract import InvalidInputError

DOCUMENT = {
    "schema": "ocdserve.tuning",
    "schema_version": 1,
    "runtime": "onnxruntime",
    "threads": 2,
    "streams": 2,
    "instances": 3,
    "queue_size": 40,
    "queue_delay_us": 500,
    "queue_time_ms": 250,
}


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    tuning = Tuning(
        "onnxruntime", threads=2, streams=2, instances=3, queue_size=40, queue_delay_us=500, queue_time_ms=250
    )
    tuning.save(tmp_path / "tuning.json")
    assert json.loads((tmp_path / "tuning.json").read_text()) == DOCUMENT
    assert Tuning.load(tmp_path / "tuning.json") == tuning
    earlier = {name: value for name, value in DOCUMENT.items() if name != "queue_time_ms"}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    assert Tuning.load(tmp_path / "earlier.json").queue_time_ms == 1000
    Tuning().save(tmp_path / "plain.json")
    assert Tuning.load(tmp_path / "plain.json") == Tuning()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "other"}, "not a tuning file"),
        ({"schema_version": 2}, "schema_version 2"),
        ({"surprise": 1}, "the field 'surprise'"),
        ({"instances": "2"}, "instances must be a whole number; got '2'"),
        ({"threads": True}, "threads must be a whole number"),
        ({"instances": 0}, "instances must be a whole number from 1 to 64; got 0"),
        ({"runtime": "abacus"}, "runtime must be one of"),
        ({"runtime": {"a": 1}}, "runtime must be one of"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(json.dumps({**DOCUMENT, **changes}))
    with pytest.raises(InvalidInputError, match=message):
        Tuning.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "9" * 5000], ids=lambda content: content[:9])
def test_what_is_no_document_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tuning.json").write_text(content)
    with pytest.raises(InvalidInputError, match="not a tuning file"):
        Tuning.load(tmp_path / "tuning.json")
    with pytest.raises(InvalidInputError, match="cannot read"):
        Tuning.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "changes", [{"instances": 65}, {"queue_size": 0}, {"queue_delay_us": -1}, {"queue_time_ms": 0}, {"streams": 0}]
)
def test_values_out_of_range_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(changes))):
        Tuning(**changes)  # type: ignore[arg-type]

# SPDX-License-Identifier: Apache-2.0
"""The declared metrics, and the totals of the launcher."""

import re
from pathlib import Path

import pytest

from ocdserve.backend.serve.process.metrics import (
    CANARIES,
    FAMILIES,
    RELOADS,
    RESTARTS,
    LauncherCounters,
    TotalsReader,
)
from ocdserve.contract import InvalidInputError

PRODUCTION = Path(__file__).resolve().parents[4] / "docs" / "production.md"
ROW = re.compile(r"^\| `(ocdserve_\w+)` \| (\w+) \| ([^|]*(?:\\\|[^|]*)*) \|", re.MULTILINE)


def test_the_table_of_the_documentation_lists_the_metrics_and_their_labels() -> None:
    documented = {
        name: (kind, re.findall(r'`(\w+)(?:="([^"]*)")?`', labels))
        for name, kind, labels in ROW.findall(PRODUCTION.read_text("utf-8"))
    }
    assert documented == {
        family.name: (
            family.kind,
            # The limits have a table of their own, instances are Triton's.
            [
                (label, "" if label in ("limit", "instance") else r"\|".join(values))
                for label, values in family.labels.items()
            ],
        )
        for family in FAMILIES
    }


def test_the_totals_are_written_when_they_change_and_again_to_a_new_directory(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    counters = LauncherCounters()
    counters.count(RESTARTS, "process_died")
    counters.publish(first)
    counters.count(RESTARTS, "process_died")
    counters.count(CANARIES, "ok")
    totals = TotalsReader(first).read()
    assert totals is not None
    assert (totals["ocdserve_restarts_total"]["process_died"], totals["ocdserve_canary_total"]["ok"]) == (2, 1)
    assert totals["ocdserve_reloads_total"] == {"ok": 0, "failed": 0}
    counters.publish(second)
    counters.count(RELOADS, "ok")
    second.mkdir()
    counters.publish(second)
    totals = TotalsReader(second).read()
    assert totals is not None
    assert totals["ocdserve_reloads_total"] == {"ok": 1, "failed": 0}


def test_an_unknown_label_value_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="ocdserve_reloads_total has the values ok, failed; got 'maybe'"):
        LauncherCounters().count(RELOADS, "maybe")


def test_one_reader_at_a_time_has_the_totals(tmp_path: Path) -> None:
    LauncherCounters().publish(tmp_path)
    first, second = TotalsReader(tmp_path), TotalsReader(tmp_path)
    assert first.read() is not None
    assert second.read() is None
    first.close()
    assert second.read() is not None
    assert first.read() is None

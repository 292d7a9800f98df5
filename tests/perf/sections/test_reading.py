# SPDX-License-Identifier: Apache-2.0
"""The section `reading` with readers whose answers are known, and each real reader on a drawn page."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.cli import main
from ocdserve.contract import UsageError
from ocdserve.perf.inputs.conditions import Condition
from ocdserve.perf.inputs.data_sets import DataSet, LabelledImage
from ocdserve.perf.sections import reading
from ocdserve.perf.sections.plan import Plan
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.subjects.peer_worker import PEERS
from ocdserve.perf.subjects.peers import ReadText
from ocdserve.perf.subjects.readers import READERS, Read

BOXES = np.array([[[0, 0], [40, 0], [40, 10], [0, 10]], [[0, 20], [40, 20], [40, 30], [0, 30]]], np.float32)
TRUTH = Truth(tuple(BOXES.astype(float)), (False, False), ("Total 4.50", "Cash"))


def reads(*texts: str) -> Callable[[int], Read]:
    return lambda threads: lambda encoded: ReadText(BOXES[: len(texts)], texts)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(reading, "READERS", {OURS: reads("TOTAL 4.50", "Cosh"), "other": reads("Total 4,50")})
    monkeypatch.setattr(reading, "pages_to_read", lambda: (DataSet("drawn", (page("z"),)),))
    unlabelled = LabelledImage("u", b"u", Truth(TRUTH.polygons, TRUTH.ignored))
    data_sets = (DataSet("boxes only", (unlabelled,)), DataSet("texts", tuple(map(page, "abcde"))))
    return Plan(data_sets, 1, Namespace(readers=None, quick=False))


def page(name: str) -> LabelledImage:
    return LabelledImage(name, name.encode(), TRUTH)


def test_readers_are_judged_by_texts_on_labelled_and_drawn_pages(plan: Plan) -> None:
    found = {(one.group, one.subject): one for one in reading.measure(plan)}
    assert list(found) == [(group, name) for group in ("texts", "drawn", "texts + drawn") for name in (OURS, "other")]
    ours, other = found["texts", OURS], found["texts", "other"]
    assert ours.cases == ("a#0", "b#0", "c#0", "d#0", "e#0")
    shown = ("boxes", "precision", "recall", "hmean", "exact lines", "hmean of words", "CER", "CER end to end")
    assert [ours.facts[name] for name in shown] == pytest.approx([10, 0.5, 0.5, 0.5, 0.5, 2 / 3, 1 / 14, 1 / 14])
    assert [other.facts[name] for name in shown] == pytest.approx([5, 0, 0, 0, 0, 0.4, 1 / 10, 5 / 14])
    assert float(ours.facts["lines/s"]) == pytest.approx(10 / (sum(ours.samples) / 1000))


def test_a_quick_run_reads_every_fourth_page(plan: Plan) -> None:
    plan.options.quick = True
    ours, _ = (one for one in reading.measure(plan) if one.group == "texts")
    assert ours.cases == ("a#0", "e#0")


def test_unknown_readers_are_refused(plan: Plan) -> None:
    plan.options.readers = "nobody"
    with pytest.raises(UsageError, match=r"--readers: unknown 'nobody'; known are other"):
        reading.measure(plan)


@pytest.mark.parametrize("name", [name for name in READERS if name not in PEERS])
def test_every_reader_reads_a_drawn_page(name: str) -> None:
    page = Condition("one", "page", size=32, page=(480, 120), script="Latin lines").draw(0)
    read = READERS[name](1)(page.encoded)
    assert read.quads.shape == (len(page.truth.texts), 4, 2)
    assert sorted(read.texts) == sorted(page.truth.texts)


@pytest.mark.long
def test_the_command_measures_receipts(tmp_path: Path) -> None:
    data = Path(__file__).parents[3] / "../shared/data/receipts"
    file = tmp_path / "run.json"
    if not data.is_dir():
        pytest.skip("the receipts are not here")
    assert main(["bench", "reading", "--data", str(data), "--quick", "--readers", "RapidOCR", "--json", str(file)]) == 0
    series = json.loads(file.read_text())["measurements"]
    hmean = {one["subject"]: one["facts"]["hmean"] for one in series if one["group"] == "receipts"}
    # Last 0.84 and 0.77.
    assert hmean[OURS] > hmean["RapidOCR"] > 0.7

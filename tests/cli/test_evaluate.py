# SPDX-License-Identifier: Apache-2.0
"""`ocdserve evaluate --read`: what is read, next to the labels' texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from ocdserve.backend import Reader
from ocdserve.cli import main
from ocdserve.perf.inputs.pictures import receipt


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A drawn receipt whose labels say another price, and one text that is not there."""
    drawn = receipt()
    lines = [
        ",".join([*(f"{value:.0f}" for value in quad.ravel()), text])
        for text, quad in zip(drawn.texts, drawn.quads, strict=True)
    ]
    (tmp_path / "img").mkdir()
    (tmp_path / "img/a.png").write_bytes(drawn.png())
    (tmp_path / "gt").mkdir()
    wrong = [line.replace("29.20", "29.21").replace("Rye bread", "Rye  BREAD") for line in lines]
    (tmp_path / "gt/gt_a.txt").write_text("\n".join([*wrong, "5,5,55,5,55,25,5,25,ghost"]))
    return tmp_path


@pytest.fixture
def loaded(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What readers were loaded with; they are the one of the session."""
    asked: list[Any] = []

    def load(**options: Any) -> Reader:
        asked.append(options)
        return reader

    monkeypatch.setattr(Reader, "load", load)
    return asked


def test_texts_are_compared_with_the_labels(
    labelled: Path, loaded: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--data", str(labelled), "--read", "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    # 26 texts, of which one price differs; and the one that is not there.
    texts = len(receipt().texts)
    assert (figures["matched"], figures["truths"], figures["detections"]) == (texts, texts + 1, texts)
    assert figures["reading_hmean"] == pytest.approx(2 * (texts - 1) / (2 * texts + 1))
    assert figures["exact_lines"] == pytest.approx(1 - 1 / texts)
    assert figures["cer"] == pytest.approx(1 / sum(map(len, receipt().texts)))
    assert loaded == [{"bundle": None, "recogniser": None, "runtime": None}]


def test_a_recogniser_is_evaluated_without_asking_for_it(
    labelled: Path, loaded: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--data", str(labelled), "--recogniser", "fast"]) == 0
    assert "hmean with texts  hmean of words  character error rate  equal texts" in capsys.readouterr().out
    assert loaded == [{"bundle": None, "recogniser": Path("fast"), "runtime": None}]


def test_labels_without_texts_are_refused(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labelled / "gt/gt_a.txt").write_text("5,5,55,5,55,25,5,25")
    assert main(["evaluate", "--data", str(labelled), "--read"]) != 0
    assert "has a text to compare with; leave --read out" in capsys.readouterr().err
    assert main(["evaluate", "--data", str(labelled), "--recogniser", "fast"]) != 0
    assert "has a text to compare with; leave --recogniser out" in capsys.readouterr().err

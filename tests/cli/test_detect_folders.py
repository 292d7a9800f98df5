# SPDX-License-Identifier: Apache-2.0
"""`ocdserve detect` with folders, and with arguments that name no image."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve import backend
from ocdserve.batch.sources import sources_of
from ocdserve.cli import main
from ocdserve.results.detections import Detections


@pytest.fixture(autouse=True)
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with a tree of images and a detector that finds nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("1.png", ".2.png", "deep/3.jpg", "deep/._3.jpg", "deep/er/4.tif", ".git/5.png", "drawn/6.png"):
        path = Path("scans", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    Path("empty").mkdir()

    class FakeDetector:
        @staticmethod
        def load(**_: Any) -> "FakeDetector":
            return FakeDetector()

        def detect(self, image: bytes, **_: Any) -> Detections:
            return Detections(np.empty((0, 4, 2), np.float32), np.empty(0, np.float32), 80, 60)

    monkeypatch.setitem(vars(backend), "Detector", FakeDetector)


def test_a_folder_is_searched_recursively_without_hidden_files_and_both_are_reported() -> None:
    notes: list[str] = []
    found = [source.name for source in sources_of(["scans"], left_out=Path("scans/drawn"), note=notes.append)]
    assert found == ["scans/1.png", "scans/deep/3.jpg", "scans/deep/er/4.tif"]
    assert notes == [
        "scans: 2 of 3 images are in its sub-folders (--no-recursive leaves them out); "
        "3 hidden files or folders skipped; name them to include them"
    ]


def test_a_folder_alone_is_searched_when_that_is_wanted() -> None:
    notes: list[str] = []
    assert [source.name for source in sources_of(["scans"], recursive=False, note=notes.append)] == ["scans/1.png"]
    assert notes == ["scans: 2 hidden files or folders skipped; name them to include them; 2 sub-folders not searched"]


def test_a_hidden_file_or_folder_that_is_named_is_taken() -> None:
    assert [source.name for source in sources_of(["scans/.2.png", "scans/.git"])] == [
        "scans/.2.png",
        "scans/.git/5.png",
    ]


def test_a_link_back_up_does_not_search_for_ever() -> None:
    os.symlink("..", "scans/deep/up")
    os.symlink("../empty", "scans/link")
    Path("empty/7.png").touch()
    names = [source.name for source in sources_of(["scans"])]
    assert names == ["scans/1.png", "scans/deep/3.jpg", "scans/deep/er/4.tif", "scans/drawn/6.png", "scans/link/7.png"]


def test_arguments_without_an_image_do_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "empty", "scans/1.png", "no*match", "scans/deep/3.jpg", "--json", "-"]) == 1
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.splitlines()]
    assert [(result["image"], "error" in result) for result in results] == [
        ("empty", True),
        ("no*match", True),
        ("scans/1.png", False),
        ("scans/deep/3.jpg", False),
    ]
    assert [line.partition("; looked for .avif, .bmp")[0] for line in err.splitlines()] == [
        "ocdserve detect: empty: no image in the folder 'empty'",
        "ocdserve detect: no*match: no image matches 'no*match'",
    ]


def test_a_folder_that_cannot_be_read_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list(sources_of(["scans"], left_out=Path("scans/drawn")))
    assert [(source.name, source.problem) for source in found] == [
        ("scans/1.png", None),
        ("scans/deep", "cannot read the folder 'scans/deep': Permission denied"),
    ]


def test_a_file_that_no_request_can_carry_is_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    with open("scans/huge.tif", "wb") as file:
        file.truncate(5 * 2**30)
    for name in ("scans/huge.tif", "scans/h*.tif"):
        assert main(["detect", name, "scans/1.png"]) == 1
        out, err = capsys.readouterr()
        assert "scans/1.png" in out
        assert err == (
            "ocdserve detect: scans/huge.tif: the file has 5.0 GiB; at most 2 GiB are read. Scale the image down.\n"
        )

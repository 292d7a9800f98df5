# SPDX-License-Identifier: Apache-2.0
"""Files of `ocdserve detect` when something goes wrong: whole, or not there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ocdserve import backend
from ocdserve.cli import main
from ocdserve.results.detections import Detections

QUADS = np.tile(np.array([[[10, 20], [50, 20], [50, 40], [10, 40]]], np.float32), (20, 1, 1))

# Runs the command line with files of at most so many bytes, which fails as a full disk does: after a part is written.
LIMITED = """
import resource, sys
import numpy as np
from ocdserve import backend
from ocdserve.cli import main
from ocdserve.results.detections import Detections
if "--parquet" in sys.argv:
    import pyarrow.parquet
class FakeDetector:
    @staticmethod
    def load(**_):
        return FakeDetector()
    def detect(self, image, **_):
        quads = np.random.default_rng(0).uniform(0, 60, (20, 4, 2)).astype(np.float32)
        return Detections(quads, np.full(20, 0.5, np.float32), 80, 60)
backend.Detector = FakeDetector
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(["detect", *sys.argv[2:]]))
"""


class Interrupted:
    """Finds 20 boxes; Ctrl-C comes at the third image."""

    def __init__(self) -> None:
        self.calls = 0

    def load(self, **_: Any) -> "Interrupted":
        return self

    def detect(self, image: bytes, **_: Any) -> Detections:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return Detections(QUADS, np.full(20, 0.5, np.float32), 80, 60)


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with a/x.png, a/x.bmp, b/x.png and y.png, all of noise."""
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    for name in ("a/x.png", "a/x.bmp", "b/x.png", "y.png"):
        Path(name).parent.mkdir(exist_ok=True)
        picture.save(name)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(backend), "Detector", Interrupted())


def test_a_file_to_be_replaced_survives_a_detector_that_cannot_be_loaded() -> None:
    Path("old.jsonl").write_text("old\n")
    options = ["--json", "old.jsonl", "--overwrite", "--bundle", "nowhere"]
    assert main(["detect", "y.png", *options]) == 1
    assert Path("old.jsonl").read_text() == "old\n"


def limited(size: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_a_full_disk_leaves_whole_json_lines() -> None:
    done = limited(4000, "a", "b", "y.png", "--json", "found.jsonl")
    assert done.returncode == 1
    assert done.stderr == "ocdserve detect: cannot write the file 'found.jsonl' of --json: File too large\n"
    content = Path("found.jsonl").read_text()
    assert content.endswith("}\n")
    assert [json.loads(line)["image"] for line in content.splitlines()] == ["a/x.bmp"]


def test_a_full_disk_leaves_no_part_of_a_picture() -> None:
    done = limited(1000, "y.png", "--draw", "drawn")
    assert done.returncode == 1
    assert done.stderr == "ocdserve detect: y.png: cannot write the picture 'drawn/y.png': File too large\n"
    assert os.listdir("drawn") == []


def test_a_full_disk_leaves_no_part_of_a_table() -> None:
    pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    done = limited(2000, "y.png", "--parquet", "found.parquet")
    assert done.returncode == 1
    assert done.stderr == "ocdserve detect: cannot write the file 'found.parquet' of --parquet: File too large\n"
    assert sorted(os.listdir()) == ["a", "b", "y.png"]


@pytest.mark.usefixtures("interrupted")
def test_ctrl_c_leaves_complete_files_and_says_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["detect", "a", "b", "y.png", "--json", "found.jsonl"]
    assert main(arguments) == 130
    err = capsys.readouterr().err
    assert "ocdserve detect: stopped before 2 of 4 images (2 images, 40 boxes in " in err
    assert err.endswith("/s); --resume continues there\n")
    assert [json.loads(line)["image"] for line in Path("found.jsonl").read_text().splitlines()] == [
        "a/x.bmp",
        "a/x.png",
    ]


@pytest.mark.usefixtures("interrupted")
def test_ctrl_c_completes_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    assert main(["detect", "a", "b", "--parquet", "found.parquet"]) == 130
    assert parquet.read_table("found.parquet").num_rows == 40
    assert "--resume" not in capsys.readouterr().err


@pytest.mark.usefixtures("interrupted")
def test_a_picture_is_named_as_its_file() -> None:
    assert main(["detect", "y.png", "a/x.bmp", "--draw", "drawn"]) == 0
    assert sorted(os.listdir("drawn")) == ["x.png", "y.png"]


def test_pictures_of_several_files_with_one_name_are_named_by_their_paths() -> None:
    done = limited(10**6, "a", "b", "./y.png", "--draw", "drawn")
    assert done.stderr == ""
    assert sorted(os.listdir("drawn")) == ["a_x.bmp.png", "a_x.png.png", "b_x.png.png", "y.png"]


def test_a_drawing_replaces_an_earlier_one_of_its_image_and_no_other_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uninterrupted = Interrupted()
    uninterrupted.calls = 9
    monkeypatch.setitem(vars(backend), "Detector", uninterrupted)
    assert main(["detect", "y.png", "--draw", "."]) == 0
    before = Path("y-2.png").read_bytes()
    assert capsys.readouterr().err == "ocdserve detect: y.png is drawn as y-2.png, as the name is taken\n"
    Path("x.png").write_text("a text")
    assert main(["detect", "y.png", "--draw", ".", "-q"]) == 0
    assert Path("y-2.png").read_bytes() == before
    assert main(["detect", "a/x.png", "--draw", "."]) == 0
    assert main(["detect", "b/x.png", "--draw", "."]) == 0
    assert sorted(os.listdir()) == ["a", "b", "x-2.png", "x-3.png", "x.png", "y-2.png", "y.png"]
    assert Path("x.png").read_text() == "a text"
    for drawing, source in (("y-2.png", "y.png"), ("x-2.png", "a/x.png"), ("x-3.png", "b/x.png")):
        with Image.open(drawing) as picture:
            assert picture.info["Source"] == source

# SPDX-License-Identifier: Apache-2.0
"""Result files of `ocdserve detect`, read back by independent readers."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve import backend
from ocdserve.cli import main
from ocdserve.results.detections import Detections

# In the first image; the second has no text. The third cannot be read.
QUADS = [[[10.5, 20], [50, 20], [50, 40], [10.5, 40]], [[1, 2], [3, 2], [3, 4], [1, 4]]]
SCORES = [0.9, 0.7]
POLYGON = [[10, 20], [50, 20], [50, 40], [30, 45], [10, 40]]
IMAGES = ["scans/a.png", "scans/sub/b, c.png", "none.png"]

LIMITED = """
import resource, sys
import numpy as np
from ocdserve import backend
from ocdserve.cli import main
from ocdserve.results.detections import Detections
class FakeDetector:
    def load(self, **_):
        return self
    def detect(self, image, **_):
        return Detections(np.ones((20, 4, 2), np.float32), np.full(20, 0.5, np.float32), 80, 60)
backend.Detector = FakeDetector()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(["detect", *sys.argv[2:]]))
"""


class FakeDetector:
    """Finds text in the images of even size; Ctrl-C comes at a certain call."""

    def __init__(self) -> None:
        self.calls = 0
        self.interrupted_at = 0

    def load(self, bundle: Path | None = None, **_: Any) -> "FakeDetector":
        if bundle is not None:
            raise OSError(2, "No such file or directory", str(bundle))
        return self

    def detect(self, image: bytes, polygons: bool = False) -> Detections:
        self.calls += 1
        if self.calls == self.interrupted_at:
            raise KeyboardInterrupt
        if image == b"empty":
            return Detections(np.empty((0, 4, 2), np.float32), np.empty(0, np.float32), 8, 6, () if polygons else None)
        outlines = (np.array(POLYGON, np.float32), np.array(QUADS[1], np.float32)) if polygons else None
        return Detections(np.array(QUADS, np.float32), np.array(SCORES, np.float32), 80, 60, outlines)


@pytest.fixture(autouse=True)
def detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDetector:
    """The detector; the working directory holds the images."""
    monkeypatch.chdir(tmp_path)
    Path("scans/sub").mkdir(parents=True)
    Path("scans/a.png").write_bytes(b"text")
    Path("scans/sub/b, c.png").write_bytes(b"empty")
    fake = FakeDetector()
    monkeypatch.setitem(vars(backend), "Detector", fake)
    return fake


def detect(*options: str) -> int:
    return main(["detect", *IMAGES, *options])


def rows(file: str) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def test_csv_has_a_row_per_detection_with_the_shortest_numbers() -> None:
    Path("scans/sub/b, c.png").write_bytes(b"text")
    assert detect("--output", "found.csv") == 1
    found = rows("found.csv")
    assert [row["image"] for row in found] == ["scans/a.png", "scans/a.png", "scans/sub/b, c.png", "scans/sub/b, c.png"]
    assert found[0] == {
        "image": "scans/a.png",
        "page": "",
        "width": "80",
        "height": "60",
        "index": "0",
        "score": "0.9",
        **dict(zip(("x1", "y1", "x2", "y2"), ("10.5", "20.0", "50.0", "20.0"), strict=True)),
        **dict(zip(("x3", "y3", "x4", "y4"), ("50.0", "40.0", "10.5", "40.0"), strict=True)),
    }


@pytest.mark.parametrize("polygons", [False, True])
def test_coco_is_one_file_whose_ids_agree(polygons: bool) -> None:
    options = ["--polygons"] if polygons else []
    assert main(["detect", "scans/a.png", "scans/sub/b, c.png", "./scans/a.png", *options, "--format", "coco"]) == 0
    assert main(["detect", "scans", "./scans/a.png", *options, "--format", "coco", "--output", "found.json"]) == 0
    coco = json.loads(Path("found.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "text"}]
    assert coco["images"] == [
        {"id": 1, "file_name": "scans/a.png", "width": 80, "height": 60},
        {"id": 2, "file_name": "scans/sub/b, c.png", "width": 8, "height": 6},
        {"id": 3, "file_name": "./scans/a.png", "width": 80, "height": 60},
    ]
    assert [(one["id"], one["image_id"], one["category_id"]) for one in coco["annotations"]] == [
        (1, 1, 1),
        (2, 1, 1),
        (3, 3, 1),
        (4, 3, 1),
    ]
    first = coco["annotations"][0]
    assert first["score"] == 0.9
    assert first["bbox"] == ([10, 20, 40, 25] if polygons else [10.5, 20, 39.5, 20])
    assert first["segmentation"] == [
        [10, 20, 50, 20, 50, 40, 30, 45, 10, 40] if polygons else [10.5, 20, 50, 20, 50, 40, 10.5, 40]
    ]


def test_icdar_and_labelme_have_a_file_per_image() -> None:
    assert detect("--format", "icdar", "--output", "out/icdar") == 1
    assert sorted(os.listdir("out/icdar")) == ["res_a.txt", "res_b, c.txt"]
    assert Path("out/icdar/res_a.txt").read_text() == "10,20,50,20,50,40,10,40\n1,2,3,2,3,4,1,4\n"
    assert Path("out/icdar/res_b, c.txt").read_text() == ""
    assert detect("--format", "labelme", "--output", "out/labelme", "--polygons") == 1
    assert sorted(os.listdir("out/labelme")) == ["a.json", "b, c.json"]
    labelme = json.loads(Path("out/labelme/a.json").read_text())
    assert (labelme["imagePath"], labelme["imageWidth"], labelme["imageHeight"]) == ("../../scans/a.png", 80, 60)
    assert [shape["points"] for shape in labelme["shapes"]] == [POLYGON, QUADS[1]]
    assert json.loads(Path("out/labelme/b, c.json").read_text())["imagePath"] == "../../scans/sub/b, c.png"


def test_files_of_images_with_one_name_are_named_by_their_paths() -> None:
    for name in ("x.png", "x.bmp", "y/X.png"):
        Path("same", name).parent.mkdir(parents=True, exist_ok=True)
        Path("same", name).write_bytes(b"text")
    assert main(["detect", "same", "--format", "icdar", "--output", "out"]) == 0
    assert sorted(os.listdir("out")) == ["res_same_x.bmp.txt", "res_same_x.png.txt", "res_same_y_X.png.txt"]


@pytest.mark.parametrize("name", ["json", "csv", "coco"])
def test_a_format_alone_goes_to_stdout_in_place_of_the_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--format", name], ["--format", name, "--output", "-"], ["--format", name, "-q"]):
        assert detect(*options) == 1
        out, err = capsys.readouterr()
        assert "boxes" not in out
        assert err.startswith("ocdserve detect: none.png: ")
        if name == "csv":
            assert [row["score"] for row in csv.DictReader(out.splitlines())] == ["0.9", "0.7"]
        elif name == "coco":
            assert len(json.loads(out)["annotations"]) == 2
        else:
            assert [json.loads(line)["image"] for line in out.splitlines()] == IMAGES


@pytest.mark.parametrize(
    ("path", "name"), [("a.jsonl", "json"), ("a.CSV", "csv"), ("a.ndjson", "json"), ("a.parquet", "parquet")]
)
def test_the_suffix_of_the_output_chooses_the_format(path: str, name: str) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    assert detect("--output", path) == 1
    assert Path(path).read_bytes().startswith({"json": b'{"image"', "csv": b"image,", "parquet": b"PAR1"}[name])


def test_parquet_has_the_rows_of_csv() -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    assert detect("--output", "found.parquet", "--format", "parquet", "--json", "found.jsonl") == 1
    table = parquet.read_table("found.parquet")
    assert ",".join(table.column_names) == "image,page,width,height,index,score,x1,y1,x2,y2,x3,y3,x4,y4"
    assert [(row["image"], row["index"], row["x1"]) for row in table.to_pylist()] == [
        ("scans/a.png", 0, 10.5),
        ("scans/a.png", 1, 1.0),
    ]
    assert len(Path("found.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["json", "csv", "coco", "icdar", "labelme", "parquet"])
def test_results_are_never_replaced_unless_that_is_asked_for(
    name: str, detector: FakeDetector, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    file = {"icdar": "out/res_a.txt", "labelme": "out/a.json"}.get(name, "out")
    if name in ("icdar", "labelme"):
        Path("out").mkdir()
    Path(file).write_text("old")
    assert detect("--format", name, "--output", "out") == 1
    assert "replace" in capsys.readouterr().err
    assert detector.calls == 0
    assert main(["detect", "a.png", "--bundle", "b", "--format", name, "--output", "out", "--overwrite"]) == 1
    assert Path(file).read_text() == "old"
    assert detect("--format", name, "--output", "out", "--overwrite") == 1
    assert b"old" not in Path(file).read_bytes()
    leftovers = [path for path in Path().rglob(".*") if path.is_file()]
    assert leftovers == []


@pytest.mark.parametrize("name", ["csv", "coco", "icdar"])
def test_ctrl_c_leaves_valid_files(name: str, detector: FakeDetector, capsys: pytest.CaptureFixture[str]) -> None:
    detector.interrupted_at = 2
    assert detect("--format", name, "--output", "out") == 130
    if name == "csv":
        assert [row["index"] for row in rows("out")] == ["0", "1"]
    elif name == "coco":
        coco = json.loads(Path("out").read_text())
        assert ([one["id"] for one in coco["images"]], len(coco["annotations"])) == ([1], 2)
    else:
        assert os.listdir("out") == ["res_a.txt"]
    assert ("--resume continues there" in capsys.readouterr().err) is (name == "icdar")


@pytest.mark.parametrize(("name", "left"), [("csv", ["out"]), ("coco", []), ("icdar", ["out"])])
def test_a_full_disk_leaves_whole_rows_or_no_file(name: str, left: list[str]) -> None:
    size = {"csv": "1500", "coco": "1500", "icdar": "100"}[name]
    words = [*IMAGES[:2], "--format", name, "--output", "out"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, size, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    file = "out/res_a.txt" if name == "icdar" else "out"
    of = "" if name == "icdar" else " of --output"
    assert done.stderr == f"ocdserve detect: cannot write the file '{file}'{of}: File too large\n"
    assert sorted(set(os.listdir()) - {"scans"}) == left
    if name == "csv":
        assert [row["x4"] for row in rows("out")] == ["1.0"] * 20
    elif name == "icdar":
        assert os.listdir("out") == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("name", ["json", "csv", "coco"])
def test_devices_are_written_directly(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "scans", "--format", name, "--output", "/dev/null"]) == 0
    capsys.readouterr()
    assert main(["detect", "scans", "--format", name, "--output", "/dev/full"]) == 1
    line = "ocdserve detect: cannot write the file '/dev/full' of --output: No space left on device\n"
    assert capsys.readouterr().err.endswith(line)


def test_resuming_writes_other_files_whole_and_skips_the_files_of_a_folder(detector: FakeDetector) -> None:
    assert main(["detect", "scans/a.png", "--json", "found.jsonl", "--output", "found.csv"]) == 0
    assert main(["detect", "scans", "--json", "found.jsonl", "--output", "found.csv", "--resume"]) == 0
    assert detector.calls == 2
    assert [row["index"] for row in rows("found.csv")] == ["0", "1"]
    assert main(["detect", "scans/a.png", "--format", "icdar", "--output", "out"]) == 0
    assert main(["detect", "scans", "--format", "icdar", "--output", "out", "--resume"]) == 0
    assert detector.calls == 4
    assert sorted(os.listdir("out")) == ["res_a.txt", "res_b, c.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "found.json"], "--format must say what to write to 'found.json': json, csv, coco, icdar, "),
        (
            ["--format", "cvs"],
            "argument --format: must be one of json, csv, coco, icdar, labelme, parquet; got 'cvs'; ",
        ),
        (["--format", "icdar"], "icdar does not go to stdout; name a folder with --output"),
        (["--format", "parquet"], "parquet does not go to stdout; name a file with --output"),
        (["--format", "icdar", "--output", "scans/a.png"], "--output must be a folder for icdar; 'scans/a.png' is a"),
        (["--json", "-", "--format", "csv"], "--json and --output must name different files"),
        (["--json", "a.x", "--format", "csv", "--output", "./a.x"], "--json and --output must name different files"),
        (["--output", "found.csv", "--resume"], "--resume continues the file of --json, or a folder of icdar or "),
    ],
)
def test_options_that_do_not_suit_a_format_are_a_usage_error(
    options: list[str], message: str, detector: FakeDetector, capsys: pytest.CaptureFixture[str]
) -> None:
    assert detect(*options) == 2
    assert message in capsys.readouterr().err
    assert detector.calls == 0


def test_labelme_needs_images_that_are_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "scans", "-", "--format", "labelme", "--output", "out"]) == 2
    assert "labelme's files name an image file, and - is none; choose" in capsys.readouterr().err


def test_formats_without_polygons_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert detect("--polygons", "--output", "found.csv", "--json", "found.jsonl") == 1
    assert "ocdserve detect: csv has no place for polygons; it gets the quads\n" in capsys.readouterr().err


def test_a_name_that_is_no_utf_8_is_written_to_every_format() -> None:
    os.makedirs(b"odd")
    with open(b"odd/\xff.png", "wb") as file:
        file.write(b"text")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "100000", "odd", "--json", "found.jsonl"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"odd/\\udcff.png" in done.stdout
    assert json.loads(Path("found.jsonl").read_text())["image"] == "odd/\udcff.png"
    assert main(["detect", "odd", "--output", "found.csv", "--quiet"]) == 0
    assert [row["image"] for row in rows("found.csv")] == ["odd/\\udcff.png"] * 2
    assert main(["detect", "odd", "--format", "coco", "--output", "coco.json"]) == 0
    assert json.loads(Path("coco.json").read_text())["images"][0]["file_name"] == "odd/\udcff.png"

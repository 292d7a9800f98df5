# SPDX-License-Identifier: Apache-2.0
"""`ocdserve detect` over files of several pages."""

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ocdserve.client
from ocdserve import backend
from ocdserve.backend.detector import LocalDetector
from ocdserve.cli import main
from ocdserve.client import Downloads, InferRequest, MockTransport, TextDetector
from ocdserve.results.detections import Detections

QUAD = [[10.0, 10.0], [30.0, 10.0], [30.0, 20.0], [10.0, 20.0]]


def size_of(image: Any) -> tuple[int, int]:
    """Height and width of what a detector is given."""
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    with Image.open(io.BytesIO(image)) as opened:
        return opened.height, opened.width


class FakeDetector(LocalDetector):
    """One box in every image; refuses those that are 52 pixels wide."""

    downloads = Downloads()

    def load(self, **_: Any) -> "FakeDetector":
        return self

    def answer(self, images: Sequence[Any], *_: Any) -> list[Detections]:
        return [self.detect(image) for image in images]

    def detect(self, image: Any, **overrides: Any) -> Detections:
        height, width = size_of(image)
        if width == 52:
            raise ocdserve.client.InvalidInputError("no picture of 52 columns")
        return Detections(np.array([QUAD], np.float32), np.array([0.5], np.float32), width, height)


@pytest.fixture(params=["in process", "served"])
def detect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`detect(*arguments)`: the command's exit code, in process or through a server."""
    fake = FakeDetector()

    def answer(sent: InferRequest) -> dict[str, Any]:
        found = fake.detect(sent.array[0] if sent.input_name == "PIXELS" else sent.array[0, 0])
        return {
            "QUADS": found.quads[None],
            "SCORES": found.scores[None],
            "COUNT": np.array([[1]], np.int32),
            "SIZE": np.array([[found.height, found.width]], np.int32),
        }

    monkeypatch.setitem(vars(backend), "Detector", fake)
    monkeypatch.setattr(
        ocdserve.client, "TextDetector", lambda url, *, model=None: TextDetector(url, transport=MockTransport(answer))
    )
    url = ["--url", "grpc://h:1"] if request.param == "served" else []
    return lambda *arguments: main(["detect", *arguments, *url])


def save(file: str, count: int, form: str | None = None, **options: Any) -> None:
    """Pages of 48, 49, 50... x 32 pixels."""
    first, *others = (Image.new("RGB", (48 + index, 32), (90, 90, 90)) for index in range(count))
    first.save(file, form, save_all=True, append_images=others, **options)


@pytest.fixture(autouse=True)
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """scans/: a TIFF of 3 pages, a PDF of 2 pages, a GIF of 2 frames, a PNG."""
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    save("scans/a.tif", 3)
    save("scans/b.pdf", 2, resolution=72)
    images = [Image.new("RGB", (48, 32), (shade, 90, 90)) for shade in (9, 90)]
    images[0].save("scans/c.gif", save_all=True, append_images=images[1:])
    images[0].save("scans/d.png")


ALL = [
    ("a.tif", 1),
    ("a.tif", 2),
    ("a.tif", 3),
    ("b.pdf", 1),
    ("b.pdf", 2),
    ("c.gif", 1),
    ("c.gif", 2),
    ("d.png", None),
]


def results(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def named(found: list[dict[str, Any]]) -> list[tuple[str, int | None]]:
    return [(Path(one["image"]).name, one.get("page")) for one in found]


def test_every_page_has_a_line_with_its_number(detect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect("scans", "--json", "-", "--dpi", "144") == 0
    found = results(capsys.readouterr().out)
    assert named(found) == ALL
    assert [one["width"] for one in found] == [48, 49, 50, 96, 98, 48, 48, 48]


def test_the_table_names_pages_and_the_summary_counts_them(detect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect("scans/a.tif", "scans/d.png", "--progress") == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:5]] == [
        *(f"scans/a.tif#page={page}" for page in (1, 2, 3)),
        "scans/d.png",
    ]
    assert out.splitlines()[-1].startswith("4 images, 4 boxes")
    assert "4/4 images" in err


def test_one_page_is_chosen(detect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect("scans/a.tif", "scans/d.png", "--page", "2", "--json", "-") == 1
    chosen, lacking = results(capsys.readouterr().out)
    assert (chosen["page"], chosen["width"]) == (2, 49)
    assert lacking["error"] == "page must be 1, the only page of this PNG file; got 2"


def test_a_page_that_fails_does_not_stop_the_others(detect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    save("five.tif", 6)
    Path("no.pdf").write_bytes(b"%PDF-1.4 junk")
    assert detect("five.tif", "no.pdf", "scans/d.png", "--json", "-") == 1
    out, err = capsys.readouterr()
    found = results(out)
    assert named(found) == [*(("five.tif", page) for page in range(1, 7)), ("no.pdf", None), ("d.png", None)]
    assert [one.get("error", "")[:24] for one in found] == [
        *[""] * 4,
        "no picture of 52 columns",
        "",
        "the PDF of 13 bytes cann",
        "",
    ]
    assert err.splitlines()[0] == "ocdserve detect: five.tif#page=5: no picture of 52 columns"


def test_a_damaged_page_does_not_stop_those_after_it(detect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    save("a.tif", 3, compression="tiff_lzw")
    data = bytearray(Path("a.tif").read_bytes())
    with Image.open(io.BytesIO(data)) as image:
        image.seek(1)
        [offset, *_] = image.tag_v2[273]  # type: ignore[attr-defined]
    data[offset : offset + 6] = b"\xff" * 6
    Path("a.tif").write_bytes(data)
    assert detect("a.tif", "--json", "-") == 1
    first, second, third = results(capsys.readouterr().out)
    assert (first["page"], second["page"], third["page"]) == (1, 2, 3)
    assert second["error"].startswith("page 2 of 3 of the TIFF file cannot be decoded")
    assert third["width"] == 50


def test_drawings_and_result_files_are_named_after_the_page(detect: Any) -> None:
    assert detect("scans/a.tif", "scans/d.png", "--draw", "drawn", "--format", "icdar", "--output", "icdar") == 0
    assert sorted(os.listdir("drawn")) == ["a.page-1.png", "a.page-2.png", "a.page-3.png", "d.png"]
    assert sorted(os.listdir("icdar")) == [
        "res_a.page-1.txt",
        "res_a.page-2.txt",
        "res_a.page-3.txt",
        "res_d.txt",
    ]
    with Image.open("drawn/a.page-3.png") as drawn:
        assert drawn.size == (50, 32)


def test_an_image_named_like_the_page_of_another_has_a_file_of_its_own(detect: Any) -> None:
    Path("scans/d.png").rename("scans/A.page-2.png")
    assert detect("scans/a.tif", "scans/A.page-2.png", "--format", "icdar", "--output", "out") == 0
    assert sorted(os.listdir("out")) == [
        "res_A.page-2-2.txt",
        *(f"res_a.page-{page}.txt" for page in (1, 2, 3)),
    ]


def test_tables_have_a_column_for_the_page(detect: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert detect("scans", "--output", "found.csv", "--parquet", "found.parquet") == 0
    with open("found.csv", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [(Path(row["image"]).name, int(row["page"]) if row["page"] else None) for row in rows] == ALL
    assert pyarrow.read_table("found.parquet")["page"].to_pylist() == [page for _, page in ALL]


def test_coco_has_an_image_per_page(detect: Any) -> None:
    assert detect("scans/a.tif", "--format", "coco", "--output", "found.json") == 0
    content = json.loads(Path("found.json").read_text())
    assert [(one["file_name"], one["width"]) for one in content["images"]] == [
        ("scans/a.tif#page=1", 48),
        ("scans/a.tif#page=2", 49),
        ("scans/a.tif#page=3", 50),
    ]


@pytest.mark.parametrize("kind", ["json", "icdar"])
def test_resuming_continues_within_a_file(detect: Any, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "found.jsonl"] if kind == "json" else ["--format", "icdar", "--output", "found"]
    assert detect("scans", *options) == 0
    if kind == "json":
        lines = Path("found.jsonl").read_text().splitlines(keepends=True)
        Path("found.jsonl").write_text("".join(lines[:1] + lines[2:5]))
    else:
        for name in ("a.page-2", "c.page-1", "c.page-2", "d"):
            Path(f"found/res_{name}.txt").unlink()
    capsys.readouterr()
    assert detect("scans", *options, "--resume") == 0
    labels = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:-1]]
    assert labels == ["scans/a.tif#page=2", "scans/c.gif#page=1", "scans/c.gif#page=2", "scans/d.png"]
    if kind == "json":
        assert sorted(named(results(Path("found.jsonl").read_text())), key=str) == sorted(ALL, key=str)
    else:
        assert len(os.listdir("found")) == 8


def test_where_no_image_is_left_none_is_sent(detect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect("scans/d.png", "--json", "found.jsonl") == 0
    assert detect("scans/d.png", "--json", "found.jsonl", "--resume") == 0
    assert "1 of 1 images are already done" in capsys.readouterr().out
    assert detect("http://h/a.png") == 1
    assert capsys.readouterr().err == "ocdserve detect: http://h/a.png: a URL is fetched only with --allow-urls\n"


def test_pages_are_detected_in_tiles(detect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect("scans/a.tif", "--tile", "64", "--json", "-") == 0
    assert named(results(capsys.readouterr().out)) == [("a.tif", 1), ("a.tif", 2), ("a.tif", 3)]


@pytest.mark.parametrize("dpi", ["0", "x", "2401", "nan"])
def test_a_resolution_out_of_range_is_an_error_of_usage(dpi: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detect", "scans/b.pdf", "--dpi", dpi]) == 2
    assert f"argument --dpi: must be a number from 1 to 2400; got {dpi!r}" in capsys.readouterr().err


def test_without_pypdfium2_the_extra_is_named(
    detect: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    assert detect("scans/b.pdf", "scans/d.png") == 1
    expected = (
        "PDF files need pypdfium2, which is not installed: `pip install 'ocdserve[pdf]'` (in a source tree: "
        "`make extra NAME=pdf`)"
    )
    assert capsys.readouterr().err == f"ocdserve detect: scans/b.pdf: {expected}\n"

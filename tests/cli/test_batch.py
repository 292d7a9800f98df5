# SPDX-License-Identifier: Apache-2.0
"""`ocdserve batch`: sources, options, what it prints, shards that are given up."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ocdserve import backend
from ocdserve.batch import detect
from ocdserve.batch.detect import DetectBatch
from ocdserve.cli import main
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections
from ocdserve.results.many import Outcome

pyarrow = pytest.importorskip("pyarrow.parquet", reason="the extra tables is not installed")


class FakeDetector:
    """Finds nothing; what has no bytes is no image."""

    def detect_many(self, images: Iterable[bytes], **_: Any) -> Iterator[Outcome[Any]]:
        empty = Detections(np.empty((0, 4, 2), np.float32), np.empty(0, np.float32), 80, 60)
        for index, image in enumerate(images):
            if image:
                yield Outcome(index, image, detections=empty)
            else:
                yield Outcome(index, image, error=InvalidInputError("no image"))


@pytest.fixture(autouse=True)
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 1.png, 2.png and 10.png, of which 2.png is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backend.Bundle, "load", lambda _: SimpleNamespace(digest=lambda: "0123456789abcdef"))
    monkeypatch.setattr(detect, "_detector", lambda *_: FakeDetector())
    (tmp_path / "scans").mkdir()
    for name, content in (("10.png", b"x"), ("2.png", b""), ("1.png", b"x"), ("notes.md", b"x")):
        (tmp_path / "scans" / name).write_bytes(content)
    return tmp_path / "scans"


def names_in(folder: str) -> list[str]:
    return [Path(name).name for name in pyarrow.read_table(folder).column("image").to_pylist()]


def test_a_folder_becomes_shards_and_a_further_run_continues(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "scans", "--output", "out", "--shard-size", "2"]) == 0
    assert capsys.readouterr().out.startswith("3 inputs: 3 images, 0 boxes, 1 errors in ")
    assert names_in("out") == ["1.png", "2.png", "10.png"]
    first, second = sorted(Path("out").glob("part-*"))
    before = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    assert main(["batch", "scans/", "--output", "out", "--shard-size", "2"]) == 0
    assert capsys.readouterr().out.startswith(
        "continuing: 1 of 2 shards with 3 inputs are already done\n1 inputs: 1 images"
    )
    assert (first.stat().st_mtime_ns, second.read_bytes()) == before
    assert main(["batch", "scans", "--output", "out", "--shard-size", "2"]) == 0
    assert capsys.readouterr().out == "continuing: 2 of 2 shards with 3 inputs are already done\n"


def test_a_file_of_results_says_where_it_comes_from(scans: Path) -> None:
    import json
    from importlib.metadata import version

    assert main(["batch", "scans", "--output", "out", "--box-thresh", "0.7", "--quiet"]) == 0
    [file] = Path("out").glob("part-*")
    assert json.loads(pyarrow.read_schema(file).metadata[b"ocdserve"]) == {
        "version": version("ocdserve"),
        "bundle": "default",
        "digest": "0123456789abcdef",
        "sources": [str(scans)],
        "runtime": None,
        "gpu": False,
        "max_side": None,
        "dpi": 200.0,
        "parameters": {"box_thresh": 0.7},
        "shard": 0,
    }


def test_lists_and_patterns_are_sources_and_an_input_counts_once(scans: Path) -> None:
    Path("list.txt").write_text(f"scans/2.png\n{scans}/1.png\nnone.png\n", "utf-8")
    assert main(["batch", "list.txt", "scans/1*.png", "--output", "out", "--quiet"]) == 0
    assert names_in("out") == ["2.png", "1.png", "none.png", "10.png"]
    assert pyarrow.read_table("out").column("error").to_pylist() == [
        "no image",
        None,
        "cannot read the file: No such file or directory",
        None,
    ]


def test_a_shard_whose_storage_keeps_failing_is_given_up_and_done_by_a_further_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, calls = DetectBatch.rows, list[str]()

    def failing(self: DetectBatch, inputs: Iterable[tuple[str, None]]) -> Iterator[Any]:
        named = list(inputs)
        calls.append(Path(named[0][0]).name)
        if calls[-1] == "1.png":
            raise TimeoutError("storage is slow")
        return rows(self, named)

    command = ["batch", "scans", "--output", "out", "--shard-size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(DetectBatch, "rows", failing)
        assert main(command) == 1
    assert calls == ["1.png"] * 3 + ["10.png"]
    error = capsys.readouterr().err
    assert "part-000000-" in error and "TimeoutError: storage is slow" in error
    assert error.endswith("1 shards were given up; run it again to try them\n")
    assert names_in("out") == ["10.png"]
    assert main(command) == 0
    assert names_in("out") == ["1.png", "2.png", "10.png"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["scans", "none"], 1, "there is no file or folder 'none'"),
        (["scans/*.gif"], 1, "no image matches 'scans/*.gif'; looked for"),
        (["https://host/x.jpg"], 1, "a batch fetches nothing from the web; copy the image"),
        (["scans", "--address", "auto"], 2, "--address is for --engine ray"),
        (["scans", "--gpus-per-worker", "0.5"], 2, "--gpus-per-worker is for --engine ray"),
        (["scans", "--engine", "ray", "--gpus-per-worker", "0.5"], 2, "which only --gpu uses"),
        (["scans", "--gpu", "--threads", "2"], 2, "--threads is for a network on the CPU"),
        (["scans", "--engine", "spark"], 2, "must be one of local, ray"),
    ],
)
def test_what_cannot_be_done_is_said(
    options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", *options, "--output", "out"]) == code
    assert message in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""A job that is killed and run again has each input exactly once, and the files of one that was not disturbed."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pyarrow = pytest.importorskip("pyarrow.parquet", reason="the extra tables is not installed")

PROGRAM = Path(__file__).with_name("killed.py")
# 26 inputs in 7 shards of 4; the job's file is the first that is written.
CHOSEN = (
    ("before listing", 1),
    ("half written", 1),
    ("before a link", 1),
    ("after a link", 1),
    ("detect", 1),
    ("detect", 6),
    ("before writing", 2),
    ("half written", 3),
    ("before fsync", 4),
    ("before a link", 5),
    ("before unlink", 8),
    ("before listing", 3),
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 inputs: a file of three pages, one that is not there any more, the others of any content."""
    folder = tmp_path_factory.mktemp("inputs")
    for index in range(24):
        (folder / f"{index}.png").write_bytes(bytes(index + 1))
    (folder / "gone.png").symlink_to(folder / "nowhere")
    pages = [Image.new("L", (8, rows)) for rows in (5, 6, 7)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    return folder


def killed(inputs: Path, folder: Path, jobs: list[Any]) -> dict[str, Any]:
    command = [sys.executable, str(PROGRAM), str(inputs), str(folder), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_whole(folder: Path, inputs: Path) -> None:
    rows = pyarrow.read_table(folder).to_pylist()
    expected = [(f"{index}.png", None) for index in range(24)] + [("gone.png", None)]
    expected += [("pages.tif", page) for page in (1, 2, 3)]
    assert [(Path(row["image"]).relative_to(inputs).name, row["page"]) for row in rows] == expected
    counts = [None if row["scores"] is None else len(row["scores"]) for row in rows]
    assert counts == [*range(1, 10), *[9] * 15, None, 5, 6, 7]
    assert [row["error"] for row in rows if row["error"]] == ["cannot read the file: No such file or directory"]


def test_a_job_that_is_killed_anywhere_and_run_again_has_each_input_once(inputs: Path, tmp_path: Path) -> None:
    jobs: list[Any] = [("undisturbed", [])]
    jobs += [(f"chosen {number}", [point]) for number, point in enumerate(CHOSEN)]
    answers = killed(inputs, tmp_path, jobs)

    whole = files_of(tmp_path / "undisturbed")
    assert len(whole) == 8
    check_whole(tmp_path / "undisturbed", inputs)
    for number, point in enumerate(CHOSEN):
        assert answers[f"chosen {number}"] == [-9, 0], point
        assert files_of(tmp_path / f"chosen {number}") == whole, point


@pytest.mark.long
def test_a_job_that_is_killed_at_random_again_and_again_has_each_input_once(inputs: Path, tmp_path: Path) -> None:
    chance = random.Random(17)
    # An undisturbed run has about 80 events; of later runs of a job fewer are left.
    jobs: list[Any] = [("undisturbed", [])]
    jobs += [
        (f"random {number}", [("any", chance.randrange(1, limit)) for limit in (70, 30, 10)]) for number in range(8)
    ]
    answers = killed(inputs, tmp_path, jobs)

    assert answers["counts"]["any"] > 70
    whole = files_of(tmp_path / "undisturbed")
    for number in range(8):
        first, *_, last = answers[f"random {number}"]
        assert (first, last) == (-9, 0)
        assert files_of(tmp_path / f"random {number}") == whole

# SPDX-License-Identifier: Apache-2.0
"""The command `ocdserve bench`: which sections run, what it refuses, and what it writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ocdserve.cli import main
from ocdserve.cli.bench import COMMANDS, SECTIONS, sections_of
from ocdserve.contract import UsageError
from ocdserve.perf.sections.plan import ProgressLine


@pytest.mark.parametrize(
    ("names", "sections"),
    [
        (["serving", "pipeline"], ("pipeline", "serving")),
        (["postprocess", "postprocess"], ("postprocess",)),
    ],
)
def test_sections_run_once_and_in_their_order(names: list[str], sections: tuple[str, ...]) -> None:
    assert tuple(section.name for section in sections_of(names)) == sections


def test_without_names_the_default_sections_run() -> None:
    assert sections_of([]) == tuple(section for section in SECTIONS if section.by_default)
    assert {"pipeline", "postprocess", "serving"} <= {section.name for section in sections_of([])}


def test_every_section_measures() -> None:
    assert all(callable(section.module().measure) for section in SECTIONS)


def test_every_command_of_bench_describes_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main(["bench", command.name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: ocdserve bench {command.name} ")


def test_help_and_reports_need_no_package_that_is_measured() -> None:
    """In a process of its own, for this one has imported them."""
    program = """
import sys
for package in ("PIL", "cv2", "matplotlib", "onnx", "onnxruntime", "openvino", "pyclipper", "rapidocr", "shapely"):
    sys.modules[package] = None
from ocdserve.cli import main
assert main(["bench", "--help"]) == 0
for command in ("analyzer", "capacity", "compare", "guard", "load", "quick", "report"):
    assert main(["bench", command, "--help"]) == 0
assert main(["bench", "report", sys.argv[1]]) == 0
"""
    results = Path(__file__).parents[2] / "perf" / "results" / "bench-2026-11-24.json"
    done = subprocess.run([sys.executable, "-c", program, str(results)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Encoded image to boxes: time" in done.stdout


def test_an_unknown_section_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown section 'pipelines'; known are pipeline, reading, postprocess, "):
        sections_of(["pipelines"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown section 'nonsense'"),
        (["pipeline", "--rounds", "0"], "--rounds must be at least 1; got 0"),
        (["pipeline", "compare"], "compare is a command, not a section; it comes first: ocdserve bench compare --help"),
        (["analyzer"], "the following arguments are required: --url"),
        (["compare", "one.json"], "the following arguments are required: B.json"),
    ],
)
def test_bad_usage_ends_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_could_not_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--json", str(tmp_path / "absent" / "result.json")]) == 1
    assert "its folder does not exist" in capsys.readouterr().err
    (tmp_path / "old.json").write_text("{}", "utf-8")
    assert main(["bench", "--json", str(tmp_path / "old.json")]) == 1
    assert "exists, and results are never overwritten" in capsys.readouterr().err


def test_the_postprocess_section_finds_the_same_boxes_and_prints_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ocdserve.perf.sections.postprocess._ROUNDS", 1)
    data = tmp_path / "one"
    for part in ("img", "gt"):
        (data / part).mkdir(parents=True)
    Image.new("RGB", (64, 64), "white").save(data / "img" / "blank.png")
    (data / "gt" / "gt_blank.txt").write_text("", "ascii")
    assert main(["bench", "postprocess", "--data", str(data), "--json", "-"]) == 0
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert (document["schema"], document["schema_version"]) == ("ocdserve.bench", 2)
    assert document["command"] == "bench postprocess --data one"
    series = {(one["group"], one["subject"]): one for one in document["measurements"]}
    assert series["dense, 1000 words", "ocdserve"]["facts"]["boxes"] == 1000
    assert len(series["dense, 1000 words", "plain loop"]["samples"]) == 1
    assert series["one", "ocdserve"]["cases"] == series["one", "plain loop"]["cases"] == ["blank.png#0"]
    assert "postprocess: 4/4, 0 s left" in output.err


def test_progress_shows_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLine("pipeline")
    progress(1, 2)
    assert capsys.readouterr().err == ""
    progress(2, 2)
    assert capsys.readouterr().err == "pipeline: 2/2, 0 s left\n"

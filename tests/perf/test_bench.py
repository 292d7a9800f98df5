# SPDX-License-Identifier: Apache-2.0
"""The command `ocdserve bench`: which sections run, and what it refuses."""

import json
from pathlib import Path

import pytest

from ocdserve.cli import UsageError, main
from ocdserve.cli.bench import Progress, sections_of


@pytest.mark.parametrize(
    ("names", "sections"),
    [
        ([], ("pipeline", "postprocess", "serving")),
        (["serving", "pipeline"], ("pipeline", "serving")),
        (["postprocess", "postprocess"], ("postprocess",)),
        (["analyzer"], ("analyzer",)),
    ],
)
def test_sections_run_once_and_in_their_order(names: list[str], sections: tuple[str, ...]) -> None:
    assert sections_of(names) == sections


def test_an_unknown_section_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown section 'pipelines'; known are pipeline, postprocess, serving, ana"):
        sections_of(["pipelines"])


def test_the_analyzer_runs_by_itself() -> None:
    with pytest.raises(UsageError, match="run it by itself"):
        sections_of(["pipeline", "analyzer"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown section 'nonsense'"),
        (["pipeline", "--rounds", "0"], "--rounds must be at least 1; got 0"),
        (["pipeline", "--url", "grpc://host:1"], "--url goes only with the section analyzer"),
        (["--args", "-v"], "--args goes only with the section analyzer"),
        (["analyzer"], "needs a server that runs: --url"),
        (["analyzer", "--url", "grpc://host:1", "--rounds", "2"], "do not go with the section analyzer"),
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


def test_the_postprocess_section_finds_the_same_boxes_and_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "postprocess", "--json", "-"]) == 0
    output = capsys.readouterr()
    dense, drawn = json.loads(output.out)["postprocess"]["rows"]
    assert (dense["count"], dense["boxes"]) == (1, 1000)
    assert drawn["count"] == 3
    assert "postprocess: 4/4, 0 s left" in output.err


def test_progress_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("pipeline")
    progress(1, 2)
    assert capsys.readouterr().err == ""
    progress(2, 2)
    assert capsys.readouterr().err == "pipeline: 2/2, 0 s left\n"

# SPDX-License-Identifier: Apache-2.0
"""`ocdserve bench load`: which options go together, and what it shows."""

from pathlib import Path

import pytest

from ocdserve.cli import main

URL = ["--url", "grpc://127.0.0.1:9"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        ([*URL, "--bundle", "x"], "leave --url out"),
        ([*URL, "--memory"], "--server-pid PID"),
        (["--server-pid", "1"], "--server-pid goes with --url and --memory"),
        (["--repository", "x", "--bundle", "y"], "give --repository or these"),
        (["--concurrency", "2", "--rate", "3"], "give one of them"),
        (["--requests", "2", "--duration", "3"], "give one of them"),
        (["--data", "x", "--images", "dense"], "give one of them"),
    ],
)
def test_options_that_contradict_each_other_are_bad_usage(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "load", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scenario", "nonsense"], "known are quick"),
        ([*URL, "--concurrency", "0"], "concurrency must be a whole number from 1"),
        ([*URL, "--scenario", "photographs"], "name their folders with --data"),
        ([*URL, "--json", "no/such/folder/file.json"], "its folder does not exist"),
        ([*URL, "--images", "tiny", "--requests", "1"], "grpc://127.0.0.1:9"),
    ],
)
def test_loads_that_cannot_be_measured_are_errors(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "load", *options]) == 1
    assert message in capsys.readouterr().err


def test_the_catalogue_and_the_locustfile_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "load", "--list"]) == 0
    assert "endurance      mixed        ocdnet        grpc  4 clients, 10000 requests" in capsys.readouterr().out
    assert main(["bench", "load", "--locustfile"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()

# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from ocdserve.backend.device import probe
from ocdserve.cli import main


@pytest.mark.parametrize(
    "option",
    [
        ["--gpu"],
        ["--streams", "0"],
        ["--threads", "2"],
        ["--queue-size", "9"],
        ["--tuning", "file"],
        ["--runtime", "openvino"],
    ],
)
def test_options_of_a_new_repository_do_not_go_with_a_given_one(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--repository", str(tmp_path), *option]) == 2
    assert "shapes a new repository; it does not go with --repository" in capsys.readouterr().err


def test_a_missing_gpu_is_reported_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "_driver", lambda: None)
    assert main(["serve", "--gpu"]) == 1
    error = capsys.readouterr().err
    assert "the runtime onnxruntime-cuda of the detector ppocr needs a GPU, but this machine has no NVIDIA" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--http-port", "99999"], "argument --http-port: must be a whole number, from 0 to 65535; got '99999'"),
        (
            ["--grpc-port", "8000"],
            "serve: --http-port, --grpc-port and --metrics-port must differ (got 8000, 8000, 8002)",
        ),
        (["--host", "nowhere"], "serve: --host must be an IPv4 address"),
    ],
)
def test_a_wrong_option_of_the_server_is_reported_by_its_name_on_the_command_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ocdnet").mkdir()
    (tmp_path / "ocdnet" / "config.pbtxt").touch()
    assert main(["serve", "--repository", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err

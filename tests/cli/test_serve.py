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

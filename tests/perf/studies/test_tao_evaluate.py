# SPDX-License-Identifier: Apache-2.0
"""The cost of `ocdnet evaluate` compared with its network alone."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from ocdserve.perf.studies.tao_evaluate import main


def test_both_sides_see_all_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = np.full((736, 1280, 3), 255, np.uint8)
    cv2.putText(picture, "TAXI STAND", (400, 300), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (0, 0, 0), 3)
    (tmp_path / "img").mkdir()
    (tmp_path / "gt").mkdir()
    assert cv2.imwrite(str(tmp_path / "img" / "sign.png"), picture)
    (tmp_path / "gt" / "gt_sign.txt").write_text("390,254,653,254,653,316,390,316,TAXI STAND\n")
    assert main(["--data", str(tmp_path), "--images", "2", "--block", "1", "--batch-size", "1", "--no-sweep"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["images"], figures["hmean"]) == (2, 1.0)
    assert min(figures["speed_of_bare"], figures["cpu_of_bare"], figures["evaluate_images_per_s"]) > 0

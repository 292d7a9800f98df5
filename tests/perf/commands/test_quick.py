# SPDX-License-Identifier: Apache-2.0
"""`ocdserve bench quick`: its figures, by a clock that detectors advance, and what it prints."""

import json
from typing import Any

import cv2
import numpy as np
import pytest

from ocdserve.backend import Bundle
from ocdserve.cli import main
from ocdserve.perf.commands import quick


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Detector:
    """Takes so many seconds for a picture, twice as many for its first."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds, self.is_new = clock, seconds, True

    def preprocess(self, encoded: bytes) -> tuple[Any, None]:
        return np.zeros((480, 640, 3), np.uint8), None

    def detect(self, encoded: bytes) -> None:
        self.clock.now += self.seconds * (2 if self.is_new else 1)
        self.is_new = False
        self.opencv_threads = cv2.getNumThreads()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(quick, "perf_counter", clock)
    monkeypatch.setattr(quick, "core_count", lambda: 1)
    return clock


def test_the_first_picture_does_not_count(clock: Clock) -> None:
    detectors: Any = {"slow": Detector(clock, 0.5), "quick": Detector(clock, 0.125)}
    assert quick.measured(detectors, b"") == [
        quick.Speed("slow", 640, 480, 500.0, 2.0),
        quick.Speed("quick", 640, 480, 125.0, 8.0),
    ]


def test_a_slow_machine_measures_each_detector_thrice(clock: Clock) -> None:
    detectors: Any = {"slow": Detector(clock, 8.0)}
    (speed,) = quick.measured(detectors, b"")
    # One first, three on one thread, one on all cores as a trial and one that counts.
    assert (clock.now, speed.pictures_per_s_all_cores) == (100 + 16 + 3 * 8 + 8 + 8, 0.125)


def test_table_and_json_name_the_built_in_detectors(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[Detector] = []

    def load(bundle: Bundle, runtime: str) -> Detector:
        loaded.append(Detector(clock, bundle.spec.resize.side / 1000))
        return loaded[-1]

    monkeypatch.setattr(quick, "_loaded", load)
    assert main(["bench", "quick", "--runtime", "onnxruntime"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 cores; onnxruntime 1." in lines[0] and lines[1] == "a drawn receipt, 720 x 1080, decoded each time"
    assert lines[4].split() == ["default", "FP32", "640", "x", "480", "736", "1.4"]
    assert lines[5].split() == ["fast", "FP32", "640", "x", "480", "480", "2.1"]
    assert {detector.opencv_threads for detector in loaded} == {1}
    assert lines[6].split()[0] == "lite"
    assert main(["bench", "quick", "--runtime", "onnxruntime", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cores"] == 1 and found["in_bf16"] == [] and found["picture"] == "receipt, 720 x 1080"
    assert found["detectors"][1] == {
        "bundle": "fast",
        "width": 640,
        "height": 480,
        "ms_one_thread": pytest.approx(480),
        "pictures_per_s_all_cores": pytest.approx(1 / 0.48),
    }


def test_a_gpu_runtime_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "quick", "--runtime", "tensorrt"]) == 1
    assert "--runtime must be one of openvino, onnxruntime; got 'tensorrt'" in capsys.readouterr().err

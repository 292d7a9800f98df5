# SPDX-License-Identifier: Apache-2.0
"""The comparison of quantisation tools, without running one, which takes minutes."""

import multiprocessing
import os
import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ocdserve.backend import Bundle, Detector
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.contract import UnavailableError
from ocdserve.perf.inputs.pictures import demo_pictures
from ocdserve.perf.studies import quantisation
from ocdserve.perf.studies.quantisation import Outcome, main

FIGURES = {"hmean_fp32": 0.9097, "hmean": 0.8768, "hmean_loss": 3.29, "agreement": 0.9371, "map_error": 0.0127}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for index, picture in enumerate(demo_pictures()[:2]):
        (tmp_path / f"{index}.png").write_bytes(picture.png())
    return tmp_path


def test_calibration_images_are_those_of_the_served_network(data: Path) -> None:
    """The ONNX file returns on these inputs what the detector's network returns on the pixels."""
    bundle = Bundle.load()
    (given,) = quantisation._inputs(data)
    session = onnxruntime.InferenceSession(str(bundle.model_path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": given})
    network = load_network(bundle, RuntimeOptions("onnxruntime", map_type="float32"))
    detector = Detector(bundle, network)
    served = [network.infer([detector.preprocess(path)[0]])[0] for path in sorted(data.iterdir())]
    # One of the two calibrates; their sizes differ.
    (expected,) = (probability for probability in served if probability.shape == found.shape[2:])
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-4)


def test_rows_appear_as_they_are_measured_and_a_failure_is_one(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(_: Path) -> Iterator[Outcome | tuple[str, str]]:
        yield "NVIDIA ModelOpt", "UnavailableError: not installed"
        assert "| NVIDIA ModelOpt | UnavailableError: not installed |" in capsys.readouterr().out
        yield Outcome("onnxruntime.quantization", 16.4, 3555.2, FIGURES)

    monkeypatch.setattr(quantisation, "measure", measure)
    assert main(["--data", str(data)]) == 0
    row = "| onnxruntime.quantization | 16 | 3555 | 0.9097 | 0.8768 | 3.29 | 0.9371 | 0.012700 |\n"
    assert capsys.readouterr().out == row


def test_a_tool_that_fails_answers_with_the_reason(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: Path, target: Path, data: Path) -> None:
        raise UnavailableError("not\ninstalled")

    monkeypatch.setitem(quantisation.TOOLS, "broken", fails)
    answers: queue.Queue[object] = queue.Queue()
    quantisation._timed("broken", data, data, data, answers)
    assert answers.get_nowait() == "UnavailableError: not installed"


def test_a_tool_that_dies_is_not_waited_for() -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=os._exit, args=(3,))
    process.start()
    assert str(quantisation._answer(process, context.Queue())).startswith("its process ended with exit code 3 ")

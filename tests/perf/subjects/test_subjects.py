# SPDX-License-Identifier: Apache-2.0
"""The other detectors: each that is installed finds the words of a drawn picture, and none on blank paper."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.matching import match
from ocdserve.backend.spec.bundle import BUILT_IN, Bundle
from ocdserve.cli import main
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs.pictures import street
from ocdserve.perf.series.measurement import OURS
from ocdserve.perf.series.threads import opencv_threads
from ocdserve.perf.subjects import COMPETITORS, Competitor
from ocdserve.perf.subjects.networks import with_flat_map, without_sigmoid
from ocdserve.perf.subjects.peer_worker import PEERS


def loaded(name: str) -> Competitor[NDArray[Any]]:
    detector = Competitor(name, COMPETITORS[name], threads=1)
    if reason := detector.available():
        pytest.skip(f"{detector.name}: {reason}")
    return detector


@pytest.mark.parametrize(
    "name",
    # Those that differ from another only in engine or size are left to the long run.
    [
        pytest.param(name, marks=[pytest.mark.long] if name in ("RapidOCR+OpenVINO", "plain") else [])
        for name in COMPETITORS
        if name not in PEERS
    ],
)
def test_the_words_of_a_drawn_street_are_found_and_nothing_on_blank_paper(name: str) -> None:
    detector = loaded(name)
    picture = street()
    truth = Truth(tuple(quad.astype(float) for quad in picture.quads), (False,) * len(picture.quads))
    # A square, because OnnxTR pads with black, and the edge to the white would count.
    blank = io.BytesIO()
    Image.new("RGB", (256, 256), "white").save(blank, "PNG")
    with opencv_threads(1):
        counts = match(detector.answer(picture.png()), truth)
        # `lite` is not for streets: it misses one of the signs.
        found = 9 if name == f"{OURS}-lite" else 10
        assert (counts.matched, counts.detections, counts.truths) == (found, found, 10)
        assert detector.answer(blank.getvalue()).shape == (0, 4, 2)


def test_ours_is_first_and_names_have_no_comma() -> None:
    ours = [OURS, *(f"ocdserve-{name}" for name in [*BUILT_IN][1:])]
    assert ours[:2] == ["ocdserve", "ocdserve-fast"]
    assert [*COMPETITORS] == [
        *ours,
        "RapidOCR",
        "RapidOCR+OpenVINO",
        "faster-paddle",
        "faster-paddle-tiny",
        "rapidocrlite",
        "rapidocrlite+Indra",
        "TAO-style",
        "plain",
        "OpenCV",
        "OnnxTR",
        "OnnxTR+own-network",
    ]
    # The command line takes them separated by commas.
    assert not any("," in name for name in COMPETITORS)


def test_no_threads_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="threads must be at least 1; got 0"):
        Competitor(OURS, COMPETITORS[OURS], threads=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "EasyOCR"], "--peers: unknown 'EasyOCR'; known are RapidOCR, RapidOCR+OpenVINO, "),
        (["--pictures", "drawn=1::2"], "--pictures: unknown data set 'drawn'; known are drawn pictures"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
    ],
)
def test_bad_options_end_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "pipeline", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_changed_networks_compute_the_same() -> None:
    model = Bundle.load().model_path
    image = np.random.default_rng(1).normal(size=(1, 3, 64, 64)).astype(np.float32)
    whole, flat, logits = (
        onnxruntime.InferenceSession(file).run(None, {"x": image})[0]
        for file in (model.read_bytes(), with_flat_map(model), without_sigmoid(model, 64))
    )
    assert flat.shape == (64, 64)
    assert np.array_equal(flat, whole[0, 0])
    assert np.allclose(1 / (1 + np.exp(-logits)), whole, atol=1e-6)


def test_a_network_without_a_sigmoid_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", "w"]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "relu", values[:1], values[1:])
    onnx.save(helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(InvalidInputError, match=r"must end with a sigmoid; relu\.onnx ends with Relu"):
        without_sigmoid(tmp_path / "relu.onnx", 64)

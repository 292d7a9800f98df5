# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve.backend import Bundle
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.builder.tao.cli import main
from ocdserve.builder.tao.inputs.nvocdr import import_nvocdr
from ocdserve.contract import InvalidInputError

SPEC = {
    "is_high_resolution_input": False,
    "resize_keep_aspect_ratio": True,
    "overlapRate": 0.5,
    "input_data_format": "NHWC",
    "ocdnet_trt_engine_path": "/engines/ocdnet.fp16.engine",
    "ocdnet_infer_input_shape": [3, 736, 1280],
    "ocdnet_binarize_threshold": 0.1,
    "ocdnet_polygon_threshold": 0.3,
    "ocdnet_unclip_ratio": 1.5,
    "ocdnet_max_candidate": 200,
    "upsidedown": True,
    "ocrnet_decode": "Attention",
}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "spec.json"
        path.write_text(json.dumps(SPEC | changes))
        return path

    return write


def test_size_thresholds_and_normalisation_are_imported(written: Callable[..., Path]) -> None:
    found, _ = import_nvocdr(written())
    assert (found.resize.kind, found.resize.width, found.resize.height) == ("letterbox", 1280, 736)
    thresholds = found.postprocess
    assert (thresholds.thresh, thresholds.box_thresh) == (0.1, 0.3)
    assert (thresholds.unclip_ratio, thresholds.max_candidates) == (1.5, 200)
    # Blue first, with blue's mean.
    assert (found.network.color, found.network.mean[0]) == ("BGR", 104.00698793)


def test_settings_without_a_counterpart_are_reported(written: Callable[..., Path]) -> None:
    notes = " ".join(import_nvocdr(written(is_high_resolution_input=True))[1])
    for words in ("--tile 1280", "overlap=640", "text recognition", "ocdnet_trt_engine_path"):
        assert words in notes


def test_images_are_stretched_unless_the_aspect_ratio_is_kept(written: Callable[..., Path]) -> None:
    assert import_nvocdr(written(resize_keep_aspect_ratio=False))[0].resize.kind == "fixed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ocdnet_infer_input_shape": [736, 1280]}, r"\[3, height, width\]"),
        ({"ocdnet_binarize_threshold": "0.1"}, "ocdnet_binarize_threshold must be a number"),
        ({"ocdnet_polygon_threshold": 2}, "box_thresh"),
        ({"ocdnet_infer_input_shape": [3, 700, 1280]}, "multiple of"),
    ],
)
def test_wrong_values_are_refused(written: Callable[..., Path], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        import_nvocdr(written(**changes))


def test_the_unfilled_template_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"ocdnet_infer_input_shape": [3, OCD_INPUT_H, OCD_INPUT_W]}')
    with pytest.raises(InvalidInputError, match="Put a number in the place of OCD_INPUT_H"):
        import_nvocdr(path)


def test_the_command_makes_a_bundle_that_detects(written: Callable[..., Path], tmp_path: Path) -> None:
    """The network's probability is a steep sigmoid of the first channel it gets, around blue's mean."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from ocdserve.backend import Detector

    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "w"], ["c"], "head"), helper.make_node("Sigmoid", ["c"], ["pred"], "end")],
        "blue",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 160, 256])],
        [helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["batch", 1, 160, 256])],
        [numpy_helper.from_array(np.array([20, 0, 0], np.float32).reshape(1, 3, 1, 1), "w")],
    )
    network = tmp_path / "blue.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(network))
    spec = written(ocdnet_infer_input_shape=[3, 160, 256])
    assert main(["import-nvocdr", str(spec), "--onnx", str(network), "--output", str(tmp_path / "out")]) == 0
    pixels = np.zeros((160, 256, 3), np.uint8)
    pixels[40:60, 50:120, 2] = 255
    found = Detector.load(tmp_path / "out").detect(pixels)
    # 19 x 69 pixels grow by 19 * 69 * 1.5 / (2 * (19 + 69)) = 11.2 on each side.
    assert np.abs(found.quads[0] - [[39, 29], [130, 29], [130, 70], [39, 70]]).max() <= 1
    assert Bundle.load(tmp_path / "out").spec.postprocess.max_candidates == 200


def test_without_a_network_the_settings_are_written(written: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    assert main(["import-nvocdr", str(written()), "--output", str(path)]) == 0
    assert DetectorSpec.from_json(path.read_text("utf-8")).resize.width == 1280

# SPDX-License-Identifier: Apache-2.0
"""Results of the adapters compared with those of the libraries themselves, around a fake detector."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve.client.adapters.paddleocr import TextDetection
from ocdserve.client.adapters.transformers import TextDetectionPipeline
from ocdserve.results.detections import Detections

QUADS = [[[20, 60], [60, 60], [60, 70], [20, 70]], [[4, 20], [50, 20], [50, 30], [4, 30]]]


class Known:
    def detect(self, image: Any, **overrides: Any) -> Detections:
        return Detections(np.array(QUADS, np.float32), np.array([0.75, 0.5], np.float32), 80, 100)


def test_paddleocr_saves_our_result_like_its_own(tmp_path: Path) -> None:
    theirs = pytest.importorskip(
        "paddlex.inference.models.text_detection.result", reason="PaddleX, the base of PaddleOCR 3, is not installed"
    )
    bgr = np.zeros((100, 80, 3), np.uint8)
    [result] = TextDetection(Known()).predict(bgr)
    real = theirs.TextDetResult({**result, "input_path": "a.png", "input_img": bgr})
    assert real.json == {"res": result.json["res"] | {"input_path": "a.png"}}
    real.save_to_json(str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text())["dt_polys"] == QUADS[::-1]
    assert real.img["res"].shape == (100, 80, 3)
    assert np.asarray(real.img["res"]).any()


def test_a_transformers_pipeline_returns_the_same_structure() -> None:
    pytest.importorskip("torch", reason="PyTorch, which a pipeline of transformers needs, is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed").new("RGB", (80, 100))
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[64, 64],
        num_detection_tokens=4,
    )
    theirs = transformers.pipeline(
        "object-detection",
        model=transformers.YolosForObjectDetection(config),
        image_processor=transformers.YolosImageProcessor(size={"height": 64, "width": 64}),
    )(image, threshold=0.0)
    ours = TextDetectionPipeline(Known())(image, threshold=0.0)

    def shape(item: Any) -> Any:
        return {name: shape(value) for name, value in item.items()} if isinstance(item, dict) else type(item)

    assert shape(ours[0]) == shape(theirs[0])

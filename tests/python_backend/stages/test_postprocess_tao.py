# SPDX-License-Identifier: Apache-2.0
"""Mode `tao` of the post-processing, box for box, against TAO's rules written down once more (`tao_reference`)."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tao_reference
from numpy.typing import NDArray

from ocdserve.backend import Bundle
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.results.detections import Detections

Map = NDArray[np.float32]

GENERATED = 200
# As the specs have it: the defaults, the FAN sample, nvOCDR's, and few candidates.
SETTINGS = [(0.3, 0.55, 1000, 1.5), (0.5, 0.55, 1000, 1.5), (0.1, 0.3, 200, 1.5), (0.3, 0.55, 5, 2.0)]
SOURCES = [(720, 1280), (1999, 901), (300, 4000)]


def generated_map(seed: int) -> Map:
    """Turned words, dots, frames with holes, and what crosses the border; some softened, some noisy."""
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(2, 9, 2) * 32)
    canvas = np.zeros((height, width), np.float32)
    for _ in range(int(random.integers(0, 22))):
        centre = (float(random.uniform(-5, width + 5)), float(random.uniform(-5, height + 5)))
        size = (float(random.uniform(2, 90)), float(random.uniform(1, 24)))
        corners = cv2.boxPoints((centre, size, float(random.choice([0, 45, 90, random.uniform(-90, 90)]))))
        value = float(random.uniform(0.5, 1))
        if random.random() < 0.2:
            cv2.polylines(canvas, [corners.astype(np.int32)], True, (value,), int(random.integers(1, 4)))
        else:
            cv2.fillPoly(canvas, [corners.astype(np.int32)], (value,))
    if random.random() < 0.6:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), float(random.uniform(0.5, 2))), np.float32)
    if random.random() < 0.3:
        canvas = canvas + random.normal(0, 0.12, canvas.shape)
    return np.clip(canvas, 0, 1).astype(np.float32)


def found_in(probability: Map, source: tuple[int, int], setting: Any, polygons: bool = False) -> Detections:
    thresh, box_thresh, most, ratio = setting
    params = PostprocessParams(
        mode="tao",
        thresh=thresh,
        box_thresh=box_thresh,
        max_candidates=most,
        unclip_ratio=ratio,
        polygons=polygons,
    )
    network = probability.shape[0], probability.shape[1]
    return postprocess(probability, Frame(source, network, network), params)


def assert_equals_the_rules(probability: Map, source: tuple[int, int], setting: Any) -> int:
    network = probability.shape[0], probability.shape[1]
    boxes, scores = tao_reference.kept_boxes(*tao_reference.boxes_of(probability, *setting))
    found = found_in(probability, source, setting)
    expected = tao_reference.in_source_pixels(boxes, source, network)
    assert found.quads.tolist() == expected.tolist()
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-6)
    return len(found)


class TestGeneratedMaps:
    def test_boxes_equal_the_rules_box_for_box_in_their_order(self) -> None:
        boxes = sum(
            assert_equals_the_rules(generated_map(seed), SOURCES[seed % 3], SETTINGS[seed % 4])
            for seed in range(GENERATED)
        )
        assert boxes > 300

    def test_polygons_equal_the_rules_point_for_point(self) -> None:
        polygons = 0
        for seed in range(GENERATED):
            probability = generated_map(seed)
            expected, scores = tao_reference.polygons_of(probability, *SETTINGS[seed % 4])
            found = found_in(probability, probability.shape, SETTINGS[seed % 4], polygons=True)
            assert found.polygons is not None
            assert [polygon.tolist() for polygon in found.polygons] == [polygon.tolist() for polygon in expected]
            np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-6)
            polygons += len(expected)
        assert polygons > 300


@pytest.mark.long
class TestRealMaps:
    """The default network's maps of the 50 photographs at TAO's size: all equal when last run, 11,625 boxes."""

    def test_boxes_equal_the_rules_box_for_box_in_their_order(self, shared_data: Path) -> None:
        network = load_network(Bundle.load(), RuntimeOptions(map_type="float32"))
        photographs = [
            path for name in ("receipts", "scene") for path in sorted((shared_data / name / "img").iterdir())
        ]
        assert len(photographs) == 50
        boxes = 0
        for path in photographs:
            picture = cv2.imread(str(path))
            assert picture is not None
            pixels = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), (1280, 736))
            (probability,) = network.infer([np.asarray(pixels, np.uint8)])
            for setting in SETTINGS:
                boxes += assert_equals_the_rules(probability, (picture.shape[0], picture.shape[1]), setting)
        assert boxes > 10_000

# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.builder.accuracy.gate import Comparison, GateLimits, compare, make_reference, refusal
from ocdserve.builder.progress import SILENT
from ocdserve.contract import InvalidInputError

BUNDLE = Bundle(PRESETS["dbnet"], Path("none.onnx"))


class Boxes:
    """A network that finds the same rectangles in every image: (left, top, width, height) in network pixels."""

    def __init__(self, *boxes: tuple[int, int, int, int], level: float = 1.0) -> None:
        self._boxes = boxes
        self._level = level

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        maps = []
        for image in images:
            probability = np.zeros(image.shape[:2], np.float32)
            for left, top, width, height in self._boxes:
                probability[top : top + height, left : left + width] = self._level
            maps.append(probability)
        return maps


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "grey.png"
    # As large as the network takes it, so that network pixels are source pixels.
    cv2.imwrite(str(path), np.full((768, 768, 3), 128, np.uint8))
    return path


def quad(left: int, top: int, right: int, bottom: int) -> NDArray[np.float64]:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


class TestCompare:
    def test_a_network_agrees_with_itself(self, picture: Path) -> None:
        network = Boxes((100, 100, 200, 40), (100, 300, 200, 40))
        found = compare(make_reference(BUNDLE, network, {picture: None}, SILENT), network, SILENT)
        assert found == Comparison(1, 1.0, 0.0, 0.0, 2, 2)

    def test_a_missing_box_costs_agreement_and_map_error(self, picture: Path) -> None:
        reference = make_reference(BUNDLE, Boxes((100, 100, 200, 40), (100, 300, 200, 40)), {picture: None}, SILENT)
        found = compare(reference, Boxes((100, 100, 200, 40)), SILENT)
        assert (found.boxes_fp32, found.boxes) == (2, 1)
        assert found.agreement == pytest.approx(2 / 3)
        assert found.map_error == pytest.approx(200 * 40 / 768**2, rel=1e-5)
        assert found.map_error_max == pytest.approx(1.0)
        assert found.hmean is None and found.hmean_loss is None

    def test_hmean_is_computed_with_ground_truth(self, picture: Path) -> None:
        # The unclipped boxes are larger than the map's by area * 1.5 / perimeter = 25 pixels on each side.
        truth = Truth((quad(75, 75, 325, 165), quad(75, 275, 325, 365)), (False, False))
        reference = make_reference(BUNDLE, Boxes((100, 100, 200, 40), (100, 300, 200, 40)), {picture: truth}, SILENT)
        found = compare(reference, Boxes((100, 100, 200, 40)), SILENT)
        assert (found.hmean_fp32, found.hmean) == (1.0, pytest.approx(2 / 3))
        assert (found.precision, found.recall) == (1.0, 0.5)
        assert found.hmean_loss == pytest.approx(100 / 3)

    def test_matches_that_cancel_are_counted(self, picture: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.png"
        other.write_bytes(picture.read_bytes())
        first, second = (100, 100, 200, 40), (100, 300, 200, 40)
        truth = Truth((quad(75, 75, 325, 165), quad(75, 275, 325, 365)), (False, False))
        reference = make_reference(BUNDLE, Boxes(first), {picture: truth, other: truth}, SILENT)
        found = compare(reference, Boxes(second), SILENT)
        assert found.hmean_loss == 0.0
        assert (found.matches_lost, found.matches_won) == (2, 2)
        assert found.hmean_loss_interval is not None and found.hmean_loss_interval[1] > 50
        limits = GateLimits(0.5, 0.95)
        assert found.passes(limits) and not found.is_certain(limits)
        without = compare(make_reference(BUNDLE, Boxes(first, second), {picture: None}, SILENT), Boxes(first), SILENT)
        assert (without.matches_lost, without.matches_won) == (1, 0)

    def test_no_boxes_on_either_side_is_agreement(self, picture: Path) -> None:
        reference = make_reference(BUNDLE, Boxes(), {picture: None}, SILENT)
        assert compare(reference, Boxes(), SILENT).agreement == 1.0
        assert compare(reference, Boxes((100, 100, 200, 40)), SILENT).agreement == 0.0

    def test_a_map_that_is_not_finite_never_passes(self, picture: Path) -> None:
        reference = make_reference(BUNDLE, Boxes(), {picture: None}, SILENT)
        found = compare(reference, Boxes((100, 100, 200, 40), level=float("nan")), SILENT)
        assert found.boxes == 0 and found.agreement == 1.0
        assert not found.passes(GateLimits(100, 0))

    def test_without_images_there_is_no_gate(self) -> None:
        with pytest.raises(InvalidInputError, match="at least one image"):
            make_reference(BUNDLE, Boxes(), {}, SILENT)


class TestPasses:
    @pytest.mark.parametrize(("hmean", "passes"), [(0.905, True), (0.9, True), (0.8999, False), (0.95, True)])
    def test_hmean_decides_where_it_is_known(self, hmean: float, passes: bool) -> None:
        found = Comparison(1, 0.0, 0.1, 0.5, 1, 1, hmean=hmean, hmean_fp32=0.905)
        assert found.passes(GateLimits(0.5, 1.0)) is passes

    @pytest.mark.parametrize(("agreement", "passes"), [(0.95, True), (0.9499, False)])
    def test_agreement_decides_without_hmean(self, agreement: float, passes: bool) -> None:
        assert Comparison(1, agreement, 0.1, 0.5, 1, 1).passes(GateLimits(0.0, 0.95)) is passes

    def test_a_network_that_finds_nothing_cannot_pass_by_losing_nothing(self) -> None:
        found = Comparison(1, 0.3, 0.1, 0.5, 9, 9, hmean=0.0, hmean_fp32=0.0)
        assert not found.passes(GateLimits(0.5, 0.95))

    @pytest.mark.parametrize("limits", [(-0.1, 0.5), (101, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
    def test_limits_out_of_range_are_refused(self, limits: tuple[float, float]) -> None:
        with pytest.raises(InvalidInputError):
            GateLimits(*limits)


class TestCertainty:
    @pytest.mark.parametrize(
        ("interval", "certain"), [((-0.4, 0.5), True), ((-0.4, 0.6), False), ((0.4, 0.9), False), ((0.6, 0.9), True)]
    )
    def test_the_whole_interval_is_on_one_side_of_the_limit(self, interval: tuple[float, float], certain: bool) -> None:
        found = Comparison(40, 0.9, 0.1, 0.5, 1, 1, hmean=0.9, hmean_fp32=0.9, hmean_loss_interval=interval)
        assert found.is_certain(GateLimits(0.5, 0.95)) is certain
        warnings = found.warnings(GateLimits(0.5, 0.95))
        low, high = interval
        assert (
            warnings == []
            if certain
            else warnings
            == [
                "the gate cannot tell with these images whether the limit holds: the loss may be "
                f"{low:.2f} to {high:.2f} points of hmean (95 %), the limit is 0.5"
            ]
        )

    def test_agreement_likewise(self) -> None:
        found = Comparison(40, 0.99, 0.1, 0.5, 1, 1, agreement_interval=(0.94, 1.0))
        (warning,) = found.warnings(GateLimits(0.5, 0.95))
        assert "the box agreement may be 0.9400 to 1.0000 (95 %), the limit is 0.95" in warning
        assert found.is_certain(GateLimits(0.5, 0.94))

    @pytest.mark.parametrize(("images", "few"), [(39, True), (40, False)])
    def test_few_images_are_warned_of(self, images: int, few: bool) -> None:
        found = Comparison(images, 0.99, 0.1, 0.5, 1, 1, agreement_interval=(0.98, 1.0))
        expected = [f"only {images} images were judged; fewer than 40 say little about others"] if few else []
        assert found.warnings(GateLimits(0.5, 0.95)) == expected


class TestRefusal:
    def test_names_the_rule_the_figures_and_the_most_sensitive_layers(self) -> None:
        lost = Comparison(20, 0.9371, 0.0127, 0.98, 1000, 990, hmean=0.8768, hmean_fp32=0.9097)
        sensitivity = {f"layer{index}": index / 1000 for index in range(8)}
        text = refusal("int8", lost, GateLimits(0.5, 0.95), sensitivity)
        assert text.startswith("the accuracy gate refuses this int8 network: it may lose 0.5 points of hmean.\n")
        assert [line.split() for line in text.splitlines() if "layer" in line and "0.00" in line] == [
            [f"layer{index}", f"0.00{index}000"] for index in (7, 6, 5, 4, 3)
        ]
        assert "3.29 points" in text and "Judge with more images" not in text

    @pytest.mark.parametrize(("boxes", "few"), [(36, True), (199, True), (201, False)])
    def test_warns_if_one_text_is_worth_more_than_the_limit(self, boxes: int, few: bool) -> None:
        lost = Comparison(10, 0.84, 0.003, 0.9, boxes, boxes, hmean=0.6222, hmean_fp32=0.6667)
        text = refusal("int8", lost, GateLimits(0.5, 0.95), {})
        assert (f"FP32 finds {boxes} texts here" in text) == few

    def test_nothing_is_lost_by_chance_where_nothing_may_be_lost(self) -> None:
        assert "Judge with more" not in refusal("fp16", Comparison(1, 0.9, 0.1, 0.9, 5, 5), GateLimits(0, 1), {})

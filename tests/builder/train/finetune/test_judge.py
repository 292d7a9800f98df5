# SPDX-License-Identifier: Apache-2.0
"""Two networks compared on the same pictures, and the threshold of scores."""

import numpy as np
import onnx
import pytest

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.figures import total
from ocdserve.builder.train.finetune.judge import Page, Tuned, above, best_threshold, compared
from ocdserve.results.detections import Detections


def boxes(*lefts: float) -> np.ndarray:
    """Boxes of 20 x 10 pixels side by side."""
    return np.array([[(x, 0), (x + 20, 0), (x + 20, 10), (x, 10)] for x in lefts], np.float32).reshape(-1, 4, 2)


def found(*lefts: float, scores: tuple[float, ...] | None = None) -> Detections:
    given = np.array(scores or (0.9,) * len(lefts), np.float32)
    return Detections(boxes(*lefts), given, 1000, 10)


def page(*lefts: float) -> Page:
    quads = tuple(quad.astype(np.float64) for quad in boxes(*lefts))
    return Page("page", np.zeros((10, 1000, 3), np.uint8), Truth(quads, (False,) * len(quads)))


def test_a_change_counts_what_is_lost_and_won() -> None:
    pages = [page(0, 100, 200, 300), page(0, 100)]
    change = compared([found(0, 100), found(0)], [found(100, 200, 300, 900), found(0)], pages)
    assert (change.lost, change.won) == (1, 2)
    # Before: 3 of 6 truths by 3 detections, 2/3; after: 4 by 5, 8/11.
    assert total(change.before).hmean == pytest.approx(2 / 3)
    assert change.gain == pytest.approx(100 * (8 / 11 - 2 / 3))
    low, high = change.interval
    assert low < change.gain < high
    assert change.to_dict()["matches_won"] == 2


@pytest.mark.parametrize(("after", "is_better"), [((0,), False), ((0, 100), False), ((0, 100, 200), True)])
def test_a_single_match_makes_no_better_detector(after: tuple[int, ...], is_better: bool) -> None:
    change = compared([found(0, 500, 600)], [found(*after, *(500, 600)[: 3 - len(after)])], [page(0, 100, 200, 300)])
    assert Tuned(onnx.ModelProto(), 0.6, 1.0, change, {}, (), ()).is_better() is is_better


@pytest.mark.parametrize(
    ("overlap", "lost", "is_better"),
    [((0.90, 0.91), 0, True), ((0.90, 0.91), 2, True), ((0.90, 0.91), 20, False), ((0.90, 0.90), 0, False)],
)
def test_without_labels_the_teacher_s_maps_decide(overlap: tuple[float, float], lost: int, is_better: bool) -> None:
    pages, lefts = [page(*range(0, 1000, 100))] * 6, tuple(range(0, 1000, 100))
    # Of 60 texts, 2 may be lost by chance, 20 not.
    missing = [lost // 6 + (index < lost % 6) for index in range(6)]
    after = [found(*lefts[count:]) for count in missing]
    change = compared([found(*lefts)] * 6, after, pages)
    assert Tuned(onnx.ModelProto(), 0.6, 1.0, change, {}, (), (), overlap).is_better() is is_better


def test_a_threshold_is_only_moved_where_it_pays() -> None:
    pages = [page(*range(0, 1000, 100))]
    right = found(*range(0, 1000, 100), scores=(0.9,) * 5 + (0.57,) * 5)
    assert best_threshold([right], pages, 0.6) == 0.55
    # All that is above 0.6 is right, and nothing below.
    wrong = found(*range(0, 500, 100), 550, 650, scores=(0.9,) * 5 + (0.57,) * 2)
    assert best_threshold([wrong], pages, 0.6) == 0.6
    assert [len(each) for each in above([right], 0.6)] == [5]

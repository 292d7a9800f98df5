# SPDX-License-Identifier: Apache-2.0
"""What is held aside, who teaches, and what is learnt."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ocdserve.backend import Bundle, ResizePolicy
from ocdserve.backend.evaluation.dataset import Sample, Truth
from ocdserve.builder.train.distil import TeacherMaps
from ocdserve.builder.train.finetune.material import split
from ocdserve.builder.train.finetune.options import FineTuneOptions
from ocdserve.builder.train.finetune.teacher import Teacher, corrected, larger
from ocdserve.contract import InvalidInputError


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32)


def test_labels_correct_the_map_where_it_is_wrong_and_nowhere_else() -> None:
    # The map has half the size of the picture, 200 x 400.
    right, wrong, label, ignored = (box(20, top, 220, top + 30) for top in (10, 60, 110, 150))
    found = np.zeros((100, 200), np.uint8)
    for top, value in ((10, 200), (60, 210), (150, 220)):
        found[top // 2 + 5 : top // 2 + 10, 20:100] = value
    found[60:64, 20:60] = 90  # a trace of the label, too weak for a box
    labels = (box(24, 10, 216, 38), label, ignored)
    truth = Truth(tuple(polygon.astype(np.float64) for polygon in labels), (False, False, True))
    result = corrected(found, (200, 400), np.stack([right, wrong, ignored]), truth, 1.5)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[:25], found[:25])
    np.testing.assert_array_equal(result[75:], found[75:])
    assert not result[28:54].any()
    # 15 x 100 pixels: A = 1500, P = 230, and d = 1.5 (A - P d + 4 d^2) / (P - 8 d) is 4.25, 4 in whole pixels.
    rows, columns = np.nonzero(result[54:75])
    assert set(np.unique(result[54:75])) == {0, 255}
    assert 54 + rows.min() == pytest.approx(59, abs=1) and 54 + rows.max() == pytest.approx(66, abs=1)
    assert columns.min() == pytest.approx(14, abs=1) and columns.max() == pytest.approx(106, abs=1)


def test_a_box_over_two_labels_becomes_two() -> None:
    labels = [box(10, 10, 100, 40), box(120, 10, 210, 40)]
    found = np.zeros((50, 220), np.uint8)
    found[18:32, 18:202] = 250
    truth = Truth(tuple(polygon.astype(np.float64) for polygon in labels), (False, False))
    result = corrected(found, (50, 220), box(10, 10, 210, 40)[None], truth, 1.5)
    assert not result[:, 100:120].any()
    assert result[25, 30:80].all() and result[25, 140:190].all()


def test_a_fifth_and_at_least_three_are_held_aside() -> None:
    train, held = split(30, 0)
    assert (len(train), len(held)) == (24, 6) and sorted(train + held) == list(range(30))
    assert len(split(5, 0)[1]) == 3
    assert split(30, 0) == split(30, 0) and split(30, 0) != split(30, 1)


def test_a_detector_teaches_itself_at_a_larger_size() -> None:
    fast = larger(ResizePolicy(kind="short_side", side=480, largest_side=960, bucket=32))
    assert (fast.side, fast.largest_side) == (768, 1536)
    assert fast.sizes(480, 640) == ((768, 1024), (768, 1024))
    with pytest.raises(InvalidInputError, match="cannot teach itself"):
        larger(ResizePolicy(kind="fixed", width=1280, height=736))


def test_the_built_in_detectors_of_few_pixels_learn_from_the_default_one(tmp_path: Path) -> None:
    options = FineTuneOptions(tmp_path, tmp_path / "out", "fast")
    fast, default = Bundle.load("fast"), Bundle.load()
    for given, bundle, expected in (
        (options, fast, default),
        (replace(options, bundle=tmp_path), fast, fast),
        (replace(options, bundle=None), default, default),
        (replace(options, bundle=None, teacher="fast"), default, fast),
    ):
        assert Teacher.of(given, bundle, tmp_path).bundle == expected
    with pytest.raises(InvalidInputError, match=r"teacher: .*nowhere"):
        Teacher.of(replace(options, teacher=tmp_path / "nowhere"), fast, tmp_path)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_target_is_computed_once(labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = np.zeros((100, 200), np.uint8)
    found[40:60, 20:180] = 250
    asked: list[int] = []

    def seen(maps: TeacherMaps, pixels: np.ndarray) -> np.ndarray:
        asked.append(1)
        return found

    monkeypatch.setattr(TeacherMaps, "map", seen)
    bundle, pixels = Bundle.load(), np.zeros((200, 400, 3), np.uint8)
    teacher = Teacher(bundle, None, bundle.spec.resize, bundle.spec, labelled, tmp_path)
    sample = Sample(tmp_path / "picture.png", Truth((), ()))
    first, second = (teacher.target(sample, pixels) for _ in range(2))
    # The labels say that there is no text.
    np.testing.assert_array_equal(first, 0 * found if labelled else found)
    np.testing.assert_array_equal(second, first)
    assert len(asked) == 1


def test_what_labels_cannot_say_is_left_to_the_teacher() -> None:
    found = np.zeros((60, 200), np.uint8)
    found[4:7, 20:80] = 240  # of a label that is too low to be drawn
    found[30:40, 20:120] = 250  # of a label that crosses itself
    low, text = box(10, 3, 90, 7.5), box(10, 20, 130, 50)
    truth = Truth((low.astype(np.float64), text[[0, 1, 3, 2]].astype(np.float64)), (False, False))
    np.testing.assert_array_equal(corrected(found, (60, 200), text[None], truth, 1.5), found)


def test_a_box_inside_of_a_wrong_one_stays() -> None:
    found = np.zeros((60, 200), np.uint8)
    found[10:50, 5:195] = 150
    found[25:35, 20:60] = 250
    right, wrong = box(15, 20, 65, 40), box(0, 5, 200, 55)
    truth = Truth((right.astype(np.float64),), (False,))
    result = corrected(found, (60, 200), np.stack([wrong, right]), truth, 1.5)
    np.testing.assert_array_equal(result[21:39, 16:64], found[21:39, 16:64])
    assert not result[45:50].any() and not result[:, 100:].any()

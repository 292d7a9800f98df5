# SPDX-License-Identifier: Apache-2.0
"""A teacher's maps are computed once and kept; crops cut them out; a student learns them."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ocdserve.backend import ResizePolicy
from ocdserve.builder.train.data.augment import scaling, translation
from ocdserve.builder.train.distil import TeacherMaps, cut_map, distillation_loss, overlap
from ocdserve.contract import InvalidInputError

_PAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
# Pages are seen at a shorter side of 64, 64 x 96.
_POLICY = ResizePolicy(kind="short_side", side=64)


class _Red:
    """A network whose map is the red channel."""

    def __init__(self, barrier: threading.Barrier | None = None) -> None:
        self.seen: list[tuple[int, ...]] = []
        self._barrier = barrier

    def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        self.seen += [image.shape for image in images]
        if self._barrier:
            self._barrier.wait(30)
        return [np.ascontiguousarray(image[..., 0]) for image in images]


def _unused() -> _Red:
    raise AssertionError("the map is on disk")


def test_a_map_is_computed_once_and_read_from_disk_then(tmp_path: Path) -> None:
    teacher = _Red()
    first = TeacherMaps(lambda: teacher, "red", _POLICY, tmp_path / "maps").map(_PAGE)
    again = TeacherMaps(_unused, "red", _POLICY, tmp_path / "maps").map(_PAGE.copy())
    assert teacher.seen == [(64, 96, 3)]
    assert first.dtype == np.uint8
    assert isinstance(again, np.memmap)
    expected = cv2.resize(_PAGE, (96, 64), interpolation=cv2.INTER_LINEAR)[..., 0]
    assert np.array_equal(first, expected)
    assert np.array_equal(again, expected)


def test_another_teacher_size_or_picture_has_another_map(tmp_path: Path) -> None:
    teacher = _Red()
    TeacherMaps(lambda: teacher, "red", _POLICY, tmp_path).map(_PAGE)
    TeacherMaps(lambda: teacher, "other", _POLICY, tmp_path).map(_PAGE)
    TeacherMaps(lambda: teacher, "red", ResizePolicy(kind="short_side", side=128), tmp_path).map(_PAGE)
    TeacherMaps(lambda: teacher, "red", _POLICY, tmp_path).map(_PAGE[::-1])
    assert teacher.seen == [(64, 96, 3), (64, 96, 3), (128, 192, 3), (64, 96, 3)]
    assert len(list(tmp_path.iterdir())) == 4


def test_padding_is_no_part_of_a_map(tmp_path: Path) -> None:
    policy = ResizePolicy(kind="letterbox", width=96, height=96)
    assert TeacherMaps(_Red, "red", policy, tmp_path).map(_PAGE).shape == (64, 96)


def test_probabilities_become_bytes(tmp_path: Path) -> None:
    class Half(_Red):
        def infer(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
            return [np.full(image.shape[:2], 0.5, np.float32) for image in images]

    assert np.unique(TeacherMaps(Half, "half", _POLICY, tmp_path).map(_PAGE)).tolist() == [128]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", None])
def test_a_file_that_is_no_such_map_is_replaced(tmp_path: Path, content: bytes | None) -> None:
    maps = TeacherMaps(_Red, "red", _POLICY, tmp_path)
    expected = np.array(maps.map(_PAGE))
    (file,) = tmp_path.iterdir()
    if content is None:
        np.save(file, np.zeros((3, 3), np.uint8))
    else:
        file.write_bytes(content)
    assert np.array_equal(maps.map(_PAGE), expected)


def test_two_may_compute_the_same_map_at_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)
    found: list[NDArray[np.uint8]] = []

    def compute() -> None:
        found.append(TeacherMaps(lambda: _Red(barrier), "red", _POLICY, tmp_path).map(_PAGE))

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert np.array_equal(*found)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_a_crop_s_target_is_cut_out_of_the_map() -> None:
    page_map = np.random.default_rng(1).integers(0, 256, (32, 48), np.uint8)
    whole = cut_map(page_map, (64, 96), scaling(2.0, 2.0), (128, 192))
    assert whole.dtype == np.float32
    # Enlarging by OpenCV is the independent reference.
    expected = cv2.resize(page_map, (192, 128), interpolation=cv2.INTER_LINEAR) / 255.0
    assert np.abs(whole - expected).max() < 1.01 / 255
    # A window that begins 10 pixels to the left of the picture: 5 columns of nothing at half the scale.
    window = cut_map(page_map, (64, 96), scaling(0.5, 0.5) @ translation(10, 0), (32, 53))
    assert (window[:, :4] == 0).all()
    assert np.allclose(window[:, 6:52], page_map[:, 1:47] / 255.0, atol=1e-6)


def test_the_loss_is_least_for_the_teacher_s_own_map() -> None:
    torch.manual_seed(0)
    taught = torch.rand(2, 16, 16) * 0.98 + 0.01
    equal = torch.logit(taught)[:, None].requires_grad_()
    loss = distillation_loss(equal, taught)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-4
    assert float(equal.grad.abs().max()) < 1e-6
    for other in (equal + 0.3, -equal, torch.zeros_like(equal)):
        assert float(distillation_loss(other, taught).detach()) > 0.01


def test_one_new_text_counts_as_much_on_a_large_page() -> None:
    losses = []
    for side in (32, 64):
        taught = torch.full((1, side, side), 0.001)
        taught[:, 2:6, 2:20] = 0.99
        student = torch.logit(taught)
        student[:, 10:14, 2:20] = 3.0
        losses.append(float(distillation_loss(student[:, None], taught)))
    assert losses[0] > 0.5
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_masked_pixels_teach_nothing() -> None:
    taught, mask = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    taught[:, 2:4] = 1.0
    mask[:, :, 5:] = 0.0
    output = torch.zeros(1, 3, 8, 8, requires_grad=True)
    distillation_loss(output, taught, mask).backward()
    assert float(output.grad[:, 0, :, :5].abs().min()) > 0
    assert float(output.grad[:, 0, :, 5:].abs().max()) == 0
    assert float(output.grad[:, 1:].abs().max()) == 0


def test_a_page_without_text_has_a_finite_loss_that_false_alarms_raise() -> None:
    nothing = torch.zeros(1, 32, 32)
    quiet = torch.full((1, 1, 32, 32), -8.0)
    alarm = quiet.clone()
    alarm[:, :, 4:8, 4:20] = 2.0
    assert float(distillation_loss(alarm, nothing)) > float(distillation_loss(quiet, nothing)) + 0.5


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"maps are \(1, 8, 8\), the student's \(1, 4, 4\)"):
        distillation_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 8, 8))


def test_maps_overlap_by_dice_at_any_size() -> None:
    found = np.zeros((40, 60), np.uint8)
    found[10:20, 10:50] = 200
    assert overlap(found, found) == pytest.approx(1)
    assert overlap(found, found.repeat(2, axis=0).repeat(2, axis=1)) == pytest.approx(1)
    assert overlap(found, np.roll(found, 15, axis=0)) < 1e-6
    # Half of it, 2 * 200 * 200 / 2 / (200^2 + 200^2 / 2).
    half = found.copy()
    half[15:20] = 0
    assert overlap(found, half) == pytest.approx(2 / 3)

# SPDX-License-Identifier: Apache-2.0
"""The list of steps of a spec."""

from typing import Any

import numpy as np
import pytest
import yaml

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.builder.train.data.pre_processes import Augmentation, MakeBorderMap, MakeShrinkMap, augmentation
from ocdserve.builder.train.data.steps import (
    Affine,
    EastRandomCropData,
    Fliplr,
    GaussianBlur,
    Resize,
    Resize2D,
    Sometimes,
)
from ocdserve.contract import InvalidInputError

# As in TAO's spec of OCDNet with a FAN backbone, with sizes of its own.
FAN = """
- type: IaaAugment
  args:
    - {type: Fliplr, args: {p: 0.5}}
    - {type: Affine, args: {rotate: [-45, 45]}}
    - {type: Sometimes, args: {p: 0.2, then_list: {type: GaussianBlur, args: {sigma: [1.5, 2.5]}}}}
    - {type: Resize, args: {size: [0.5, 3]}}
- type: EastRandomCropData
  args: {size: [160, 96], max_tries: 40, keep_ratio: true}
- type: MakeBorderMap
  args: {shrink_ratio: 0.5, thresh_min: 0.2, thresh_max: 0.8}
- type: MakeShrinkMap
  args: {shrink_ratio: 0.4, min_text_size: 4}
"""
TARGETS = [("MakeBorderMap", None), ("MakeShrinkMap", {})]


def parse(text: str) -> Augmentation:
    return augmentation([(step["type"], step.get("args")) for step in yaml.safe_load(text)])


def test_a_list_of_tao_is_read_in_its_order() -> None:
    assert parse(FAN) == Augmentation(
        steps=(
            Fliplr(0.5),
            Affine((-45, 45)),
            Sometimes(0.2, (GaussianBlur((1.5, 2.5)),)),
            Resize((0.5, 3)),
            EastRandomCropData((160, 96), 40, True),
        ),
        border=MakeBorderMap(0.5, 0.2, 0.8),
        shrink=MakeShrinkMap(0.4, 4),
    )
    assert parse(FAN).size == (96, 160)


@pytest.mark.parametrize(
    ("args", "expected", "size"),
    [([64, 32], Resize2D((64, 32)), (32, 64)), ({"short_size": 64}, Resize2D(64), None), (64, Resize2D(64), None)],
)
def test_resize2d_takes_a_size_or_a_length(args: Any, expected: Resize2D, size: tuple[int, int] | None) -> None:
    read = augmentation([("Resize2D", args), *TARGETS])
    assert read.steps == (expected,)
    assert read.size == size


def test_the_default_is_that_of_tao() -> None:
    read = augmentation([("EastRandomCropData", {"size": [640, 640]}), *TARGETS])
    assert read == Augmentation()
    assert (read.border.shrink_ratio, read.border.thresh_min, read.border.thresh_max) == (0.4, 0.3, 0.7)
    assert (read.shrink.shrink_ratio, read.shrink.min_text_size) == (0.4, 8)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [("RandomNoise", None)],
            "the steps are IaaAugment, EastRandomCropData, Resize2D, MakeBorderMap, MakeShrinkMap",
        ),
        (
            [("IaaAugment", [{"type": "Fog"}])],
            "the augmenters are Fliplr, Affine, Resize, GaussianBlur, Sometimes; got 'Fog'",
        ),
        ([("IaaAugment", ["Fliplr"])], "an augmenter is a mapping of type and args; got 'Fliplr'"),
        ([("IaaAugment", None)], "IaaAugment takes a list of augmenters"),
        ([("IaaAugment", [{"type": "Fliplr"}])], "Fliplr takes p; got nothing"),
        ([("IaaAugment", [{"type": "Affine", "args": {"shear": 3}}])], "Affine takes rotate; got shear"),
        (
            [("IaaAugment", [{"type": "Affine", "args": {"rotate": [3, -3]}}])],
            r"Affine.rotate must be a number or a range \[low, high\]; got \[3, -3\]",
        ),
        ([("IaaAugment", [{"type": "Fliplr", "args": {"p": "often"}}])], "Fliplr.p must be a finite number"),
        ([("EastRandomCropData", {"size": 640})], r"EastRandomCropData.size must be \[width, height\]"),
        ([("EastRandomCropData", {"keep_ratio": 1})], "keep_ratio must be true or false; got 1"),
        ([("EastRandomCropData", {"max_tries": 5.5})], "max_tries must be a whole number"),
        ([("EastRandomCropData", {"sizes": 1})], r"takes size \(optional\), max_tries \(optional\)"),
        ([("Resize2D", "large")], r"Resize2D.short_size must be \[width, height\] or one number"),
        ([("Resize2D", None)], "Resize2D.short_size must be"),
        ([("MakeShrinkMap", {"shrink_ratio": 0})], "shrink_ratio must be between 0 and 1; got 0"),
        ([("MakeBorderMap", {"thresh_min": 0.9})], "low 0.9, high 0.7"),
    ],
)
def test_what_is_wrong_with_a_step_is_said(steps: list[tuple[str, Any]], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        augmentation([*steps, *TARGETS])


def test_targets_come_last_and_neither_is_missing() -> None:
    crop = ("EastRandomCropData", None)
    with pytest.raises(InvalidInputError, match="EastRandomCropData comes after MakeBorderMap"):
        augmentation([TARGETS[0], crop, TARGETS[1]])
    with pytest.raises(InvalidInputError, match="pre_processes lacks MakeShrinkMap"):
        augmentation([crop, TARGETS[0]])
    with pytest.raises(InvalidInputError, match="pre_processes lacks MakeBorderMap and MakeShrinkMap"):
        augmentation([])


def lines(count: int) -> Truth:
    polygons = [
        np.array([[30, y], [150, y], [150, y + 16], [30, y + 16]], np.float64) for y in range(20, 40 * count, 40)
    ]
    return Truth(tuple(polygons), (False,) * len(polygons))


def test_targets_fit_the_picture_they_are_made_with() -> None:
    truth = lines(3)
    image = np.zeros((160, 200, 3), np.uint8)
    for polygon in truth.polygons:
        (left, top), (right, bottom) = polygon[0].astype(int), polygon[2].astype(int)
        image[top:bottom, left:right] = 255
    learnt, covered = [], []
    for seed in range(12):
        sample = parse(FAN)(image, truth, np.random.default_rng(seed))
        assert {array.shape[:2] for array in sample} == {(96, 160)}
        learnt.append(sample.image[sample.shrink_map > 0][:, 0])
        # Bright pixels belong to instances that are learnt or masked.
        near = np.maximum(sample.threshold_mask, 1 - sample.shrink_mask)
        covered.append(near[sample.image[..., 0] > 200])
    assert len(np.concatenate(learnt)) > 1000
    assert (np.concatenate(learnt) > 100).mean() > 0.98
    assert np.concatenate(covered).mean() > 0.98


def test_the_same_seed_makes_the_same_sample() -> None:
    image = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    first, again, other = (parse(FAN)(image, lines(3), np.random.default_rng([1, 2, seed])) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.image, other.image)

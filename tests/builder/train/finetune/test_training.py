# SPDX-License-Identifier: Apache-2.0
"""Crops at the detector's scale, and the training loop on a small network."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ocdserve.backend import DetectorSpec, ResizePolicy
from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.builder.graph.execute import normalised
from ocdserve.builder.progress import SILENT
from ocdserve.builder.train.data.augment import transform, warp
from ocdserve.builder.train.finetune.crops import crop_matrix, strange_crop
from ocdserve.builder.train.finetune.options import Schedule
from ocdserve.builder.train.finetune.run import _between
from ocdserve.builder.train.finetune.training import Batch, Checkpoint, rate_factor, train
from ocdserve.builder.train.graph_module import GraphModule
from ocdserve.contract import InvalidInputError

SmallNetwork = Callable[..., onnx.ModelProto]


class TestCrops:
    def test_scales_are_around_the_detector_s_own(self) -> None:
        # 800 x 400 pixels at a shorter side of 200: the detector sees half the size.
        policy = ResizePolicy(kind="short_side", side=200, shrink=True, bucket=32, tiles=False)
        random = np.random.default_rng(0)
        scales = []
        for _ in range(200):
            matrix = crop_matrix(random, (400, 800), policy, (64, 64))
            scales.append(np.sqrt(np.linalg.det(matrix[:, :2])))
        assert 0.22 < min(scales) < 0.3 and 0.85 < max(scales) < 1.1
        assert 0.45 < np.exp(np.mean(np.log(scales))) < 0.55

    def test_a_text_is_where_its_pixels_are(self) -> None:
        picture = np.zeros((300, 500, 3), np.uint8)
        picture[100:140, 200:320] = 255
        quad = np.array([(200, 100), (320, 100), (320, 140), (200, 140)], np.float64)
        truth = Truth((quad,), (False,))
        policy = ResizePolicy(kind="short_side", side=320, tiles=False)
        random = np.random.default_rng(3)
        areas = []
        for _ in range(20):
            matrix = crop_matrix(random, (300, 500), policy, (256, 256), truth)
            moved = transform(quad, matrix)
            if moved.min() < 1 or moved.max() > 255:
                continue
            rows, columns = np.nonzero(warp(picture, matrix, (256, 256))[:, :, 0] > 127)
            centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
            assert np.abs(centre - moved.mean(axis=0)).max() < 0.5
            areas.append(len(rows))
        assert len(areas) >= 5 and len(set(areas)) > 3

    def test_strange_ones_mix_both_pictures(self) -> None:
        noise = np.random.default_rng(1).integers(0, 255, (300, 300, 3)).astype(np.uint8)
        flat = np.full((50, 60, 3), 100, np.uint8)
        for first, second in ((noise, flat), (flat, noise)):
            random = np.random.default_rng(5)
            made = [strange_crop(random, [first, second], (48, 64)) for _ in range(20)]
            assert {crop.shape for crop in made} == {(48, 64, 3)}
            deviations = np.array([crop.std(axis=(0, 1)).mean() for crop in made])
            # The first is in all of them, the second in half.
            assert (deviations > 3).mean() == 1 if first is noise else 0.2 < (deviations > 3).mean() < 0.8

    def test_pixels_are_normalised_by_channel(self) -> None:
        spec = DetectorSpec().network
        pixels = np.full((1, 1, 3), (255, 0, 127.5), np.float32).astype(np.uint8)
        # BGR, (x - 127.5) / 127.5.
        assert normalised([pixels], spec)[0, :, 0, 0].tolist() == pytest.approx([-0.0039216, -1, 1], abs=1e-5)


def test_the_rate_warms_up_and_ends_at_zero() -> None:
    schedule = Schedule(steps=110, warmup=10)
    factors = [rate_factor(step, schedule) for step in (0, 4, 9, 10, 60, 110)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.0])


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(InvalidInputError, match="steps must be positive; got 0"):
        Schedule(steps=0)
    with pytest.raises(InvalidInputError, match="average must be below 1"):
        Schedule(average=1.0)


class Stripes:
    """White squares on black, which are text, and noise as the other pictures."""

    def __init__(self, has_others: bool) -> None:
        self._has_others = has_others

    def batch(self, step: int) -> Batch:
        random = np.random.default_rng(step)
        own, target = np.full((2, 3, 32, 32), -1, np.float32), np.zeros((2, 32, 32), np.float32)
        for index, (row, column) in enumerate(random.integers(0, 20, (2, 2))):
            own[index, :, row : row + 12, column : column + 12] = 1
            target[index, row : row + 12, column : column + 12] = 1
        others = random.normal(size=(2 if self._has_others else 0, 3, 32, 32)).astype(np.float32)
        return Batch(own, target, others)


def _trained(
    small_network: SmallNetwork, has_others: bool, bfloat16: bool = False
) -> tuple[GraphModule, torch.nn.Module]:
    original = GraphModule(small_network())
    schedule = Schedule(steps=60, warmup=5, rate=0.03, keep_weight=2.0, average=0.8)
    return original.eval(), train(
        GraphModule(small_network()), Stripes(has_others), schedule, SILENT, bfloat16=bfloat16
    )


@pytest.mark.parametrize("bfloat16", [False, True])
def test_training_learns_and_stays_on_other_pictures(small_network: SmallNetwork, bfloat16: bool) -> None:
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = Stripes(False).batch(1000)
    own, target = torch.from_numpy(batch.own), torch.from_numpy(batch.target)
    moved = []
    for has_others in (False, True):
        original, tuned = _trained(small_network, has_others, bfloat16)
        with torch.no_grad():
            wrong = [int(((module(own)[:, 0] > 0.5) != (target > 0.5)).sum()) for module in (original, tuned)]
            moved.append(float((original(noise) - tuned(noise)).abs().mean()))
        assert wrong[1] < 0.1 * wrong[0]
    assert moved[1] < 0.5 * moved[0]


def test_training_repeats_itself_and_ends_where_the_check_says(small_network: SmallNetwork) -> None:
    states, steps = [], []
    for _ in range(2):
        module = GraphModule(small_network())
        tuned = train(
            module, Stripes(True), Schedule(steps=9), SILENT, check=lambda step, _: steps.append(step) or step < 4
        )
        states.append(tuned.state_dict())
    assert steps == [1, 2, 3, 4] * 2
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_interrupted_training_continues_as_the_uninterrupted_one(
    small_network: SmallNetwork, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(tmp_path / "state.pt", "plan", every=2)

    def trained(last: int, checkpoint: Checkpoint | None) -> tuple[dict[str, torch.Tensor], list[int]]:
        steps: list[int] = []
        tuned = train(
            GraphModule(small_network()),
            Stripes(True),
            Schedule(steps=6),
            SILENT,
            check=lambda step, _: steps.append(step) or step < last,
            checkpoint=checkpoint,
        )
        return tuned.state_dict(), steps

    expected, _ = trained(6, None)
    # The third step is done again.
    assert trained(3, checkpoint)[1] == [1, 2, 3]
    found, steps = trained(6, checkpoint)
    assert steps == [3, 4, 5, 6]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(InvalidInputError, match=r"state\.pt is of plan, not of another: name another --output"):
        trained(6, replace(checkpoint, plan="another"))


def test_a_loss_that_is_no_number_ends_the_training(small_network: SmallNetwork) -> None:
    with pytest.raises(InvalidInputError, match="the loss of step 1 is nan: train at a lower rate"):
        train(
            GraphModule(small_network()),
            Stripes(False),
            Schedule(steps=2),
            SILENT,
            lambda output, target: output.sum() * float("nan"),
        )


def test_weights_part_of_the_way_are_between_the_old_and_the_new(small_network: SmallNetwork) -> None:
    original, tuned = _trained(small_network, True)
    part = _between(original, tuned.state_dict(), 0.25).state_dict()
    old, new = original.state_dict(), tuned.state_dict()
    assert any(name.endswith("num_batches_tracked") for name in old)
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed
    for name in changed:
        torch.testing.assert_close(part[name], old[name] * 0.75 + new[name] * 0.25)


def test_a_narrow_strided_shortcut_is_trained() -> None:
    """In channels last, PyTorch's backward pass of it overwrites memory, and the process ends."""

    class Wide:
        def batch(self, step: int) -> Batch:
            own = np.random.default_rng(step).normal(size=(2, 3, 160, 160)).astype(np.float32)
            maps = np.zeros((2, 80, 80), np.float32)
            return Batch(own, maps, own[:0])

    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 16, 1, stride=2), torch.nn.Conv2d(16, 1, 1)
    )
    before = module[1].weight.detach().clone()
    train(module, Wide(), Schedule(steps=3), SILENT)
    assert not torch.equal(module[1].weight, before) and module[1].weight.isfinite().all()

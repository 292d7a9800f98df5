# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedule and the average of the weights, against values computed by hand."""

import copy
import math

import pytest
import torch

from ocdserve.builder.train.averaging import ModelAverage
from ocdserve.builder.train.schedule import warmup_poly
from ocdserve.contract import InvalidInputError


def test_the_rate_rises_from_a_third_and_then_falls_to_zero() -> None:
    factors = [warmup_poly(epoch, 3, 10) for epoch in range(11)]
    assert factors[:4] == pytest.approx([1 / 3, 5 / 9, 7 / 9, 1])
    assert factors[5] == pytest.approx((5 / 7) ** 0.9)
    assert factors[9] == pytest.approx((1 / 7) ** 0.9)
    assert factors[10] == 0


def test_a_schedule_may_have_no_warm_up_or_nothing_else() -> None:
    assert [warmup_poly(epoch, 0, 2) for epoch in range(4)] == pytest.approx([1, 0.5**0.9, 0, 0])
    assert [warmup_poly(epoch, 4, 2) for epoch in range(2)] == pytest.approx([1 / 3, 1 / 2])
    assert warmup_poly(3, 3, 3) == 0


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))


def test_the_average_forgets_the_start_quickly() -> None:
    trained = network()
    with torch.no_grad():
        trained[0].weight.fill_(1.0)
    average = ModelAverage(trained, decay=0.9)
    with torch.no_grad():
        trained[0].weight.fill_(3.0)
    trained(torch.zeros(2, 1, 2, 2))
    first = 0.9 * (1 - math.exp(-1 / 2000))
    average.update(trained)
    expected = first * 1.0 + (1 - first) * 3.0
    assert average.module[0].weight.item() == pytest.approx(expected, rel=1e-6)
    second = 0.9 * (1 - math.exp(-2 / 2000))
    average.update(trained)
    assert average.module[0].weight.item() == pytest.approx(second * expected + (1 - second) * 3.0, rel=1e-6)
    assert average.updates == 2


def test_counters_are_copied_and_statistics_are_averaged() -> None:
    trained = network()
    average = ModelAverage(trained)
    for _ in range(3):
        trained(torch.ones(2, 1, 2, 2))
    average.updates = 10**6
    average.update(trained)
    state = average.state_dict()
    assert state["module.1.num_batches_tracked"].item() == 3
    expected = 0.0001 * trained[1].running_mean.item()
    assert state["module.1.running_mean"].item() == pytest.approx(expected, rel=1e-3)


def test_the_average_is_apart_from_the_network_and_always_evaluates() -> None:
    trained = network()
    before = copy.deepcopy(trained.state_dict())
    average = ModelAverage(trained, decay=0.5).train()
    assert not any(module.training for module in average.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters())
    with torch.no_grad():
        average.module[0].weight.add_(1)
    assert trained.training
    assert torch.equal(trained.state_dict()["0.weight"], before["0.weight"])


def test_a_decay_that_makes_no_sense_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"between 0 and 1; got 1\.5"):
        ModelAverage(network(), 1.5)

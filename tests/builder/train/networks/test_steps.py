# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from ocdserve.builder.train.losses import DbLoss
from ocdserve.builder.train.networks.model import NetworkOptions, build_network


def assert_learns(options: NetworkOptions) -> None:
    """Three steps on one batch: bright words on a dark ground."""
    torch.manual_seed(0)
    network = build_network(options)
    words = torch.zeros(2, 64, 96)
    words[0, 16:32, 16:80] = words[1, 40:56, 32:64] = 1
    images = words[:, None].expand(-1, 3, -1, -1) * 2 - 1 + 0.1 * torch.randn(2, 3, 64, 96)
    targets = {"shrink_map": words, "shrink_mask": torch.ones_like(words)}
    targets |= {"threshold_map": 0.3 + 0.4 * words, "threshold_mask": words}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    totals = []
    for _ in range(4):
        loss = DbLoss()(network(images), targets).total
        totals.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        optimizer.step()
    assert totals[3] < 0.9 * totals[0]


@pytest.mark.parametrize("backbone", ["deformable_resnet18", "deformable_resnet50", "fan_tiny_8_p4_hybrid"])
def test_a_narrow_network_learns(backbone: str) -> None:
    assert_learns(NetworkOptions(backbone, width=0.125))


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        NetworkOptions("deformable_resnet50"),
        NetworkOptions("fan_tiny_8_p4_hybrid"),
        NetworkOptions("fan_tiny_8_p4_hybrid", enlarge_feature_map_size=True, activation_checkpoint=True),
    ],
    ids=["resnet50", "fan", "enlarged fan"],
)
def test_a_network_of_full_size_learns(options: NetworkOptions) -> None:
    assert_learns(options)

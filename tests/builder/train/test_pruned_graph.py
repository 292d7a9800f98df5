# SPDX-License-Identifier: Apache-2.0
"""A pruned network is read from its file as it was written, from NVIDIA's pickle of its module too."""

import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from ocdserve.builder.train.networks.model import NetworkOptions, build_network
from ocdserve.builder.train.prune import prune
from ocdserve.builder.train.pruned_graph import build_from_pruned, network_of, save_pruned
from ocdserve.contract import InvalidInputError

IMAGE = torch.linspace(-0.4, 0.5, 3 * 64 * 64).reshape(1, 3, 64, 64)


@pytest.mark.parametrize("backbone", ["deformable_resnet18", "resnet50"])
def test_a_pruned_network_is_rebuilt_from_tensors_and_plain_values(tmp_path: Path, backbone: str) -> None:
    options = NetworkOptions(backbone, width=0.125, k=40)
    pruned = prune(build_network(options), 0.3, 4, 2, IMAGE).eval()
    path = tmp_path / "pruned_0.3.pth"
    save_pruned(path, pruned, options)
    content = torch.load(path, weights_only=True)
    assert content["options"]["backbone"] == backbone and content["options"]["k"] == 40
    rebuilt = build_from_pruned(path)
    assert rebuilt.training and rebuilt.head.k == 40
    assert [(name, value.shape) for name, value in rebuilt.state_dict().items()] == [
        (name, value.shape) for name, value in pruned.state_dict().items()
    ]
    assert rebuilt.backbone.layer1[0].conv1.in_channels == pruned.backbone.conv1.out_channels
    torch.testing.assert_close(rebuilt.eval()(IMAGE), pruned(IMAGE), rtol=0, atol=0)
    torch.testing.assert_close(prune(rebuilt, 0.3, 4, 2, IMAGE)(IMAGE).shape, (1, 1, 64, 64))


def test_the_pickled_module_of_another_package_is_read_without_that_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = prune(build_network(NetworkOptions("deformable_resnet18", width=0.125)), 0.3, 4, 2, IMAGE).eval()
    foreign = ModuleType("nvidia_tao_pytorch")

    class Model(nn.Module):
        """NVIDIA's class of the whole network."""

    Model.__module__, Model.__qualname__ = "nvidia_tao_pytorch", "Model"
    foreign.Model = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvidia_tao_pytorch", foreign)
    module = Model()
    for name, child in network.named_children():
        module.add_module(name, child)
    path = tmp_path / "pruned_0.3.pth"
    torch.save(module, path)
    monkeypatch.delitem(sys.modules, "nvidia_tao_pytorch")
    with pytest.raises((ModuleNotFoundError, AttributeError, pickle.UnpicklingError)):
        torch.load(path, weights_only=True)
    torch.testing.assert_close(build_from_pruned(path).eval()(IMAGE), network(IMAGE), rtol=0, atol=0)


def test_weights_of_another_backbone_are_refused_with_their_own() -> None:
    weights = build_network(NetworkOptions("resnet18", width=0.125)).state_dict()
    with pytest.raises(InvalidInputError, match="not those of the backbone resnet50, rather of resnet18"):
        network_of(NetworkOptions("resnet50"), weights)
    with pytest.raises(InvalidInputError, match=r"no backbone that is known here; these are fc\.weight"):
        network_of(NetworkOptions("resnet50"), {"fc.weight": torch.zeros(1)})

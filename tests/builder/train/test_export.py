# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from ocdserve.backend import PRESETS, ResizePolicy
from ocdserve.builder.graph.deformable import import_deformable
from ocdserve.builder.graph.describe import describe
from ocdserve.builder.train.export import ExportForm, export_onnx, oldest_opset
from ocdserve.builder.train.networks.head import DBHead
from ocdserve.builder.train.networks.model import NetworkOptions, OcdNet, build_network
from ocdserve.builder.train.networks.neck import FPN
from ocdserve.builder.train.networks.resnet import BasicBlock, ResNet, ResNetOptions
from ocdserve.contract import InvalidInputError


def shaken(network: OcdNet) -> OcdNet:
    """In inference mode, with offsets of a pixel or so and normalisations that fit, as in a trained network.

    Logits are of the order of 1 at most: larger ones enlarge the rounding errors of fifty random layers, too.
    """
    torch.manual_seed(0)
    for name, module in network.named_modules():
        if name.endswith("conv2_offset"):
            nn.init.normal_(module.weight, std=0.5 / module.weight[0].numel() ** 0.5)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        last = network.head.binarize[-2]
        nn.init.normal_(last.weight, std=0.3 / last.in_channels**0.5)
        network(torch.randn(2, 3, 256, 384))
    return network.eval()


def small() -> OcdNet:
    """One block a stage: an export takes seconds by the number of operators, not by their size."""
    torch.manual_seed(0)
    backbone = ResNet(ResNetOptions(BasicBlock, (1, 1, 1, 1), deformable=True), (8, 8, 16, 16))
    return shaken(OcdNet(backbone, FPN(backbone.widths, 16), DBHead(16, 50, upsamplings=2)))


def largest_difference(network: nn.Module, model: onnx.ModelProto) -> float:
    """At a size that the exporter has not seen."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(import_deformable(model).SerializeToString(), options)
    images = np.random.default_rng(7).normal(size=(3, 3, 160, 224)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    assert expected.std() > 0.01
    return float(np.abs(session.run(["pred"], {"input": images})[0] - expected).max())


def assert_is_built(path: Path) -> None:
    detector = replace(PRESETS["ocdnet"], resize=ResizePolicy(kind="fixed", width=160, height=96))
    description = describe(path, detector=detector)
    assert (description.batch, description.size) == (None, None)


def test_a_standard_export_runs_in_onnx_runtime_at_any_size_and_has_taos_names(tmp_path: Path) -> None:
    network, path = small(), tmp_path / "new" / "network.onnx"
    exported = export_onnx(network, path)
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 22)]
    assert exported.opset == 22 and exported.difference < 1e-5
    assert largest_difference(network, model) < 1e-4
    assert_is_built(path)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {
        "/backbone/conv1/Conv",
        "/backbone/layer1/layer1.0/conv1/Conv",
        "/backbone/layer2/layer2.0/conv2_offset/Conv",
        "/backbone/layer2/layer2.0/conv2/DeformConv",
        "/backbone/layer2/layer2.0/downsample/downsample.0/Conv",
        "/backbone/layer4/layer4.0/Relu_1",
        "/neck/out5/out5.0/Conv",
        "/head/binarize/binarize.6/ConvTranspose",
        "/head/binarize/binarize.7/Sigmoid",
    } <= set(names)
    assert (
        b"/site-packages/" not in path.read_bytes() and str(Path(__file__).parents[3]).encode() not in path.read_bytes()
    )
    assert network.training is False and hasattr(network.backbone.layer2[0].conv2, "extra_repr")


@pytest.mark.long
@pytest.mark.parametrize(
    ("backbone", "form", "layer"),
    [
        ("deformable_resnet18", "standard", "DeformConv"),
        ("deformable_resnet50", "plugin", "ModulatedDeformConv2d"),
        ("fan_tiny_8_p4_hybrid", "standard", "LayerNormalization"),
    ],
)
def test_networks_of_full_size_are_exported_and_built(
    backbone: str, form: ExportForm, layer: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = shaken(build_network(NetworkOptions(backbone)))
    exported = export_onnx(network, tmp_path / "network.onnx", form)
    assert largest_difference(network, exported.model) < 1e-4
    assert_is_built(tmp_path / "network.onnx")
    assert layer in {node.op_type for node in exported.model.graph.node}


@pytest.mark.long
@pytest.mark.parametrize("opset", [19, 23])
def test_other_opsets_are_exported(opset: int, tmp_path: Path) -> None:
    network = small()
    exported = export_onnx(network, tmp_path / "network.onnx", opset=opset)
    assert [(item.domain, item.version) for item in exported.model.opset_import] == [("", opset)]
    assert largest_difference(network, exported.model) < 1e-4


@pytest.mark.parametrize(
    ("backbone", "form", "oldest"),
    [("deformable_resnet18", "standard", 19), ("deformable_resnet18", "plugin", 18), ("resnet18", "standard", 18)],
)
def test_older_opsets_are_refused(backbone: str, form: ExportForm, oldest: int, tmp_path: Path) -> None:
    network = build_network(NetworkOptions(backbone, width=0.125))
    assert oldest_opset(network, form) == oldest
    with pytest.raises(InvalidInputError, match=f"opset must be at least {oldest} .* got {oldest - 1}"):
        export_onnx(network, tmp_path / "network.onnx", form, oldest - 1)


def test_an_opset_that_does_not_exist_yet_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Sigmoid())
    with pytest.raises(InvalidInputError, match=r"cannot export opset 99; take 22"):
        export_onnx(network, tmp_path / "network.onnx", opset=99)
    assert list(tmp_path.iterdir()) == []
    assert not [record for record in caplog.records if record.name.startswith("onnxscript")]


def test_a_network_with_broken_weights_is_not_written(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Sigmoid())
    nn.init.constant_(network[0].weight, torch.nan)
    with pytest.raises(InvalidInputError, match="differ from PyTorch's by nan"):
        export_onnx(network, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())

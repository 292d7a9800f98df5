# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch

from ocdserve.builder.train.networks.checkpointing import checkpointed
from ocdserve.builder.train.networks.deform import DeformConv2d
from ocdserve.builder.train.networks.model import NetworkOptions, OcdNet, build_network
from ocdserve.contract import InvalidInputError
from tests.builder import ocdnet_torch

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(name: str, channels: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.{part}", () if part == "num_batches_tracked" else (channels,)) for part in NORM]


def with_bias(name: str, *shape: int, bias: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.weight", shape), (f"{name}.bias", (bias,))]


def deformable_resnet18() -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights of NVIDIA's network, in the order of its files."""
    rows: list[tuple[str, tuple[int, ...]]] = [("backbone.conv1.weight", (64, 3, 7, 7)), *norm("backbone.bn1", 64)]
    for stage, inputs, channels in ((1, 64, 64), (2, 64, 128), (3, 128, 256), (4, 256, 512)):
        for block in (0, 1):
            name = f"backbone.layer{stage}.{block}"
            rows += [(f"{name}.conv1.weight", (channels, channels if block else inputs, 3, 3))]
            rows += norm(f"{name}.bn1", channels)
            if stage > 1:
                rows += with_bias(f"{name}.conv2_offset", 27, channels, 3, 3, bias=27)
            rows += [(f"{name}.conv2.weight", (channels, channels, 3, 3)), *norm(f"{name}.bn2", channels)]
            if stage > 1 and block == 0:
                rows += [(f"{name}.downsample.0.weight", (channels, inputs, 1, 1))]
                rows += norm(f"{name}.downsample.1", channels)
    rows += [(f"neck.in{level}.weight", (256, 32 * 2 ** (level - 1), 1, 1)) for level in (5, 4, 3, 2)]
    rows += [(f"neck.{name}.weight", (64, 256, 3, 3)) for name in ("out5.0", "out4.0", "out3.0", "out2")]
    for branch in ("head.binarize", "head.thresh"):
        rows += [(f"{branch}.0.weight", (64, 256, 3, 3)), *norm(f"{branch}.1", 64)]
        rows += with_bias(f"{branch}.3", 64, 64, 2, 2, bias=64)
        rows += [*norm(f"{branch}.4", 64), *with_bias(f"{branch}.6", 64, 1, 2, 2, bias=1)]
    return rows


def parameters(network: OcdNet) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_deformable_resnet18_has_the_names_and_shapes_of_nvidias_files() -> None:
    network = build_network(NetworkOptions())
    weights = network.state_dict()
    assert [(name, tuple(tensor.shape)) for name, tensor in weights.items()] == deformable_resnet18()
    assert len(weights) == 170
    assert parameters(network) == 12_776_548
    counters = {name for name, tensor in weights.items() if tensor.dtype == torch.int64}
    assert counters == {name for name in weights if name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("backbone", "keys", "count"),
    [
        ("resnet18", 158, 12_340_930),
        ("resnet50", 356, 25_409_730),
        ("deformable_resnet50", 382, 26_280_993),
    ],
)
def test_other_resnets_have_as_many_weights_as_nvidias(backbone: str, keys: int, count: int) -> None:
    network = build_network(NetworkOptions(backbone))
    assert len(network.state_dict()) == keys
    assert parameters(network) == count


def test_a_bottleneck_has_its_stride_in_the_three_by_three_as_nvidias() -> None:
    network = build_network(NetworkOptions("deformable_resnet50"))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    block = network.backbone.layer4[0]
    expected = {
        "backbone.layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "backbone.layer1.1.conv1.weight": (64, 256, 1, 1),
        "backbone.layer4.0.conv1.weight": (512, 1024, 1, 1),
        "backbone.layer4.0.conv2_offset.weight": (27, 512, 3, 3),
        "backbone.layer4.0.conv2.weight": (512, 512, 3, 3),
        "backbone.layer4.0.conv3.weight": (2048, 512, 1, 1),
        "backbone.layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "neck.in5.weight": (256, 2048, 1, 1),
        "neck.in2.weight": (256, 256, 1, 1),
    }
    assert {name: shapes[name] for name in expected} == expected
    assert block.conv1.stride == (1, 1)
    assert block.conv2_offset.stride == (2, 2)
    assert block.conv2.stride == 2


def inputs_of_a_deformable_layer(stride: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    torch.manual_seed(5)
    size = (-(-7 // stride), -(-10 // stride))
    offset = torch.randn(2, 18, *size, dtype=dtype) * 2
    return torch.randn(2, 3, 7, 10, dtype=dtype), offset, torch.rand(2, 9, *size, dtype=dtype)


def test_a_deformable_layer_is_the_reference_computed_tap_by_tap() -> None:
    x, offset, mask = inputs_of_a_deformable_layer(1)
    layer = DeformConv2d(3, 4)
    expected = ocdnet_torch.deform_conv(x, offset, mask, layer.weight, padding=1)
    torch.testing.assert_close(layer(x, offset, mask), expected, atol=1e-5, rtol=0)


def test_a_deformable_layer_of_stride_two_without_offsets_is_a_plain_one() -> None:
    x, offset, mask = inputs_of_a_deformable_layer(2)
    layer = DeformConv2d(3, 4, stride=2)
    expected = torch.nn.functional.conv2d(x, layer.weight, stride=2, padding=1) / 2
    actual = layer(x, torch.zeros_like(offset), torch.full_like(mask, 0.5))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_a_deformable_layer_are_those_of_finite_differences(stride: int) -> None:
    torch.manual_seed(0)
    size = (-(-4 // stride), -(-5 // stride))
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    offset = torch.randn(1, 18, *size, dtype=torch.float64)
    mask = torch.rand(1, 9, *size, dtype=torch.float64)
    layer = DeformConv2d(2, 2, stride).double()
    for tensor in (x, offset, mask):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, offset, mask, weight: torch.func.functional_call(layer, {"weight": weight}, (x, offset, mask)),
        (x, offset, mask, layer.weight),
    )


def test_coordinates_stay_exact_under_mixed_precision() -> None:
    x = torch.arange(1000.0).expand(1, 8, 1, 1000).contiguous()
    layer = DeformConv2d(8, 8)
    torch.nn.init.ones_(layer.weight)
    offset, mask = torch.zeros(1, 18, 1, 1000), torch.zeros(1, 9, 1, 1000)
    mask[:, 4] = 1 / 8
    actual = layer(x / 1000, offset.bfloat16(), mask)
    torch.testing.assert_close(actual[0, 0, 0], torch.arange(1000.0) / 1000, atol=1e-4, rtol=0)


def test_the_network_computes_what_the_reference_computes() -> None:
    reference = ocdnet_torch.ocdnet(width_factor=0.25).double()
    network = build_network(NetworkOptions(width=0.25)).double().eval()
    missing, unexpected = network.load_state_dict(
        {
            name.replace("out5.", "out5.0.").replace("out4.", "out4.0.").replace("out3.", "out3.0."): tensor
            for name, tensor in reference.state_dict().items()
        },
        strict=False,
    )
    assert unexpected == []
    assert {name.split(".")[1] for name in missing} == {"thresh"}
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64) - 0.5
    with torch.no_grad():
        torch.testing.assert_close(network(image), reference(image), atol=1e-9, rtol=0)


def test_in_training_the_maps_are_logits_threshold_and_their_binarization() -> None:
    network = build_network(NetworkOptions(width=0.125, k=50))
    logits, threshold, binary = network(torch.rand(2, 3, 64, 32)).unbind(1)
    assert logits.shape == (2, 64, 32)
    assert threshold.min() >= 0 and threshold.max() <= 1
    expected = 1 / (1 + torch.exp(-50 * (1 / (1 + torch.exp(-logits)) - threshold)))
    torch.testing.assert_close(binary, expected, atol=1e-5, rtol=0)


def test_initial_weights_are_those_of_the_original_project() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkOptions())
    weights = network.state_dict()

    def deviation(name: str) -> float:
        return float(weights[name].std())

    block = "backbone.layer3.0"
    assert not weights[f"{block}.conv2_offset.weight"].any() and not weights[f"{block}.conv2_offset.bias"].any()
    assert deviation(f"{block}.conv1.weight") == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert float(weights[f"{block}.conv2.weight"].abs().max()) == pytest.approx((1 / (9 * 256)) ** 0.5, rel=0.02)
    assert deviation("neck.out2.weight") == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert deviation("head.binarize.0.weight") == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert weights["head.thresh.4.bias"].tolist() == [pytest.approx(1e-4)] * 64


def test_checkpointed_activations_change_neither_gradients_nor_running_statistics() -> None:
    torch.manual_seed(0)
    plain = build_network(NetworkOptions(width=0.125))
    saving = build_network(NetworkOptions(width=0.125, activation_checkpoint=True))
    saving.load_state_dict(plain.state_dict())
    image = torch.rand(2, 3, 64, 64)
    for network in (plain, saving):
        network(image).mean().backward()
    for (name, first), second in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, msg=name)
    for (name, first), second in zip(plain.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(first, second, msg=name)


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    module = torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(8)))
    x = torch.rand(1, 4, 16, 16, requires_grad=True)

    def kept(function: Any) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t
        ):
            function()
        return sum(sizes)

    assert kept(lambda: checkpointed(module, x)) < kept(lambda: module(x)) / 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "resnet34"}, "backbone must be one of resnet18, "),
        ({"width": 0.0}, "width must be above 0 and at most 4; got 0.0"),
        ({"k": 0.5}, "k must be at least 1; got 0.5"),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        NetworkOptions(**values)

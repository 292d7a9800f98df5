# SPDX-License-Identifier: Apache-2.0
"""Pruning removes channels and nothing else: what dead channels computed is not missed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ocdserve.builder.train.graph_module import GraphModule, write_back
from ocdserve.builder.train.networks.model import NetworkOptions, OcdNet, build_network
from ocdserve.builder.train.prune import prune, prune_layers, size_of
from ocdserve.contract import InvalidInputError

# Widths 8, 16, 32, 64 and 32 in the neck.
EIGHTH = NetworkOptions("deformable_resnet18", width=0.125)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5)) - 0.5


def random_network(options: NetworkOptions) -> OcdNet:
    """In inference mode, with offsets of about a pixel and normalisations that change something."""
    torch.manual_seed(3)
    network = build_network(options).eval()
    for name, module in network.named_modules():
        if name.endswith("conv2_offset"):
            nn.init.normal_(module.weight, std=0.05)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.1)
    return network


def kill(network: OcdNet, written: str, read: str, dead: list[int]) -> None:
    """Let layers write nothing into channels, and others hardly read these: they rank lowest."""
    modules = dict(network.named_modules())
    with torch.no_grad():
        for name in written.split():
            modules[name].weight[dead] = 0
            if isinstance(modules[name], nn.BatchNorm2d):
                modules[name].bias[dead] = 0
        for name in read.split():
            modules[name].weight[:, dead] *= 0.01


def kill_quarter(network: OcdNet) -> None:
    """Kill a quarter of the channels of every group: inside of blocks, of the residual streams, of the neck."""
    for stage in (1, 2, 3, 4):
        width = 8 * 2 ** (stage - 1)
        dead = torch.randperm(width, generator=torch.Generator().manual_seed(stage))[: width // 4].tolist()
        layer = f"backbone.layer{stage}"
        for block in ("0", "1"):
            offsets = f"{layer}.{block}.conv2_offset" if stage > 1 else ""
            inside = f"{layer}.{block}.conv1 {layer}.{block}.bn1"
            kill(network, inside, f"{layer}.{block}.conv2 {offsets}", [(channel + 1) % width for channel in dead])
        start = f"{layer}.0.downsample.0 {layer}.0.downsample.1" if stage > 1 else "backbone.conv1 backbone.bn1"
        stream = f"{start} {layer}.0.conv2 {layer}.0.bn2 {layer}.1.conv2 {layer}.1.bn2"
        first = f"{layer}.0.conv1" if stage == 1 else ""
        following = f"backbone.layer{stage + 1}.0"
        after = f"{following}.conv1 {following}.downsample.0" if stage < 4 else ""
        kill(network, stream, f"{first} {layer}.1.conv1 {after} neck.in{stage + 1}", dead)
    outputs = "neck.out5.0 neck.out4.0 neck.out3.0 neck.out2"
    kill(network, "neck.in5 neck.in4 neck.in3 neck.in2", outputs, [0, 3, 4, 9, 17, 22, 30, 31])


def test_dead_channels_of_blocks_residual_streams_and_offsets_are_not_missed(image: Tensor) -> None:
    network = random_network(EIGHTH)
    kill_quarter(network)
    pruned = prune(network, 0.25, 1, 2, image)
    shapes = {name: tuple(value.shape) for name, value in pruned.state_dict().items()}
    assert shapes["backbone.conv1.weight"] == (6, 3, 7, 7)
    assert shapes["backbone.layer3.1.conv1.weight"] == (24, 24, 3, 3)
    assert shapes["backbone.layer3.1.conv2_offset.weight"] == (27, 24, 3, 3)
    assert shapes["backbone.layer3.1.conv2.weight"] == (24, 24, 3, 3)
    assert shapes["neck.in5.weight"] == (24, 48, 1, 1)
    assert shapes["neck.out5.0.weight"] == (8, 24, 3, 3)
    assert shapes["head.thresh.0.weight"] == (8, 32, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(pruned(image), network(image), rtol=0, atol=1e-5)
        torch.testing.assert_close(pruned.train()(image), network.train()(image), rtol=1e-4, atol=1e-4)


def test_living_channels_are_missed(image: Tensor) -> None:
    network = random_network(EIGHTH)
    with torch.no_grad():
        assert (prune(network, 0.25, 1, 2, image)(image) - network(image)).abs().max() > 0.01


def test_bottlenecks_are_pruned_to_multiples(image: Tensor) -> None:
    network = random_network(NetworkOptions("deformable_resnet50", width=0.125, activation_checkpoint=True))
    pruned = prune(network, 0.3, 8, 1, image)
    assert pruned(image).shape == (1, 1, 64, 96)
    widths = {len(value) for name, value in pruned.state_dict().items() if name.endswith("conv2.weight")}
    assert widths == {8, 16, 40}
    assert pruned.backbone.activation_checkpoint


def test_the_size_is_counted_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    network.append(nn.ConvTranspose2d(8, 1, 2, 2))
    counted = size_of(network, torch.zeros(1, 3, 4, 4))
    assert counted.macs == 16 * 3 * 8 * 9 + 16 * 8 * 9 + 16 * 8 * 4
    assert counted.parameters == (3 * 8 * 9 + 8) + (8 * 9 + 8) + (8 * 4 + 1)


def test_what_would_remove_nothing_is_refused(image: Tensor) -> None:
    network = build_network(EIGHTH)
    with pytest.raises(InvalidInputError, match=r"no channel was removed.*lower round_to"):
        prune(network, 0.3, 128, 2, image)
    with pytest.raises(InvalidInputError, match="ch_sparsity must be above 0 and below 1; got 1"):
        prune(network, 1.0, 32, 2, image)


def test_dead_channels_of_a_graph_are_missed_neither_here_nor_in_its_onnx(
    small_network: Callable[..., onnx.ModelProto], image: Tensor
) -> None:
    """A stem with a normalisation, a depthwise layer, a residual addition, two branches joined, a vector."""
    model = small_network()
    values = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    for name in ("stem_w", "gamma", "beta", "b_w", "b_b"):
        values[name][[2, 5]] = 0
    for name, first in (("a_w", 0), ("c_w", 0), ("b_w", 1), ("c_w", 8)):
        values[name][:, [first + 2, first + 5]] *= 0.01
    values["a_w"][[3, 6]] = 0
    values["c_w"][[0, 7]] = values["shift"][:, [0, 7]] = 0
    values["head_w"][[0, 7]] *= 0.01
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    network = GraphModule(model).eval()
    pruned = prune(network, 0.25, 1, 2, image)
    smaller = write_back(pruned)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in smaller.graph.initializer}
    assert shapes["stem_w"] == (6, 3, 3, 3) and shapes["dw_w"] == (6, 1, 3, 3)
    assert shapes["c_w"] == (6, 12, 1, 1) and shapes["shift"] == (1, 6, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(pruned(image), network(image), rtol=0, atol=1e-5)
        np.testing.assert_allclose(run(smaller, image), network(image).numpy(), rtol=0, atol=1e-5)


def run(model: onnx.ModelProto, image: Tensor) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    (found,) = onnxruntime.InferenceSession(model.SerializeToString(), settings).run(None, {"x": image.numpy()})
    return found


def graph_of(nodes: list[Any], weights: dict[str, np.ndarray]) -> GraphModule:
    """A graph of an image `x` to a map `p`."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, "H", "W"])
        for name, channels in (("x", 3), ("p", 1))
    ]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    return GraphModule(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=8))


def convolution(source: str, name: str) -> Any:
    return helper.make_node("Conv", [source, f"{name}_w"], [name], name, pads=[1] * 4)


def test_of_a_graph_the_offsets_of_a_deformable_layer_lose_their_inputs(image: Tensor) -> None:
    random = np.random.default_rng(3)
    shapes = {"first_w": (8, 3, 3, 3), "offset_w": (27, 8, 3, 3), "deform_w": (8, 8, 3, 3), "last_w": (1, 8, 3, 3)}
    weights = {name: random.normal(0, 0.2, shape) for name, shape in shapes.items()}
    weights["deform_b"] = random.normal(0, 0.1, 8)
    weights["first_w"][[2, 5]] = weights["deform_w"][[1, 6]] = 0
    weights["deform_b"][[1, 6]] = 0
    weights["offset_w"][:, [2, 5]] *= 0.01
    weights["deform_w"][:, [2, 5]] *= 0.01
    weights["last_w"][:, [1, 6]] *= 0.01
    deformable = helper.make_node(
        "DeformConv", ["first", "deform_w", "moved", "deform_b", "mask"], ["deform"], "deform", pads=[1] * 4
    )
    nodes = [
        convolution("x", "first"),
        convolution("first", "offset"),
        helper.make_node("Split", ["offset", "sizes"], ["moved", "logits"], axis=1),
        helper.make_node("Sigmoid", ["logits"], ["mask"]),
        deformable,
        helper.make_node("Relu", ["deform"], ["positive"]),
        convolution("positive", "last"),
        helper.make_node("Sigmoid", ["last"], ["p"]),
    ]
    sizes = helper.make_node("Constant", [], ["sizes"], value_ints=[18, 9])
    network = graph_of([sizes, *nodes], weights).eval()
    pruned = prune(network, 0.25, 1, 2, image)
    smaller = {tensor.name: tuple(tensor.dims) for tensor in write_back(pruned).graph.initializer}
    assert smaller["offset_w"] == (27, 6, 3, 3) and smaller["deform_w"] == (6, 6, 3, 3)
    assert smaller["deform_b"] == (6,) and smaller["last_w"] == (1, 6, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(pruned(image), network(image), rtol=0, atol=1e-5)


def test_of_a_graph_channels_that_are_moved_are_kept(image: Tensor) -> None:
    """Four channels become two by two pixels: without one of them the pixels would be others."""
    random = np.random.default_rng(3)
    weights = {"first_w": random.normal(size=(8, 3, 3, 3)), "second_w": random.normal(size=(4, 8, 3, 3))}
    nodes = [
        convolution("x", "first"),
        convolution("first", "second"),
        helper.make_node("DepthToSpace", ["second"], ["large"], blocksize=2),
        helper.make_node("Sigmoid", ["large"], ["p"]),
    ]
    pruned = prune(graph_of(nodes, weights), 0.5, 1, 2, image)
    assert [tuple(value.shape[:2]) for value in pruned.state_dict().values()] == [(4, 3), (4, 4)]


def test_only_the_layers_that_are_named_lose_channels(image: Tensor) -> None:
    random = np.random.default_rng(3)
    shapes = {"first_w": (8, 3, 3, 3), "middle_w": (8, 8, 3, 3), "last_w": (1, 8, 3, 3)}
    weights = {name: random.normal(size=shape) for name, shape in shapes.items()}
    weights["middle_w"][[0, 3, 4, 5]] = 0
    weights["last_w"][:, [0, 3, 4, 5]] *= 0.01
    nodes = [
        convolution("x", "first"),
        convolution("first", "middle"),
        convolution("middle", "last"),
        helper.make_node("Sigmoid", ["last"], ["p"]),
    ]
    network = graph_of(nodes, weights).eval()
    pruned = prune_layers(network, {"layers.middle": 0.5}, 1, image)
    sizes = {name: tuple(value.shape[:2]) for name, value in pruned.state_dict().items()}
    assert sizes == {"layers.first.weight": (8, 3), "layers.middle.weight": (4, 8), "layers.last.weight": (1, 4)}
    with torch.no_grad():
        torch.testing.assert_close(pruned(image), network(image), rtol=0, atol=1e-5)


def test_of_a_weight_that_two_layers_share_each_keeps_its_own_part(image: Tensor) -> None:
    random = np.random.default_rng(3)
    shapes = {"first_w": (8, 3, 3, 3), "middle_w": (8, 8, 3, 3), "last_w": (1, 8, 3, 3), "shared_b": (8,)}
    weights = {name: random.normal(size=shape) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "first_w", "shared_b"], ["first"], "first", pads=[1] * 4),
        helper.make_node("Conv", ["first", "middle_w", "shared_b"], ["middle"], "middle", pads=[1] * 4),
        convolution("middle", "last"),
        helper.make_node("Sigmoid", ["last"], ["p"]),
    ]
    weights["first_w"][:4] *= 0.01
    weights["middle_w"][4:] *= 0.01
    pruned = prune(graph_of(nodes, weights).eval(), 0.5, 1, 2, image)
    first, middle = (pruned.layers[name].bias.detach().numpy() for name in ("first", "middle"))
    np.testing.assert_array_equal(first, weights["shared_b"][4:].astype(np.float32))
    np.testing.assert_array_equal(middle, weights["shared_b"][:4].astype(np.float32))
    with torch.no_grad():
        np.testing.assert_allclose(run(write_back(pruned), image), pruned(image).numpy(), rtol=0, atol=1e-5)


def test_of_fan_every_second_channel_is_removed_where_it_is_dead(image: Tensor) -> None:
    """A network is spread over one of twice the width, whose other channels are 0; pruning gets it back."""
    wide = build_network(NetworkOptions("fan_tiny_8_p4_hybrid", width=0.25)).eval()
    torch.manual_seed(4)
    narrow = build_network(NetworkOptions("fan_tiny_8_p4_hybrid", width=0.125, fuse_qkv_proj=False)).state_dict()
    expected = {name: torch.rand(value.shape) + 0.1 for name, value in narrow.items() if not name.endswith("tracked")}
    spread = wide.state_dict()
    for name, value in expected.items():
        if name.startswith("head"):
            expected[name] = spread[name].clone()
        elif name.startswith("neck.linear_fuse"):  # its outputs are the head's inputs
            expected[name] = torch.rand(2 * len(value), *value.shape[1:])
    for name, value in spread.items():
        before, fused, after = name.rpartition(".kv.")
        parts = [f"{before}.{part}.{after}" for part in "kv"] if fused else [name]
        if parts[0] in expected and not name.startswith("head"):
            whole = torch.cat([expected[part] for part in parts])
            value.zero_()
            places = [slice(None, None, of // size) for of, size in zip(value.shape, whole.shape, strict=True)]
            value[tuple(places)] = whole
    pruned = prune(wide, 0.5, 1, 2, image)
    found = {name: value for name, value in pruned.state_dict().items() if not name.endswith("tracked")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    assert pruned(image).shape == (1, 1, 64, 96)

# SPDX-License-Identifier: Apache-2.0
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ocdserve.builder.train.networks.model import NetworkOptions, OcdNet, build_network

FAN = "fan_tiny_8_p4_hybrid"
Shapes = list[tuple[str, tuple[int, ...]]]
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(name: str, channels: int) -> Shapes:
    return [(f"{name}.{part}", () if part == "num_batches_tracked" else (channels,)) for part in NORM]


def both(name: str, *shape: int, bias: int | None = None) -> Shapes:
    return [(f"{name}.weight", shape), (f"{name}.bias", (shape[0] if bias is None else bias,))]


def convnext(enlarged: bool) -> Shapes:
    name, kernel = "backbone.patch_embed.backbone", 2 if enlarged else 4
    rows = [*both(f"{name}.stem.0", 128, 3, kernel, kernel), *both(f"{name}.stem.1", 128)]
    for stage, channels in enumerate((128, 256)):
        if stage:
            rows += [
                *both(f"{name}.stages.1.downsample.0", 128),
                *both(f"{name}.stages.1.downsample.1", 256, 128, 2, 2),
            ]
        for index in range(3):
            block = f"{name}.stages.{stage}.blocks.{index}"
            rows += [(f"{block}.gamma", (channels,)), *both(f"{block}.conv_dw", channels, 1, 7, 7)]
            rows += [*both(f"{block}.norm", channels), *both(f"{block}.mlp.fc1", 4 * channels, channels, 1, 1)]
            rows += both(f"{block}.mlp.fc2", channels, 4 * channels, 1, 1)
    return rows


def attention_block(name: str, fused: bool) -> Shapes:
    rows: Shapes = [(f"{name}.gamma1", (192,)), (f"{name}.gamma2", (192,)), *both(f"{name}.norm1", 192)]
    rows += both(f"{name}.attn.q", 192, 192)
    rows += both(f"{name}.attn.kv", 384, 192) if fused else both(f"{name}.attn.k", 192, 192)
    rows += [] if fused else both(f"{name}.attn.v", 192, 192)
    rows += [*both(f"{name}.attn.proj", 192, 192), *both(f"{name}.norm2", 192)]
    rows += [(f"{name}.mlp.temperature", (8, 1, 1)), (f"{name}.mlp.mlp_v.gamma", (768,))]
    rows += [*both(f"{name}.mlp.mlp_v.fc1", 768, 192), *both(f"{name}.mlp.mlp_v.dwconv.conv1", 768, 1, 3, 3)]
    rows += [*norm(f"{name}.mlp.mlp_v.dwconv.bn", 768), *both(f"{name}.mlp.mlp_v.dwconv.conv2", 768, 1, 3, 3)]
    rows += [*both(f"{name}.mlp.mlp_v.fc2", 192, 768), *both(f"{name}.mlp.norm_v", 192)]
    return rows + both(f"{name}.mlp.q", 192, 192)


def class_block(name: str) -> Shapes:
    rows: Shapes = [(f"{name}.gamma1", (192,)), (f"{name}.gamma2", (192,)), *both(f"{name}.norm1", 192)]
    for part in ("q", "k", "v", "proj"):
        rows += both(f"{name}.attn.{part}", 192, 192)
    return [*rows, *both(f"{name}.norm2", 192), *both(f"{name}.mlp.fc1", 768, 192), *both(f"{name}.mlp.fc2", 192, 768)]


def fan_tiny(enlarged: bool = False, fused: bool = True) -> Shapes:
    """Names and shapes of the weights of NVIDIA's network, in the order of its files."""
    rows: Shapes = [("backbone.cls_token", (1, 1, 192)), *convnext(enlarged)]
    rows += both("backbone.patch_embed.proj", 192, 256, 2, 2)
    rows += both("backbone.pos_embed.token_projection", 192, 64, 1, 1)
    for index in range(8):
        rows += attention_block(f"backbone.blocks.{index}", fused)
    for index in range(2):
        rows += class_block(f"backbone.cls_attn_blocks.{index}")
    for level, channels in ((4, 192), (3, 192), (2, 256), (1, 128)):
        rows += both(f"neck.linear_c{level}.proj", 768, channels)
    rows += [("neck.linear_fuse.conv.weight", (768, 3072, 1, 1)), *norm("neck.linear_fuse.norm", 768)]
    for branch in ("head.binarize", "head.thresh"):
        rows += [(f"{branch}.0.weight", (192, 768, 3, 3)), *norm(f"{branch}.1", 192)]
        if not enlarged:
            rows += [*both(f"{branch}.3", 192, 192, 2, 2), *norm(f"{branch}.4", 192)]
        rows += both(f"{branch}.{3 if enlarged else 6}", 192, 1, 2, 2, bias=1)
    return rows


@pytest.mark.parametrize(
    ("options", "keys", "parameters"),
    [
        ({}, 395, 13_180_162),
        ({"enlarged": True}, 381, 12_879_490),
        ({"fused": False}, 411, 13_180_162),
    ],
)
def test_fan_tiny_has_the_names_and_shapes_of_nvidias_files(
    options: dict[str, bool], keys: int, parameters: int
) -> None:
    enlarged, fused = options.get("enlarged", False), options.get("fused", True)
    network = build_network(NetworkOptions(FAN, enlarge_feature_map_size=enlarged, fuse_qkv_proj=fused))
    weights = network.state_dict()
    assert [(name, tuple(tensor.shape)) for name, tensor in weights.items()] == fan_tiny(enlarged, fused)
    assert len(weights) == keys
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def narrow(**options: Any) -> OcdNet:
    """Channels 32, 64 and 48 (6 per head), with weights that nothing is symmetric in."""
    torch.manual_seed(0)
    network = build_network(NetworkOptions(FAN, width=0.25, **options))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


@pytest.mark.parametrize("enlarged", [False, True])
def test_levels_and_maps_have_the_sizes_of_nvidias(enlarged: bool) -> None:
    network = narrow(enlarge_feature_map_size=enlarged).eval()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        levels = network.backbone(image)
        assert network(image).shape == (2, 1, 64, 96)
    expected = [(32, 16, 24), (64, 8, 12), (48, 4, 6), (48, 4, 6)]
    factor = 2 if enlarged else 1
    assert [tuple(level.shape[1:]) for level in levels] == [(c, factor * h, factor * w) for c, h, w in expected]


# A reference in NumPy, written from the description of the network, one head and one token at a time.

Array = NDArray[np.float64]


def linear(x: Array, layer: Any) -> Array:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def layer_norm(x: Array, layer: Any, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x)
    return powers / powers.sum(axis, keepdims=True)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attend(q: Array, k: Array, v: Array, heads: int = 8) -> Array:
    """Tokens (T, C) to (T, C)."""
    parts = zip(*(np.split(x, heads, axis=1) for x in (q, k, v)), strict=True)
    return np.concatenate([softmax(q @ k.T / math.sqrt(k.shape[1]), 1) @ v for q, k, v in parts], axis=1)


def depthwise(x: Array, layer: Any) -> Array:
    """(C, H, W), 3 x 3, zeros around it."""
    weight, bias = layer.weight.detach().numpy()[:, 0], layer.bias.detach().numpy()
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1:]
    taps = [padded[:, i : i + height, j : j + width] * weight[:, i, j, None, None] for i in range(3) for j in range(3)]
    return sum(taps) + bias[:, None, None]


def channel_attention(x: Array, layer: Any, height: int, width: int) -> Array:
    hidden = linear(x, layer.mlp_v.fc1)
    image = hidden.T.reshape(-1, height, width)
    part, bn = layer.mlp_v.dwconv, layer.mlp_v.dwconv.bn
    scale = bn.weight.detach().numpy() / np.sqrt(bn.running_var.numpy() + 1e-5)
    shift = bn.bias.detach().numpy() - bn.running_mean.numpy() * scale
    image = depthwise(gelu(depthwise(image, part.conv1)) * scale[:, None, None] + shift[:, None, None], part.conv2)
    hidden = hidden + layer.mlp_v.gamma.detach().numpy() * image.reshape(len(image), -1).T
    values = layer_norm(linear(hidden, layer.mlp_v.fc2), layer.norm_v, 1e-5)
    columns = []
    queries = np.split(linear(x, layer.q), 8, axis=1)
    for head, (query, own, value) in enumerate(
        zip(queries, np.split(x, 8, axis=1), np.split(values, 8, axis=1), strict=True)
    ):
        agreement = softmax(query, 0).T @ softmax(own, 0).mean(1)
        weight = 1 / (1 + np.exp(-agreement)) * layer.temperature.detach().numpy()[head, 0, 0]
        columns.append(value * weight)
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize("fused", [True, False])
def test_a_block_is_attention_over_tokens_then_over_channels(fused: bool) -> None:
    block = narrow(fuse_qkv_proj=fused).backbone.blocks[1].double().eval()
    x = np.random.default_rng(0).normal(size=(12, 48))
    normed = layer_norm(x, block.norm1, 1e-6)
    if fused:
        k, v = np.split(linear(normed, block.attn.kv), 2, axis=1)
    else:
        k, v = linear(normed, block.attn.k), linear(normed, block.attn.v)
    attended = linear(attend(linear(normed, block.attn.q), k, v), block.attn.proj)
    expected = x + block.gamma1.detach().numpy() * attended
    normed = layer_norm(expected, block.norm2, 1e-6)
    expected = expected + block.gamma2.detach().numpy() * channel_attention(normed, block.mlp, 3, 4)
    with torch.no_grad():
        actual = block(torch.from_numpy(x)[None], 3, 4)[0].numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-10)


def test_in_a_class_block_the_first_token_attends_and_the_others_are_normalised() -> None:
    block = narrow().backbone.cls_attn_blocks[0].double().eval()
    x = np.random.default_rng(0).normal(size=(7, 48))
    normed = layer_norm(x, block.norm1, 1e-6)
    attn, gamma1 = block.attn, block.gamma1.detach().numpy()
    attended = linear(attend(linear(normed[:1], attn.q), linear(normed, attn.k), linear(normed, attn.v)), attn.proj)
    expected = layer_norm(x + gamma1 * np.concatenate([attended, normed[1:]]), block.norm2, 1e-6)
    mlp = linear(gelu(linear(expected[:1], block.mlp.fc1)), block.mlp.fc2)
    expected = expected + np.concatenate([block.gamma2.detach().numpy() * mlp, expected[1:]])
    with torch.no_grad():
        np.testing.assert_allclose(block(torch.from_numpy(x)[None])[0].numpy(), expected, atol=1e-10)


def test_the_positional_code_is_waves_of_the_relative_row_then_of_the_column() -> None:
    code = narrow().backbone.pos_embed.double()
    code.token_projection = nn.Identity()
    code.token_projection.weight = torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        actual = code(4, 6)[0].numpy()
    assert actual.shape == (64, 4, 6)
    for channel, angle in (
        (0, math.sin(2 * math.pi * 3 / 4)),
        (1, math.cos(2 * math.pi * 3 / 4)),
        (30, math.sin(2 * math.pi * 3 / 4 / 10000 ** (30 / 32))),
        (32, math.sin(2 * math.pi * 5 / 6)),
        (35, math.cos(2 * math.pi * 5 / 6 / 10000 ** (2 / 32))),
    ):
        assert actual[channel, 2, 4] == pytest.approx(angle, abs=1e-5)


def test_the_neck_concatenates_coarse_levels_first() -> None:
    network = narrow().eval()
    levels = [torch.rand(1, channels, 8 // s, 8 // s) for channels, s in ((32, 1), (64, 2), (48, 4), (48, 4))]
    with torch.no_grad():
        expected = network.neck(levels)
        network.neck.linear_fuse.conv.weight[:, : 2 * 192] = 0  # c4 and c3
        fine = network.neck(levels)
        levels[2:] = [level * 5 for level in levels[2:]]
        assert not torch.allclose(expected, fine)
        torch.testing.assert_close(network.neck(levels), fine)


@pytest.mark.parametrize("enlarged", [False, True])
def test_checkpointed_blocks_change_neither_gradients_nor_running_statistics(enlarged: bool) -> None:
    networks = [narrow(enlarge_feature_map_size=enlarged, activation_checkpoint=value) for value in (False, True)]
    image = torch.rand(2, 3, 32, 64)
    for network in networks:
        torch.manual_seed(1)  # dropout in the neck
        maps = network(image)
        assert maps.shape == (2, 3, 32, 64)
        maps[:, 1:].mean().backward()
    for (name, first), second in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, msg=name)
    for (name, first), second in zip(networks[0].named_buffers(), networks[1].buffers(), strict=True):
        torch.testing.assert_close(first, second, msg=name)
    unused = [name for name, parameter in networks[0].named_parameters() if parameter.grad is None]
    assert unused == []

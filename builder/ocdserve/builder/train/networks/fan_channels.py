# SPDX-License-Identifier: Apache-2.0
"""Which weights of a network with the FAN backbone share their channels, for pruning.

Written down instead of traced: its attention moves channels by reshapes, in which a trace guesses.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ocdserve.builder.train.networks.fan import HEADS


@dataclass(frozen=True)
class Member:
    """One axis of a weight.

    Attributes:
        name: Of the weight, in the state dict.
        axis: The axis.
        start: Where the group's channels begin on it.
    """

    name: str
    axis: int = 0
    start: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together.

    Attributes:
        members: All that have them.
        heads: Parts of equal size, of which the same number of channels must be removed.
    """

    members: tuple[Member, ...]
    heads: int = 1


def channel_groups(weights: Mapping[str, Tensor]) -> list[ChannelGroup]:
    """All groups but those of the head and of the neck's output, by the state dict of a network without fused keys."""
    names = tuple(weights)
    return [
        *_convolutional(names),
        ChannelGroup(tuple(_token_stream(names)), HEADS),
        *_inside_blocks(names),
        *_projections(weights),
    ]


def _convolutional(names: tuple[str, ...]) -> Iterator[ChannelGroup]:
    """Both stages of the ConvNeXt, and what its blocks compute inside."""
    root = "backbone.patch_embed.backbone"
    starts = ((f"{root}.stem.0", f"{root}.stem.1"), (f"{root}.stages.1.downsample.1",))
    ends = (
        (*_layer(f"{root}.stages.1.downsample.0"), Member(f"{root}.stages.1.downsample.1.weight", 1)),
        (Member("backbone.patch_embed.proj.weight", 1),),
    )
    for stage, (start, end) in enumerate(zip(starts, ends, strict=True)):
        members = [member for layer in start for member in _layer(layer)]
        for block in _parents(names, f"{root}.stages.{stage}.blocks", ".gamma"):
            members += [Member(f"{block}.gamma"), *_layer(f"{block}.conv_dw"), *_layer(f"{block}.norm")]
            members += [Member(f"{block}.mlp.fc1.weight", 1), *_layer(f"{block}.mlp.fc2")]
            yield ChannelGroup((*_layer(f"{block}.mlp.fc1"), Member(f"{block}.mlp.fc2.weight", 1)))
        yield ChannelGroup((*members, *end, Member(f"neck.linear_c{stage + 1}.proj.weight", 1)))


def _token_stream(names: tuple[str, ...]) -> Iterator[Member]:
    """The tokens' channels, which every block adds to; channel attention divides them among heads."""
    yield Member("backbone.cls_token", 2)
    yield from _layer("backbone.patch_embed.proj")
    yield from _layer("backbone.pos_embed.token_projection")
    for block in (*_parents(names, "backbone.blocks", ".gamma1"), *_parents(names, "backbone.cls_attn", ".gamma1")):
        yield from (Member(f"{block}.gamma1"), Member(f"{block}.gamma2"))
        yield from (*_layer(f"{block}.norm1"), *_layer(f"{block}.norm2"), *_layer(f"{block}.attn.proj"))
        yield from (Member(f"{block}.attn.{part}.weight", 1) for part in "qkv")
        if f"{block}.mlp.q.weight" in names:
            yield from (*_layer(f"{block}.mlp.q"), Member(f"{block}.mlp.q.weight", 1), *_layer(f"{block}.mlp.norm_v"))
            yield from (Member(f"{block}.mlp.mlp_v.fc1.weight", 1), *_layer(f"{block}.mlp.mlp_v.fc2"))
        else:
            yield from (Member(f"{block}.mlp.fc1.weight", 1), *_layer(f"{block}.mlp.fc2"))
    yield from (Member(f"neck.linear_c{level}.proj.weight", 1) for level in (3, 4))


def _inside_blocks(names: tuple[str, ...]) -> Iterator[ChannelGroup]:
    """Queries, keys and values of each attention, and what each perceptron computes inside."""
    for block in (*_parents(names, "backbone.blocks", ".gamma1"), *_parents(names, "backbone.cls_attn", ".gamma1")):
        attention = [member for part in "qkv" for member in _layer(f"{block}.attn.{part}")]
        yield ChannelGroup((*attention, Member(f"{block}.attn.proj.weight", 1)), HEADS)
        if f"{block}.mlp.q.weight" not in names:
            yield ChannelGroup((*_layer(f"{block}.mlp.fc1"), Member(f"{block}.mlp.fc2.weight", 1)))
            continue
        inner = f"{block}.mlp.mlp_v"
        members = [Member(f"{inner}.gamma"), *_layer(f"{inner}.fc1"), Member(f"{inner}.fc2.weight", 1)]
        for layer in ("conv1", "bn", "conv2"):
            members += _layer(f"{inner}.dwconv.{layer}")
        members += [Member(f"{inner}.dwconv.bn.running_{figure}") for figure in ("mean", "var")]
        yield ChannelGroup(tuple(members))


def _projections(weights: Mapping[str, Tensor]) -> Iterator[ChannelGroup]:
    """What the neck makes of each level; the fusion reads these one after the other, the coarsest first."""
    start = 0
    for level in (4, 3, 2, 1):
        layer = f"neck.linear_c{level}.proj"
        yield ChannelGroup((*_layer(layer), Member("neck.linear_fuse.conv.weight", 1, start)))
        start += len(weights[f"{layer}.weight"])


def _layer(name: str) -> tuple[Member, Member]:
    return Member(f"{name}.weight"), Member(f"{name}.bias")


def _parents(names: tuple[str, ...], prefix: str, ending: str) -> list[str]:
    """Modules below a prefix that have a weight of this ending, in order."""
    return [name.removesuffix(ending) for name in names if name.startswith(prefix) and name.endswith(ending)]

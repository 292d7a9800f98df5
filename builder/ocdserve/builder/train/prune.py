# SPDX-License-Identifier: Apache-2.0
"""Structured pruning: remove the channels of least magnitude, with all that depends on them.

Layers that share channels, such as those of a residual stream, form a group. A group's channels are ranked by the mean
over its layers of the p-norm of their weights, and the same share of every group is removed in one step, as NVIDIA's
TAO does (Fang et al., "DepGraph: Towards Any Structural Pruning", 2023; the groups are those of torch-pruning).
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch_pruning
from torch import Tensor, nn

from ocdserve.builder.train.networks.deform import DeformConv2d
from ocdserve.builder.train.networks.fan import Fan
from ocdserve.builder.train.networks.fan_channels import ChannelGroup, channel_groups
from ocdserve.builder.train.networks.model import OcdNet
from ocdserve.builder.train.pruned_graph import network_of, options_of_weights
from ocdserve.contract import InvalidInputError

_Network = TypeVar("_Network", bound=nn.Module)
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, DeformConv2d)

# Operations that leave channels in their places, by the names of their gradients. Of a network that is a graph, the
# channels that any other operation reads are kept.
_CHANNELWISE = (
    "Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Exp", "Erf", "Relu", "LeakyRelu", "Hardtanh", "Hardswish",
    "Hardsigmoid", "Clamp", "Sigmoid", "Tanh", "Softplus", "Elu", "MaxPool2DWithIndices", "AvgPool2D",
    "UpsampleNearest2D", "UpsampleNearestExact2D", "UpsampleBilinear2D", "ConstantPadNd",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Size of a network.

    Attributes:
        macs: Multiplications of its convolutions and linear layers for one image.
        parameters: Number of its weights.
    """

    macs: int
    parameters: int


def prune(network: _Network, sparsity: float, round_to: int, p: int, example: Tensor) -> _Network:
    """A copy of a network with fewer channels; its remaining weights are unchanged.

    Of an `OcdNet` the head keeps its channels, as do the outputs of the neck and those of the convolutions that compute
    offsets. Of any other network those are kept that an operation reads which may move or mix channels.

    Args:
        network: An `OcdNet`, or a `GraphModule`.
        sparsity: Share of channels to remove from every group, above 0 and below 1.
        round_to: The channels that remain are a multiple of this. Groups of fewer channels keep all of them.
        p: Norm.
        example: (1, 3, H, W), for tracing.

    Raises:
        InvalidInputError: A value is out of range, or no channel can be removed.
    """
    for name, value, is_valid, rule in (
        ("ch_sparsity", sparsity, 0 < sparsity < 1, "above 0 and below 1"),
        ("round_to", round_to, round_to >= 1, "at least 1"),
        ("p", p, p >= 1, "at least 1"),
    ):
        if not is_valid:
            raise InvalidInputError(f"{name} must be {rule}; got {value}")
    if isinstance(network, OcdNet) and isinstance(network.backbone, Fan):
        pruned, removed = _prune_fan(network, sparsity, round_to, p)
    else:
        pruned, removed = _prune_traced(network, sparsity, round_to, p, example)
    if not removed:
        raise InvalidInputError(
            f"no channel was removed: with ch_sparsity {sparsity:g} and round_to {round_to} all layers keep theirs; "
            "raise ch_sparsity or lower round_to"
        )
    _try(pruned, example)
    return pruned.train(network.training)


def prune_layers(network: _Network, shares: Mapping[str, float], round_to: int, example: Tensor) -> _Network:
    """A copy of a network without a share of the channels of some layers; its remaining weights are unchanged.

    Args:
        network: Any network; see `prune`.
        shares: Share of channels to remove, by the name of the layer that computes them. Layers of one group, which
            share channels, need one name.
        round_to: The channels that remain are a multiple of this.
        example: (1, 3, H, W), for tracing.
    """
    pruned, _ = _prune_traced(network, shares, round_to, 1, example)
    _try(pruned, example)
    return pruned.train(network.training)


def _prune_traced(
    network: _Network, sparsity: float | Mapping[str, float], round_to: int, p: int, example: Tensor
) -> tuple[_Network, int]:
    """A pruned copy, and the number of channels that were removed; `sparsity` is of all layers, or of some by name."""
    pruned = copy.deepcopy(network)
    removed = 0
    of_all, of_some = (sparsity, {}) if isinstance(sparsity, float) else (0.0, sparsity)
    with _traceable(pruned), warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", module="torch_pruning")
        pruner = torch_pruning.pruner.BasePruner(
            pruned,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=p, group_reduction="mean"),
            pruning_ratio=of_all,
            pruning_ratio_dict={pruned.get_submodule(name): share for name, share in of_some.items()},
            round_to=round_to,
            ignored_layers=_kept_layers(pruned),
            # Its defaults are dictionaries that it would fill for all later calls.
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            forward_fn=_all_outputs,
        )
        for group in pruner.step(interactive=True):
            if isinstance(pruned, OcdNet) or _is_channelwise(group):
                removed += len(group[0].idxs)
                group.prune()
    return pruned, removed


def _prune_fan(network: OcdNet, sparsity: float, round_to: int, p: int) -> tuple[Any, int]:
    """The same for the FAN backbone, whose keys and values become two projections."""
    weights = _without_fused(network.state_dict())
    removed = 0
    dropped: dict[tuple[str, int], list[int]] = {}
    for group in channel_groups(weights):
        channels = _least(group, weights, sparsity, round_to, p)
        removed += len(channels)
        for member in group.members:
            dropped.setdefault((member.name, member.axis), []).extend(member.start + channel for channel in channels)
    for (name, axis), channels in dropped.items():
        kept = sorted(set(range(weights[name].shape[axis])) - set(channels))
        weights[name] = weights[name].index_select(axis, torch.tensor(kept))
    options = replace(
        options_of_weights(weights),
        k=network.head.k,
        activation_checkpoint=network.backbone.activation_checkpoint,
    )
    return network_of(options, weights), removed


def _least(group: ChannelGroup, weights: Mapping[str, Tensor], sparsity: float, round_to: int, p: int) -> list[int]:
    """The channels of a group to remove: of each head those of the same places."""
    first = group.members[0]
    size = weights[first.name].shape[first.axis]
    kept = int(size * (1 - sparsity))
    kept -= kept % math.lcm(round_to, group.heads)
    if kept == 0:
        return []
    norms = [
        weights[member.name].abs().pow(p).movedim(member.axis, 0)[member.start : member.start + size]
        for member in group.members
        if member.name.endswith(".weight")
    ]
    rank = torch.stack([norm.reshape(size, -1).sum(1) for norm in norms]).mean(0)
    places = rank.reshape(group.heads, -1).mean(0).argsort()[: (size - kept) // group.heads].tolist()
    return [head * (size // group.heads) + place for head in range(group.heads) for place in places]


def _without_fused(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the projection of keys and values in two."""
    result = {}
    for name, value in weights.items():
        before, fused, after = name.rpartition(".attn.kv.")
        if fused:
            result[f"{before}.attn.k.{after}"], result[f"{before}.attn.v.{after}"] = value.chunk(2)
        else:
            result[name] = value
    return result


def size_of(network: nn.Module, example: Tensor) -> Size:
    """Count multiplications, those of a deformable convolution as of a plain one, and weights.

    Args:
        network: The network; it is run in inference mode.
        example: (1, 3, H, W), of the size that is counted for.
    """
    macs = 0

    def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        places = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        channels = layer.weight.shape[0]
        macs += places.numel() // channels * layer.weight.numel()

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, _LAYERS)]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return Size(macs, sum(parameter.numel() for parameter in network.parameters()))


def _try(network: nn.Module, example: Tensor) -> None:
    try:
        with torch.no_grad():
            network.eval()(example)
    except RuntimeError as error:
        raise InvalidInputError(
            f"this network cannot be pruned: its layers no longer fit together ({str(error).splitlines()[0]})"
        ) from error


class _PlainConv2d(nn.Conv2d):
    """Stands in for a deformable convolution in a trace, which its sampling would confuse: channels pass alike."""

    def __init__(self, layer: DeformConv2d) -> None:
        outputs, inputs = layer.weight.shape[:2]
        bias = getattr(layer, "bias", None)
        super().__init__(inputs, outputs, 3, layer.stride, 1, bias=bias is not None)
        self.weight = layer.weight
        self.bias = bias
        self.unread: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor, *offset_and_mask: Tensor) -> Tensor:
        self.unread = offset_and_mask
        return super().forward(x)


@contextmanager
def _traceable(network: nn.Module) -> Iterator[None]:
    """Replace deformable convolutions by plain ones, and give them back the weights that are left of these."""
    found = {name: module for name, module in network.named_modules() if isinstance(module, DeformConv2d)}
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    for name, module in found.items():
        network.set_submodule(name, _PlainConv2d(module))
    yield
    for name, module in found.items():
        traced = network.get_submodule(name)
        module.weight = traced.weight
        if traced.bias is not None:
            module.bias = traced.bias
        network.set_submodule(name, module)


def _all_outputs(network: nn.Module, example: Tensor) -> list[Tensor]:
    """The map, and what deformable convolutions read besides of features: its layers are pruned in step with others."""
    probability = network(example)
    return [
        probability,
        *(tensor for module in network.modules() if isinstance(module, _PlainConv2d) for tensor in module.unread),
    ]


def _kept_layers(network: nn.Module) -> list[nn.Module]:
    """Layers whose outputs are not pruned."""
    if not isinstance(network, OcdNet):
        return []
    kept = ("head", "conv2_offset", "neck.out")
    return [module for name, module in network.named_modules() if any(part in name for part in kept)]


def _is_channelwise(group: Any) -> bool:
    """Whether all that reads a group's channels besides of layers leaves them in their places."""
    kinds = torch_pruning.ops.OPTYPE
    for dependency, _ in group:
        node = dependency.target
        if node.type in (kinds.RESHAPE, kinds.SPLIT, kinds.SLICE, kinds.UNBIND, kinds.EXPAND, kinds.OUTPUT):
            return False
        if node.type == kinds.ELEMENTWISE and not _leaves_channels(node.grad_fn):
            return False
    return True


def _leaves_channels(gradient: Any) -> bool:
    operation = str(gradient.name()).rstrip("0123456789").removesuffix("Backward")
    if operation in ("Mean", "Amax"):
        # Axes count from either end, from the last one modulo 2 ** 64.
        return all(axis in (2, 3, 2**64 - 1, 2**64 - 2) for axis in gradient._saved_dim)
    return operation in _CHANNELWISE

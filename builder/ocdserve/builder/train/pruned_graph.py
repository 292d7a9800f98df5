# SPDX-License-Identifier: Apache-2.0
"""Networks whose layers have widths of their own, as pruning leaves them, and the file of one.

The shapes of its weights are the widths of a network's layers, so that its options and its state dict describe it: a
network is built with the options, and its layers take the shapes. NVIDIA's prune writes a pickle of its module instead,
of which the tensors are read and nothing else; its options follow from their names and shapes.
"""

import io
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ocdserve.backend.files import write_atomically
from ocdserve.builder.train.checkpoints import COUNTER, listed, read_pruned_module, read_weights
from ocdserve.builder.train.networks.model import FAN, NetworkOptions, OcdNet, build_network
from ocdserve.builder.train.unpickling import Inert, load_restricted
from ocdserve.contract import InvalidInputError

FORMAT = "ocdserve-pruned-1"


def save_pruned(path: Path, network: OcdNet, options: NetworkOptions) -> None:
    """Write a pruned network: a dictionary of the format, the options and the state dict.

    Args:
        path: File to write; `torch.load(path, weights_only=True)` reads it.
        network: The network.
        options: Those that it was built with before it was pruned.
    """
    file = io.BytesIO()
    torch.save({"format": FORMAT, "options": asdict(options), "state_dict": network.state_dict()}, file)
    write_atomically(path, file.getvalue())


def build_from_pruned(path: Path) -> OcdNet:
    """The network of a file that `save_pruned` or NVIDIA's prune wrote, or of a checkpoint of one, with its weights.

    Raises:
        InvalidInputError: The file is none of these.
    """
    content = load_restricted(path)
    if isinstance(content, Inert):
        weights = read_pruned_module(path)
        return network_of(options_of_weights(weights), weights)
    weights = read_weights(path)
    if content.get("format") == FORMAT:
        return network_of(NetworkOptions(**content["options"]), weights)
    return network_of(options_of_weights(weights), weights)


def network_of(options: NetworkOptions, weights: Mapping[str, Tensor]) -> OcdNet:
    """A network in training mode whose layers have the shapes of these weights, and these weights.

    Args:
        options: Determine the names and kinds of the layers. `width` has no effect; whether projections are fused is as
            in the weights.
        weights: All of the network's by the names of its state dict; counters of batches may be missing.

    Raises:
        InvalidInputError: The weights are those of another network.
    """
    found = options_of_weights(weights)
    network = build_network(replace(options, fuse_qkv_proj=found.fuse_qkv_proj))
    names = set(network.state_dict())
    missing = sorted(name for name in names - set(weights) if not name.endswith(COUNTER))
    unknown = sorted(name for name in set(weights) - names if not name.endswith(COUNTER))
    if missing or unknown:
        raise InvalidInputError(
            f"the weights are not those of the backbone {options.backbone}, rather of {found.backbone}: missing are "
            f"{listed(missing)}, and unknown {listed(unknown)}"
        )
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(weights[prefix + key].detach().clone())
        for key in module._buffers:
            if prefix + key in weights:
                module._buffers[key] = weights[prefix + key].detach().clone()
        _adopt_shape(module)
    return network


def options_of_weights(weights: Mapping[str, Tensor]) -> NetworkOptions:
    """The options of a network as far as the names and shapes of its weights depend on them.

    Raises:
        InvalidInputError: The backbone is not known here.
    """
    stem = weights.get("backbone.patch_embed.backbone.stem.0.weight")
    if stem is not None:
        return NetworkOptions(
            FAN,
            enlarge_feature_map_size=stem.shape[-1] == 2,
            fuse_qkv_proj=any(name.endswith(".attn.kv.weight") for name in weights),
        )
    if "backbone.layer4.0.conv2.weight" not in weights:
        raise InvalidInputError(f"the weights are of no backbone that is known here; these are {listed([*weights])}")
    is_deformable = "backbone.layer4.0.conv2_offset.weight" in weights
    depth = 50 if "backbone.layer4.0.conv3.weight" in weights else 18
    return NetworkOptions(f"{'deformable_' if is_deformable else ''}resnet{depth}")


def _adopt_shape(module: nn.Module) -> None:
    """Let the attributes of one of PyTorch's layers agree with its weights."""
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:  # depthwise: a filter for each channel
            module.groups = len(module.weight)
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, nn.ConvTranspose2d):
        module.in_channels, module.out_channels = module.weight.shape[:2]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = len(module.weight)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)

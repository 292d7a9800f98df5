# SPDX-License-Identifier: Apache-2.0
"""Weights from checkpoints of NVIDIA TAO, Lightning, the original DB project and ocdserve, by TAO's module names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ocdserve.builder.train.unpickling import Inert, load_restricted
from ocdserve.contract import InvalidInputError

Weights = dict[str, Tensor]

# Prefix of averaged weights.
AVERAGED = "model_ema.module."
_PREFIX = re.compile(r"^(?:model\.|module\.)+")
# Names of the original DB project, and parts of its networks that nothing reads.
_RENAMED = (
    (re.compile(r"^decoder\.(?=in\d|out\d)"), "neck."),
    (re.compile(r"^decoder\.(?=binarize\.|thresh\.)"), "head."),
)
_UNREAD = ("backbone.fc.", "backbone.smooth.")
# Ending of the names of batch counters, which TAO's files may lack.
COUNTER = ".num_batches_tracked"
_NAMED = 5  # how many names a message lists
_DEEPEST = 100  # nested modules


@dataclass(frozen=True)
class LoadReport:
    """What did not fit when weights were loaded; counters of batches are not listed.

    Attributes:
        missing: Names that the network has and the weights lack; these parts keep their initial values.
        unexpected: Names that the weights have and the network lacks.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        """One sentence without its end; empty if everything fits."""
        parts = (("weights lack", self.missing), ("network lacks", self.unexpected))
        return "; ".join(f"the {who} {listed(names)}" for who, names in parts if names)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary in a file of `torch.save`, read as `unpickling` says: values of unknown classes are `Inert`.

    Raises:
        InvalidInputError: The file is not a checkpoint, holds a whole module, is encrypted or damaged.
    """
    content = load_restricted(path)
    if isinstance(content, Inert) and "_modules" in content.state:
        raise InvalidInputError(
            f"{path} is a pickled module of the class {content.source}, as TAO's prune writes it, not a checkpoint. "
            "Give it as model.pruned_graph_path with model.load_pruned_graph=true, or convert it where that class is "
            "installed: torch.save(torch.load(file, weights_only=False).state_dict(), 'weights.pth')"
        )
    if not isinstance(content, dict):
        kind = content.source if isinstance(content, Inert) else type(content).__name__
        raise InvalidInputError(f"{path} must hold a dictionary, such as a network's state_dict(); it holds a {kind}")
    if "state_dict_encrypted" in content or isinstance(content.get("state_dict"), bytes):
        raise InvalidInputError(
            f"{path} is encrypted. Save its weights without a key where the key is: load it in NVIDIA's container with "
            "its encryption_key and torch.save(network.state_dict(), 'weights.pth')"
        )
    return content


def read_weights(path: Path, *, averaged: bool = False) -> Weights:
    """The weights in a checkpoint; nothing is written.

    It may be a checkpoint of Lightning or TAO (`state_dict` with the prefix `model.`), `model_best.pth`, or a bare
    state dict; `module.` of parallel training and the original DB project's names are translated.

    Args:
        path: File.
        averaged: Take the moving average (`model_ema.module.`) that a training with it leaves beside the weights.

    Returns:
        Tensors on the CPU by TAO's names (`backbone.`, `neck.`, `head.`).

    Raises:
        InvalidInputError: See `read_checkpoint`; or there are no weights, or not those that are asked for.
    """
    return weights_of(read_checkpoint(path), path, averaged=averaged)


def weights_of(content: Mapping[str, Any], path: Path, *, averaged: bool = False) -> Weights:
    """The same of a checkpoint that is read already; its path is for messages."""
    state = content.get("state_dict", content)
    items = state.items() if isinstance(state, dict) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if averaged:
        chosen = {name[len(AVERAGED) :]: value for name, value in tensors.items() if name.startswith(AVERAGED)}
        if not chosen:
            raise InvalidInputError(
                f"{path} holds no averaged weights ({AVERAGED}*); it was trained without train.model_ema, or is a "
                "file that holds one kind only: read it without asking for them"
            )
    else:
        chosen = {name: value for name, value in tensors.items() if not name.startswith(AVERAGED)}
    weights = {_taos_name(name): value for name, value in chosen.items()}
    weights = {name: value for name, value in weights.items() if not name.startswith(_UNREAD)}
    if not weights:
        raise InvalidInputError(f"{path} holds no weights: there is no tensor in it, or in its 'state_dict'")
    return weights


def read_pruned_module(path: Path) -> Weights:
    """The weights in a whole pickled module, as TAO's prune writes it: their shapes are the pruned network's.

    The module's classes need not be installed, and are not imported if they are. Names are those of the module's
    `state_dict()`.

    Raises:
        InvalidInputError: The file is not a pickled module, or calls what has no place in one.
    """
    content = load_restricted(path)
    weights = dict(_tensors(content, "", 0)) if isinstance(content, Inert) else {}
    if not weights:
        raise InvalidInputError(
            f"{path} is no pickled module, which model.pruned_graph_path takes of TAO; name the file that a prune wrote"
        )
    return {_taos_name(name): value for name, value in weights.items()}


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], strict: bool = True) -> LoadReport:
    """Copy weights into a network by name. Counters of batches may be missing, as in TAO.

    Args:
        network: Changed in place, unless this raises.
        weights: See `read_weights`.
        strict: Whether all names must fit; otherwise the report names those that do not, and the caller tells the user.

    Raises:
        InvalidInputError: Names or shapes do not fit, or nothing fits.
    """
    own = network.state_dict()
    missing = tuple(name for name in own if name not in weights and not name.endswith(COUNTER))
    unexpected = tuple(name for name in weights if name not in own and not name.endswith(COUNTER))
    report = LoadReport(missing, unexpected)
    fitting = {name: value for name, value in weights.items() if name in own}
    if (strict and (missing or unexpected)) or not fitting:
        raise InvalidInputError(
            f"the weights do not fit the network: {report}. The options of the network (model.backbone, for FAN also "
            "enlarge_feature_map_size) must be those it was trained with"
        )
    for name, value in fitting.items():
        if value.shape != own[name].shape:
            raise InvalidInputError(
                f"the weights do not fit the network: {name} is {list(value.shape)} in the file and "
                f"{list(own[name].shape)} in the network. A pruned network needs model.load_pruned_graph=true and "
                "model.pruned_graph_path, another one its own model.backbone"
            )
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
    return report


def _taos_name(name: str) -> str:
    name = _PREFIX.sub("", name)
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _tensors(module: Inert, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > _DEEPEST:
        raise InvalidInputError(f"modules are nested deeper than {_DEEPEST}, or contain themselves: {prefix[:80]}...")
    transient = module.state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in _items(module, kind):
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in transient):
                yield prefix + name, value.detach()
    for name, child in _items(module, "_modules"):
        if isinstance(child, Inert):
            yield from _tensors(child, f"{prefix}{name}.", depth + 1)


def _items(module: Inert, kind: str) -> list[tuple[str, Any]]:
    content = module.state.get(kind)
    return [(str(name), value) for name, value in content.items()] if isinstance(content, dict) else []


def listed(names: Sequence[str]) -> str:
    """The first names of several, and how many more there are; `none` if there are none."""
    more = len(names) - _NAMED
    return (", ".join(names[:_NAMED]) or "none") + (f" and {more} more" if more > 0 else "")

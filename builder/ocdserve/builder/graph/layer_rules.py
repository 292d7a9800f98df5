# SPDX-License-Identifier: Apache-2.0
"""Rules that pin layers to a precision, by name or pattern."""

import difflib
import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ocdserve.builder.graph.deformable import layer_of
from ocdserve.contract import InvalidInputError

LayerPrecision = Literal["fp32", "fp16", "int8"]

_WILDCARDS = "*?["
_OTHERS = "*"


@dataclass(frozen=True)
class LayerRule:
    """Precision of some layers.

    Attributes:
        pattern: Name of a node of the exported ONNX, or a pattern with `*`, `?` and `[...]`; `*` alone matches all
            nodes without another rule.
        precision: Precision that they compute in.
        optional: Whether the network may lack them; a note says so.

    Raises:
        InvalidInputError: The pattern is empty, or the precision unknown.
    """

    pattern: str
    precision: LayerPrecision
    optional: bool = False

    def __post_init__(self) -> None:
        if not self.pattern:
            raise InvalidInputError("a layer's rule must name a layer; got an empty name")
        if self.precision not in get_args(LayerPrecision):
            raise InvalidInputError(
                f"the precision of layer {self.pattern!r} must be one of {', '.join(get_args(LayerPrecision))}; got "
                f"{self.precision!r}"
            )


@dataclass(frozen=True)
class Pinned:
    """Resolved rules for the nodes of a network.

    Attributes:
        precisions: By name, of the nodes that a rule matches.
        named: The nodes that a rule other than `*` decides.
        notes: Rules without effect because their node was folded or merged away, one sentence each.
    """

    precisions: dict[str, LayerPrecision]
    named: frozenset[str]
    notes: tuple[str, ...]


def pin(rules: Sequence[LayerRule], nodes: Collection[str], exported: Collection[str] = ()) -> Pinned:
    """Resolve rules. A full name precedes a pattern, a later rule an earlier one, and `*` comes last.

    Args:
        rules: In the user's order.
        nodes: Names of the network's nodes.
        exported: Names of the nodes as exported, some of which simplification may have removed.

    Raises:
        InvalidInputError: A rule that is not optional matches no node of either; the message names the nearest.
    """
    ordered = sorted(reversed(rules), key=_rank)
    precisions: dict[str, LayerPrecision] = {}
    named: set[str] = set()
    used = {_OTHERS}
    for node in nodes:
        name = layer_of(node)
        matching = [rule for rule in ordered if fnmatch.fnmatchcase(name, rule.pattern)]
        used.update(rule.pattern for rule in matching)
        if matching:
            precisions[node] = matching[0].precision
            if matching[0].pattern != _OTHERS:
                named.add(node)
    notes = []
    required = {rule.pattern for rule in rules if not rule.optional}
    for pattern in dict.fromkeys(rule.pattern for rule in rules if rule.pattern not in used):
        if any(fnmatch.fnmatchcase(name, pattern) or name == pattern for name in exported):
            notes.append(f"the layer {pattern} was folded into its neighbours; its rule has no effect")
            continue
        near = difflib.get_close_matches(pattern, list(nodes), n=1, cutoff=0)
        hint = f"; the nearest name is {near[0]!r}" if near else ""
        if pattern in required:
            raise InvalidInputError(f"the network has no layer {pattern!r}{hint}")
        notes.append(f"the network has no layer {pattern!r}, so its rule has no effect{hint}")
    return Pinned(precisions, frozenset(named), tuple(notes))


def _rank(rule: LayerRule) -> int:
    if rule.pattern == _OTHERS:
        return 2
    return int(any(character in rule.pattern for character in _WILDCARDS))

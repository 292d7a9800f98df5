# SPDX-License-Identifier: Apache-2.0
"""Declaration of a spec's keys: default, description and rule.

A section is a frozen dataclass. OmegaConf converts to its annotations; the loader checks the rules, and `ocdnet schema`
prints them.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass
from typing import Any, TypeVar

from ocdserve.contract import InvalidInputError

T = TypeVar("T")

# OmegaConf's mark of a missing mandatory value.
MANDATORY = "???"


class SpecError(InvalidInputError):
    """The spec file or an override is invalid; the message has a line for each problem."""


@dataclass(frozen=True)
class Rule:
    """The values of a key that are valid, apart from its type.

    Attributes:
        description: What the key does, one sentence or less.
        minimum: Smallest value, inclusive.
        maximum: Largest value, inclusive.
        above: Lower bound, exclusive.
        choices: The only valid values.
        pattern: Regular expression that the whole text must match.
        nullable: Whether TAO's value for an unset text is null; for the others it is an empty text.
    """

    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    nullable: bool = False

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with a value of the right type; None if it is valid."""
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if isinstance(value, float) and not math.isfinite(value):
            return "must be finite"
        low, high = self.minimum, self.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = [
                f"{word} {bound:g}" for word, bound in (("at least", low), ("at most", high)) if bound is not None
            ]
            return f"must be {low:g}" if low is not None and low == high else f"must be {' and '.join(bounds)}"
        if self.above is not None and value <= self.above:
            return f"must be greater than {self.above:g}"
        if self.pattern and not re.fullmatch(self.pattern, str(value)):
            return f"must match {self.pattern}"
        return None


def key(
    default: T,
    description: str = "",
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    pattern: str | None = None,
    nullable: bool = False,
) -> T:
    """Declare a key: a dataclass field with a rule.

    The return type is that of the default, so that a section reads like an ordinary dataclass.
    """
    rule = Rule(description, minimum, maximum, above, tuple(choices), pattern, nullable)
    field: Any
    if isinstance(default, dict):
        field = dataclasses.field(default_factory=lambda: dict(default), metadata={"rule": rule})
    else:
        field = dataclasses.field(default=default, metadata={"rule": rule})
    value: T = field
    return value


def rule_of(field: "dataclasses.Field[Any]") -> Rule:
    """Return the rule of a field; an empty one if it has none."""
    rule = field.metadata.get("rule")
    return rule if isinstance(rule, Rule) else Rule()


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """Return the default of a field."""
    if field.default is not NO_DEFAULT:
        return field.default
    return field.default_factory() if field.default_factory is not NO_DEFAULT else MANDATORY


def plain(value: Any) -> Any:
    """Convert a section, or any value of one, to dictionaries, lists and scalars for YAML and JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value

# SPDX-License-Identifier: Apache-2.0
"""What a search may vary, and between which bounds."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import reduce
from typing import Any, Literal

from ocdserve.builder.tao.spec import Spec, SpecError
from ocdserve.builder.tao.tao_schema import tao_schema

# The bounds where the schema has none: it limits neither parameter from above, and the logarithmic ranges need a
# positive lower end.
_OURS = {"train.optimizer.args.lr": (1e-5, 1e-1), "train.optimizer.args.weight_decay": (1e-8, 1e-2)}
_Source = Literal["schema", "ocdserve", "spec"]


@dataclass(frozen=True)
class Parameter:
    """A number that a search varies on a logarithmic scale.

    Attributes:
        key: Its dotted key.
        default: The spec's value, which the first trial has.
        low: Lower bound; it stands for 0 where the schema allows 0.
        high: Upper bound.
        low_from: Who set the lower bound: TAO's schema, we, or the spec, whose value was beyond the others.
        high_from: The same for the upper bound.
    """

    key: str
    default: float
    low: float
    high: float
    low_from: _Source
    high_from: _Source

    @property
    def start(self) -> float:
        """Where the default is on the scale."""
        return max(self.default, self.low)

    def value(self, sampled: float) -> float:
        """The value of a point on the scale, with three digits; the default is itself."""
        return self.default if sampled == self.start else float(f"{sampled:.3g}")


def space(spec: Spec) -> tuple[Parameter, ...]:
    """The parameters of a spec's search.

    Raises:
        SpecError: A key cannot be varied, or none is given.
    """
    schema = tao_schema("train")
    names, varied = spec.ocdserve.automl_parameters, schema["automl_default_parameters"]
    for name in names:
        if name not in varied:
            why = (
                "the schema disables it"
                if name in schema["automl_disabled_parameters"]
                else "the schema does not list it"
            )
            raise SpecError(
                f"ocdserve.automl_parameters: {name!r} cannot be varied: {why}; choose from {', '.join(varied)}"
            )
    if not names:
        raise SpecError(f"ocdserve.automl_parameters is empty; choose from {', '.join(varied)}")
    return tuple(_parameter(name, reduce(getattr, name.split("."), spec), schema) for name in dict.fromkeys(names))


def _parameter(key: str, default: Any, schema: dict[str, Any]) -> Parameter:
    rule = reduce(lambda section, name: section["properties"][name], key.split("."), schema)
    low, high = _OURS[key]
    low_from: _Source = "ocdserve"
    high_from: _Source = "ocdserve"
    if rule.get("minimum", 0) > 0:
        low, low_from = rule["minimum"], "schema"
    if "maximum" in rule:
        high, high_from = rule["maximum"], "schema"
    if 0 < default < low:
        low, low_from = default, "spec"
    if default > high:
        high, high_from = default, "spec"
    return Parameter(key, float(default), low, high, low_from, high_from)


def with_values(section: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A copy of a section with other values of some dotted keys."""
    changed = {}
    for field in fields(section):
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if key in values:
            changed[field.name] = values[key]
        elif is_dataclass(value) and any(name.startswith(f"{key}.") for name in values):
            changed[field.name] = with_values(value, values, f"{key}.")
    return replace(section, **changed)

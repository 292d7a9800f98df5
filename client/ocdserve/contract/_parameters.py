# SPDX-License-Identifier: Apache-2.0
"""Request parameters (KServe v2 `parameters`): which there are, their types and ranges."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ocdserve.contract._errors import InvalidInputError

# Names that Triton itself puts among a request's parameters.
_RESERVED_PREFIX = "triton_"


@dataclass(frozen=True)
class ParameterSpec:
    """Type and range of one request parameter; the bounds are inclusive."""

    type: type
    minimum: float
    maximum: float
    meaning: str

    @property
    def rule(self) -> str:
        """The rule as a sentence fragment for error messages."""
        if self.type is bool:
            return "true or false"
        kind = "a whole number" if self.type is int else "a number"
        return f"{kind} from {self.minimum:g} to {self.maximum:g}"

    def accepts(self, value: Any) -> bool:
        """Whether a value follows the rule; a boolean is no number, 0 and 1 are booleans."""
        if self.type is bool:
            return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        # nan and the infinities are outside of every range.
        return self.minimum <= value <= self.maximum and (self.type is float or value == int(value))


PARAMETERS: dict[str, ParameterSpec] = {
    "thresh": ParameterSpec(float, 0.0, 1.0, "probability above which a pixel is text"),
    "box_thresh": ParameterSpec(float, 0.0, 1.0, "lowest mean probability of a detection"),
    "unclip_ratio": ParameterSpec(float, 0.0, 10.0, "how far a shrunk region grows back: area * ratio / perimeter"),
    "max_candidates": ParameterSpec(int, 1, 100_000, "most detections of one image"),
    "min_size": ParameterSpec(float, 0.0, 10_000.0, "shortest side of a region, in network pixels"),
    "polygons": ParameterSpec(bool, 0, 1, "also return each detection's polygon"),
}


@dataclass(frozen=True)
class RequestParameters:
    """Parameters of one request; None leaves the detector's own default in force.

    Raises:
        InvalidInputError: A value has the wrong type or lies outside its range (see `PARAMETERS`).
    """

    thresh: float | None = None
    box_thresh: float | None = None
    unclip_ratio: float | None = None
    max_candidates: int | None = None
    min_size: float | None = None
    polygons: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            spec = PARAMETERS[field.name]
            if not spec.accepts(value):
                raise _error(field.name, value)
            object.__setattr__(self, field.name, spec.type(value))

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "RequestParameters":
        """Read the parameters of a request; numbers and booleans may also come as text ("0.5", "true").

        Raises:
            InvalidInputError: A name is unknown, or a value is not valid.
        """
        known = {name: value for name, value in values.items() if not name.startswith(_RESERVED_PREFIX)}
        for name in known:
            if name not in PARAMETERS:
                raise InvalidInputError(
                    f"unknown request parameter {name!r}; known are {', '.join(PARAMETERS)}. Remove or correct it."
                )
        return cls(**{name: _from_text(name, value) for name, value in known.items()})

    def given(self) -> dict[str, Any]:
        """The parameters that differ from "not given", as a request carries them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value is not False}


def _from_text(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    spec = PARAMETERS[name]
    text = value.strip().lower()
    try:
        if spec.type is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text]
        return spec.type(text)
    except (KeyError, ValueError):
        raise _error(name, value) from None


def _error(name: str, value: Any) -> InvalidInputError:
    spec = PARAMETERS[name]
    return InvalidInputError(f"request parameter {name!r} must be {spec.rule} ({spec.meaning}); got {value!r}")

# SPDX-License-Identifier: Apache-2.0
"""Request parameters (KServe v2 `parameters`): names, types, defaults, ranges and meanings, declared once."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict, TypeVar

from ocdserve.contract._errors import InvalidInputError, exceeded, shown
from ocdserve.contract._images import MAX_PAGES
from ocdserve.contract._limits import Limits
from ocdserve.contract._models import READING_MODELS

# Prefix of the parameters that Triton itself adds to requests.
_RESERVED_PREFIX = "triton_"

# Lines that read with a lower score are also read upside down, unless the recogniser says otherwise; declared here
# because clients that cut the lines out decide it.
TURN_BELOW = 0.9

_Parameters = TypeVar("_Parameters", bound="RequestParameters")


@dataclass(frozen=True)
class ParameterSpec:
    """One request parameter.

    Attributes:
        default: Value of the default detector; other detectors may have their own. Of `page`, that of most files:
            where there are several and none is chosen, there is none.
        minimum: Smallest allowed value, inclusive.
        maximum: Largest allowed value, inclusive.
        meaning: What it does, for help texts and error messages.
        usual: Range worth trying, for sliders.
        stage: What it applies to; those of the post-processing have their defaults in the detector, the score of those
            that read in the recogniser.
    """

    default: Any
    minimum: float
    maximum: float
    meaning: str
    usual: tuple[float, float] = (0, 1)
    stage: Literal["decode", "postprocess", "read"] = "postprocess"

    @property
    def type(self) -> type:
        """float, int or bool: that of the default."""
        return type(self.default)

    @property
    def rule(self) -> str:
        """The rule as a sentence fragment for error messages."""
        if self.type is bool:
            return "true or false"
        kind = "a whole number" if self.type is int else "a number"
        return f"{kind} from {self.minimum:g} to {self.maximum:g}"

    def accepts(self, value: Any) -> bool:
        """Whether a value follows the rule; a boolean is not a number, but 0 and 1 are booleans."""
        if self.type is bool:
            return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        # nan and the infinities are outside of every range.
        return self.minimum <= value <= self.maximum and (self.type is float or value == int(value))


def _parameter(*spec: Any, **more: Any) -> Any:
    """A field of `RequestParameters`; the arguments are those of `ParameterSpec`."""
    declared = ParameterSpec(*spec, **more)
    return field(default=declared.default if declared.type is bool else None, metadata={"spec": declared})


@dataclass(frozen=True)
class RequestParameters:
    """Parameters of one request for detections; None leaves the detector's own default in force.

    Raises:
        InvalidInputError: A value has the wrong type or lies outside its range (see `specs`).
    """

    thresh: float | None = _parameter(0.3, 0, 1, "probability above which a pixel is text", usual=(0.05, 0.95))
    box_thresh: float | None = _parameter(0.6, 0, 1, "lowest mean probability of a detection", usual=(0.05, 0.99))
    unclip_ratio: float | None = _parameter(
        1.5, 0, 10, "how far a shrunk region grows back: area * ratio / perimeter", usual=(1, 3)
    )
    max_candidates: int | None = _parameter(
        1000, 1, 100_000, "most detections of an image, of each tile if elongated", usual=(1, 2000)
    )
    min_size: float | None = _parameter(3.0, 0, 10_000, "shortest side of a region, in network pixels", usual=(0, 30))
    polygons: bool = _parameter(
        False, 0, 1, "also return each detection's polygon, and score over it instead of its rectangle"
    )
    page: int | None = _parameter(1, 1, MAX_PAGES, "which page of a file of several, from 1", stage="decode")

    def __post_init__(self) -> None:
        for name, spec in self.specs().items():
            value = getattr(self, name)
            if value is None:
                continue
            if not spec.accepts(value):
                raise _error(spec, name, value)
            object.__setattr__(self, name, spec.type(value))

    @classmethod
    @functools.cache
    def specs(cls) -> dict[str, ParameterSpec]:
        """What is declared of each parameter."""
        return {item.name: item.metadata["spec"] for item in fields(cls)}

    @classmethod
    def parse(cls: type[_Parameters], values: Mapping[str, Any]) -> _Parameters:
        """Read the parameters of a request; numbers and booleans may also come as text ("0.5", "true").

        Raises:
            InvalidInputError: A name is unknown, or a value is not valid.
        """
        specs = cls.specs()
        known = {name: value for name, value in values.items() if not name.startswith(_RESERVED_PREFIX)}
        for name in known:
            if name in specs:
                continue
            if name in READING_PARAMETERS:
                raise InvalidInputError(
                    f"request parameter {name!r} is for reading text ({READING_PARAMETERS[name].meaning}), which a "
                    f"detector does not do. Remove it, or ask a model that reads: {', '.join(READING_MODELS)}."
                )
            raise InvalidInputError(
                f"unknown request parameter {shown(name)}; known are {', '.join(specs)}. Remove or correct it."
            )
        return cls(**{name: _from_text(specs[name], name, value) for name, value in known.items()})

    @classmethod
    def from_json(cls: type[_Parameters], text: str, limits: Limits) -> _Parameters:
        """Read the parameters of a request as the server has them, a JSON object; empty: there are none.

        Raises:
            InvalidInputError: They are too long or too many; or see `parse`.
        """
        if (size := len(text.encode(errors="replace"))) > limits.max_parameter_bytes:
            raise exceeded(
                "max_parameter_bytes",
                f"the request's parameters have {size} bytes of JSON; at most {limits.max_parameter_bytes} are "
                "read (max_parameter_bytes). Remove what is none of ocdserve's.",
            )
        try:
            values = json.loads(text or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"the request's parameters cannot be read: {error}. Correct them.") from error
        if len(values) > limits.max_parameters:
            raise exceeded(
                "max_parameters",
                f"the request has {len(values)} parameters; at most {limits.max_parameters} are read "
                f"(max_parameters). Known are {', '.join(cls.specs())}; remove the others.",
            )
        return cls.parse(values)

    def given(self) -> dict[str, Any]:
        """The parameters that differ from "not given", as a request carries them."""
        values = ((item.name, item.default, getattr(self, item.name)) for item in fields(self))
        return {name: value for name, default, value in values if value is not None and value is not default}


@dataclass(frozen=True)
class ReadingParameters(RequestParameters):
    """Parameters of one request for text; None leaves the detector's or the recogniser's own default in force.

    Raises:
        InvalidInputError: A value has the wrong type or lies outside its range (see `specs`).
    """

    min_text_score: float | None = _parameter(
        0.5, 0, 1, "lowest mean probability of a line's characters; lines read worse are left out", stage="read"
    )
    words: bool = _parameter(False, 0, 1, "also return each word with its score and quad", stage="read")
    direction: bool = _parameter(True, 0, 1, "try lines that read badly upside down too", stage="read")


class Overrides(TypedDict, total=False):
    """Keywords of `detect`: those of `RequestParameters`, for type checkers; `PARAMETERS` describes them."""

    thresh: float
    box_thresh: float
    unclip_ratio: float
    max_candidates: int
    min_size: float
    polygons: bool
    page: int


class ReadingOverrides(Overrides, total=False):
    """Keywords of `read`: those of `ReadingParameters`, for type checkers; `READING_PARAMETERS` describes them."""

    min_text_score: float
    words: bool
    direction: bool


PARAMETERS = RequestParameters.specs()
# Those of detection too.
READING_PARAMETERS = ReadingParameters.specs()
POSTPROCESS_PARAMETERS = {name: spec for name, spec in PARAMETERS.items() if spec.stage == "postprocess"}


def _from_text(spec: ParameterSpec, name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    try:
        if "_" in text:  # Python reads "1_0" as 10
            raise ValueError
        if spec.type is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text]
        if not text.isascii() or "_" in text:  # which Python's numbers may have
            raise ValueError(text)
        return spec.type(text)
    except (KeyError, ValueError):
        raise _error(spec, name, value) from None


def _error(spec: ParameterSpec, name: str, value: Any) -> InvalidInputError:
    return InvalidInputError(f"request parameter {name!r} must be {spec.rule} ({spec.meaning}); got {shown(value)}")

# SPDX-License-Identifier: Apache-2.0
"""Reading dataclasses from JSON objects, and the fields that `detector.json` and `recogniser.json` share."""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ocdserve.contract import InvalidInputError

_T = TypeVar("_T")


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        InvalidInputError: The text is not JSON, or holds no object.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise InvalidInputError(f"not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InvalidInputError(f"must hold a JSON object; got {type(values).__name__}")
    return values


def build(cls: type[_T], values: Mapping[str, Any], sections: Mapping[str, type[Any]]) -> _T:
    """A dataclass from a JSON object.

    Args:
        cls: The dataclass.
        values: The object's fields.
        sections: Dataclasses of the fields that are objects themselves.

    Raises:
        InvalidInputError: A field is unknown, of the wrong type or range; the message names it.
    """
    built = {
        name: _build(sections[name], value, f"{name}.") if name in sections else value for name, value in values.items()
    }
    return _build(cls, built, "")


def check_common_fields(spec: Any, spec_file: str, schema_version: int) -> None:
    """Raise InvalidInputError if schema_version, runtime, model or engine of a specification is not valid.

    Args:
        spec: The specification, a `DetectorSpec` or `RecogniserSpec`.
        spec_file: Name of its file.
        schema_version: Version of its format.
    """
    if spec.schema_version != schema_version:
        raise InvalidInputError(
            f"schema_version must be {schema_version}; got {spec.schema_version!r}. "
            "Build the bundle again with this version of ocdserve."
        )
    if not isinstance(spec.runtime, str | None):
        raise InvalidInputError(f"runtime must be a runtime's name; got {spec.runtime!r}")
    for name, file in (("model", spec.model), ("engine", spec.engine)):
        if name == "engine" and file is None:
            continue
        if not isinstance(file, str) or Path(file).name != file or file in ("", "..", spec_file):
            raise InvalidInputError(f"{name} must name a file next to {spec_file}; got {file!r}")


def _build(cls: type[_T], values: Any, prefix: str) -> _T:
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"{prefix.rstrip('.')} must be a JSON object; got {values!r}")
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}."
            raise InvalidInputError(f"unknown field {prefix}{name}; {hint}")
        built[name] = _converted(f"{prefix}{name}", value, known[name].type)
    return cls(**built)


def _converted(name: str, value: Any, expected: Any) -> Any:
    """A JSON value as the field's type; a whole number may be written as 640.0. Other types pass as they are."""
    fits = {
        bool: isinstance(value, bool),
        str: isinstance(value, str),
        float: is_finite_number(value),
        int: is_finite_number(value) and value == int(value),
    }
    if expected not in fits:
        return value
    if not fits[expected]:
        raise InvalidInputError(f"{name} must be a JSON value of type {expected.__name__}; got {value!r}")
    return expected(value)


def is_finite_number(value: Any) -> bool:
    """Whether a JSON value is a finite number; booleans are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False

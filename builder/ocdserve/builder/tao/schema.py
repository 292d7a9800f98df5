# SPDX-License-Identifier: Apache-2.0
"""JSON Schema (draft 2020-12) of the spec, generated from the dataclasses.

One schema describes every action, as one spec file serves all of them. An action's mandatory keys are in `x-mandatory`,
not in `required`, since they may be given on the command line.
"""

import dataclasses
import typing
from typing import Any

from ocdserve.builder.tao.actions import ACTIONS
from ocdserve.builder.tao.spec import Spec, plain
from ocdserve.builder.tao.spec.field import Rule, default_of, rule_of
from ocdserve.contract import InvalidInputError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALARS = {bool: "boolean", int: "integer", float: "number"}


def json_schema(action: str) -> dict[str, Any]:
    """Return the schema of an action's spec.

    Raises:
        InvalidInputError: There is no such action.
    """
    if action not in ACTIONS:
        raise InvalidInputError(f"there is no action {action!r}; known are {', '.join(ACTIONS)}")
    return {
        "$schema": DIALECT,
        "title": f"spec of ocdnet {action}",
        "x-action": action,
        "x-mandatory": list(ACTIONS[action].mandatory),
        **_section(Spec),
    }


def _section(section: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(section)
    schema: dict[str, Any] = {"type": "object"}
    if section.__doc__:
        schema["description"] = section.__doc__.split("\n")[0].rstrip(".")
    schema["properties"] = {field.name: _field(field, hints[field.name]) for field in dataclasses.fields(section)}
    schema["additionalProperties"] = False
    return schema


def _field(field: "dataclasses.Field[Any]", hint: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(hint):
        # A section without a body is null in YAML and means its defaults.
        return {**_section(hint), "type": ["object", "null"]}
    rule = rule_of(field)
    schema: dict[str, Any] = {"description": rule.description} if rule.description else {}
    schema |= _type(hint) | _bounds(rule)
    schema["default"] = plain(default_of(field))
    return schema


def _type(hint: Any) -> dict[str, Any]:
    if hint is str:
        return {"type": ["string", "null"]}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(item):
            return {"type": ["array", "null"], "items": _section(item)}
        # One text stands for a list of one.
        kinds = ["array", "string", "null"] if item is str else ["array", "null"]
        items = {str: {"type": "string"}, int: {"type": "integer"}}.get(item, {})
        return {"type": kinds, "items": items}
    return {} if hint is Any else {"type": ["object", "null"]}


def _bounds(rule: Rule) -> dict[str, Any]:
    bounds: dict[str, Any] = {
        "minimum": rule.minimum,
        "maximum": rule.maximum,
        "exclusiveMinimum": rule.above,
        "enum": list(rule.choices) or None,
        "pattern": rule.pattern,
    }
    return {name: value for name, value in bounds.items() if value is not None}

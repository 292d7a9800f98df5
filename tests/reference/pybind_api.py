# SPDX-License-Identifier: Apache-2.0
"""What a module of pybind11 offers, read from the module itself: classes, members, and signatures from docstrings.

`python pybind_api.py MODULE [LIBRARY ...]` loads libraries first and writes the API as JSON.
"""

import ctypes
import importlib
import inspect
import json
import re
import sys
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    is_optional: bool


@dataclass(frozen=True)
class Signature:
    """Without `self`; `returns` is the last component of the type's name."""

    parameters: tuple[Parameter, ...]
    returns: str


@dataclass(frozen=True)
class Member:
    """A function, with the signatures of its overloads; or a value or property, with its type; or a class."""

    kind: str
    type: str = ""
    signatures: tuple[Signature, ...] = ()
    is_settable: bool = False


@dataclass(frozen=True)
class Class:
    bases: tuple[str, ...]
    members: dict[str, Member]


@dataclass(frozen=True)
class Api:
    names: dict[str, Member]
    classes: dict[str, Class] = field(default_factory=dict)

    def subclasses(self, name: str, base: str) -> bool:
        return name == base or (name in self.classes and base in self.classes[name].bases)

    def class_name(self, written: str) -> str:
        """The class of a type in a docstring: one that was registered later has its C++ name there, `nvinfer1::X`."""
        known = (name for name in (written, written.removeprefix("I")) if name in self.classes)
        return next(known, written)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Api":
        def member(values: dict[str, Any]) -> Member:
            signatures = tuple(
                Signature(tuple(Parameter(**one) for one in signature["parameters"]), signature["returns"])
                for signature in values["signatures"]
            )
            return Member(values["kind"], values["type"], signatures, values["is_settable"])

        found = json.loads(text)
        return cls(
            {name: member(values) for name, values in found["names"].items()},
            {
                name: Class(tuple(one["bases"]), {key: member(values) for key, values in one["members"].items()})
                for name, one in found["classes"].items()
            },
        )


def api_of(module: Any) -> Api:
    classes: dict[str, Class] = {}
    public = (name for name in vars(module) if not name.startswith("__") or name == "__version__")
    names = {name: _member(getattr(module, name), classes) for name in public}
    return Api(names, classes)


def _member(value: Any, classes: dict[str, Class]) -> Member:
    if inspect.isclass(value):
        _add_class(value, classes)
        return Member("class", value.__name__)
    if isinstance(value, property):
        found = _signatures(value.fget.__doc__ or "")
        return Member("property", found[0].returns if found else "", is_settable=value.fset is not None)
    if callable(value):
        return Member("function", signatures=_signatures(value.__doc__ or ""))
    return Member("value", type(value).__name__, is_settable=False)


def _add_class(cls: type, classes: dict[str, Class]) -> None:
    if cls.__name__ in classes:
        return
    classes[cls.__name__] = Class((), {})  # its own members may be of it
    members = {}
    for name in dir(cls):
        value = inspect.getattr_static(cls, name)
        if not name.startswith("__") or name in ("__init__", "__members__"):
            # What pybind11 binds as a static property of an enumeration is its members.
            members[name] = Member("value", cls.__name__) if isinstance(value, cls) else _member(value, classes)
    bases = tuple(base.__name__ for base in cls.__mro__[1:])
    classes[cls.__name__] = Class(bases, members)


def _signatures(text: str) -> tuple[Signature, ...]:
    """Signatures of a docstring: its first line, or the numbered ones of overloads."""
    lines = text.strip().splitlines()
    if not lines:
        return ()
    if "Overloaded function." in lines[:3]:
        lines = [line.partition(". ")[2] for line in lines if re.match(r"\d+\. \w+\(", line)]
    else:
        lines = lines[:1]
    return tuple(found for found in map(_signature, lines) if found is not None)


def _signature(line: str) -> Signature | None:
    begin = line.find("(")
    if begin < 0:
        return None
    parts, depth, start = [], 0, begin + 1
    for index in range(begin, len(line)):
        depth += (line[index] in "([{<") - (line[index] in ")]}" or (line[index] == ">" and line[index - 1] != "-"))
        if (line[index] == "," and depth == 1) or depth == 0:
            parts.append(line[start:index].strip())
            start = index + 1
        if depth == 0:
            break
    parameters = [_parameter(part) for part in parts if part not in ("", "/", "*")]
    if parameters and parameters[0].name in ("self", "arg0"):
        del parameters[0]
    return Signature(tuple(parameters), _type(line[start:].partition("->")[2]))


def _parameter(text: str) -> Parameter:
    declared, _, default = text.partition(" = ")
    name, _, kind = declared.partition(":")
    return Parameter(name.strip(), _type(kind), bool(default))


def _type(text: str) -> str:
    """`a.b.IEngine` and `ns::IEngine` as `IEngine`, `list[a.b.Dims]` as `list[Dims]`."""
    return re.sub(r"(?:\w+(?:\.|::))+(\w+)", r"\1", text.strip())


if __name__ == "__main__":
    for library in sys.argv[2:]:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    sys.stdout.write(api_of(importlib.import_module(sys.argv[1])).to_json())

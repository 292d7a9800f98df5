# SPDX-License-Identifier: Apache-2.0
"""Load a spec file and `key=value` overrides into a checked `Spec`, with OmegaConf's conversions.

Overrides take precedence over the file, the file over the defaults. Mappings are merged key by key, lists are replaced.
`${key}` refers to another key. All problems are reported at once, with the nearest valid key.
"""

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ocdserve.builder.tao.spec.field import MANDATORY, SpecError, plain, rule_of
from ocdserve.builder.tao.spec.renamed import newer_key, renamed
from ocdserve.builder.tao.spec.root import Spec
from ocdserve.contract import shown


@dataclass(frozen=True)
class Loaded:
    """A spec, and notes on what was changed while it was read, a sentence each."""

    spec: Spec
    notes: tuple[str, ...]


def load_spec(file: Path | None, overrides: Sequence[str] = ()) -> Loaded:
    """Read a spec.

    Args:
        file: YAML; None takes the defaults.
        overrides: `dotted.key=value`, with the value in YAML.

    Raises:
        SpecError: The file cannot be read, or a key is unknown, has the wrong type or is out of bounds.
    """
    values, notes = read_spec_file(file, overrides)
    problems: list[str] = []
    normal = _normal(values, Spec, "", problems)
    if problems:
        raise SpecError("\n".join(problems))
    spec = Spec(**{name: _converted(name, value) for name, value in normal.items()})
    problems = list(_complaints(spec, ""))
    if problems:
        raise SpecError("\n".join(problems))
    return Loaded(spec, tuple(notes))


def read_spec_file(file: Path | None, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Merge defaults, file and overrides into one plain mapping, with notes; keys and types are not checked yet.

    Raises:
        SpecError: The file cannot be read or is not a YAML mapping, an override is not `key=value`, or `${...}`
            refers to nothing.
    """
    notes: list[str] = []
    content = renamed(_parsed(file), notes) if file is not None else {}
    merged: Any = OmegaConf.create(_merged(_defaults(), content))
    for text in overrides:
        key, value = _override(text)
        key = newer_key(key, notes)
        try:
            OmegaConf.update(merged, key, value, force_add=True)
        except (OmegaConfBaseException, TypeError, ValueError, IndexError) as error:
            raise SpecError(f"the override {text!r} cannot be applied: {_first_line(error)}") from error
    try:
        OmegaConf.resolve(merged)
    except OmegaConfBaseException as error:
        raise SpecError(f"{error.full_key or 'the spec'}: {_first_line(error)}") from error
    values: Any = OmegaConf.to_container(merged)
    return values, notes


def _merged(defaults: Mapping[Any, Any], values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Values over defaults, mappings key by key; `???` leaves a default as it is, as in OmegaConf."""
    result = dict(defaults)
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            result[name] = _merged(default, value)
        elif value != MANDATORY or name not in defaults:
            result[name] = value
    return result


def _parsed(file: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(file)
    except FileNotFoundError as error:
        raise SpecError(f"there is no spec file {str(file)!r}; name it with -e") from error
    except OSError as error:
        raise SpecError(f"the spec file {str(file)!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"the spec file {str(file)!r} is not UTF-8 text: {error}") from error
    # ValueError: numbers of thousands of digits.
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise SpecError(f"the spec file {str(file)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig):
        raise SpecError(f"the spec file {str(file)!r} must hold `section:` mappings; got a list")
    content: Any = OmegaConf.to_container(loaded)
    _check_references(content, "")
    return content if isinstance(content, dict) else {}


def _check_references(value: Any, key: str) -> None:
    """Refuse resolvers, such as `${oc.env:NAME}`: a stranger's spec could put secrets into results and file names."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_references(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            _check_references(item, key)
    elif isinstance(value, str) and _has_resolver(value):
        raise SpecError(f"{key}: {value!r} calls a function; in a spec file ${{...}} may only name another key")


def _has_resolver(text: str) -> bool:
    depth = 0
    for symbol in re.findall(r"\$\{|[}:]", text):
        if symbol == ":" and depth:
            return True
        depth = max(0, depth + {"${": 1, "}": -1, ":": 0}[symbol])
    return False


def _override(text: str) -> tuple[str, Any]:
    """Key and value of an override; `+key` and `++key` of Hydra mean the same here."""
    key, separator, value = text.partition("=")
    key = re.sub(r"^\+{1,2}", "", key.strip())
    if key.startswith("~"):
        raise SpecError(f"the override {text!r} would remove a key; set it to a value instead")
    if not separator or not key:
        raise SpecError(f"an override must be dotted.key=value; got {text!r}")
    return key, _value(value.strip(), _type_at(key) is str)


def _value(text: str, is_text: bool) -> Any:
    quoted = re.fullmatch(r"'([^']*)'|\"([^\"]*)\"", text)
    if is_text:
        # A folder may be named 007 or 1e3.
        if quoted:
            return quoted[1] if quoted[1] is not None else quoted[2]
        return "" if text in ("null", "~") else text
    if not text:
        return ""
    try:
        return OmegaConf.create({"value": yaml.safe_load(_spaced(text))}).value if "${" not in text else text
    except yaml.YAMLError as error:
        # Texts with `*` or `#`: YAML wants them quoted, and the shell removed the quotes.
        if text[:1] == "[" and text[-1:] == "]" and "{" not in text:
            return [item.strip().strip("'\"") for item in text[1:-1].split(",")]
        if text[:1] in ("[", "{"):
            raise SpecError(
                f"the value cannot be read as YAML, {text!r}: {' '.join(str(error).split())}. Texts with special "
                "characters such as * and # need quotes, and these quotes from the shell"
            ) from error
        return text
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise SpecError(f"the value cannot be read as YAML, {shown(text)}: {_first_line(error)}") from error


def _spaced(text: str) -> str:
    """Put a blank behind each key of Hydra's compact mappings, `{a:1,b:[c:d]}`: YAML needs it."""
    result: list[str] = []
    opened: list[str] = []
    is_key, quote = False, ""
    for previous, char in pairwise(f" {text}"):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and previous in " {[,:":
            quote = char
        elif char in "{[":
            opened.append(char)
        elif char in "}]" and opened:
            opened.pop()
        if not quote and char in "{[,}]":
            is_key = char in "{," and opened[-1:] == ["{"]
        elif not quote and is_key and char == ":":
            is_key, char = False, ": "
        result.append(char)
    return "".join(result)


def _type_at(key: str) -> Any:
    """Declared type of a dotted key; None for an unknown key."""
    hint: Any = Spec
    for name in key.split("."):
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            return None
        hint = typing.get_type_hints(hint).get(name)
    return hint


def keys(section: Any = Spec, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a section, including those of its subsections."""
    for name, hint in typing.get_type_hints(section).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, f"{prefix}{name}.")


def _normal(values: Any, section: Any, prefix: str, problems: list[str]) -> dict[str, Any]:
    """Normalise what OmegaConf needlessly refuses (null texts, one item in place of a list), and collect problems."""
    if not isinstance(values, Mapping):
        problems.append(f"{prefix.rstrip('.') or 'the spec'} must be a mapping of keys; got {values!r}")
        return {}
    hints = typing.get_type_hints(section)
    result: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in hints:
            problems.append(f"unknown key {key!r}: {_nearest(str(name), key, prefix, hints)}")
        elif dataclasses.is_dataclass(hints[name]):
            if value is not None:
                result[name] = _normal(value, hints[name], f"{key}.", problems)
        else:
            result[name] = _normal_value(value, hints[name], key, problems)
    return result


def _normal_value(value: Any, hint: Any, key: str, problems: list[str]) -> Any:
    if hint is str:
        return "" if value is None else value
    kind = typing.get_origin(hint)
    if (kind is tuple and isinstance(value, dict)) or (kind is dict and isinstance(value, list)):
        # OmegaConf's error does not name the key.
        problems.append(f"{key} must be {_type_name(hint)}; got {value!r}")
        return value
    item = _item_type(hint)
    if item is None:
        return value
    if value in (None, MANDATORY):
        return []
    if item is str and isinstance(value, str):
        return [value] if value else []
    if not isinstance(value, list):
        return value
    if item in (str, int):
        # OmegaConf's error does not name the element.
        for index, entry in enumerate(value):
            if not (item is str and isinstance(entry, str | int | float)) and not _is_whole(entry):
                problems.append(f"{key}[{index}] must be {_type_name(item)}; got {entry!r}")
                return []
    if dataclasses.is_dataclass(item):
        return [_normal(entry, item, f"{key}[{index}].", problems) for index, entry in enumerate(value)]
    return value


def _is_whole(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value) is not None)


def _item_type(hint: Any) -> Any:
    """Type of a list's items; None for other types."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def _nearest(name: str, key: str, prefix: str, hints: Mapping[str, Any]) -> str:
    if ":" in name:
        return "a blank must follow the colon of a key in YAML, `key: value`"
    sibling = difflib.get_close_matches(name, hints, n=1)
    if sibling:
        return f"did you mean {prefix}{sibling[0]!s}?"
    known = list(keys())
    same = [other for other in known if other.rpartition(".")[2] == name]
    near = same or difflib.get_close_matches(key, known, n=1)
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    return f"known here are {', '.join(hints)}"


def _converted(name: str, value: Any) -> Any:
    """Convert a section or a top-level text to its declared types."""
    if value == _defaults()[name]:
        return getattr(Spec(), name)
    hint = _type_at(name)
    if hint is str:
        if not isinstance(value, str | int | float):
            raise SpecError(f"{name} must be a text; got {value!r}")
        return str(value)
    try:
        return _built(hint, OmegaConf.to_container(OmegaConf.merge(_typed(hint), value)))
    except OmegaConfBaseException as error:
        raise SpecError(_type_message(error, name)) from error


@functools.cache
def _typed(section: Any) -> Any:
    """The OmegaConf schema of a section; merging copies it."""
    return _unlocked(OmegaConf.structured(section))


def _unlocked(config: Any) -> Any:
    """Make the nodes of frozen dataclasses writable, for OmegaConf 2.3 refuses to merge into them."""
    OmegaConf.set_readonly(config, None)
    items = config.keys() if OmegaConf.is_dict(config) else range(len(config))
    for item in items:
        if not OmegaConf.is_missing(config, item) and OmegaConf.is_config(config[item]):
            _unlocked(config[item])
    return config


@functools.cache
def _defaults() -> dict[str, Any]:
    defaults: dict[str, Any] = plain(Spec())
    return defaults


def _type_message(error: OmegaConfBaseException, section: str) -> str:
    key = f"{section}.{error.full_key or ''}".rstrip(".")
    hint = _type_at(key)
    wanted = f"; it must be {_type_name(hint)}" if hint is not None else ""
    return f"{key}: {_first_line(error)}{wanted}"


def _type_name(hint: Any) -> str:
    item = _item_type(hint)
    if item is not None:
        return f"a list of {_type_name(item).removeprefix('a ').removeprefix('an ')} values"
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, "a mapping")


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _built(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _built(hints[name], item) for name, item in value.items()})
    item = _item_type(hint)
    if item is not None and not isinstance(value, str):
        return tuple(_built(item, entry) for entry in value)
    if isinstance(hint, types.GenericAlias) and isinstance(value, dict):
        return dict(value)
    return value


def _complaints(section: Any, prefix: str) -> Iterator[str]:
    """Yield a sentence for each value that is out of bounds."""
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _complaints(value, f"{key}.")
            continue
        if value == MANDATORY or isinstance(value, tuple | dict) or value is None:
            continue
        complaint = rule_of(field).complaint(value)
        if complaint:
            yield f"{key} {complaint}; got {value!r}"

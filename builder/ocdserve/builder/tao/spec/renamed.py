# SPDX-License-Identifier: Apache-2.0
"""Keys of older documentation and specs, and their names in the schema."""

from typing import Any

from ocdserve.builder.tao.spec.field import MANDATORY, SpecError

_RENAMED = {
    "gen_trt_engine.tensorrt.calibration.cal_num_batches": "gen_trt_engine.tensorrt.calibration.cal_batches",
    "train.pretrained_model_path": "model.pretrained_model_path",
}


def renamed(values: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the content of a file, which is changed, with the values of older keys under their newer ones.

    Raises:
        SpecError: Both names of a key have a value.
    """
    for old, new in _RENAMED.items():
        section, name = _place(values, old)
        if name not in section:
            continue
        value = section.pop(name)
        if value in (None, "", MANDATORY):
            continue
        section, name = _place(values, new)
        if section.get(name) not in (None, "", MANDATORY):
            raise SpecError(f"{old} is the older name of {new}; give one of them")
        section[name] = value
        notes.append(_note(old))
    return values


def newer_key(key: str, notes: list[str]) -> str:
    """Return the key's name in the schema; another one than the given is noted."""
    if key in _RENAMED:
        notes.append(_note(key))
    return _RENAMED.get(key, key)


def _place(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section of a dotted key, empty where there is none or no mapping, and the key's name in it."""
    *sections, name = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section] if isinstance(values[section], dict) else {}
    return values, name


def _note(key: str) -> str:
    return f"{key} is the older name of {_RENAMED[key]}, and was taken as that"

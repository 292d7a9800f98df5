# SPDX-License-Identifier: Apache-2.0
"""The schema of an action's spec in the form of those that NVIDIA publishes, generated from the dataclasses.

Unlike `json_schema` it holds the sections of one action only, TAO's names of types, and what its interfaces read: the
keys to show first (`popular`) and those that AutoML may vary.
"""

import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ocdserve.builder.tao.skill import skill_infos
from ocdserve.builder.tao.spec import Spec, plain
from ocdserve.builder.tao.spec.field import default_of, rule_of
from ocdserve.builder.tao.spec.write import tao_content
from ocdserve.contract import InvalidInputError

# The section of each action; the sections in `_COMMON` are in every schema.
_OWN = {
    **{name: name for name in ("train", "evaluate", "inference", "export", "prune", "quantize", "gen_trt_engine")},
    "retrain": "train",
}
_COMMON = ("model_name", "encryption_key", "results_dir", "wandb", "model", "dataset", "train", "quantize")
_TEMPLATE = "references/spec_template_{}.yaml"
_TYPES = {bool: "bool", int: "int", float: "float", str: "string"}
_THRESHOLDS = ("thresh", "box_thresh", "max_candidates", "unclip_ratio")
_POPULAR = {
    "model": ("backbone",),
    "dataset.train_dataset.loader": ("batch_size", "num_workers"),
    "dataset.validate_dataset.loader": ("batch_size", "num_workers"),
    "train": ("num_gpus", "gpu_ids", "num_nodes", "num_epochs", "checkpoint_interval", "validation_interval"),
    "train.optimizer.args": ("lr",),
    "evaluate": ("num_gpus", "gpu_ids", "num_nodes", "batch_size"),
    "inference": ("num_gpus", "gpu_ids", "num_nodes", "width", "height"),
    "export": ("width", "height", "opset_version"),
    "gen_trt_engine": ("gpu_id", "batch_size", "width", "height"),
    "gen_trt_engine.tensorrt": ("min_batch_size", "opt_batch_size", "max_batch_size"),
    "gen_trt_engine.tensorrt.calibration": ("cal_batch_size", "cal_batches"),
    **{f"{action}.post_processing.args": _THRESHOLDS for action in ("train", "evaluate", "inference")},
}
# The keys that AutoML varies, and their condition.
_VARIED = {"train.optimizer.args.lr": "> 0.0", "train.optimizer.args.weight_decay": ">= 0.0"}
# Sections and lists cannot be varied; nor can this number.
_FIXED = "dataset.train_dataset.loader.batch_size"


def tao_schema(action: str) -> dict[str, Any]:
    """Return the schema of an action's spec.

    Raises:
        InvalidInputError: TAO has no schema for this action.
    """
    if action not in _OWN:
        raise InvalidInputError(f"TAO has no schema for {action!r}; it has those of {', '.join(_OWN)}")
    whole = _section(Spec, "")
    names = _names(action)
    properties = {name: value for name, value in whole["properties"].items() if name in names}
    return {
        "type": "object",
        "default": {name: value for name, value in plain(Spec()).items() if name in names},
        "popular": _popular(Spec, ""),
        "automl_default_parameters": list(_VARIED),
        "automl_disabled_parameters": list(_disabled(whole)),
        "required": [],
        "properties": properties,
        "x_tao_schema": {
            "action": action,
            "schema_action": action,
            "model": "ocdnet",
            "core_module": "ocdnet",
            "network_arch": "ocdnet",
            "schema_version": 1,
            "source": "ocdserve",
        },
    }


def write_schemas(folder: Path) -> Path:
    """Write `schemas/ACTION.schema.json` and `references/spec_template_ACTION.yaml` of all actions, their manifest
    and the metadata of the skills, `references/*skill_info.yaml`.

    A template has the defaults of the action's sections. Folders are created, files overwritten.

    Returns:
        The manifest, `schemas/manifest.json`.
    """
    actions = {}
    for action in _OWN:
        schema = tao_schema(action)
        path, template = f"schemas/{action}.schema.json", _TEMPLATE.format(action)
        actions[action] = {
            "schema_action": action,
            "core_module": schema["x_tao_schema"]["core_module"],
            "path": path,
            "spec_template": template,
            **{name: schema[name] for name in ("popular", "automl_default_parameters", "automl_disabled_parameters")},
        }
        content = {name: value for name, value in tao_content(Spec()).items() if name in _names(action)}
        _write(folder / path, json.dumps(schema, indent=2))
        _write(folder / template, OmegaConf.to_yaml(OmegaConf.create(content)))
    manifest = {
        "schema_version": 1,
        "model": "ocdnet",
        "network_arch": "ocdnet",
        "automl_enabled": True,
        "actions": actions,
        "failures": {},
    }
    for name, info in skill_infos(Path(_TEMPLATE).name).items():
        _write(folder / "references" / name, OmegaConf.to_yaml(OmegaConf.create(info)))
    return _write(folder / "schemas" / "manifest.json", json.dumps(manifest, indent=2))


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text.rstrip()}\n", "utf-8")
    return path


def _names(action: str) -> set[str]:
    """The top-level keys of an action's spec."""
    return {*_COMMON, _OWN[action]}


def _section(section: Any, prefix: str) -> dict[str, Any]:
    hints = typing.get_type_hints(section)
    properties = {
        field.name: _property(field, hints[field.name], prefix + field.name)
        for field in dataclasses.fields(section)
        if field.name != "ocdserve"
    }
    schema: dict[str, Any] = {
        "type": "collection",
        "description": (section.__doc__ or "").split("\n")[0],
        "default": plain(section()),
        "automl_enabled": False,
        "properties": properties,
    }
    disabled = [prefix + name for name, value in properties.items() if value.get("automl_enabled") is False]
    varied = [prefix + name for name, value in properties.items() if value.get("automl_enabled")]
    popular = [name for name, value in properties.items() if value.get("popular")]
    lists = {"automl_disabled_parameters": disabled, "automl_default_parameters": varied, "popular": popular}
    return schema | {name: value for name, value in lists.items() if value}


def _property(field: "dataclasses.Field[Any]", hint: Any, key: str) -> dict[str, Any]:
    title = field.name.replace("_", " ")
    if dataclasses.is_dataclass(hint):
        return {"title": title, **_section(hint, f"{key}.")}
    rule = rule_of(field)
    is_list = typing.get_origin(hint) is tuple
    kind = "list" if is_list else "categorical" if rule.choices else _TYPES.get(hint, "collection")
    schema: dict[str, Any] = {"type": kind, "title": title, "description": rule.description}
    schema["default"] = plain(default_of(field))
    optional = {
        "minimum": rule.minimum if rule.above is None else rule.above,
        "maximum": rule.maximum,
        "enum": list(rule.choices) or None,
        "pattern": rule.pattern,
        "math_cond": _VARIED.get(key),
        "automl_enabled": True
        if key in _VARIED
        else False
        if kind in ("list", "collection") or key == _FIXED
        else None,
        "popular": field.name in _POPULAR.get(key.rpartition(".")[0], ()) or None,
    }
    return schema | {name: value for name, value in optional.items() if value is not None}


def _popular(section: Any, prefix: str) -> dict[str, Any]:
    """The defaults of the popular keys of a section."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(hint):
            inner = _popular(hint, f"{prefix}{name}.")
            found |= {name: inner} if inner else {}
        elif name in _POPULAR.get(prefix.rstrip("."), ()):
            found[name] = plain(getattr(section(), name))
    return found


def _disabled(section: dict[str, Any]) -> Iterator[str]:
    yield from section.get("automl_disabled_parameters", ())
    for value in section.get("properties", {}).values():
        yield from _disabled(value)

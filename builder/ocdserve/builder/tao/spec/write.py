# SPDX-License-Identifier: Apache-2.0
"""Write a spec as `experiment.yaml`, which every action leaves in its result folder and NVIDIA's images can read."""

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ocdserve.builder.tao.spec.deploy import Ocdserve
from ocdserve.builder.tao.spec.field import plain, rule_of
from ocdserve.builder.tao.spec.root import Spec

EXPERIMENT = "experiment.yaml"


def write_experiment(spec: Spec, folder: Path) -> Path:
    """Write YAML from which `load_spec` reads an equal spec, creating the folder if needed, and return its path.

    TAO's own actions read it too: their schema rejects the section `ocdserve`, so it holds only the keys that were set,
    and is left out if there are none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / EXPERIMENT
    path.write_text(spec_yaml(spec), "utf-8")
    return path


def spec_yaml(spec: Spec) -> str:
    """The text of the file."""
    return OmegaConf.to_yaml(OmegaConf.create(tao_content(spec)))


def tao_content(spec: Spec) -> dict[str, Any]:
    """The content of the file."""
    content = _section(spec)
    defaults = plain(Ocdserve())
    ours = {name: value for name, value in content.pop("ocdserve").items() if value != defaults[name]}
    return content | ({"ocdserve": ours} if ours else {})


def _section(section: Any) -> dict[str, Any]:
    """The keys of a section as TAO writes them: unset texts are null where TAO's are."""
    content: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            content[field.name] = _section(value)
        elif isinstance(value, tuple):
            content[field.name] = [_section(item) if dataclasses.is_dataclass(item) else plain(item) for item in value]
        elif value == "" and rule_of(field).nullable:
            content[field.name] = None
        elif value is not None:
            # None: the `args` of a step that has none; TAO would pass a null on to the step.
            content[field.name] = plain(value)
    return content

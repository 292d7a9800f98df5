# SPDX-License-Identifier: Apache-2.0
"""Write a spec as `experiment.yaml`, which every action leaves in its result folder."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ocdserve.builder.tao.spec.field import plain
from ocdserve.builder.tao.spec.root import Spec

EXPERIMENT = "experiment.yaml"


def to_yaml(spec: Spec) -> str:
    """Format a spec as YAML from which `load_spec` reads an equal one."""
    content: dict[str, Any] = plain(spec)
    text: str = OmegaConf.to_yaml(OmegaConf.create(content))
    return text


def write_experiment(spec: Spec, folder: Path) -> Path:
    """Write `experiment.yaml`, creating the folder if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / EXPERIMENT
    path.write_text(to_yaml(spec), "utf-8")
    return path

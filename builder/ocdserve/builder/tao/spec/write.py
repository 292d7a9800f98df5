# SPDX-License-Identifier: Apache-2.0
"""A spec as the YAML file that every action leaves with its results."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ocdserve.builder.tao.spec.field import plain
from ocdserve.builder.tao.spec.root import Spec

EXPERIMENT = "experiment.yaml"


def to_yaml(spec: Spec) -> str:
    """The spec as YAML that `load_spec` reads back to an equal one."""
    content: dict[str, Any] = plain(spec)
    text: str = OmegaConf.to_yaml(OmegaConf.create(content))
    return text


def write_experiment(spec: Spec, folder: Path) -> Path:
    """Write `experiment.yaml`; the folder is made where it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / EXPERIMENT
    path.write_text(to_yaml(spec), "utf-8")
    return path

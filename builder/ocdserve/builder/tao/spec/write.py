# SPDX-License-Identifier: Apache-2.0
"""Write a spec as `experiment.yaml`, which every action leaves in its result folder."""

from pathlib import Path

from omegaconf import OmegaConf

from ocdserve.builder.tao.spec.field import plain
from ocdserve.builder.tao.spec.root import Spec

EXPERIMENT = "experiment.yaml"


def write_experiment(spec: Spec, folder: Path) -> Path:
    """Write YAML from which `load_spec` reads an equal spec, creating the folder if needed, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / EXPERIMENT
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(plain(spec))), "utf-8")
    return path

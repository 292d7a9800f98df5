# SPDX-License-Identifier: Apache-2.0
"""TAO's OCDNet spec: one frozen dataclass per section, and the loader."""

from ocdserve.builder.tao.spec.dataset import PreProcess, ValidateDataset
from ocdserve.builder.tao.spec.deploy import GenTrtEngine, Ocdserve
from ocdserve.builder.tao.spec.field import MANDATORY, SpecError, plain
from ocdserve.builder.tao.spec.load import load_spec, read_spec_file
from ocdserve.builder.tao.spec.root import Spec
from ocdserve.builder.tao.spec.shared import PostProcessingArgs
from ocdserve.builder.tao.spec.write import EXPERIMENT, write_experiment

__all__ = [
    "EXPERIMENT",
    "MANDATORY",
    "GenTrtEngine",
    "Ocdserve",
    "PostProcessingArgs",
    "PreProcess",
    "Spec",
    "SpecError",
    "ValidateDataset",
    "load_spec",
    "plain",
    "read_spec_file",
    "write_experiment",
]

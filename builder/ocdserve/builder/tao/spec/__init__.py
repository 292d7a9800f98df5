# SPDX-License-Identifier: Apache-2.0
"""TAO's OCDNet spec: one frozen dataclass per section, and the loader."""

from ocdserve.builder.tao.spec.dataset import Dataset, PreProcess, TrainDataset, ValidateDataset
from ocdserve.builder.tao.spec.deploy import Evaluate, GenTrtEngine, Inference, Ocdserve
from ocdserve.builder.tao.spec.field import MANDATORY, plain
from ocdserve.builder.tao.spec.load import SpecError, load_spec, read_spec_file
from ocdserve.builder.tao.spec.root import Spec
from ocdserve.builder.tao.spec.shared import Metric, PostProcessing, PostProcessingArgs
from ocdserve.builder.tao.spec.training import Export, Model, Prune, Quantize, Train, Wandb
from ocdserve.builder.tao.spec.write import to_yaml, write_experiment

__all__ = [
    "MANDATORY",
    "Dataset",
    "Evaluate",
    "Export",
    "GenTrtEngine",
    "Inference",
    "Metric",
    "Model",
    "Ocdserve",
    "PostProcessing",
    "PostProcessingArgs",
    "PreProcess",
    "Prune",
    "Quantize",
    "Spec",
    "SpecError",
    "Train",
    "TrainDataset",
    "ValidateDataset",
    "Wandb",
    "load_spec",
    "plain",
    "read_spec_file",
    "to_yaml",
    "write_experiment",
]

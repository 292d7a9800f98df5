# SPDX-License-Identifier: Apache-2.0
"""The whole spec."""

from dataclasses import dataclass, field

from ocdserve.builder.tao.spec.dataset import Dataset
from ocdserve.builder.tao.spec.deploy import Evaluate, GenTrtEngine, Inference, Ocdserve
from ocdserve.builder.tao.spec.field import key
from ocdserve.builder.tao.spec.training import Export, Model, Prune, Quantize, Train, Wandb


@dataclass(frozen=True)
class Spec:
    """All sections; one file may serve every action.

    Texts that are not set are empty or, where TAO requires them, `MANDATORY` (`???`); `Action.check_mandatory` checks
    an action's own mandatory keys.
    """

    model_name: str = key("", "without effect here", nullable=True)
    encryption_key: str = key("", "without effect here: ONNX files are not encrypted", nullable=True)
    results_dir: str = key("", "parent of the action's result folder")
    wandb: Wandb = field(default_factory=Wandb)
    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    inference: Inference = field(default_factory=Inference)
    export: Export = field(default_factory=Export)
    prune: Prune = field(default_factory=Prune)
    quantize: Quantize = field(default_factory=Quantize)
    gen_trt_engine: GenTrtEngine = field(default_factory=GenTrtEngine)
    ocdserve: Ocdserve = field(default_factory=Ocdserve)

# SPDX-License-Identifier: Apache-2.0
"""Sections of the actions of TAO's training image."""

from dataclasses import dataclass, field
from typing import Any

from ocdserve.builder.tao.spec.field import MANDATORY, key
from ocdserve.builder.tao.spec.shared import Metric, PostProcessing

ALGORITHMS = ("minmax", "max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq")


@dataclass(frozen=True)
class Model:
    """The network."""

    backbone: str = key(
        "deformable_resnet18",
        "feature extractor",
        choices=("deformable_resnet18", "deformable_resnet50", "resnet18", "resnet50", "fan_tiny_8_p4_hybrid"),
    )
    pretrained: bool = key(False, "without effect in TAO")
    in_channels: int = key(3, "channels of an image", minimum=3, maximum=3)
    neck: str = key(
        "FPN", "merges the backbone's levels; follows the backbone, whatever is set", choices=("FPN", "FANNeck")
    )
    inner_channels: int = key(256, "channels of the neck", minimum=256, maximum=256)
    head: str = key("DBHead", "computes the maps; the only one there is")
    out_channels: int = key(2, "maps of the head", minimum=2, maximum=2)
    k: int = key(50, "steepness of the differentiable threshold", minimum=1)
    load_pruned_graph: bool = key(False, "take the layers' widths from pruned_graph_path")
    pruned_graph_path: str = key("", "file of the pruned network, by the action prune", nullable=True)
    pretrained_model_path: str = key("", "initial weights", nullable=True)
    enlarge_feature_map_size: bool = key(False, "finer stem (FAN only)")
    activation_checkpoint: bool = key(False, "compute activations again in the backward pass, to save memory")
    quant: bool = key(False, "quantisation-aware layers; without effect here")
    fuse_qkv_proj: bool = key(True, "one projection for queries, keys and values (FAN only)")


@dataclass(frozen=True)
class Cudnn:
    """cuDNN's switches."""

    benchmark: bool = key(False, "try convolution algorithms")
    deterministic: bool = key(True, "only repeatable algorithms")


@dataclass(frozen=True)
class Trainer:
    """Options of the training loop."""

    clip_grad_norm: float = key(5.0, "largest norm of the gradient; 0: any", minimum=0)


@dataclass(frozen=True)
class Loss:
    """Weights of the DB loss."""

    type: str = key("DBLoss", "DBLoss is the only kind there is")
    alpha: int = key(5, "weight of the probability map", minimum=1)
    beta: int = key(10, "weight of the threshold map", minimum=1)
    ohem_ratio: int = key(3, "hard negatives for each positive", minimum=1)
    eps: float = key(1e-6, "keeps divisions finite", minimum=0, maximum=1)


@dataclass(frozen=True)
class OptimizerArgs:
    """Options of the optimizer."""

    lr: float = key(0.001, "learning rate", above=0)
    weight_decay: float = key(0.0, "weight decay", minimum=0)
    amsgrad: bool = key(True, "AMSGrad variant of Adam")
    momentum: float = key(0.0, "momentum, for SGD", minimum=0, maximum=1)
    eps: float = key(1e-8, "keeps divisions finite", minimum=0, maximum=1)


@dataclass(frozen=True)
class Optimizer:
    """The optimizer."""

    type: str = key("Adam", "class of torch.optim; it gets those of the arguments that it has")
    args: OptimizerArgs = field(default_factory=OptimizerArgs)


@dataclass(frozen=True)
class LrSchedulerArgs:
    """Options of the learning rate schedule."""

    warmup_epoch: int = key(3, "epochs of warm-up; 0 for none", minimum=0)


@dataclass(frozen=True)
class LrScheduler:
    """The learning rate schedule."""

    type: str = key("WarmupPolyLR", "WarmupPolyLR is used whatever is set")
    args: LrSchedulerArgs = field(default_factory=LrSchedulerArgs)


@dataclass(frozen=True)
class Train:
    """Training."""

    num_gpus: int = key(1, "GPUs of a machine", minimum=1)
    gpu_ids: tuple[int, ...] = key((0,), "their indices")
    num_nodes: int = key(1, "machines; NODE_RANK, MASTER_ADDR and MASTER_PORT say which this is", minimum=1)
    seed: int = key(1234, "seed; -1: another one each time", minimum=-1)
    cudnn: Cudnn = field(default_factory=Cudnn)
    num_epochs: int = key(10, "passes over the data", minimum=1)
    checkpoint_interval: int = key(1, "epochs or steps between checkpoints", minimum=1)
    checkpoint_interval_unit: str = key("epoch", "what the interval counts", choices=("epoch", "step"))
    validation_interval: int = key(1, "epochs between validations", minimum=1)
    resume_training_checkpoint_path: str = key(
        "", "checkpoint to resume from; empty: the *_latest.pth of the result folder, if any", nullable=True
    )
    results_dir: str = key("", "folder of the results", nullable=True)
    post_processing: PostProcessing = field(default_factory=PostProcessing)
    metric: Metric = field(default_factory=Metric)
    trainer: Trainer = field(default_factory=Trainer)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lr_scheduler: LrScheduler = field(default_factory=LrScheduler)
    precision: str = key("fp32", "fp32, or fp16 for automatic mixed precision on a GPU")
    distributed_strategy: str = key("ddp", "ddp, fsdp or deepspeed_stage_3_offload")
    is_dry_run: bool = key(False, "one batch only")
    use_distributed_sampler: bool = key(False, "without effect: processes always share the images")
    model_ema: bool = key(False, "also keep a moving average of the weights")
    model_ema_decay: float = key(0.9999, "its decay", minimum=0, maximum=1)


@dataclass(frozen=True)
class Export:
    """Checkpoint to ONNX."""

    results_dir: str = key("", "folder of the results", nullable=True)
    checkpoint: str = key(MANDATORY, "checkpoint to export")
    onnx_file: str = key("", "ONNX to write; empty: next to the checkpoint", nullable=True)
    gpu_id: int = key(0, "index of the GPU", minimum=0)
    width: int = key(1280, "width of the input, pixels", minimum=1)
    height: int = key(736, "height of the input, pixels", minimum=1)
    opset_version: int = key(11, "ONNX opset", minimum=1)
    verbose: bool = key(False, "print the graph")


@dataclass(frozen=True)
class Prune:
    """Removal of channels."""

    results_dir: str = key("", "folder of the results", nullable=True)
    checkpoint: str = key(MANDATORY, "checkpoint to prune")
    gpu_id: int = key(0, "index of the GPU", minimum=0)
    ch_sparsity: float = key(0.1, "share of channels to remove", minimum=0, maximum=1)
    round_to: int = key(32, "widths are multiples of this", minimum=1)
    p: int = key(2, "norm that ranks channels", minimum=1)
    verbose: bool = key(False, "print the graph")


@dataclass(frozen=True)
class Quantize:
    """Quantisation of a checkpoint or an ONNX file."""

    backend: str = key("torchao", "tool", choices=("modelopt.pytorch", "torchao", "modelopt.onnx"))
    mode: str = key("weight_only_ptq", "what is quantised", choices=("static_ptq", "weight_only_ptq"))
    algorithm: str = key("minmax", "how ranges are chosen", choices=ALGORITHMS)
    layers: tuple[Any, ...] = key((), "patterns of layers and their types")
    skip_names: tuple[str, ...] = key((), "patterns of layers excluded from quantisation")
    model_path: str = key("", "checkpoint or ONNX to quantise")
    results_dir: str = key("", "folder of the results")
    backend_kwargs: dict[str, Any] = key({}, "passed on to the tool")
    device: str = key("cuda", "where to compute", pattern="^(cuda|cpu|trt|cuda:[0-9]+)$")


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases; not used here."""

    enable: bool = key(True, "log to it while training")
    project: str = key("TAO Toolkit", "project")
    entity: str = key("", "user or team")
    group: str = key("", "group of runs")
    tags: tuple[str, ...] = key(("tao-toolkit",), "tags of a run")
    reinit: bool = key(False, "several runs in one process")
    sync_tensorboard: bool = key(False, "import TensorBoard's figures")
    save_code: bool = key(False, "upload the code")
    name: str = key("TAO Toolkit Training", "name of a run")
    run_id: str = key("", "run to resume")

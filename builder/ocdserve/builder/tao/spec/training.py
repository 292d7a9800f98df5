# SPDX-License-Identifier: Apache-2.0
"""Sections of TAO's training image: carried and checked, so that one spec file serves both images."""

from dataclasses import dataclass, field
from typing import Any

from ocdserve.builder.tao.spec.field import MANDATORY, setting
from ocdserve.builder.tao.spec.shared import Metric, PostProcessing

ALGORITHMS = ("minmax", "max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq")


@dataclass(frozen=True)
class Model:
    """The network."""

    backbone: str = setting(
        "deformable_resnet18",
        "feature extractor",
        choices=("deformable_resnet18", "deformable_resnet50", "fan_tiny_8_p4_hybrid"),
    )
    pretrained: bool = setting(False, "without effect in TAO")
    in_channels: int = setting(3, "channels of an image", minimum=3, maximum=3)
    neck: str = setting("FPN", "joins the backbone's levels", choices=("FPN", "FANNeck"))
    inner_channels: int = setting(256, "channels of the neck", minimum=256, maximum=256)
    head: str = setting("DBHead", "computes the maps")
    out_channels: int = setting(2, "maps of the head", minimum=2, maximum=2)
    k: int = setting(50, "steepness of the differentiable threshold", minimum=1)
    load_pruned_graph: bool = setting(False, "take the layers' widths from pruned_graph_path")
    pruned_graph_path: str = setting("", "network that prune wrote")
    pretrained_model_path: str = setting("", "weights to begin with")
    enlarge_feature_map_size: bool = setting(False, "finer stem (FAN only)")
    activation_checkpoint: bool = setting(False, "compute activations twice to save memory (FAN only)")
    quant: bool = setting(False, "quantisation-aware layers")
    fuse_qkv_proj: bool = setting(True, "one projection for queries, keys and values (FAN only)")


@dataclass(frozen=True)
class Cudnn:
    """cuDNN's switches."""

    benchmark: bool = setting(False, "try convolution algorithms")
    deterministic: bool = setting(True, "only repeatable algorithms")


@dataclass(frozen=True)
class Trainer:
    """Options of the training loop."""

    clip_grad_norm: float = setting(5.0, "largest norm of the gradient", minimum=0)


@dataclass(frozen=True)
class Loss:
    """Weights of the DB loss."""

    type: str = setting("DBLoss", "kind of loss")
    alpha: int = setting(5, "weight of the probability map", minimum=1)
    beta: int = setting(10, "weight of the threshold map", minimum=1)
    ohem_ratio: int = setting(3, "hard negatives for each positive", minimum=1)
    eps: float = setting(1e-6, "keeps divisions finite", minimum=0, maximum=1)


@dataclass(frozen=True)
class OptimizerArgs:
    """Options of the optimizer."""

    lr: float = setting(0.001, "learning rate", above=0)
    weight_decay: float = setting(0.0, "weight decay", minimum=0)
    amsgrad: bool = setting(True, "AMSGrad variant of Adam")
    momentum: float = setting(0.0, "momentum, for SGD", minimum=0, maximum=1)
    eps: float = setting(1e-8, "keeps divisions finite", minimum=0, maximum=1)


@dataclass(frozen=True)
class Optimizer:
    """The optimizer."""

    type: str = setting("Adam", "class of torch.optim")
    args: OptimizerArgs = field(default_factory=OptimizerArgs)


@dataclass(frozen=True)
class LrSchedulerArgs:
    """Options of the learning rate's course."""

    warmup_epoch: int = setting(3, "epochs of warm-up; 0 for none", minimum=0)


@dataclass(frozen=True)
class LrScheduler:
    """The learning rate's course."""

    type: str = setting("WarmupPolyLR", "kind of course")
    args: LrSchedulerArgs = field(default_factory=LrSchedulerArgs)


@dataclass(frozen=True)
class Train:
    """Training."""

    num_gpus: int = setting(1, "GPUs of a machine", minimum=1)
    gpu_ids: tuple[int, ...] = setting((0,), "their indices")
    num_nodes: int = setting(1, "machines", minimum=1)
    seed: int = setting(1234, "seed; -1 for none", minimum=-1)
    cudnn: Cudnn = field(default_factory=Cudnn)
    num_epochs: int = setting(10, "passes over the data", minimum=1)
    checkpoint_interval: int = setting(1, "epochs or steps between checkpoints", minimum=1)
    checkpoint_interval_unit: str = setting("epoch", "what the interval counts", choices=("epoch", "step"))
    validation_interval: int = setting(1, "epochs between validations", minimum=1)
    resume_training_checkpoint_path: str = setting("", "checkpoint to go on from")
    results_dir: str = setting("", "folder of the results")
    post_processing: PostProcessing = field(default_factory=PostProcessing)
    metric: Metric = field(default_factory=Metric)
    trainer: Trainer = field(default_factory=Trainer)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lr_scheduler: LrScheduler = field(default_factory=LrScheduler)
    precision: str = setting("fp32", "fp32 or fp16")
    distributed_strategy: str = setting("ddp", "ddp, fsdp or deepspeed_stage_3_offload")
    is_dry_run: bool = setting(False, "one batch only")
    use_distributed_sampler: bool = setting(False, "without effect in TAO")
    model_ema: bool = setting(False, "also keep a moving average of the weights")
    model_ema_decay: float = setting(0.9999, "its decay", minimum=0, maximum=1)


@dataclass(frozen=True)
class Export:
    """Checkpoint to ONNX."""

    results_dir: str = setting("", "folder of the results")
    checkpoint: str = setting(MANDATORY, "checkpoint to export")
    onnx_file: str = setting("", "ONNX to write; empty: beside the checkpoint")
    gpu_id: int = setting(0, "index of the GPU", minimum=0)
    width: int = setting(1280, "width of the input, pixels", minimum=1)
    height: int = setting(736, "height of the input, pixels", minimum=1)
    opset_version: int = setting(11, "ONNX opset", minimum=1)
    verbose: bool = setting(False, "print the graph")


@dataclass(frozen=True)
class Prune:
    """Removal of channels."""

    results_dir: str = setting("", "folder of the results")
    checkpoint: str = setting(MANDATORY, "checkpoint to prune")
    gpu_id: int = setting(0, "index of the GPU", minimum=0)
    ch_sparsity: float = setting(0.1, "share of channels that goes", minimum=0, maximum=1)
    round_to: int = setting(32, "widths are multiples of this", minimum=1)
    p: int = setting(2, "norm that tells a channel's importance", minimum=1)
    verbose: bool = setting(False, "print the graph")


@dataclass(frozen=True)
class Quantize:
    """Quantisation in the training image."""

    backend: str = setting("torchao", "tool", choices=("modelopt.pytorch", "torchao", "modelopt.onnx"))
    mode: str = setting("weight_only_ptq", "what is quantised", choices=("static_ptq", "weight_only_ptq"))
    algorithm: str = setting("minmax", "how ranges are chosen", choices=ALGORITHMS)
    layers: tuple[Any, ...] = setting((), "patterns of layers and their types")
    skip_names: tuple[str, ...] = setting((), "patterns of layers that are left alone")
    model_path: str = setting("", "checkpoint or ONNX to quantise")
    results_dir: str = setting("", "folder of the results")
    backend_kwargs: dict[str, Any] = setting({}, "passed on to the tool")
    device: str = setting("cuda", "where to compute", pattern="^(cuda|cpu|trt|cuda:[0-9]+)$")


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases; nothing here talks to it."""

    enable: bool = setting(True, "log to it while training")
    project: str = setting("TAO Toolkit", "project")
    entity: str = setting("", "user or team")
    group: str = setting("", "group of runs")
    tags: tuple[str, ...] = setting(("tao-toolkit",), "tags of a run")
    reinit: bool = setting(False, "several runs in one process")
    sync_tensorboard: bool = setting(False, "take TensorBoard's figures over")
    save_code: bool = setting(False, "upload the code")
    name: str = setting("TAO Toolkit Training", "name of a run")
    run_id: str = setting("", "run to go on with")

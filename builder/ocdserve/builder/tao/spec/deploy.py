# SPDX-License-Identifier: Apache-2.0
"""Sections of gen_trt_engine, evaluate and inference, and of our own keys, `ocdserve`."""

from dataclasses import dataclass, field

from ocdserve.backend.network.options import BUILD_RUNTIMES
from ocdserve.builder.tao.spec.field import MANDATORY, key
from ocdserve.builder.tao.spec.shared import IMAGE_MODES, Metric, PostProcessing


@dataclass(frozen=True)
class Calibration:
    """Images from which INT8 ranges are measured."""

    cal_image_dir: tuple[str, ...] = key((), "folders of photographs, searched recursively; a single one may be a text")
    cal_cache_file: str = key(MANDATORY, "scales: used where the file exists, else written")
    cal_batch_size: int = key(1, "images per batch", minimum=1)
    cal_batches: int = key(1, "batches; batch size times batches is the number of images", minimum=1)


@dataclass(frozen=True)
class TensorRT:
    """Build options of the engine."""

    data_type: str = key("FP32", "precision", choices=("FP32", "FP16", "INT8"))
    workspace_size: int = key(1024, "memory that a layer may use while it runs, MB; 0 sets no limit", minimum=0)
    min_batch_size: int = key(1, "smallest batch of the engine", minimum=1)
    opt_batch_size: int = key(1, "batch that the engine is tuned for", minimum=1)
    max_batch_size: int = key(1, "largest batch of the engine", minimum=1)
    layers_precision: tuple[str, ...] = key(
        (), "layers pinned to a precision, as `name:fp32`; names may have wildcards, `*` means all others"
    )
    calibration: Calibration = field(default_factory=Calibration)

    def __post_init__(self) -> None:
        # TAO Deploy accepts lower case as well.
        object.__setattr__(self, "data_type", self.data_type.upper())


@dataclass(frozen=True)
class GenTrtEngine:
    """ONNX to engine."""

    results_dir: str = key("", "folder of the results", nullable=True)
    gpu_id: int = key(0, "index of the GPU that the engine is for", minimum=0)
    onnx_file: str = key(MANDATORY, "exported network")
    trt_engine: str = key(MANDATORY, "file to write")
    timing_cache: str = key("", "measured kernel times, read and extended (TensorRT)", nullable=True)
    batch_size: int = key(-1, "static batch of the engine; -1: from the ONNX and the profile", minimum=-1)
    verbose: bool = key(False, "print the runtime's messages and the precision of every layer")
    width: int = key(1280, "width of the network's input, pixels", minimum=1)
    height: int = key(736, "height of the network's input, pixels", minimum=1)
    img_mode: str = key("BGR", "channel order of the network's input", choices=IMAGE_MODES)
    tensorrt: TensorRT = field(default_factory=TensorRT)


@dataclass(frozen=True)
class Evaluate:
    """Precision, recall and hmean on labelled images."""

    num_gpus: int = key(1, "GPUs; one is used", minimum=1)
    gpu_ids: tuple[int, ...] = key((0,), "indices of GPUs; the first is used")
    num_nodes: int = key(1, "machines; one is used", minimum=1)
    checkpoint: str = key(MANDATORY, "checkpoint, evaluated if trt_engine is not set")
    trt_engine: str = key("", "engine, ONNX or bundle to evaluate", nullable=True)
    results_dir: str = key("", "folder of the results", nullable=True)
    batch_size: int = key(1, "images per batch; a loader's batch size above 1 takes precedence", minimum=1)
    post_processing: PostProcessing = field(default_factory=PostProcessing)
    metric: Metric = field(default_factory=Metric)


@dataclass(frozen=True)
class Inference:
    """Text boxes in the images of a folder."""

    num_gpus: int = key(1, "GPUs; one is used", minimum=1)
    gpu_ids: tuple[int, ...] = key((0,), "indices of GPUs; the first is used")
    num_nodes: int = key(1, "machines; one is used", minimum=1)
    checkpoint: str = key(MANDATORY, "checkpoint, run if trt_engine is not set")
    trt_engine: str = key("", "engine, ONNX or bundle to run", nullable=True)
    results_dir: str = key("", "folder of the results", nullable=True)
    batch_size: int = key(-1, "images per batch; -1: the engine's largest batch", minimum=-1)
    input_folder: str = key(MANDATORY, "folder of images")
    width: int = key(1280, "width of the network's input, pixels", minimum=1)
    height: int = key(736, "height of the network's input, pixels", minimum=1)
    img_mode: str = key("BGR", "channel order of the network's input", choices=IMAGE_MODES)
    polygon: bool = key(False, "polygons instead of boxes")
    show: bool = key(False, "also show the pictures in windows")
    post_processing: PostProcessing = field(default_factory=PostProcessing)


@dataclass(frozen=True)
class Ocdserve:
    """Keys that TAO does not have."""

    compat: str = key("fixed", "`tao`: results as TAO computes them, with its known faults", choices=("fixed", "tao"))
    runtime: str = key(
        "auto",
        "what executes the network; auto: TensorRT where a GPU is, else TensorRT-RTX where it is installed, else "
        "ONNX Runtime",
        choices=("auto", *BUILD_RUNTIMES),
    )
    device: str = key(
        "auto",
        "what trains; auto: the GPU where there is one, else the CPU; cpu: train.num_gpus is the number of processes",
        choices=("auto", "cpu", "cuda"),
    )
    width: float = key(
        1.0, "factor of the channels of a new network; below 1 for training on a CPU", above=0, maximum=4
    )
    export_form: str = key(
        "standard",
        "deformable convolutions in ONNX; standard: DeformConv, which ONNX Runtime, gen_trt_engine and build take; "
        "plugin: ModulatedDeformConv2d as in TAO's exports, for TAO Deploy and trtexec, also taken here",
        choices=("standard", "plugin"),
    )
    threads: int = key(0, "cores for the work on the CPU; 0: all", minimum=0)
    seed: int = key(0, "seed of the selection of calibration images", minimum=0)
    architectures: tuple[str, ...] = key(
        (), "GPU architectures such as sm_89 of a TensorRT-RTX engine; empty: this machine's, without a GPU all"
    )
    calibration_method: str = key(
        "minmax", "how INT8 ranges are chosen", choices=("minmax", "percentile", "mse", "entropy")
    )
    force_calibration_cache: bool = key(False, "use a cache even if it was made for another network")
    sweep: bool = key(True, "evaluate also reports the figures at other thresholds; a fifth of its time on a CPU")
    evaluation_dir: str = key(
        "", "labelled images (img/, gt/) or photographs to measure the loss against FP32 on; empty: no accuracy gate"
    )
    automl_policy: str = key(
        "on", "off: automl trains once, with the spec's values; auto is on", choices=("on", "off", "auto")
    )
    automl_metric: str = key(
        "train_loss",
        "what a search minimises, or maximises for hmean; train_loss_epoch is train_loss",
        choices=("train_loss", "train_loss_epoch", "hmean"),
    )
    automl_parameters: tuple[str, ...] = key(
        ("train.optimizer.args.lr", "train.optimizer.args.weight_decay"), "keys that a search varies"
    )
    automl_trials: int = key(10, "trainings of a search, the first with the spec's values", minimum=1)
    automl_timeout_s: int = key(0, "seconds after which no trial of a search begins; 0: none", minimum=0)

    def __post_init__(self) -> None:
        # YAML reads the words on and off as truth values.
        policy = {"True": "on", "False": "off"}.get(self.automl_policy, self.automl_policy)
        object.__setattr__(self, "automl_policy", policy)

# SPDX-License-Identifier: Apache-2.0
"""Convert the spec of gen_trt_engine to the builder's configuration, and refuse early what can be."""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx

from ocdserve.backend import ResizePolicy
from ocdserve.backend.device.probe import gpu_count
from ocdserve.backend.network.options import ENGINE_RUNTIMES, RUNTIMES
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.builder import BuildConfig, CalibrationOptions, DataConfig, EngineConfig
from ocdserve.builder.config import Precision
from ocdserve.builder.engine.targets import load
from ocdserve.builder.graph.layer_rules import LayerRule
from ocdserve.builder.tao.engine.calibration import Plan
from ocdserve.builder.tao.inputs.artifact import bundle_folder
from ocdserve.builder.tao.inputs.dataset import checkpoint_kind, is_archive
from ocdserve.builder.tao.spec import GenTrtEngine, Spec
from ocdserve.contract import InvalidInputError, UnavailableError, install_command

_PRECISIONS: dict[str, Precision] = {"FP32": "fp32", "FP16": "fp16", "INT8": "int8"}
_MEBIBYTE = 1 << 20


def chosen_runtime(wanted: str) -> str:
    """The runtime to build for.

    Args:
        wanted: `auto`, or a runtime's name: then it must be there.

    Raises:
        UnavailableError: It needs a GPU that is not there, or is not installed.
    """
    has_gpu = gpu_count() > 0
    if wanted == "auto":
        if has_gpu and _installed("tensorrt"):
            return "tensorrt"
        return "tensorrt-rtx" if _installed("tensorrt-rtx") else "onnxruntime"
    if wanted == "tensorrt" and not has_gpu:
        raise UnavailableError(
            "TensorRT builds on the GPU that will serve, and this machine has none. Run gen_trt_engine on a machine "
            "with one, or set ocdserve.runtime to tensorrt-rtx (engines built ahead of time), onnxruntime or openvino "
            "(a quantised ONNX for the CPU)."
        )
    if wanted in ENGINE_RUNTIMES and not _installed(wanted):
        raise UnavailableError(
            f"ocdserve.runtime={wanted} needs the module {RUNTIMES[wanted].module}: run "
            f"{install_command(RUNTIMES[wanted].requirement)}"
        )
    return wanted


def batch_sizes(settings: GenTrtEngine, onnx_file: Path) -> tuple[int, int, int]:
    """Return the smallest, typical and largest batch of the engine.

    Raises:
        InvalidInputError: The spec does not agree with the size or batch of the ONNX, or the batch sizes decrease.
    """
    wanted = settings.tensorrt
    batches = (wanted.min_batch_size, wanted.opt_batch_size, wanted.max_batch_size)
    if settings.batch_size == 0:
        raise InvalidInputError("gen_trt_engine.batch_size must be -1 (from the ONNX) or at least 1; got 0")
    if settings.batch_size > 0:
        if batches not in ((1, 1, 1), (settings.batch_size,) * 3):
            raise InvalidInputError(
                f"gen_trt_engine.batch_size {settings.batch_size} makes an engine of that batch alone, but "
                f"gen_trt_engine.tensorrt asks for {_of(batches)}; set batch_size to -1 or leave those out"
            )
        batches = (settings.batch_size,) * 3
    if list(batches) != sorted(batches):
        raise InvalidInputError(
            "gen_trt_engine.tensorrt: the batch sizes must grow, min_batch_size <= opt_batch_size <= max_batch_size; "
            f"got {_of(batches)}"
        )
    batch, height, width = _onnx_shape(onnx_file)
    for name, given, fixed in (("width", settings.width, width), ("height", settings.height, height)):
        if fixed not in (None, given):
            raise InvalidInputError(
                f"profile mismatch: {onnx_file.name} is {width} x {height} pixels (width x height), but "
                f"gen_trt_engine.{name} is {given}; set it to {fixed}, or export the network with export.{name}={given}"
            )
    if batch is not None and set(batches) != {batch}:
        raise InvalidInputError(
            f"profile mismatch: {onnx_file.name} has the fixed batch {batch}, but the spec asks for {_of(batches)}; "
            f"set min_batch_size, opt_batch_size and max_batch_size to {batch}, or export it with a dynamic batch"
        )
    return batches


def build_config(
    spec: Spec, runtime: str, onnx_file: Path, output: Path, batches: tuple[int, int, int], plan: Plan
) -> BuildConfig:
    """Make the builder's configuration of a spec.

    A network with Q/DQ pairs keeps its INT8 layers; the precision applies to the others.
    """
    settings, ours = spec.gen_trt_engine, spec.ocdserve
    is_engine = runtime in ENGINE_RUNTIMES
    precision = _PRECISIONS[settings.tensorrt.data_type]
    if precision == "int8" and is_quantised(onnx_file):
        precision = "fp16" if is_engine else "fp32"
    rules = layer_rules(settings.tensorrt.layers_precision) if settings.tensorrt.data_type != "FP32" else ()
    is_tao = ours.compat == "tao"
    method: Any = "entropy" if is_tao else ours.calibration_method
    workspace = settings.tensorrt.workspace_size * _MEBIBYTE
    timing_cache = Path(settings.timing_cache) if settings.timing_cache and runtime == "tensorrt" else None
    return BuildConfig(
        onnx=onnx_file,
        output=output,
        detector=_detector(spec),
        # As NVIDIA's, it builds any network; what is wrong with one is in the log.
        trial=False,
        precision=precision,
        runtime=runtime,
        data=DataConfig(
            calibration_files=plan.images,
            seed=ours.seed,
            calibration_cache=plan.cache,
            force=ours.force_calibration_cache,
            evaluation=Path(ours.evaluation_dir) if ours.evaluation_dir else None,
            evaluation_files=plan.judged,
        ),
        calibration=CalibrationOptions(method, images="tao" if is_tao else "serving"),
        gate=bool(ours.evaluation_dir) or (precision != "fp32" and bool(plan.judged)),
        # Published specs name no images to judge with: what those of the calibration show is reported.
        gate_refuses=bool(ours.evaluation_dir),
        layers=rules,
        engine=EngineConfig(
            architectures=_architectures(runtime, ours.architectures) if is_engine else ("current",),
            min_batch=batches[0],
            opt_batch=batches[1],
            max_batch=batches[2],
            workspace_bytes=workspace or None,
            timing_cache=timing_cache,
        ),
        threads=ours.threads or None,
    )


def layer_rules(texts: tuple[str, ...]) -> tuple[LayerRule, ...]:
    """Convert `layers_precision` to the builder's rules; the last colon separates, since names may contain colons.

    Raises:
        InvalidInputError: An entry is not `name:precision`.
    """
    rules = []
    for text in texts:
        name, separator, precision = text.rpartition(":")
        precision = precision.strip().lower()
        if not separator or precision not in ("fp32", "fp16", "int8", "int32"):
            raise InvalidInputError(
                "gen_trt_engine.tensorrt.layers_precision: entries must be 'layer:precision' with fp32, fp16 or int8, "
                f"for example '/head/Conv:fp32'; got {text!r}"
            )
        if precision == "int32":
            raise InvalidInputError(
                f"gen_trt_engine.tensorrt.layers_precision: {text!r}: layers that compute with whole numbers are INT32 "
                "by themselves, and no other can be; leave the entry out"
            )
        kind: Any = precision
        # Specs are used for several backbones: a layer that is not there needs no higher precision.
        rules.append(LayerRule(name.strip(), kind, optional=precision != "int8"))
    return tuple(rules)


def _detector(spec: Spec) -> DetectorSpec:
    settings = spec.gen_trt_engine
    if settings.img_mode == "GRAY":
        raise InvalidInputError(
            "gen_trt_engine.img_mode GRAY cannot be used: the network has three channels. Take BGR, or RGB if it was "
            "trained so."
        )
    preset = PRESETS["ocdnet"]
    stride = ResizePolicy.stride
    for name in ("width", "height"):
        if getattr(settings, name) % stride:
            raise InvalidInputError(
                f"gen_trt_engine.{name} must be a multiple of {stride}; got {getattr(settings, name)}"
            )
    color: Any = settings.img_mode
    return replace(
        preset,
        network=replace(preset.network, color=color),
        resize=ResizePolicy(kind="fixed", width=settings.width, height=settings.height),
        postprocess=PostprocessParams(
            mode="tao" if spec.ocdserve.compat == "tao" else "default",
            # The bundle is served with the thresholds of the spec's inference.
            **asdict(spec.inference.post_processing.args),
            polygons=spec.inference.polygon,
        ),
    )


def _architectures(runtime: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
    if runtime == "tensorrt":
        return ("current",)
    if wanted or gpu_count() > 0:
        return wanted or ("current",)
    names = load("tensorrt-rtx").trt.ComputeCapability.__members__
    return tuple(f"sm_{name[2:]}" for name in names if name.startswith("SM"))


def ignored_keys(spec: Spec, runtime: str) -> Iterator[str]:
    """Yield a sentence for each key that is set but has no effect on this build."""
    settings = spec.gen_trt_engine
    if settings.gpu_id > 0 and gpu_count() == 0:
        yield f"gen_trt_engine.gpu_id is not used: there is no GPU {settings.gpu_id} here"
    if settings.timing_cache and runtime != "tensorrt":
        yield f"gen_trt_engine.timing_cache is not used: {runtime} times nothing while it builds"
    if settings.tensorrt.layers_precision and settings.tensorrt.data_type == "FP32":
        yield "gen_trt_engine.tensorrt.layers_precision is not used: with FP32 all layers are FP32"
    if spec.ocdserve.architectures and runtime != "tensorrt-rtx":
        yield f"ocdserve.architectures is not used: it is for tensorrt-rtx, and this build is for {runtime}"


def checked_onnx(path: Path) -> Path:
    """Return the path if it may be an ONNX file; raise InvalidInputError otherwise."""
    if not path.exists():
        raise InvalidInputError(f"gen_trt_engine.onnx_file: there is no file {str(path)!r}")
    if path.is_dir():
        raise InvalidInputError(f"gen_trt_engine.onnx_file: {str(path)!r} is a folder; name the .onnx file in it")
    kind = checkpoint_kind(path)
    if kind:
        raise InvalidInputError(
            f"gen_trt_engine.onnx_file: {kind} files cannot be read; export the checkpoint to ONNX with `ocdnet "
            "export`, and name that file"
        )
    if is_archive(path):
        raise InvalidInputError(
            f"gen_trt_engine.onnx_file: {str(path)!r} is an archive; extract it first and name the .onnx file"
        )
    return path


def checked_engine(path: Path, onnx_file: Path) -> Path:
    """Return the path if an engine and its bundle can be written there without overwriting the network."""
    if path.resolve() == onnx_file.resolve():
        raise InvalidInputError(
            f"gen_trt_engine.trt_engine: {str(path)!r} is gen_trt_engine.onnx_file, which would be overwritten; name "
            "another file"
        )
    if path.is_dir():
        raise InvalidInputError(f"gen_trt_engine.trt_engine: {str(path)!r} is a folder; name a file in it")
    folder = bundle_folder(path)
    if folder.exists() and not (folder / "detector.json").is_file():
        raise InvalidInputError(f"{str(folder)!r}, where the bundle would be written, is something else; move it away")
    return path


def _onnx_shape(path: Path) -> tuple[int | None, int | None, int | None]:
    """Batch, height and width of the input; None if dynamic, or if the file is refused later."""
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf raises exceptions of its own
        raise InvalidInputError(f"{path} is not an ONNX file: {error}") from error
    constants = {tensor.name for tensor in graph.initializer}
    dims = [value.type.tensor_type.shape.dim for value in graph.input if value.name not in constants][:1]
    if not dims or len(dims[0]) != 4:
        return None, None, None
    batch, _, height, width = (dim.dim_value if dim.dim_value > 0 else None for dim in dims[0])
    return batch, height, width


def is_quantised(onnx_file: Path) -> bool:
    """Whether an ONNX is already quantised (has QuantizeLinear nodes)."""
    graph = onnx.load(str(onnx_file), load_external_data=False).graph
    return any(node.op_type == "QuantizeLinear" for node in graph.node)


def use_gpu(index: int) -> None:
    """Make one GPU the only one visible to this process; call it before any of CUDA.

    If CUDA_VISIBLE_DEVICES is set, the index counts within it; an index beyond its end hides all GPUs.
    """
    if index == 0:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [] if visible is None else visible.split(",")
    hidden = "" if names else str(index)
    os.environ["CUDA_VISIBLE_DEVICES"] = names[index] if index < len(names) else hidden


def _installed(runtime: str) -> bool:
    return importlib.util.find_spec(RUNTIMES[runtime].module) is not None


def _of(batches: tuple[int, int, int]) -> str:
    return " / ".join(map(str, batches)) + " (min / opt / max)"

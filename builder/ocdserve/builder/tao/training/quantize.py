# SPDX-License-Identifier: Apache-2.0
"""The action `quantize`: of an ONNX file by our builder, of a checkpoint by torchao or NVIDIA ModelOpt."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from ocdserve.builder.calibration.images import choose as choose_images
from ocdserve.builder.tao.actions import ActionResult, Context, is_given
from ocdserve.builder.tao.engine import gen_trt_engine
from ocdserve.builder.tao.engine.calibration import images_below
from ocdserve.builder.tao.engine.engine_request import is_quantised
from ocdserve.builder.tao.inputs.pipeline import Unreadable, read_image
from ocdserve.builder.tao.inputs.prepare import evaluated_size, resize_policy
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.spec.deploy import Calibration, TensorRT
from ocdserve.builder.tao.training.network import check_checkpoint, network_of_checkpoint
from ocdserve.builder.tao.training.trainer.validation import TorchNetwork, read_options
from ocdserve.builder.train.checkpoints import read_checkpoint
from ocdserve.builder.train.quantise import (
    QuantRule,
    choose,
    layers_of,
    quantise_modelopt,
    quantise_torchao,
    save_modelopt,
    save_torchao,
)
from ocdserve.contract import InvalidInputError

_MODES = {"torchao": "weight_only_ptq", "modelopt.pytorch": "static_ptq", "modelopt.onnx": "static_ptq"}
# How TAO's names of algorithms are called here; of those without a name, why.
_METHODS = {"minmax": "minmax", "max": "minmax", "entropy": "entropy"}
_WEIGHTS_ONLY = (
    "it quantises the weights of large matrix products only, to 4 bits; here are convolutions, whose weights and "
    "activations are quantised"
)
_IMAGES = 20
_RULE_KEYS = {"module_name", "weights", "activations"}
_TYPE_KEYS = {"dtype", "quant_axis", "observer_or_fake_quant", "observer_or_fake_quant_kwargs"}
_SIZED = ("Conv", "ConvTranspose", "DeformConv", "ModulatedDeformConv2d", "MatMul", "Gemm")


def run(spec: Spec, context: Context) -> ActionResult:
    """Quantise.

    Raises:
        InvalidInputError: The keys contradict each other, the file is not what the backend takes, or no layer would be
            quantised.
        UnavailableError: The backend is not installed.
    """
    settings = spec.quantize
    mode = _MODES[settings.backend]
    if settings.mode != mode:
        # Begins as TAO's message does.
        raise InvalidInputError(
            f"Unsupported mode '{settings.mode}' for backend '{settings.backend}'. Supported modes: ['{mode}']. Set "
            f"quantize.mode={mode}"
        )
    if settings.backend == "modelopt.onnx":
        return _quantise_onnx(spec, context)
    return _quantise_checkpoint(spec, context)


def _quantise_checkpoint(spec: Spec, context: Context) -> ActionResult:
    settings = spec.quantize
    path = Path(settings.model_path)
    check_checkpoint(path, "quantize.model_path")
    if "pytorch-lightning_version" not in read_checkpoint(path):
        raise InvalidInputError(
            f"quantize.model_path: {path} holds weights but no state of a training, as model_best.pth does, which "
            "quantize does not take: name the checkpoint of the epoch, model_epoch_<epoch>_step_<step>.pth (`ocdnet "
            "resolve --action quantize` finds the best one)"
        )
    network = network_of_checkpoint(spec, path, "quantize.model_path")
    chosen = choose(layers_of(network), quant_rules(settings.layers), settings.skip_names)
    file = context.results_dir / f"quantized_model_{settings.backend}.pth"
    if settings.backend == "torchao":
        for warning in _ignored_by_torchao(chosen):
            context.warn(warning)
        state, names = quantise_torchao(network, chosen, settings.backend_kwargs)
        save_torchao(file, state, names)
    else:
        _check_max(settings.algorithm)
        quantised, names = quantise_modelopt(network, chosen, _calibration(spec, context))
        save_modelopt(file, quantised)
    others = [name for name in chosen if name not in names]
    if others:
        context.warn(
            f"{len(others)} of {len(chosen)} layers that the rules choose stay as they are, since {settings.backend} "
            f"cannot quantise them: {', '.join(others[:5])}{' and others' if len(others) > 5 else ''}"
        )
    return ActionResult(f"quantised {len(names)} layers in {file}", {"quantised_layers": len(names)})


def quant_rules(layers: tuple[Any, ...]) -> list[QuantRule]:
    """Check `quantize.layers`.

    Raises:
        InvalidInputError: An entry is malformed.
    """
    rules = []
    for layer in layers:
        if not isinstance(layer, Mapping) or not set(layer) <= _RULE_KEYS or not layer.get("module_name"):
            raise InvalidInputError(
                "quantize.layers: an entry must be {module_name: PATTERN, weights: {dtype: int8}, activations: {dtype: "
                f"int8}}}}, the latter two as wanted; got {layer!r}"
            )
        types = {}
        for kind in ("weights", "activations"):
            section = layer.get(kind) or {}
            if not isinstance(section, Mapping) or not set(section) <= _TYPE_KEYS:
                raise InvalidInputError(
                    f"quantize.layers: {kind} of {layer['module_name']!r} must hold {', '.join(sorted(_TYPE_KEYS))}; "
                    f"got {section!r}"
                )
            types[kind] = section.get("dtype") or "native"
        axes = [(layer.get(kind) or {}).get("quant_axis") for kind in ("weights", "activations")]
        # One range for each filter where the spec does not say, which loses less than one for all.
        rules.append(
            QuantRule(
                str(layer["module_name"]),
                types["weights"],
                types["activations"],
                0 if axes[0] is None else int(axes[0]),
                axes[1],
            )
        )
    return rules


def _ignored_by_torchao(chosen: Mapping[str, QuantRule]) -> list[str]:
    warnings = []
    if any(rule.activations != "native" for rule in chosen.values()):
        warnings.append("torchao quantises weights alone: activations of quantize.layers have no effect")
    if any(rule.weights == "fp8_e5m2" for rule in chosen.values()):
        warnings.append("torchao has no fp8_e5m2 for weights: they are fp8_e4m3fn")
    return warnings


def _check_max(algorithm: str) -> None:
    if algorithm not in ("minmax", "max"):
        why = "it is for ONNX: set quantize.backend=modelopt.onnx" if algorithm in _METHODS else _WEIGHTS_ONLY
        raise InvalidInputError(
            f"quantize.algorithm must be minmax or max with the backend modelopt.pytorch; got {algorithm}: {why}"
        )


def _calibration(spec: Spec, context: Context) -> Callable[[nn.Module], None]:
    """What runs a network on calibration images."""
    data = spec.dataset.validate_dataset.args
    policy, _ = resize_policy(data.pre_processes)
    if policy is None:
        raise InvalidInputError(
            "dataset.validate_dataset.args.pre_processes needs a Resize2D, whose size is that of the calibration"
        )
    options = read_options(policy, data.img_mode)
    images = choose_images(images_below(_folders(spec)), _IMAGES, spec.ocdserve.seed)
    device = torch.device("cuda" if spec.quantize.device.startswith("cuda") and torch.cuda.is_available() else "cpu")

    def calibrate(network: nn.Module) -> None:
        runner = TorchNetwork(network.to(device), device)
        with context.progress.task("calibrate", len(images)) as task:
            for path in images:
                image = read_image(path, options)
                if isinstance(image, Unreadable):
                    raise InvalidInputError(f"the calibration image {path} cannot be read: {image.reason}")
                runner.infer([image.pixels])
                task.advance()
        network.cpu()

    return calibrate


def _folders(spec: Spec) -> list[Path]:
    """Folders of calibration images: their own, else those of the training set.

    Raises:
        InvalidInputError: They hold no images.
    """
    own = spec.dataset.quant_calibration_dataset.images_dir
    folders = [Path(entry) for entry in ([own] if is_given(own) else spec.dataset.train_dataset.data_path)]
    if not images_below(folders):
        given = f"there are none in {', '.join(map(str, folders))}" if folders else "none are given"
        raise InvalidInputError(
            "quantize.mode=static_ptq needs images to calibrate with: set dataset.quant_calibration_dataset.images_dir "
            f"to a folder of a few dozen typical ones; {given}"
        )
    return folders


def _quantise_onnx(spec: Spec, context: Context) -> ActionResult:
    """As gen_trt_engine does for ONNX Runtime: a quantised ONNX, its bundle, and what a gate finds."""
    settings = spec.quantize
    path = Path(settings.model_path)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        what = f"there is no file {str(path)!r}" if not path.is_file() else f"{path} is not an ONNX file"
        raise InvalidInputError(
            f"quantize.model_path: {what}; the backend modelopt.onnx takes an exported network: run `ocdnet export`"
        )
    if is_quantised(path):
        raise InvalidInputError(f"quantize.model_path: {path} is quantised already (Q/DQ); name the exported network")
    if settings.algorithm not in _METHODS:
        raise InvalidInputError(
            f"quantize.algorithm {settings.algorithm} is not for this network: {_WEIGHTS_ONLY}. Set it to minmax, max "
            "or entropy"
        )
    folders = _folders(spec)
    graph = onnx.load(str(path), load_external_data=False).graph
    width, height = _size(graph, spec)
    build = replace(
        spec.gen_trt_engine,
        onnx_file=str(path),
        trt_engine=str(context.results_dir / f"quantized_model_{settings.backend}"),
        width=width,
        height=height,
        batch_size=-1,
        img_mode=spec.dataset.validate_dataset.args.img_mode,
        tensorrt=TensorRT(
            data_type="INT8",
            layers_precision=_excluded(graph, spec),
            calibration=Calibration(
                cal_image_dir=tuple(map(str, folders)), cal_batches=min(_IMAGES, len(images_below(folders)))
            ),
        ),
    )
    ours = replace(spec.ocdserve, runtime="onnxruntime", calibration_method=_METHODS[settings.algorithm])
    return gen_trt_engine.run(replace(spec, gen_trt_engine=build, ocdserve=ours), context)


def _size(graph: onnx.GraphProto, spec: Spec) -> tuple[int, int]:
    """Width and height to calibrate at: those of the graph, or of the evaluation's images where it has none."""
    constants = {tensor.name for tensor in graph.initializer}
    (image, *_) = (value for value in graph.input if value.name not in constants)
    sides = [dim.dim_value for dim in image.type.tensor_type.shape.dim][2:]
    if len(sides) == 2 and all(sides):
        return sides[1], sides[0]
    height, width = evaluated_size(spec.dataset.validate_dataset.args.pre_processes)
    return width, height


def _excluded(graph: onnx.GraphProto, spec: Spec) -> tuple[str, ...]:
    """Layers that stay as they are, as gen_trt_engine's `layers_precision`; without rules none but the skipped ones."""
    layers = {node.name: node.op_type for node in graph.node if node.op_type in _SIZED}
    rules = quant_rules(spec.quantize.layers) or [QuantRule("*", "int8", "int8")]
    for rule in rules:
        if "fp8" in rule.weights or "fp8" in rule.activations:
            raise InvalidInputError(
                f"quantize.layers: {rule.pattern!r} asks for FP8, which the backend modelopt.onnx does not write here; "
                "take int8"
            )
    chosen = choose(layers, rules, spec.quantize.skip_names)
    if not chosen:
        raise InvalidInputError(
            "nothing would be quantised: no rule of quantize.layers matches a layer, or quantize.skip_names takes all "
            f"out. Patterns are of names of ONNX nodes, such as {next(iter(layers), 'none')!r}, or of operators, such "
            "as 'Conv'"
        )
    return tuple(f"{name}:fp32" for name in layers if name not in chosen)

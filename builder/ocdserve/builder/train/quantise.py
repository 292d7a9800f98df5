# SPDX-License-Identifier: Apache-2.0
"""Quantisation of PyTorch networks by torchao and by NVIDIA ModelOpt, by rules as TAO's specs have them.

Both are optional. torchao keeps weights of linear layers in 8 bits and has no kernel for those of convolutions;
ModelOpt simulates 8 bits in linear layers and convolutions, with ranges measured on images.
"""

import copy
import fnmatch
import io
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ocdserve.backend.files import write_atomically
from ocdserve.builder.train.checkpoints import listed
from ocdserve.builder.train.networks.deform import DeformConv2d
from ocdserve.contract import InvalidInputError, UnavailableError, install_command

DTYPES = ("int8", "fp8_e4m3fn", "fp8_e5m2", "native")
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, DeformConv2d)


@dataclass(frozen=True)
class QuantRule:
    """Types of the layers that a pattern matches.

    Attributes:
        pattern: Of qualified names such as `backbone.layer1.*`, or of classes such as `Linear`; case matters.
        weights: One of `DTYPES`; `native` leaves them as they are.
        activations: The same for what the layers read.
        weight_axis: Axis of the weights with ranges of their own; None: all have one range.
        activation_axis: The same for what the layers read.

    Raises:
        InvalidInputError: The pattern is empty, or a type unknown.
    """

    pattern: str
    weights: str = "native"
    activations: str = "native"
    weight_axis: int | None = 0
    activation_axis: int | None = None

    def __post_init__(self) -> None:
        if not self.pattern:
            raise InvalidInputError("module_name of a rule must name layers, with `*` for any; it is empty")
        for name, dtype in (("weights", self.weights), ("activations", self.activations)):
            if dtype not in DTYPES:
                raise InvalidInputError(
                    f"the dtype of {name} of {self.pattern!r} must be one of {', '.join(DTYPES)}; got {dtype!r}"
                )


def choose(layers: Mapping[str, str], rules: Sequence[QuantRule], skipped: Sequence[str] = ()) -> dict[str, QuantRule]:
    """The rule of each layer that has one. Later rules replace earlier ones, `native` removes, `skipped` comes last.

    Args:
        layers: Class by qualified name.
        rules: In the user's order.
        skipped: Patterns of layers that are not quantised.
    """
    chosen: dict[str, QuantRule] = {}
    for rule in rules:
        for name in _matching(layers, rule.pattern):
            chosen[name] = rule
            if rule.weights == "native" and rule.activations == "native":
                del chosen[name]
    for pattern in skipped:
        for name in _matching(layers, pattern):
            chosen.pop(name, None)
    return chosen


def layers_of(network: nn.Module) -> dict[str, str]:
    """Class by qualified name of the layers with weights that could have 8 bits."""
    return {name: type(module).__name__ for name, module in network.named_modules() if isinstance(module, _LAYERS)}


def _matching(layers: Mapping[str, str], pattern: str) -> list[str]:
    return [name for name, kind in layers.items() if any(fnmatch.fnmatchcase(text, pattern) for text in (name, kind))]


def quantise_torchao(
    network: nn.Module, chosen: Mapping[str, QuantRule], options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict with 8-bit weights, and the layers that have them: of the chosen ones those that are linear.

    Args:
        network: It is not changed.
        chosen: From `choose`.
        options: Arguments of torchao's configuration.

    Raises:
        InvalidInputError: None of the chosen layers is linear, or an option is unknown.
        UnavailableError: torchao is not installed.
    """
    modules = dict(network.named_modules())
    linear = {
        name: rule.weights.partition("_")[0]
        for name, rule in chosen.items()
        if isinstance(modules[name], nn.Linear) and rule.weights != "native"
    }
    if not linear:
        raise InvalidInputError(_nothing_linear(chosen))
    torchao = _imported("torchao.quantization", "quantize.backend=torchao", "torchao")
    configs = {"int8": torchao.Int8WeightOnlyConfig, "fp8": torchao.Float8WeightOnlyConfig}
    quantised = copy.deepcopy(network)
    for kind in dict.fromkeys(linear.values()):
        try:
            config = configs[kind](**options)
        except TypeError as error:
            raise InvalidInputError(f"quantize.backend_kwargs: {configs[kind].__name__}: {error}") from error
        torchao.quantize_(quantised, config, lambda module, name, kind=kind: linear.get(name) == kind)
    return quantised.state_dict(), list(linear)


def _nothing_linear(chosen: Mapping[str, QuantRule]) -> str:
    """Why torchao would write a file in which nothing is quantised, and what does it."""
    way = (
        "For 8 bits in convolutions, export the checkpoint and run gen_trt_engine with "
        "gen_trt_engine.tensorrt.data_type=INT8, or quantize the export with quantize.backend=modelopt.onnx and "
        "quantize.mode=static_ptq"
    )
    if not chosen:
        return (
            "nothing would be quantised: no rule of quantize.layers matches a layer. A rule is {module_name: Linear, "
            f"weights: {{dtype: int8}}}}; torchao quantises weights of linear layers. {way}"
        )
    return (
        f"nothing would be quantised: torchao quantises weights of linear layers only, and {listed([*chosen])} "
        f"{'is none' if len(chosen) == 1 else 'are none'}; networks of ResNets have none at all. {way}"
    )


def save_torchao(path: Path, state: Mapping[str, Tensor], quantised: Sequence[str]) -> None:
    """Write a state dict; `torch.load(path, weights_only=True)` reads it once torchao is imported."""
    file = io.BytesIO()
    torch.save({"state_dict": dict(state), "quantised": list(quantised)}, file)
    write_atomically(path, file.getvalue())


def read_torchao(path: Path) -> dict[str, Tensor] | None:
    """The weights of a file with torchao's tensors, in float32 with the values that 8 bits have; None for other files.

    Raises:
        InvalidInputError: The file holds more than tensors.
        UnavailableError: torchao is not installed.
    """
    if not _has_torchao_types(path):
        return None
    _imported("torchao.quantization", f"{path}, which torchao has quantised,", "torchao")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the unpickler, and of torchao's versions
        raise InvalidInputError(
            f"{path} cannot be read with the installed torchao: {' '.join(str(error).split())[:200]}"
        ) from error
    state = content.get("state_dict", content)
    return {
        name.removeprefix("model."): value.dequantize().detach() if hasattr(value, "qdata") else value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _has_torchao_types(path: Path) -> bool:
    """Whether the pickle names a class of torchao, which is more than a text: checkpoints hold the spec's `torchao`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        pickles = [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
    return any(re.search(rb"ctorchao[.\w]*\n\w+\n", content) for content in pickles)


def quantise_modelopt(
    network: nn.Module, chosen: Mapping[str, QuantRule], calibrate: Callable[[nn.Module], None]
) -> tuple[nn.Module, list[str]]:
    """A network that simulates 8 bits, and the layers that do: ModelOpt knows no deformable convolution.

    Args:
        network: It is not changed.
        chosen: From `choose`.
        calibrate: Runs a network on images.

    Raises:
        InvalidInputError: ModelOpt quantises none of the chosen layers.
        UnavailableError: ModelOpt is not installed.
    """
    quantization = _modelopt("modelopt.torch.quantization")
    config: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name, rule in chosen.items():
        for kind, dtype, axis in (
            ("weight_quantizer", rule.weights, rule.weight_axis),
            ("input_quantizer", rule.activations, rule.activation_axis),
        ):
            if dtype != "native":
                attributes = {"num_bits": 8 if dtype == "int8" else (4, 3), "axis": axis}
                config.append({"quantizer_name": f"{name}.{kind}", "cfg": attributes, "enable": True})
    quantised = quantization.quantize(copy.deepcopy(network), {"quant_cfg": config, "algorithm": "max"}, calibrate)
    enabled = {
        name.rpartition(".")[0]
        for name, module in quantised.named_modules()
        if name.endswith("_quantizer") and module.is_enabled
    }
    if not enabled:
        raise InvalidInputError(
            "nothing would be quantised: no rule of quantize.layers matches a layer that ModelOpt quantises. A rule is "
            "{module_name: Conv2d, weights: {dtype: int8}, activations: {dtype: int8}}"
        )
    return quantised, [name for name in chosen if name in enabled]


def save_modelopt(path: Path, network: nn.Module) -> None:
    """Write a network of `quantise_modelopt` with ModelOpt's own function."""
    file = io.BytesIO()
    _modelopt("modelopt.torch.opt").save(network, file)
    write_atomically(path, file.getvalue())


def restore_modelopt(path: Path, network: nn.Module) -> nn.Module:
    """Let a network simulate 8 bits as the one that `save_modelopt` wrote."""
    restored: nn.Module = _modelopt("modelopt.torch.opt").restore(network, path, weights_only=True)
    return restored


def _modelopt(module: str) -> Any:
    return _imported(module, "quantize.backend=modelopt.pytorch", "ocdserve[modelopt]")


def _imported(module: str, what: str, requirement: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UnavailableError(f"{what} needs {module.partition('.')[0]}: {install_command(requirement)}") from error

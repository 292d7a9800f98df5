# SPDX-License-Identifier: Apache-2.0
"""Networks to ONNX, with open batch, height and width, and node names as NVIDIA TAO's exports have them.

PyTorch's exporter knows no deformable convolution: for it, a deformable layer is replaced by one operator, which is
translated to ONNX's `DeformConv`.
"""

import ast
import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnxscript import opset19
from torch import Tensor, nn
from torch.export import Dim

from ocdserve.backend.files import write_atomically
from ocdserve.builder.graph.deformable import import_deformable
from ocdserve.builder.graph.execute import cpu_session
from ocdserve.builder.graph.tensor_types import OPSET
from ocdserve.builder.train.networks.deform import DeformConv2d, deform_conv
from ocdserve.contract import InvalidInputError, not_one_of

ExportForm = Literal["standard", "plugin"]

_OLDEST = 18  # the exporter writes no older opset
_OPSETS: dict[ExportForm, int] = {"standard": 22, "plugin": _OLDEST}
_PLUGIN = "ModulatedDeformConv2d"
_SCOPES = "pkg.torch.onnx.name_scopes"
_LAYERS = ("Conv", "ConvTranspose", "DeformConv", "MatMul", "Gemm")
# Of the image that the result is tried with: not a size that the exporter has seen.
_TRIED = (1, 3, 96, 160)
_LARGEST_DIFFERENCE = 1e-3


@torch.library.custom_op("ocdserve::deform_conv", mutates_args=())
def _deform_conv(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int) -> Tensor:
    return deform_conv(x, offset, mask, weight, stride)


@_deform_conv.register_fake
def _(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, stride: int) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *offset.shape[2:])


def _translated(x: Any, offset: Any, mask: Any, weight: Any, stride: int) -> Any:
    return opset19.DeformConv(x, weight, offset, None, mask, pads=[1, 1, 1, 1], strides=[stride, stride])


class _OneOperator(nn.Module):
    """A deformable convolution that the exporter does not look into."""

    def __init__(self, layer: DeformConv2d) -> None:
        super().__init__()
        self.weight = layer.weight
        self.stride = layer.stride

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return _deform_conv(x, offset, mask, self.weight, self.stride)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        model: The graph.
        opset: Its version of ONNX's operators.
        difference: The largest between probabilities of PyTorch and of ONNX Runtime on an image of noise.
    """

    model: onnx.ModelProto
    opset: int
    difference: float


def export_onnx(network: nn.Module, path: Path, form: ExportForm = "standard", opset: int | None = None) -> Exported:
    """Write a network as ONNX: `input` float32 (N, 3, H, W) to `pred` (N, 1, H, W), H and W multiples of 32.

    Args:
        network: Of images to probabilities in inference mode; it is not changed.
        path: File to write; an existing one is replaced.
        form: Of deformable convolutions: `standard` is ONNX's `DeformConv`, `plugin` TensorRT's plugin
            `ModulatedDeformConv2d`, which TAO's exports have. Other networks are the same in both.
        opset: At least `oldest_opset`; None: 22, and 18 for the plugin.

    Raises:
        InvalidInputError: An argument is out of its range, or the graph does not compute what the network computes;
            then nothing is written.
    """
    if form not in _OPSETS:
        raise not_one_of("form", form, _OPSETS)
    opset = _OPSETS[form] if opset is None else opset
    if opset < oldest_opset(network, form):
        raise InvalidInputError(
            f"opset must be at least {oldest_opset(network, form)} for this network in the form {form}; got {opset}"
        )
    network = copy.deepcopy(network).cpu().eval()
    model = _translate(network, opset)
    if all(item.version != opset for item in model.opset_import):
        # The exporter logs that it could not convert, and returns what it had.
        raise InvalidInputError(f"PyTorch {torch.__version__} cannot export opset {opset}; take {_OPSETS[form]}")
    _name_nodes(model.graph, {name for name, _ in network.named_modules()})
    _strip(model)
    if form == "plugin":
        _write_plugins(model.graph)
    difference, rounding = _differences(network, model)
    if not difference <= max(_LARGEST_DIFFERENCE, 10 * rounding):
        raise InvalidInputError(
            f"the exported network's probabilities differ from PyTorch's by {difference:.2g} on an image of noise, "
            f"where rounding makes {rounding:.2g}: there are weights that are not finite, or PyTorch "
            f"{torch.__version__} exports wrongly"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, model.SerializeToString())
    return Exported(model, opset, difference)


def oldest_opset(network: nn.Module, form: ExportForm) -> int:
    """The oldest opset that a network can be exported in."""
    has_deform_conv = form == "standard" and any(isinstance(module, DeformConv2d) for module in network.modules())
    return OPSET if has_deform_conv else _OLDEST


def _differences(network: nn.Module, model: onnx.ModelProto) -> tuple[float, float]:
    """Largest differences of the network from its ONNX, and from itself in float64, which weights can make large."""
    image = np.random.default_rng(0).random(_TRIED, np.float32) - np.float32(0.5)
    actual = cpu_session(import_deformable(model)).run(None, {"input": image})[0]
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).numpy()
        exact = copy.deepcopy(network).double()(torch.from_numpy(image).double()).numpy()
    return float(np.abs(actual - expected).max()), float(np.abs(exact - expected).max())


def _translate(network: nn.Module, opset: int) -> onnx.ModelProto:
    network = copy.deepcopy(network)
    for name, layer in list(network.named_modules()):
        if isinstance(layer, DeformConv2d):
            network.set_submodule(name, _OneOperator(layer))
    height, width = (32 * Dim(name, min=1, max=4096) for name in ("h", "w"))
    with _silence():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, 64, 96),),
            dynamo=True,
            opset_version=opset,
            input_names=["input"],
            output_names=["pred"],
            dynamic_shapes=({0: Dim("batch"), 2: height, 3: width},),
            custom_translation_table={torch.ops.ocdserve.deform_conv.default: _translated},
            verbose=False,
        )
    return program.model_proto


def _name_nodes(graph: onnx.GraphProto, modules: Set[str]) -> None:
    """Name nodes by the modules they come from, as PyTorch's former exporter did: /backbone/layer1/layer1.0/conv1/Conv.

    A convolution that has absorbed a batch normalisation is noted under the latter; its weight still tells its module.
    """
    used: Counter[str] = Counter()
    weights = {tensor.name for tensor in graph.initializer}
    scopes: dict[str, list[str]] = {}
    for node in graph.node:
        noted = next((item.value for item in node.metadata_props if item.key == _SCOPES), None)
        if noted is None:  # added by the exporter: as far as its first input's
            scope = scopes.get(node.input[0], [""])[:-1] if node.input else [""]
        else:
            scope = [level for level in ast.literal_eval(noted)[:-1] if level in modules]
        weight = next((name for name in node.input if name in weights and name.endswith(".weight")), "")
        if node.op_type in _LAYERS and weight:
            scope = [*scope[:-1], weight.removesuffix(".weight")]
        scopes.update(dict.fromkeys(node.output, scope))
        name = "".join(f"/{_label(level)}" for level in scope if level) + f"/{node.op_type}"
        node.name = f"{name}_{used[name]}" if used[name] else name
        used[name] += 1


def _label(module: str) -> str:
    """Last part of a module's name, with the one before if it is a number: `conv1`, `layer1.0`."""
    parent, _, last = module.rpartition(".")
    return f"{parent.rpartition('.')[2]}.{last}" if last.isdigit() else last


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes, which hold paths of this machine, and the inferred sizes."""
    graph = model.graph
    for item in [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]:
        del item.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    del graph.value_info[:]


def _write_plugins(graph: onnx.GraphProto) -> None:
    """Replace `DeformConv` by the node of TensorRT's plugin, in ONNX's own domain as in TAO's exports."""
    for node in graph.node:
        if node.op_type == "DeformConv":
            x, weight, offset, _, mask = node.input
            stride = onnx.helper.get_node_attr_value(node, "strides")
            plugin = onnx.helper.make_node(
                _PLUGIN,
                [x, offset, mask, weight],
                node.output,
                node.name.removesuffix("DeformConv") + _PLUGIN,
                stride=stride,
                padding=[1, 1],
                dilation=[1, 1],
                group=1,
                deformable_group=1,
            )
            node.CopyFrom(plugin)


@contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's warnings about itself, and about torchvision, which nothing here needs."""
    # The latter also logs with a traceback that it knows no such opset, which `export_onnx` reports.
    silenced = {logging.getLogger("torch.onnx"): logging.ERROR, logging.getLogger("onnxscript"): logging.CRITICAL}
    levels = {log: log.level for log in silenced}
    for log, level in silenced.items():
        log.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)

# SPDX-License-Identifier: Apache-2.0
"""The types and times of an engine's layers: as built where there is a GPU, as requested elsewhere."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ocdserve.backend.network.rewrite.fold import INPUT
from ocdserve.builder.engine.build import parse
from ocdserve.builder.engine.options import EngineRuntime
from ocdserve.builder.engine.targets import load, present_gpu
from ocdserve.contract import UnavailableError

if TYPE_CHECKING:
    from tensorrt import ILayer, ITensor

_PRECISIONS = {"FLOAT": "FP32", "HALF": "FP16"}
# Runs that layer times are the mean of, after one that does not count.
_TIMED_RUNS = 10


@dataclass(frozen=True)
class LayerTypes:
    """Types of one layer of a parsed network, which the runtime may fuse with others.

    Attributes:
        name: Name of the ONNX node, or one that the runtime generated.
        kind: Kind of layer in the runtime's terms, for example `CONVOLUTION`.
        inputs: Type of each input tensor; after DequantizeLinear, the quantised type.
        output: Type of the first output tensor.
        precision: Requested precision: the quantised type if its first two inputs (data and weights) come from
            DequantizeLinear, else the output's. The engine's own may differ.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    output: str
    precision: str


@dataclass(frozen=True)
class BuiltLayer:
    """A layer of an engine, usually several nodes of the network in one kernel.

    Attributes:
        name: Name in the engine, composed of the nodes' names.
        kind: Kind of layer in the runtime's terms.
        formats: Types and memory formats of inputs and outputs, in the runtime's terms.
        time_ms: Mean time on the GPU, ms; None if the layer was not timed.
    """

    name: str
    kind: str
    formats: str
    time_ms: float | None


def built_layers(information: Mapping[str, Any], times_ms: Mapping[str, float]) -> list[BuiltLayer]:
    """Layers of an engine in execution order.

    Args:
        information: From `inspect_engine`.
        times_ms: From `layer_times`.
    """
    found = []
    for layer in information.get("Layers", ()):
        # An engine that was built without detailed verbosity has only names.
        parts: Mapping[str, Any] = {"Name": layer} if isinstance(layer, str) else layer
        name = str(parts.get("Name", ""))
        reads, makes = (
            ", ".join(dict.fromkeys(str(item.get("Format/Datatype", "?")) for item in parts.get(side, ())))
            for side in ("Inputs", "Outputs")
        )
        formats = f"{reads} -> {makes}" if reads or makes else ""
        found.append(BuiltLayer(name, str(parts.get("LayerType", "")), formats, times_ms.get(name)))
    return found


def describe_layers(model: onnx.ModelProto | bytes, runtime: EngineRuntime) -> list[LayerTypes]:
    """Requested types of each layer, without constants and quantisation; TensorRT-RTX needs no GPU for it.

    Raises:
        InvalidInputError: The runtime does not support the network.
        UnavailableError: The runtime is not installed.
    """
    library = load(runtime)
    if runtime == "tensorrt":
        present_gpu()
    with library.lock:
        parsed = parse(model, library)
        layers = [parsed.network.get_layer(index) for index in range(parsed.network.num_layers)]
        quantised = {
            layer.get_output(0).name: _type(layer.get_input(0)) for layer in layers if layer.type.name == "DEQUANTIZE"
        }
        return [
            _layer_types(layer, quantised)
            for layer in layers
            if layer.type.name not in ("CONSTANT", "QUANTIZE", "DEQUANTIZE") and layer.num_outputs
        ]


def inspect_engine(plan: bytes, runtime: EngineRuntime) -> dict[str, Any]:
    """Output of the runtime's engine inspector: layers as fused, with formats and types.

    Raises:
        UnavailableError: The runtime is not installed, or the plan was built for another GPU or release.
    """
    library = load(runtime)
    present_gpu()
    watch = library.watch()
    engine = library.trt.Runtime(library.logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise UnavailableError(f"{library.title} cannot load the engine: {watch.reason()}")
    text = engine.create_engine_inspector().get_engine_information(library.trt.LayerInformationFormat.JSON)
    information: dict[str, Any] = json.loads(text)
    return information


def layer_times(plan: bytes, image: NDArray[np.uint8], source: str = INPUT) -> dict[str, float]:
    """Milliseconds of each layer of a TensorRT engine on the GPU, by its name in the engine; executed by polygraphy.

    Args:
        plan: Serialised engine of a folded network.
        image: uint8 (h, w, 3).
        source: Its tensor.
    """
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    profiler = _profiler(load("tensorrt").trt)
    with TrtRunner(EngineFromBytes(plan)) as runner:
        runner.infer({source: image[None]})
        runner.context.profiler = profiler
        for _ in range(_TIMED_RUNS):
            runner.infer({source: image[None]})
    return {name: total / _TIMED_RUNS for name, total in profiler.totals_ms.items()}


def _profiler(trt: Any) -> Any:
    base: Any = trt.IProfiler

    class Totals(base):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            base.__init__(self)
            self.totals_ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals_ms[layer_name] = self.totals_ms.get(layer_name, 0.0) + ms

    return Totals()


def _layer_types(layer: "ILayer", quantised: dict[str, str]) -> LayerTypes:
    # Weights that are constants of the layer, not tensors, are not among its inputs.
    tensors = [tensor for tensor in map(layer.get_input, range(layer.num_inputs)) if tensor is not None]
    inputs = tuple(quantised.get(tensor.name) or _type(tensor) for tensor in tensors)
    output = _type(layer.get_output(0))
    operands = tensors[:2]
    has_constant_weights = layer.type.name in ("CONVOLUTION", "DECONVOLUTION") and len(operands) < 2
    is_quantised = bool(operands) and not has_constant_weights and all(item.name in quantised for item in operands)
    precision = inputs[0] if is_quantised else output
    return LayerTypes(layer.name, layer.type.name, inputs, output, f"{precision} (requested)")


def _type(tensor: "ITensor") -> str:
    name = str(tensor.dtype.name)
    return _PRECISIONS.get(name, name)

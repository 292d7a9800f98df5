# SPDX-License-Identifier: Apache-2.0
"""Load and check an exported network, convert it to a normal form, and determine how it is served.

All later steps work on the normal form: float32, opset 19 or later, standard deformable convolutions, named nodes,
folded constants, dynamic batch and size as far as the graph allows.
"""

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, version_converter

from ocdserve.backend import PRESETS
from ocdserve.backend.network.rewrite.fold import fold, load_onnx, network_ends
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.backend.spec.resize import PolicyKind, ResizePolicy
from ocdserve.builder.graph.deformable import import_deformable
from ocdserve.builder.graph.execute import GraphNetwork
from ocdserve.builder.graph.simplify import Simplified, simplify
from ocdserve.builder.graph.tensor_types import OPSET, opset_of
from ocdserve.contract import InvalidInputError

_IR_VERSION = 9
# Two sizes (height, width) of different aspect, multiples of every stride of detectors.
_TRIAL_SIZES = ((128, 192), (192, 128))
_TRIAL_BATCH = 2
_OVERSHOOT = 1e-6


@dataclass(frozen=True)
class Description:
    """An exported network in normal form.

    Attributes:
        model: The network: float32 N x 3 x H x W in, N x 1 x H x W probability out.
        spec: How it is served, with its tensor names.
        sha256: Hash of the exported file and its external data.
        aliases: Tensors of the export that the normal form lacks, and the tensors with the same values.
        size: (height, width) in pixels if the graph allows only one size; None is any multiple of the stride.
        batch: Batch size if the graph allows only one; None is any.
        notes: Findings and changes, one sentence each.
    """

    model: onnx.ModelProto
    spec: DetectorSpec
    sha256: str
    aliases: dict[str, str]
    size: tuple[int, int] | None
    batch: int | None
    notes: tuple[str, ...]


def describe(
    path: Path, preset: str | None = None, name: str | None = None, detector: DetectorSpec | None = None
) -> Description:
    """Load a network and convert it to normal form.

    Args:
        path: Exported ONNX, opset 11 or later; external data is next to it.
        preset: One of `ocdserve.backend.PRESETS`; None detects the exporter by its tensor names.
        name: Name of the detector; None takes the file's.
        detector: How the network is served, instead of a preset.

    Raises:
        InvalidInputError: The file is not a DB network, or cannot be executed; the message says what was expected.
    """
    exported = load_onnx(path)
    notes: list[str] = []
    if detector is None:
        if preset is None:
            preset = _recognised(exported, path)
            notes.append(f"recognised as an export of the preset {preset}")
        detector = PRESETS[preset]
    spec = replace(detector, name=name or path.stem)
    try:
        source, target = network_ends(exported, spec.network)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path.name}: {error}") from error
    spec = replace(spec, network=replace(spec.network, input=source.name, output=target.name))
    upgraded = _upgraded(_only_output(exported, target.name), path)
    opset = opset_of(exported)
    if opset < OPSET:
        notes.append(f"opset raised from {opset} to {OPSET}")
    simplified, batch, size = _as_dynamic(upgraded, spec, path)
    merged = len(exported.graph.node) - len(simplified.model.graph.node)
    if merged > 0:
        notes.append(f"{merged} of {len(exported.graph.node)} nodes folded, merged or dropped")
    if size is not None:
        spec = replace(spec, resize=_one_size(spec.resize, size))
        notes.append(f"the graph allows one size only: {size[1]} x {size[0]} (width x height)")
    if batch is not None:
        notes.append("the graph allows one image at a time only")
    _check_probabilities(simplified.model, spec, path)
    return Description(simplified.model, spec, file_sha256(path), simplified.aliases, size, batch, tuple(notes))


def file_sha256(path: Path) -> str:
    """Hash of an ONNX file and its external data, hexadecimal."""
    files = {
        entry.value
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    digest = hashlib.sha256(path.read_bytes())
    for name in sorted(files):
        digest.update((path.parent / name).read_bytes())
    return digest.hexdigest()


def network_size(spec: DetectorSpec) -> tuple[int, int]:
    """(height, width) in pixels of the reference image, 1280 x 736 as served, for figures such as multiplications."""
    size, _ = spec.resize.sizes(736, 1280)
    return size


def _recognised(model: onnx.ModelProto, path: Path) -> str:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    outputs = [value.name for value in model.graph.output]
    if inputs == ["input"] and outputs == ["pred"]:
        return "ocdnet"
    paddle = ("fetch_name_", "sigmoid_", "save_infer_model", "p2o.")
    if inputs == ["x"] and len(outputs) == 1 and outputs[0].startswith(paddle):
        return "ppocr"
    raise InvalidInputError(
        f"{path.name}: inputs {inputs} and outputs {outputs} are not those of a known exporter, so that "
        f"normalisation and resizing are unknown. Name the preset: {', '.join(PRESETS)}."
    )


def _only_output(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The network without other outputs (training heads), whose nodes the simplification drops later."""
    result = copy.deepcopy(model)
    kept = [value for value in result.graph.output if value.name == output]
    del result.graph.output[:]
    result.graph.output.extend(kept)
    return result


def _upgraded(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    try:
        # First, because the converter rejects custom nodes.
        result = import_deformable(model)
        if opset_of(result) < OPSET:
            result = version_converter.convert_version(result, OPSET)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path.name}: {error}") from error
    except Exception as error:  # the converter raises RuntimeError and its own types
        raise InvalidInputError(
            f"{path.name}: opset {opset_of(model)} cannot be raised to {OPSET}: {' '.join(str(error).split())[:300]}. "
            f"Export with opset {OPSET}."
        ) from error
    result.ir_version = max(result.ir_version, _IR_VERSION)
    return result


def _as_dynamic(
    model: onnx.ModelProto, spec: DetectorSpec, path: Path
) -> tuple[Simplified, int | None, tuple[int, int] | None]:
    """The simplified network with as many dynamic dimensions as it supports, its fixed batch and its fixed size."""
    shape = network_ends(model, spec.network)[0].type.tensor_type.shape.dim
    size = (shape[2].dim_value, shape[3].dim_value) if shape[2].dim_value and shape[3].dim_value else None
    failure: Exception | None = None
    for batch, wanted in dict.fromkeys([(None, None), (None, size), (1, None), (1, size)]):
        # Before the simplification, which would otherwise fold the sizes of the export.
        simplified = simplify(_with_shape(model, spec, batch, wanted))
        try:
            _try_sizes(simplified.model, spec, batch, wanted)
        except Exception as error:  # each runtime has exceptions of its own
            failure = failure or error
        else:
            return simplified, batch, wanted
    raise InvalidInputError(
        f"{path.name} cannot be executed, so it is not a DB network: {' '.join(str(failure).split())[:300]}"
    ) from failure


def _with_shape(
    model: onnx.ModelProto, spec: DetectorSpec, batch: int | None, size: tuple[int, int] | None
) -> onnx.ModelProto:
    result = copy.deepcopy(model)
    del result.graph.value_info[:]
    source, target = network_ends(result, spec.network)
    height, width = size or (None, None)
    for value, channels in ((source, 3), (target, 1)):
        value.type.tensor_type.shape.Clear()
        dims = (batch, "batch"), (channels, ""), (height, "height"), (width, "width")
        for number, symbol in dims:
            dim = value.type.tensor_type.shape.dim.add()
            if number is None:
                dim.dim_param = symbol
            else:
                dim.dim_value = number
    return result


def _try_sizes(model: onnx.ModelProto, spec: DetectorSpec, batch: int | None, size: tuple[int, int] | None) -> None:
    network = GraphNetwork(fold(model, spec.network, "float32"))
    for height, width in _TRIAL_SIZES if size is None else (size,):
        for count in (1, _TRIAL_BATCH) if batch is None else (batch,):
            maps = network.infer_batch(np.zeros((count, height, width, 3), np.uint8))
            if maps.shape != (count, height, width):
                raise InvalidInputError(
                    f"the output must have the input's height and width {(height, width)}; got {maps.shape[1:]}. "
                    "A network whose map is smaller is not supported."
                )


def _one_size(policy: ResizePolicy, size: tuple[int, int]) -> ResizePolicy:
    """A policy for one size; policies that keep the aspect ratio still do."""
    height, width = size
    kind: PolicyKind = "fixed" if policy.kind == "fixed" else "letterbox"
    return replace(policy, kind=kind, width=width, height=height)


def _check_probabilities(model: onnx.ModelProto, spec: DetectorSpec, path: Path) -> None:
    height, width = network_size(spec)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    (probability,) = GraphNetwork(fold(model, spec.network, "float32")).infer([pixels])
    low, high = float(probability.min()), float(probability.max())
    # Sigmoids of runtimes overshoot in the last digit.
    if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        raise InvalidInputError(
            f"{path.name}: the output must be probabilities from 0 to 1; got {low:.3g} to {high:.3g}. "
            "Export the network with its sigmoid."
        )

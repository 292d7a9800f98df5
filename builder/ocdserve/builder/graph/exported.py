# SPDX-License-Identifier: Apache-2.0
"""What is done to every exported graph on its way to a normal form, whatever the kind of network."""

import copy
import hashlib
from pathlib import Path

import onnx
from onnx import TensorProto, version_converter

from ocdserve.builder.graph.deformable import import_deformable
from ocdserve.builder.graph.ends import ExportOptions, to_float32
from ocdserve.builder.graph.tensor_types import OPSET, opset_of
from ocdserve.contract import InvalidInputError

_IR_VERSION = 9


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


def takes_pixels(source: onnx.ValueInfoProto, export: ExportOptions) -> bool:
    """Whether an input is uint8, so that the network normalises itself.

    Raises:
        InvalidInputError: It is, and the options name a normalisation.
    """
    if source.type.tensor_type.elem_type != TensorProto.UINT8:
        return False
    if export.mean or export.std:
        raise InvalidInputError(
            f"input {source.name!r} is uint8, so that the network normalises itself: drop --mean and --std"
        )
    return True


def in_float32(
    model: onnx.ModelProto, source: onnx.ValueInfoProto, target: onnx.ValueInfoProto, notes: list[str]
) -> onnx.ModelProto:
    """The network in FP32 if an end of it is FP16, at opset 19."""
    if TensorProto.FLOAT16 in (source.type.tensor_type.elem_type, target.type.tensor_type.elem_type):
        notes.append("the export is FP16: brought to FP32, which a build may lower again")
        model = to_float32(model)
    return upgraded(model)


def only_output(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The network without other outputs (training heads), whose nodes the simplification drops later."""
    result = copy.deepcopy(model)
    kept = [value for value in result.graph.output if value.name == output]
    del result.graph.output[:]
    result.graph.output.extend(kept)
    return result


def upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network at opset 19 or later, with standard deformable convolutions.

    Raises:
        InvalidInputError: It cannot be raised.
    """
    try:
        # First, because the converter rejects custom nodes.
        result = import_deformable(model)
        if opset_of(result) < OPSET:
            result = version_converter.convert_version(result, OPSET)
    except InvalidInputError:
        raise
    except Exception as error:  # the converter raises RuntimeError and its own types
        raise InvalidInputError(
            f"opset {opset_of(model)} cannot be raised to {OPSET}: {' '.join(str(error).split())[:300]}. "
            f"Export with opset {OPSET}."
        ) from error
    result.ir_version = max(result.ir_version, _IR_VERSION)
    return result

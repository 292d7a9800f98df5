# SPDX-License-Identifier: Apache-2.0
"""Bundles that packages ship: small files, and a report of what the weights were made from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ocdserve.backend import Bundle, DetectorSpec
from ocdserve.backend.network.rewrite.graph_reader import with_nodes
from ocdserve.builder.build import build
from ocdserve.builder.config import BuildConfig

# Constants with fewer elements stay as they are: they are 1 % of the file, and hold what is not a weight.
_LEAST = 256


def pack(source: Path, spec: DetectorSpec, report: Mapping[str, Any], folder: Path) -> Bundle:
    """Build the bundle of a trained detector, with its weights in float16, which every loading makes float32 again.

    Args:
        source: The network in float32, ONNX.
        spec: How it is served, and its name.
        report: What `report.json` says besides a build's entries: under `weights` their `origin` and `licence`, and
            what was trained on and measured.
        folder: Where the bundle is written; it must not exist yet.

    Returns:
        The bundle as written. Its weights are rounded: measure it, not `source`.

    Raises:
        InvalidInputError: As `ocdserve.builder.build.build`.
    """
    # No trial: who trained it judges it, on more than a page.
    bundle = build(BuildConfig(source, folder, detector=spec, name=spec.name, gate=False, trial=False))
    onnx.save(with_half_weights(onnx.load(str(bundle.model_path))), str(bundle.model_path))
    path = folder / "report.json"
    content = {**json.loads(path.read_text("utf-8")), **report}
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    bundle.write_manifest()
    return bundle


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with its large float32 constants rounded to float16 and cast to float32 where the graph begins.

    Constants that float16 cannot hold, above 65,504, stay as they are.
    """
    halves, casts = {}, []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        value = numpy_helper.to_array(tensor)
        if value.size < _LEAST or np.abs(value).max() > np.finfo(np.float16).max:
            continue
        name = f"{tensor.name}/half"
        casts.append(helper.make_node("Cast", [name], [tensor.name], name=name, to=TensorProto.FLOAT))
        halves[tensor.name] = numpy_helper.from_array(value.astype(np.float16), name)
    result = with_nodes(model, [*casts, *model.graph.node], ())
    for tensor in result.graph.initializer:
        if tensor.name in halves:
            tensor.CopyFrom(halves[tensor.name])
    return result

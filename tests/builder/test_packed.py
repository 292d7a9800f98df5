# SPDX-License-Identifier: Apache-2.0
"""Bundles with weights in float16: what their files hold, and what the networks in them compute."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from ocdserve.backend import PRESETS, Bundle
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.builder.explain import explain
from ocdserve.builder.packed import pack, with_half_weights

REPORT = {"weights": {"origin": "drawn", "licence": "Apache-2.0"}, "hmean": 0.9}


@pytest.fixture
def network(small_network: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """One of its weights has 256 elements or more: `b_w`, 576."""
    return small_network()


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    mean, std = (np.array(values).reshape(3, 1, 1) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    planes = ((pixels.transpose(2, 0, 1) - mean) / std).astype(np.float32)
    found: NDArray[np.float32] = session.run(None, {"x": planes[None]})[0][0, 0]
    return found


def test_a_packed_bundle_computes_with_its_weights_rounded_to_float16(network: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(network, str(tmp_path / "trained.onnx"))
    bundle = pack(tmp_path / "trained.onnx", PRESETS["dbnet"], REPORT, tmp_path / "packed")

    assert Bundle.load(tmp_path / "packed", require_manifest=True) == bundle
    stored = [
        tensor
        for tensor in onnx.load(str(bundle.model_path)).graph.initializer
        if tensor.data_type == TensorProto.FLOAT16
    ]
    assert [list(tensor.dims) for tensor in stored] == [[8, 8, 3, 3]]
    (weights,) = (tensor for tensor in network.graph.initializer if tensor.name == "b_w")
    rounded = numpy_helper.to_array(weights).astype(np.float16).astype(np.float32)
    assert (rounded != numpy_helper.to_array(weights)).any()
    weights.CopyFrom(numpy_helper.from_array(rounded, "b_w"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    expected = run(network, pixels)
    for runtime in ("onnxruntime", "openvino"):
        (found,) = load_network(bundle, RuntimeOptions(runtime, 1, map_type="float32")).infer([pixels])
        assert np.abs(found - expected).max() < 1e-5
    # Those who know nothing of us load the file too.
    assert np.abs(run(onnx.load(str(bundle.model_path)), pixels) - expected).max() < 1e-5


def test_the_report_says_how_it_was_built_and_what_the_weights_come_from(
    network: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save(network, str(tmp_path / "trained.onnx"))
    bundle = pack(tmp_path / "trained.onnx", PRESETS["dbnet"], REPORT, tmp_path / "packed")
    report = json.loads((tmp_path / "packed" / "report.json").read_text("utf-8"))
    assert report["weights"] == {"origin": "drawn", "licence": "Apache-2.0"} and report["hmean"] == 0.9
    assert report["onnx"] == "trained.onnx" and report["precision"] == "fp32"
    assert explain(bundle).startswith("trained.onnx in fp32")


def test_a_packed_bundle_is_served_as_its_specification_says(network: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(network, str(tmp_path / "trained.onnx"))
    spec = replace(PRESETS["dbnet"], name="packed", precision="bf16")
    bundle = pack(tmp_path / "trained.onnx", spec, REPORT, tmp_path / "packed")
    assert (bundle.spec.name, bundle.spec.precision, bundle.spec.resize) == ("packed", "bf16", spec.resize)


def test_constants_that_float16_cannot_hold_stay(network: onnx.ModelProto) -> None:
    (weights,) = (tensor for tensor in network.graph.initializer if tensor.name == "b_w")
    value = numpy_helper.to_array(weights).copy()
    value[0, 0, 0, 0] = 65_505
    weights.CopyFrom(numpy_helper.from_array(value, "b_w"))
    assert with_half_weights(network) == network

# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ocdserve.builder.graph.float16_limits import float_tensors, overflowing
from ocdserve.builder.graph.float16_write import rounded_float16, to_float16
from ocdserve.builder.graph.quantise import Layer, quantise
from ocdserve.builder.graph.simplify import simplify
from ocdserve.contract import InvalidInputError


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]
    return {value.name: value.type.tensor_type.elem_type for value in values}


def chain(first: float, second: float) -> onnx.ModelProto:
    """x -> 1 x 1 convolution with one weight -> another one -> y."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "a"], ["h"], "first"), helper.make_node("Conv", ["h", "b"], ["y"], "second")],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [
            numpy_helper.from_array(np.full((1, 1, 1, 1), value, np.float32), name)
            for name, value in (("a", first), ("b", second))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.fixture
def model(small_network: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    return simplify(small_network()).model


class TestToFloat16:
    def test_all_computes_in_fp16_between_float32_ends(self, model: onnx.ModelProto) -> None:
        typed = to_float16(model)
        onnx.checker.check_model(typed, full_check=True)
        found = types(typed)
        assert found["x"] == found["p"] == TensorProto.FLOAT
        assert {found[name] for name in ("s2", "a1", "b0", "r1", "j", "c2", "h")} == {TensorProto.FLOAT16}
        assert all(tensor.data_type == TensorProto.FLOAT16 for tensor in typed.graph.initializer)
        assert sum(node.op_type == "Cast" for node in typed.graph.node) == 2

    def test_named_nodes_stay_float32(self, model: onnx.ModelProto) -> None:
        typed = to_float16(model, ["b"])
        found = types(typed)
        assert found["b0"] == TensorProto.FLOAT and found["c2"] == TensorProto.FLOAT16
        constants = {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
        assert constants["b_w"] == TensorProto.FLOAT

    def test_an_unknown_node_is_refused(self, model: onnx.ModelProto) -> None:
        with pytest.raises(InvalidInputError, match="no nodes called nonsense"):
            to_float16(model, ["nonsense"])

    def test_scales_of_quantised_layers_are_fp16(self, model: onnx.ModelProto) -> None:
        typed = to_float16(quantise(model, [Layer("a", "convolution", "d0", 1)], {"d0": 0.05}))
        onnx.checker.check_model(typed, full_check=True)
        constants = {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
        scales = [node.input[1] for node in typed.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert len(scales) == 3 and {constants[name] for name in scales} == {TensorProto.FLOAT16}
        assert constants["a.weight/quantised"] == TensorProto.INT8

    def test_tensorrt_rtx_takes_it(self, model: onnx.ModelProto) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")
        from ocdserve.builder.engine.layers import describe_layers

        quantised = quantise(model, [Layer("a", "convolution", "d0", 1)], {"d0": 0.05})
        rows = {row.name: row.precision for row in describe_layers(to_float16(quantised), "tensorrt-rtx")}
        assert rows["a"].startswith("INT8") and rows["b"].startswith("FP16")


class TestRoundedFloat16:
    def test_every_tensor_is_rounded(self) -> None:
        x = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype("f")
        half = np.float16
        expected = half(half(half(x).astype("f") * np.float32(half(0.3))).astype("f") * np.float32(half(0.7)))
        assert np.array_equal(run(rounded_float16(chain(0.3, 0.7)), x), expected.astype("f"))

    def test_overflow_is_visible_that_a_cpu_runtime_hides(self) -> None:
        x = np.full((1, 1, 2, 2), 1000, np.float32)
        network = chain(1000, 0.001)
        assert np.isinf(run(rounded_float16(network), x)).all()
        assert np.isinf(run(rounded_float16(network, ["second"]), x)).all()
        np.testing.assert_allclose(run(rounded_float16(network, ["first", "second"]), x), 1000, rtol=1e-6)

    def test_agrees_with_the_typed_graph(self, model: onnx.ModelProto) -> None:
        x = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype("f")
        np.testing.assert_allclose(run(rounded_float16(model), x), run(to_float16(model), x), atol=2e-3)


class TestOverflowing:
    def test_producers_and_consumers_of_a_wide_tensor_are_kept(self) -> None:
        network = chain(1000, 0.001)
        assert set(float_tensors(network)) == {"x", "h", "y"}
        limits = overflowing({"x": 1000, "h": 20000, "y": 20}, network)
        assert set(limits.keep_float32) == {"first", "second"}
        assert (limits.tensors[0].tensor, limits.tensors[0].verdict) == ("h", "overflows")
        assert limits.tensors[0].headroom == pytest.approx(65504 / 20000)

    def test_the_margin_decides(self) -> None:
        network = chain(1, 1)
        found = {"x": 1, "h": 65504 / 4, "y": 1}
        assert overflowing(found, network).keep_float32 == ()
        assert overflowing(found, network, margin=4.001).keep_float32 == ("first", "second")

    def test_tiny_tensors_are_reported(self) -> None:
        limits = overflowing({"x": 1, "h": 1e-6, "y": 1}, chain(1, 1))
        assert limits.tensors[-1].verdict == "vanishes" and limits.keep_float32 == ()

    def test_a_tensor_that_was_not_measured_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="'h'"):
            overflowing({"x": 1, "y": 1}, chain(1, 1))

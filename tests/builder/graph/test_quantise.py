# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ocdserve.builder.graph.quantise import Layer, equal_scales, layers, placement, quantise, share
from ocdserve.builder.graph.simplify import simplify
from ocdserve.contract import InvalidInputError

# For an input of 16 x 16 pixels; all between stem and head is 8 x 8.
SHAPES = {
    "x": [1, 3, 16, 16],
    **{name: [1, 8, 8, 8] for name in ("s1", "s2", "d0", "a0", "a1", "b0", "c1", "c2")},
    "j": [1, 16, 8, 8],
    "h": [1, 1, 16, 16],
}


@pytest.fixture
def model(small_network: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    return simplify(small_network()).model


def weights(model: onnx.ModelProto, node: str) -> np.ndarray:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    value: np.ndarray = next(constants[item.input[1]] for item in model.graph.node if item.name == node)
    return value


def run(model: onnx.ModelProto, x: np.ndarray, output: str | None = None) -> np.ndarray:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    if output:
        probe.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    value: np.ndarray = session.run([output or "p"], {"x": x})[0]
    return value


class TestLayers:
    def test_kinds_tensors_and_multiplications(self, model: onnx.ModelProto) -> None:
        assert layers(model, SHAPES) == (
            Layer("stem", "stem", "x", 8 * 3 * 9 * 64),
            Layer("dw", "depthwise", "s2", 8 * 9 * 64),
            Layer("a", "convolution", "d0", 8 * 8 * 64),
            Layer("b", "convolution", "a1", 8 * 8 * 9 * 64),
            Layer("residual", "residual", "s2", 0),
            Layer("c", "convolution", "j", 8 * 16 * 64),
            Layer("head", "transposed", "c2", 8 * 4 * 64),
        )

    def test_a_convolution_of_one_pixel_is_a_gate(self, model: onnx.ModelProto) -> None:
        found = layers(model, SHAPES | {"a1": [1, 8, 1, 1]})
        assert next(layer.kind for layer in found if layer.name == "b") == "pooled"

    def test_share_counts_multiplications(self, model: onnx.ModelProto) -> None:
        found = layers(model, SHAPES)
        total = 64 * (216 + 72 + 64 + 576 + 128 + 32)
        assert share([found[3]], found) == pytest.approx(64 * 576 / total)


class TestPlacement:
    def test_sensitive_kinds_stay_and_the_skip_input_follows_its_sum(self, model: onnx.ModelProto) -> None:
        # The sum goes through its activation into a concatenation only, whose own output is quantised: no skip scale.
        names = [layer.name for layer in placement(model, layers(model, SHAPES))]
        assert names == ["a", "b", "c"]

    def test_the_skip_input_is_quantised_where_a_convolution_reads_the_sum(self, model: onnx.ModelProto) -> None:
        direct = onnx.ModelProto()
        direct.CopyFrom(model)
        for node in direct.graph.node:
            if node.name == "join":
                node.op_type = "Add"
                del node.attribute[:]
            if node.name == "c":
                node.input[0] = "r1"
        names = [layer.name for layer in placement(direct, layers(direct, SHAPES | {"r1": [1, 8, 8, 8]}))]
        assert names == ["a", "b", "residual", "c"]

    def test_named_layers_stay(self, model: onnx.ModelProto) -> None:
        names = [layer.name for layer in placement(model, layers(model, SHAPES), keep=["b"])]
        assert names == ["a", "c"]

    def test_an_unknown_layer_is_refused(self, model: onnx.ModelProto) -> None:
        with pytest.raises(InvalidInputError, match="no layers nonsense"):
            placement(model, layers(model, SHAPES), keep=["nonsense"])


class TestQuantise:
    @pytest.mark.parametrize(("openvino", "largest"), [(False, 127), (True, 63)])
    def test_a_layer_computes_with_rounded_input_and_weights(
        self, model: onnx.ModelProto, openvino: bool, largest: int
    ) -> None:
        chosen = [layer for layer in layers(model, SHAPES) if layer.name == "a"]
        scale = 0.01
        x = np.random.default_rng(4).normal(size=(1, 3, 16, 16)).astype("f")
        found = run(quantise(model, chosen, {"d0": scale}, openvino=openvino), x, "a0")
        rounded = np.clip(np.rint(run(model, x, "d0") / np.float32(scale)), -128, 127) * scale
        kernel = weights(model, "a")[:, :, 0, 0]
        steps = np.abs(kernel).max(axis=1, keepdims=True) / largest
        expected = np.einsum("oc,nchw->nohw", np.rint(kernel / steps) * steps, rounded)
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_bias_and_outputs_have_no_scale(self, model: onnx.ModelProto) -> None:
        chosen = placement(model, layers(model, SHAPES))
        result = quantise(model, chosen, {"d0": 0.1, "a1": 0.1, "j": 0.1})
        quantised = [node.input[0] for node in result.graph.node if node.op_type == "QuantizeLinear"]
        assert sorted(quantised) == ["a1", "d0", "j"]
        layer = next(node for node in result.graph.node if node.name == "b")
        assert (layer.input[0], layer.input[2]) == ("a1/dequantised", "b_b")
        onnx.checker.check_model(result, full_check=True)

    @pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-1.0, 0.5)])
    def test_openvino_computes_a_layer_and_its_mean_as_onnxruntime_does(self, low: float, high: float) -> None:
        """As in squeeze-and-excitation, where large weights meet large values: both went wrong without VNNI."""
        openvino = pytest.importorskip("openvino", reason="OpenVINO is part of the extra 'server'")
        random = np.random.default_rng(0)
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], "layer"),
            helper.make_node("GlobalAveragePool", ["c"], ["m"], "mean"),
            helper.make_node("Mul", ["c", "m"], ["p"], "gate"),
        ]
        exported = helper.make_model(
            helper.make_graph(
                nodes,
                "gated",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32, "H", "W"])],
                [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 16, "H", "W"])],
                [numpy_helper.from_array(random.normal(0.05, 0.1, (16, 32, 1, 1)).astype(np.float32), "w")],
            ),
            opset_imports=[helper.make_opsetid("", 19)],
            ir_version=9,
        )
        model = quantise(exported, [Layer("layer", "convolution", "x", 1)], {"x": 1 / 127}, openvino=True)
        x = random.uniform(low, high, (1, 32, 24, 40)).astype(np.float32)
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
        exact = run(exported, x)
        assert np.abs(compiled([x])[0] - exact).max() < 0.02 * np.abs(exact).max()

    def test_weights_are_stored_in_eight_bits_with_one_scale_per_channel(self, model: onnx.ModelProto) -> None:
        chosen = [layer for layer in layers(model, SHAPES) if layer.name == "b"]
        result = quantise(model, chosen, {"a1": 0.1})
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
        whole, scale = constants["b.weight/quantised"], constants["b.weight/scale"]
        assert whole.dtype == np.int8 and np.abs(whole).max() == 127
        np.testing.assert_allclose(scale, np.abs(weights(model, "b")).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
        assert "b_w" not in constants

    def test_tiny_scales_are_exact_in_float16(self, model: onnx.ModelProto) -> None:
        """As of channels that training has switched off; FP16 would lose them, and with them the INT8 layer."""
        chosen = [layer for layer in layers(model, SHAPES) if layer.name == "b"]
        for tensor in model.graph.initializer:
            if tensor.name == "b_w":
                kernel = numpy_helper.to_array(tensor).copy()
                kernel[0], kernel[1], kernel[2] = kernel[0] * 1e-4, kernel[1] * 1e-12, 0
                tensor.CopyFrom(numpy_helper.from_array(kernel, "b_w"))
        result = quantise(model, chosen, {"a1": 3e-6})
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
        for name in ("b.weight/scale", "a1/scale"):
            tiny = constants[name][constants[name] < 2.0**-14]
            assert tiny.size and np.array_equal(tiny, tiny.astype(np.float16).astype(np.float32)) and (tiny > 0).all()
        assert constants["a1/scale"] == pytest.approx(3e-6, rel=0.02) and constants["a1/scale"] >= np.float32(3e-6)
        # One number of FP16 is 2^-24; about sixteen of them make a scale of 1e-6.
        assert 115 <= np.abs(constants["b.weight/quantised"][0].astype(int)).max() <= 127
        assert not constants["b.weight/quantised"][2].any()

    def test_other_readers_of_a_tensor_see_it_unrounded(self, model: onnx.ModelProto) -> None:
        chosen = [layer for layer in layers(model, SHAPES) if layer.name == "b"]
        result = quantise(model, chosen, {"a1": 0.1})
        join = next(node for node in result.graph.node if node.name == "join")
        assert list(join.input) == ["r1", "a1"]

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
    def test_an_invalid_scale_is_refused(self, model: onnx.ModelProto, scale: float) -> None:
        chosen = [layer for layer in layers(model, SHAPES) if layer.name == "a"]
        with pytest.raises(InvalidInputError, match="d0"):
            quantise(model, chosen, {"d0": scale})

    def test_a_missing_scale_is_refused(self, model: onnx.ModelProto) -> None:
        with pytest.raises(InvalidInputError, match="1 tensors have no scale"):
            quantise(model, [layer for layer in layers(model, SHAPES) if layer.name == "a"], {})

    def test_fp8_weights_are_float8(self, model: onnx.ModelProto) -> None:
        chosen = [layer for layer in layers(model, SHAPES) if layer.name == "a"]
        result = quantise(model, chosen, {"d0": 0.01}, "fp8")
        types = {tensor.name: tensor.data_type for tensor in result.graph.initializer}
        assert types["a.weight/quantised"] == types["d0/zero"] == onnx.TensorProto.FLOAT8E4M3FN
        onnx.checker.check_model(result, full_check=True)


class TestEqualScales:
    def test_tensors_of_a_concatenation_take_the_largest_scale(self, model: onnx.ModelProto) -> None:
        assert equal_scales(model, {"r1": 0.1, "a1": 0.3, "j": 0.2, "d0": 0.4}) == {
            "r1": 0.3,
            "a1": 0.3,
            "j": 0.3,
            "d0": 0.4,
        }

    def test_without_a_scale_behind_it_nothing_changes(self, model: onnx.ModelProto) -> None:
        assert equal_scales(model, {"r1": 0.1, "a1": 0.3}) == {"r1": 0.1, "a1": 0.3}

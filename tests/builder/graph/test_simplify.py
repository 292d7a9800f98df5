# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ocdserve.builder.graph.simplify import simplify


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {model.graph.input[0].name: x})[0]
    return result


def one_after_conv(op: str, other: np.ndarray, first: bool = True, kind: str = "Conv") -> onnx.ModelProto:
    """x -> convolution of two input and three output channels -> op with a constant -> y."""
    weights = np.random.default_rng(0).normal(size=(3, 2, 3, 3) if kind == "Conv" else (2, 3, 3, 3))
    inputs = ["c", "k"] if first else ["k", "c"]
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["c"], "conv"), helper.make_node(op, inputs, ["y"], "after")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights.astype("f"), "w"), numpy_helper.from_array(other.astype("f"), "k")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


class TestSimplify:
    def test_the_function_stays_the_same(self, small_network: Callable[..., onnx.ModelProto]) -> None:
        model = small_network()
        x = np.random.default_rng(1).normal(size=(2, 3, 32, 64)).astype("f")
        np.testing.assert_allclose(run(simplify(model).model, x), run(model, x), atol=1e-6)

    def test_batch_normalisation_bias_and_identity_are_gone(
        self, small_network: Callable[..., onnx.ModelProto]
    ) -> None:
        simplified = simplify(small_network())
        operators = Counter(node.op_type for node in simplified.model.graph.node)
        assert operators == {"Conv": 5, "Relu": 4, "Add": 1, "Concat": 1, "ConvTranspose": 1, "Sigmoid": 1}
        assert simplified.aliases == {"d1": "d0"}

    def test_the_argument_is_not_changed(self, small_network: Callable[..., onnx.ModelProto]) -> None:
        model = small_network()
        before = model.SerializeToString()
        simplify(model)
        assert model.SerializeToString() == before

    def test_an_identity_before_the_output_leaves_the_output_its_name(self) -> None:
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["r"], "relu"), helper.make_node("Identity", ["r"], ["y"], "last")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        simplified = simplify(model)
        assert [node.op_type for node in simplified.model.graph.node] == ["Relu"]
        assert simplified.aliases == {"r": "y"}
        assert run(simplified.model, np.array([-1, 2], "f")).tolist() == [0, 2]

    def test_nodes_without_a_name_get_one_each(self) -> None:
        model = one_after_conv("Add", np.ones((1, 3, 1, 1)))
        for node in model.graph.node:
            node.name = ""
        names = [node.name for node in simplify(model).model.graph.node]
        assert all(names) and len(set(names)) == len(names)

    @pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
    @pytest.mark.parametrize("op", ["Add", "Mul"])
    @pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 1, 1), (1, 1, 1, 1), ()])
    @pytest.mark.parametrize("first", [True, False])
    def test_per_channel_arithmetic_is_merged(self, kind: str, op: str, shape: tuple[int, ...], first: bool) -> None:
        model = one_after_conv(op, np.random.default_rng(2).normal(size=shape), first, kind)
        simplified = simplify(model).model
        assert [node.op_type for node in simplified.graph.node] == [kind]
        x = np.random.default_rng(1).normal(size=(1, 2, 7, 6)).astype("f")
        np.testing.assert_allclose(run(simplified, x), run(model, x), atol=1e-5)

    @pytest.mark.parametrize("shape", [(1, 1, 1, 4), (3, 4, 1), (2, 3, 1, 1), (1, 1, 3, 1, 1)])
    def test_other_arithmetic_is_not(self, shape: tuple[int, ...]) -> None:
        model = one_after_conv("Add", np.random.default_rng(2).normal(size=shape))
        assert [node.op_type for node in simplify(model).model.graph.node] == ["Conv", "Add"]

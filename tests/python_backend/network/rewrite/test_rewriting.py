# SPDX-License-Identifier: Apache-2.0
"""Rewritten graphs compute what the graphs computed, by ONNX Runtime; others stay as they are."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ocdserve.backend import Bundle, DetectorSpec
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.rewrite.concatenation import split_concatenations
from ocdserve.backend.network.rewrite.fold import REWRITES, fold, folded_network, load_onnx
from ocdserve.backend.network.rewrite.gates import average_before_widening, merge_residual_gates
from ocdserve.backend.network.rewrite.graph_reader import without_unused_nodes
from ocdserve.backend.network.rewrite.wide_weights import with_wide_weights


def model_of(nodes: list[onnx.NodeProto], channels: dict[str, int], **constants: NDArray[Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, f"{name}_h", f"{name}_w"])
            for name, count in channels.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def run(model: onnx.ModelProto, inputs: dict[str, NDArray[Any]]) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def pyramid(rng: np.random.Generator, kernel: int, factors: tuple[int, ...], **changes: Any) -> onnx.ModelProto:
    """Maps of several scales, enlarged by repeating pixels, concatenated and convolved."""
    resize = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    resize |= changes.get("resize", {})
    nodes, constants, channels, sources = [], {}, {}, []
    for index, factor in enumerate(factors):
        name = f"x{index}"
        channels[name] = index + 2
        if factor > 1:
            constants[f"s{index}"] = np.array([1, 1, factor, factor], np.float32)
            nodes.append(helper.make_node("Resize", [name, "", f"s{index}"], [f"up{index}"], **resize))
            nodes.append(helper.make_node("Identity", [f"up{index}"], [f"same{index}"]))
            name = f"same{index}"
        sources.append(name)
    group = changes.get("group", 1)
    constants["w"] = rng.standard_normal((4, sum(channels.values()) // group, kernel, kernel)).astype(np.float32)
    constants["b"] = rng.standard_normal(4).astype(np.float32)
    convolution = {"pads": [kernel // 2] * 4, "group": group} | changes.get("convolution", {})
    nodes.append(helper.make_node("Concat", sources, ["all"], axis=1))
    nodes.append(helper.make_node("Conv", ["all", "w", "b"], ["y"], **convolution))
    return model_of(nodes, channels, **constants)


def maps(rng: np.random.Generator, factors: tuple[int, ...], height: int, width: int) -> dict[str, NDArray[Any]]:
    return {
        f"x{index}": rng.standard_normal((1, index + 2, height // factor, width // factor)).astype(np.float32)
        for index, factor in enumerate(factors)
    }


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("factors", [(8, 4, 2, 1), (2, 2), (1, 1), (4, 1, 3)])
def test_a_convolved_pyramid_is_a_sum_of_convolutions(
    rng: np.random.Generator, kernel: int, factors: tuple[int, ...]
) -> None:
    model = pyramid(rng, kernel, factors)
    changed = split_concatenations(model)
    enlarged = sum(factor > 1 for factor in factors)
    assert kinds(changed).count("ConvTranspose") == enlarged
    assert kinds(changed).count("Conv") == len(factors) - enlarged
    inputs = maps(rng, factors, 24, 48)
    np.testing.assert_allclose(run(changed, inputs), run(model, inputs), rtol=1e-5, atol=5e-5)


def test_the_exporters_other_way_of_repeating_is_known(rng: np.random.Generator) -> None:
    model = pyramid(
        rng,
        3,
        (2, 4, 1),
        resize={"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"},
    )
    changed = split_concatenations(model)
    assert kinds(changed).count("ConvTranspose") == 2
    inputs = maps(rng, (2, 4, 1), 16, 24)
    np.testing.assert_allclose(run(changed, inputs), run(model, inputs), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": {"nearest_mode": "ceil"}},
        {"resize": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}},
        {"convolution": {"strides": [2, 2]}},
        {"convolution": {"dilations": [2, 2], "pads": [2, 2, 2, 2]}},
        {"convolution": {"pads": [0, 0, 1, 1]}},
    ],
    ids=["ceil", "linear", "strides", "dilations", "pads"],
)
def test_another_enlargement_is_split_only(rng: np.random.Generator, changes: dict[str, Any]) -> None:
    model = pyramid(rng, 3, (2, 1), **changes)
    changed = split_concatenations(model)
    assert kinds(changed).count("ConvTranspose") == 0 and kinds(changed).count("Conv") == 2
    inputs = maps(rng, (2, 1), 16, 24)
    np.testing.assert_allclose(run(changed, inputs), run(model, inputs), rtol=1e-5, atol=5e-5)


def test_a_grouped_convolution_stays_as_it_is(rng: np.random.Generator) -> None:
    model = pyramid(rng, 3, (1, 1, 1), group=3)
    assert split_concatenations(model) is model


def test_a_convolution_of_one_tensor_stays_as_it_is(rng: np.random.Generator) -> None:
    weights = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": 3}, w=weights)
    assert split_concatenations(model) is model and merge_residual_gates(model) is model


@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual_gate_is_one_product(rng: np.random.Generator, swapped: bool) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Sigmoid", ["mean"], ["gate"]),
        helper.make_node("Mul", ["gate", "x"] if swapped else ["x", "gate"], ["gated"]),
        helper.make_node("Identity", ["gated"], ["same"]),
        helper.make_node("Add", ["same", "x"] if swapped else ["x", "same"], ["y"]),
    ]
    model = model_of(nodes, {"x": 5})
    changed = merge_residual_gates(model)
    inputs = {"x": rng.standard_normal((1, 5, 6, 7)).astype(np.float32)}
    np.testing.assert_allclose(run(changed, inputs), run(model, inputs), rtol=1e-6)
    mean = inputs["x"].mean((2, 3), keepdims=True)
    np.testing.assert_allclose(run(changed, inputs), inputs["x"] * (1 + 1 / (1 + np.exp(-mean))), rtol=1e-5)


def test_a_product_of_whole_tensors_stays_as_it_is() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("Mul", ["x", "s"], ["m"]),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    model = model_of(nodes, {"x": 5})
    assert merge_residual_gates(model) is model


def test_the_default_network_keeps_its_answers(rng: np.random.Generator) -> None:
    bundle = Bundle.load()
    folded, changed = (
        onnx.load_from_string(folded_network(bundle.model_path, bundle.spec.network, "float32", rewrites=rewrites))
        for rewrites in ((), REWRITES["openvino"])
    )
    # The head is two convolutions in both, and three enlarged maps are convolved before they are enlarged.
    assert (kinds(folded).count("ConvTranspose"), kinds(changed).count("ConvTranspose")) == (0, 3)
    # Which adds one for the mean of a gate.
    assert kinds(average_before_widening(folded)).count("Conv") == kinds(folded).count("Conv") + 1
    assert (kinds(folded).count("Concat"), kinds(changed).count("Concat")) == (2, 0)
    image = rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    original = onnx.load(bundle.model_path)
    normalised = ((image[..., ::-1] / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)
    expected = run(original, {original.graph.input[0].name: normalised})[:, 0]
    for model in (folded, changed):
        np.testing.assert_allclose(run(model, {"NETWORK_IMAGE": image}), expected, atol=2e-5)
        used = {name for node in model.graph.node for name in node.input} | {"MAP"}
        assert all(used.intersection(node.output) for node in model.graph.node)


@pytest.mark.parametrize(("runtime", "more"), [("openvino", (average_before_widening,)), ("onnxruntime", ())])
def test_a_runtime_of_the_cpu_gets_its_rewrites(
    runtime: str, more: tuple[Any, ...], tiny_network: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(runtime)
    asked: list[Any] = []

    def recorded(*args: Any) -> bytes:
        asked.append(args[-1])
        return folded_network(*args)

    monkeypatch.setattr(importlib.import_module(f"ocdserve.backend.network.{runtime}"), "folded_network", recorded)
    load_network(Bundle(DetectorSpec(), tiny_network()), RuntimeOptions(runtime, threads=1))
    assert asked == [(split_concatenations, merge_residual_gates, *more)]


def test_unused_nodes_are_dropped_whatever_their_order_and_branches_count_as_uses() -> None:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["inside"], ["n"])], "then", [], [helper.make_tensor_value_info("n", 1, None)]
    )
    nodes = [
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Relu", ["abs"], ["unused"]),
        helper.make_node("Neg", ["abs"], ["inside"]),
        helper.make_node("Abs", ["x"], ["abs"]),
        helper.make_node("Exp", ["unused"], ["unused_too"]),
    ]
    model = model_of(nodes, {"x": 2}, yes=np.array(True))
    assert kinds(without_unused_nodes(model)) == ["If", "Neg", "Abs"]
    assert kinds(model) == ["If", "Relu", "Neg", "Abs", "Exp"]


def test_calibration_finds_the_tensors_of_the_rewritten_head() -> None:
    bundle = Bundle.load()
    before = load_onnx(bundle.model_path)
    folded = fold(before, bundle.spec.network)
    assert {f"network/{name}" for node in before.graph.node for name in node.output} <= {
        name for node in folded.graph.node for name in node.output
    }


def test_constants_that_are_cast_to_float32_become_float32() -> None:
    nodes = [
        helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["half"], ["again"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["other"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["double"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "factor"], ["m"]),
        helper.make_node("Sub", ["m", "again"], ["y"]),
    ]
    half, other = np.array([0.1], np.float16).reshape(1, 1, 1, 1), np.array(3, np.float16)
    model = model_of(nodes, {"x": 1}, half=half, other=other)
    found = with_wide_weights(model)
    assert kinds(found) == ["Cast", "Cast", "Conv", "Mul", "Sub"]
    # 0.1 in float16.
    expected = 0.0999755859375
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    assert {name: (value.dtype, float(value.item())) for name, value in values.items()} == {
        "other": (np.dtype("float16"), 3.0),
        "w": (np.dtype("float32"), expected),
        "again": (np.dtype("float32"), expected),
    }
    assert run(found, {"x": np.full((1, 1, 1, 2), 2, np.float32)}).tolist() == [[[[5 * expected, 5 * expected]]]]


def test_a_cast_constant_that_is_the_result_stays() -> None:
    model = model_of([helper.make_node("Cast", ["half"], ["y"], to=TensorProto.FLOAT)], {"x": 1}, half=np.ones(1, "f2"))
    assert with_wide_weights(model) == model


@pytest.mark.parametrize(("outputs", "changes"), [(7, {}), (3, {}), (7, {"strides": [2, 2]}), (7, {"pads": [1] * 4})])
def test_a_mean_is_taken_before_a_convolution_that_widens(
    rng: np.random.Generator, outputs: int, changes: dict[str, Any]
) -> None:
    weights, bias = rng.standard_normal((outputs, 5, 1, 1)).astype(np.float32), rng.random(outputs).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], **changes),
        helper.make_node("Identity", ["c"], ["same"]),
        helper.make_node("GlobalAveragePool", ["same"], ["y"]),
    ]
    model = model_of(nodes, {"x": 5}, w=weights, b=bias)
    changed = average_before_widening(model)
    if changes or outputs < 5:
        assert changed is model
        return
    assert [list(node.input) for node in changed.graph.node if node.op_type == "GlobalAveragePool"] == [["x"]]
    x = rng.standard_normal((1, 5, 6, 8)).astype(np.float32)
    expected = weights[:, :, 0, 0] @ x[0].mean((1, 2)) + bias
    np.testing.assert_allclose(run(changed, {"x": x})[0, :, 0, 0], expected, rtol=1e-5, atol=1e-6)

# SPDX-License-Identifier: Apache-2.0
"""An ONNX network as a PyTorch module: ONNX Runtime's map, gradients, and weights back in the same file."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from ocdserve.backend import Bundle
from ocdserve.builder.graph.describe import describe
from ocdserve.builder.graph.execute import cpu_session
from ocdserve.builder.graph.trial import trial_pages
from ocdserve.builder.train.graph_module import GraphModule, write_back
from ocdserve.contract import InvalidInputError

SmallNetwork = Callable[..., onnx.ModelProto]


def maps(module: GraphModule, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        return module.eval()(torch.from_numpy(x)).numpy()


def expected(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = cpu_session(model, 1)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def pages(height: int, width: int) -> NDArray[np.float32]:
    """A page of black words on white and a black one, as the default network takes them."""
    drawn, _ = trial_pages(height, width, 2)
    return np.ascontiguousarray(drawn.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1


def one(nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """A network x -> p of N x 3 x H x W."""
    sizes = ["N", 3, "H", "W"]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", None, None, None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return describe(Bundle.load().model_path).model


class TestDefaultNetwork:
    def test_computes_the_map_of_onnx_runtime_at_any_size(self, model: onnx.ModelProto) -> None:
        module = GraphModule(model)
        for size in ((192, 320), (128, 192)):
            x = pages(*size)
            want = expected(model, x)
            assert want.max() > 0.5
            assert np.abs(maps(module, x) - want).max() < 1e-4

    def test_gradients_reach_every_weight(self, model: onnx.ModelProto) -> None:
        module = GraphModule(model)
        weights = dict(module.named_parameters())
        # 2.45 million weights: what the export holds in convolutions, their biases and nothing else.
        assert sum(weight.numel() for weight in weights.values()) == 2_453_353
        module.train()(torch.randn(1, 3, 64, 64)).square().mean().backward()
        assert [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()] == []

    def test_weights_go_back_into_the_same_file(self, model: onnx.ModelProto) -> None:
        module = GraphModule(model)
        assert write_back(module).SerializeToString() == model.SerializeToString()
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(1.01)
        changed = write_back(module)
        x = pages(128, 192)
        assert np.abs(maps(module, x) - expected(changed, x)).max() < 1e-4
        assert np.abs(expected(changed, x) - expected(model, x)).max() > 0.01
        again = GraphModule(changed)
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


def test_batch_normalisation_is_trained_with_its_statistics_fixed(small_network: SmallNetwork) -> None:
    model = small_network()
    module = GraphModule(model)
    x = np.random.default_rng(1).normal(size=(2, 3, 32, 48)).astype(np.float32)
    before = maps(module, x)
    assert np.abs(before - expected(model, x)).max() < 1e-5
    logits = module.train()(torch.from_numpy(x))
    assert torch.allclose(torch.sigmoid(logits), torch.from_numpy(before), atol=1e-6)
    assert np.array_equal(maps(module, x), before)
    trained = {name for name, _ in module.named_parameters()}
    assert {"layers.bn.weight", "layers.bn.bias", "vectors.shift"} <= trained and len(trained) == 11


def test_channels_that_were_removed_are_removed_from_the_file(small_network: SmallNetwork) -> None:
    """Halve the depthwise convolution's channels everywhere, as pruning does."""
    from torch import nn

    module = GraphModule(small_network())
    for name, parts in {"stem": 0, "bn": 0, "dw": 0, "a": 1, "b": 0, "c": 1}.items():
        layer = module.layers[name]
        for key in ("weight", "bias", "running_mean", "running_var"):
            if (value := getattr(layer, key, None)) is None:
                continue
            axis = parts if key == "weight" else 0
            if parts == 1 and key == "bias":
                continue
            kept = (
                value.narrow(axis, 0, value.shape[axis] // 2) if name != "c" else value[:, [0, 1, 2, 3, *range(8, 16)]]
            )
            setattr(layer, key, nn.Parameter(kept.detach()) if isinstance(value, nn.Parameter) else kept)
    module.layers["dw"].groups = 4
    x = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    written = write_back(module)
    assert np.abs(maps(module, x) - expected(written, x)).max() < 1e-5


def test_scalars_and_positions_are_not_trained() -> None:
    vector, scalar = np.ones((1, 3, 1, 1), np.float32), np.float32(2.0)
    positions = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "vector"], ["a"]),
        helper.make_node("Div", ["a", "scalar"], ["b"]),
        helper.make_node("Add", ["b", "positions"], ["p"]),
    ]
    model = one(nodes, {"vector": vector, "scalar": np.array(scalar), "positions": positions})
    module = GraphModule(model)
    assert [name for name, _ in module.named_parameters()] == ["vectors.vector"]
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    assert np.abs(maps(module, x) - expected(model, x)).max() < 1e-6


def test_sizes_are_computed_from_the_image() -> None:
    """A Resize whose size comes from Shape, Gather and Concat, and an attention of tokens with LayerNormalization."""
    constants: dict[str, NDArray[Any]] = {
        "two": np.array([2], np.int64),
        "four": np.array([4], np.int64),
        "flat": np.array([0, 3, -1], np.int64),
        "scale": np.array([0.5, 1.0, 2.0], np.float32),
        "bias": np.array([0.1, 0.0, -0.1], np.float32),
        "matrix": np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Shape", ["x"], ["ends"], start=2),
        helper.make_node("Slice", ["shape", "zero", "two"], ["begin"]),
        helper.make_node("Mul", ["ends", "two"], ["larger"]),
        helper.make_node("Concat", ["begin", "larger"], ["sizes"], axis=0),
        helper.make_node(
            "Resize", ["x", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel"
        ),
        helper.make_node("Reshape", ["y", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["tokens", "scale", "bias"], ["normal"]),
        helper.make_node("MatMul", ["normal", "matrix"], ["product"]),
        helper.make_node("Softmax", ["product"], ["weights"], axis=-1),
        helper.make_node("Transpose", ["weights"], ["back"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["back", "sizes"], ["p"]),
    ]
    model = one(nodes, {"zero": np.array([0], np.int64), **constants})
    module = GraphModule(model)
    assert isinstance(module.layers["product"], torch.nn.Linear)
    for size in ((6, 8), (10, 4)):
        x = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
        assert np.abs(maps(module, x) - expected(model, x)).max() < 1e-5
    assert write_back(module).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("has_bias", [False, True])
def test_deformable_convolutions_are_trained(ocdnet_torch: ModuleType, has_bias: bool) -> None:
    random = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {
        "offset_weight": random.normal(0, 0.3, (27, 3, 3, 3)).astype(np.float32),
        "weight": random.normal(0, 0.3, (5, 3, 3, 3)).astype(np.float32),
        "bias": random.normal(0, 0.3, 5).astype(np.float32),
        "sizes": np.array([18, 9], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "offset_weight"], ["offset_mask"], "offsets", pads=[1] * 4),
        helper.make_node("Split", ["offset_mask", "sizes"], ["offset", "logits"], axis=1),
        helper.make_node("Sigmoid", ["logits"], ["mask"]),
        helper.make_node(
            "DeformConv", ["x", "weight", "offset", "bias" if has_bias else "", "mask"], ["p"], "deform", pads=[1] * 4
        ),
    ]
    model = one(nodes, constants if has_bias else {key: constants[key] for key in constants if key != "bias"})
    module = GraphModule(model)
    x = random.normal(size=(2, 3, 12, 9)).astype(np.float32)
    assert np.abs(maps(module, x) - expected(model, x)).max() < 1e-5
    image = torch.from_numpy(x)
    offset, logits = functional.conv2d(image, torch.from_numpy(constants["offset_weight"]), padding=1).split((18, 9), 1)
    weight = torch.from_numpy(constants["weight"])
    reference = ocdnet_torch.deform_conv(image, offset, logits.sigmoid(), weight, 1).numpy()
    shift = constants["bias"][:, None, None] if has_bias else 0
    assert np.abs(maps(module, x) - reference - shift).max() < 1e-5
    module(image).square().mean().backward()
    assert [name for name, weight in module.named_parameters() if weight.grad is None] == []
    assert write_back(module).SerializeToString() == model.SerializeToString()


def test_a_deformable_convolution_of_another_kernel_is_refused() -> None:
    constants = {"weight": np.zeros((1, 3, 1, 1), np.float32), "offset": np.zeros((1, 2, 4, 4), np.float32)}
    node = helper.make_node("DeformConv", ["x", "weight", "offset"], ["p"], "deform")
    with pytest.raises(InvalidInputError, match="must be 3 x 3"):
        GraphModule(one([node], constants))


def test_an_unknown_operator_is_named_with_its_node() -> None:
    model = one([helper.make_node("Selu", ["x"], ["p"], "odd")], {})
    with pytest.raises(InvalidInputError, match=r"'odd' \(Selu\) has no form in PyTorch here"):
        GraphModule(model)


def test_a_constant_that_a_bias_shares_with_a_mean_stays_the_mean() -> None:
    constants = {name: np.full(3, value, np.float32) for name, value in (("one", 1), ("zero", 0))}
    nodes = [
        helper.make_node("BatchNormalization", ["x", "one", "zero", "zero", "one"], ["a"], "bn"),
        helper.make_node("Identity", ["zero"], ["same"]),
        helper.make_node("BatchNormalization", ["a", "one", "same", "same", "one"], ["p"], "bn2"),
    ]
    module = GraphModule(one(nodes, constants))
    module.train()(torch.randn(1, 3, 4, 4)).square().mean().backward()
    with torch.no_grad():
        module.layers["bn"].bias.fill_(5)
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    written = write_back(module)
    assert np.abs(maps(module, x) - expected(written, x)).max() < 1e-6
    assert np.abs(expected(written, x) - x - 5).max() < 1e-3


def test_quantised_weights_are_refused() -> None:
    constants = {
        "w": np.ones((1, 3, 1, 1), np.int8),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["weight"]),
        helper.make_node("Conv", ["x", "weight"], ["p"], "head"),
    ]
    with pytest.raises(InvalidInputError, match="DequantizeLinear"):
        GraphModule(one(nodes, constants))

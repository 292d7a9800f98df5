# SPDX-License-Identifier: Apache-2.0
"""The rewritten head computes what the head computed, by ONNX Runtime; other graphs stay as they are."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ocdserve.backend import Bundle
from ocdserve.backend.network.rewrite.head import rewrite_head


def head(
    rng: np.random.Generator,
    channels: int = 5,
    middle: int = 3,
    bias: str = "add",
    strides: tuple[int, int] = (2, 2),
    activation: str = "Relu",
    outputs: int = 1,
) -> onnx.ModelProto:
    """Two transposed convolutions as exporters write them: the bias as an input or as an addition, or none."""
    tensors: dict[str, NDArray[np.float32]] = {
        "w1": rng.standard_normal((channels, middle, 2, 2)).astype(np.float32),
        "w2": rng.standard_normal((middle, outputs, 2, 2)).astype(np.float32),
        "b1": rng.standard_normal(middle).astype(np.float32),
        "b2": rng.standard_normal(outputs).astype(np.float32),
    }
    nodes = []
    source = "x"
    for index, (weights, added) in enumerate((("w1", "b1"), ("w2", "b2"))):
        inputs = [source, weights, added] if bias == "input" else [source, weights]
        nodes.append(helper.make_node("ConvTranspose", inputs, [f"up{index}"], strides=list(strides)))
        source = f"up{index}"
        if bias == "add":
            tensors[added] = tensors[added].reshape(1, -1, 1, 1)
            nodes.append(helper.make_node("Identity", [source], [f"same{index}"]))
            nodes.append(helper.make_node("Add", [added, f"same{index}"], [f"sum{index}"]))
            source = f"sum{index}"
        target = "p" if index else "active"
        nodes.append(helper.make_node("Sigmoid" if index else activation, [source], [target]))
        source = target
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, "H", "W"])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", outputs, "H4", "W4"])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def rewritten(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.CopyFrom(rewrite_head(model.graph, output))
    return result


def run(model: onnx.ModelProto, image: NDArray[np.float32]) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


@pytest.mark.parametrize("bias", ["add", "input", "none"])
@pytest.mark.parametrize(("channels", "middle"), [(5, 3), (1, 1), (24, 24)])
def test_the_rewritten_head_gives_the_same_map(rng: np.random.Generator, bias: str, channels: int, middle: int) -> None:
    model = head(rng, channels, middle, bias)
    image = rng.standard_normal((2, channels, 7, 9)).astype(np.float32)
    changed = rewritten(model, "p")
    assert "DepthToSpace" in {node.op_type for node in changed.graph.node}
    result = run(changed, image)
    assert result.shape == (2, 1, 28, 36)
    np.testing.assert_allclose(result, run(model, image), atol=1e-6)


def test_the_default_network_keeps_its_answers(rng: np.random.Generator) -> None:
    model = onnx.load(str(Bundle.load().model_path))
    changed = rewritten(model, model.graph.output[0].name)
    assert "DepthToSpace" in {node.op_type for node in changed.graph.node}
    image = rng.uniform(-1, 1, (1, 3, 64, 96)).astype(np.float32)
    np.testing.assert_allclose(run(changed, image), run(model, image), atol=1e-5)


@pytest.mark.parametrize(
    "other", [{"strides": (1, 1)}, {"activation": "Tanh"}, {"outputs": 2}], ids=["strides", "activation", "outputs"]
)
def test_another_head_stays_as_it_is(rng: np.random.Generator, other: dict[str, Any]) -> None:
    model = head(rng, **other)
    assert rewrite_head(model.graph, "p") == model.graph

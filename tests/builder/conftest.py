# SPDX-License-Identifier: Apache-2.0
"""A small DB-like network, and pictures for calibration."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

if TYPE_CHECKING:
    import onnx

SmallNetwork = Callable[..., "onnx.ModelProto"]


@pytest.fixture
def small_network() -> SmallNetwork:
    """Factory of a network with every kind of layer: stem with batch normalisation, depthwise, 1 x 1, a residual
    addition, two branches that are concatenated, and a head of one transposed convolution with a sigmoid.

    Args of the factory: opset, and the (height, width) of a static input.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def make(opset: int = 19, size: tuple[int, int] | None = None, scale: float = 1.0) -> onnx.ModelProto:
        random = np.random.default_rng(7)
        constants: dict[str, np.ndarray] = {
            "stem_w": random.normal(0, 0.3, (8, 3, 3, 3)) * scale,
            "gamma": random.uniform(0.5, 2, 8),
            "beta": random.normal(0, 0.1, 8),
            "mean": random.normal(0, 0.1, 8),
            "variance": random.uniform(0.5, 2, 8),
            "dw_w": random.normal(0, 0.4, (8, 1, 3, 3)),
            "a_w": random.normal(0, 0.4, (8, 8, 1, 1)),
            "b_w": random.normal(0, 0.4, (8, 8, 3, 3)),
            "b_b": random.normal(0, 0.1, 8),
            "c_w": random.normal(0, 0.3, (8, 16, 1, 1)),
            "shift": random.normal(0, 0.1, (1, 8, 1, 1)),
            "head_w": random.normal(0, 0.4, (8, 1, 2, 2)),
            # Mostly no text, so that random boxes are few.
            "head_b": np.array([-3.0]),
        }
        nodes = [
            helper.make_node("Conv", ["x", "stem_w"], ["s0"], "stem", strides=[2, 2], pads=[1] * 4),
            helper.make_node("BatchNormalization", ["s0", "gamma", "beta", "mean", "variance"], ["s1"], "bn"),
            helper.make_node("Relu", ["s1"], ["s2"], "stem_relu"),
            helper.make_node("Conv", ["s2", "dw_w"], ["d0"], "dw", group=8, pads=[1] * 4),
            helper.make_node("Identity", ["d0"], ["d1"], "nothing"),
            helper.make_node("Conv", ["d1", "a_w"], ["a0"], "a"),
            helper.make_node("Relu", ["a0"], ["a1"], "a_relu"),
            helper.make_node("Conv", ["a1", "b_w", "b_b"], ["b0"], "b", pads=[1] * 4),
            helper.make_node("Add", ["b0", "s2"], ["r0"], "residual"),
            helper.make_node("Relu", ["r0"], ["r1"], "residual_relu"),
            helper.make_node("Concat", ["r1", "a1"], ["j"], "join", axis=1),
            helper.make_node("Conv", ["j", "c_w"], ["c0"], "c"),
            helper.make_node("Add", ["c0", "shift"], ["c1"], "c_shift"),
            helper.make_node("Relu", ["c1"], ["c2"], "c_relu"),
            helper.make_node("ConvTranspose", ["c2", "head_w", "head_b"], ["h"], "head", strides=[2, 2]),
            helper.make_node("Sigmoid", ["h"], ["p"], "probability"),
        ]
        height, width = size or ("H", "W")
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, height, width])],
            [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 1, height, width])],
            [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight pictures of text of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(3)
    for index in range(8):
        picture = np.full((240 + 16 * index, 320, 3), 235, np.uint8)
        picture[:] = random.integers(200, 256, 3)
        for line in range(4):
            text = "".join(random.choice(list("ABCDEFGHKLMNPRSTUVXYZ23456789"), 9))
            cv2.putText(picture, text, (12, 50 + 45 * line), cv2.FONT_HERSHEY_SIMPLEX, 1.1, (20, 20, 30), 2)
        cv2.imwrite(str(folder / f"picture_{index}.png"), picture)
    return folder


@pytest.fixture(scope="session")
def ocdnet_torch() -> ModuleType:
    """The module that exports an OCDNet from PyTorch."""
    torch = pytest.importorskip("torch", reason="PyTorch, which makes the reference OCDNet, is not installed")
    # Tests in several processes share the cores: waiting threads of small networks would take most of their time.
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("ocdnet_torch", Path(__file__).with_name("ocdnet_torch.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

# SPDX-License-Identifier: Apache-2.0
"""The default detector, loaded once, and tiny networks with known results."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from ocdserve.backend import Detector

TinyNetwork = Callable[..., Path]


@pytest.fixture(scope="session")
def default_detector() -> "Detector":
    """The default bundle in the default runtime."""
    from ocdserve.backend import Detector

    return Detector.load(threads=2)


@pytest.fixture
def tiny_network(tmp_path: Path) -> TinyNetwork:
    """Writer of networks whose probability is a weighted sum of the three input channels plus a bias.

    Args of the writer: file name, weights, bias, fixed input `shape`, opset, and names of further outputs that
    carry the probability turned around (1 - p).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def write(
        name: str = "model.onnx",
        *,
        weights: tuple[float, float, float] = (1.0, 0.0, 0.0),
        bias: float = 0.0,
        shape: tuple[int | str, ...] = ("N", 3, "H", "W"),
        element: int = TensorProto.FLOAT,
        opset: int = 13,
        inverse_outputs: tuple[str, ...] = (),
    ) -> Path:
        constants = [
            numpy_helper.from_array(np.array(weights, np.float32).reshape(1, 3, 1, 1), "weights"),
            numpy_helper.from_array(np.array([bias], np.float32), "bias"),
            numpy_helper.from_array(np.array(1, np.float32), "one"),
        ]
        nodes = [helper.make_node("Conv", ["x", "weights", "bias"], ["p"], kernel_shape=[1, 1])]
        nodes += [helper.make_node("Sub", ["one", "p"], [output]) for output in inverse_outputs]
        out_shape = [shape[0], 1, *shape[2:]]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("x", element, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, out_shape) for output in ("p", *inverse_outputs)],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        path = tmp_path / name
        onnx.save(model, str(path))
        return path

    return write

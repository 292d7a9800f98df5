# SPDX-License-Identifier: Apache-2.0
"""A small recogniser whose letters are coloured bars: r, g and b on white; and pages of such lines.

A letter is a bar of 16 columns, and white of 8 columns is between two of them; the network has a step for 8 columns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LETTERS = "rgb"
_COLORS = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255)}
_STEP = 8

Output = Literal["softmax", "logits", "ids", "attention"]


def line(text: str, height: int = 48) -> NDArray[np.uint8]:
    """A picture of a line, uint8 RGB (height, 8 + 24 x letters, 3)."""
    pixels = np.full((height, _STEP + 3 * _STEP * len(text), 3), 255, np.uint8)
    for index, letter in enumerate(text):
        left = _STEP + 3 * _STEP * index
        pixels[:, left : left + 2 * _STEP] = _COLORS[letter]
    return pixels


def network(
    output: Output = "softmax",
    gray: bool = False,
    height: int = 48,
    width: int | None = None,
    batch: int | None = None,
    characters: Sequence[str] | None = tuple(LETTERS),
    classes: int = 4,
    opset: int = 17,
    scale: float = 1.0,
) -> onnx.ModelProto:
    """The network: float32 BGR or gray planes of -1 to 1 in, classes per step out, 0 the blank.

    Args:
        output: What it returns: probabilities, logits, or as TAO's OCRNet the classes and their probabilities;
            `attention` is such an export with a head of attention, which begins with two classes that are no letters.
        gray: Whether it takes one channel, the luma of Rec. 601.
        height: Of a line, pixels.
        width: Fixed width, pixels; None is any. The graph computes no other.
        batch: Fixed batch, likewise.
        characters: Of its metadata; None has none.
        classes: Number of classes; those past the letters are never chosen.
        opset: Of the graph.
        scale: Of the weights of the first convolution; the second one divides by it.
    """
    first_class = 2 if output == "attention" else 1
    head = np.zeros((classes, 8, 1, 1))
    head[0, 0:2] = 5
    for index in range(3):
        head[first_class + index, 2 * index + 2 : 2 * index + 4] = 5
    bias = np.full(classes, -20.0)
    # Gray padding looks a little like green.
    bias[0], bias[first_class : first_class + 3] = 3, 0
    constants = _colors(gray) | {"head_w": head, "head_b": bias, "one": np.array([1.0])}
    constants["stem_w"], constants["stem_b"] = constants["stem_w"] * scale, constants["stem_b"] * scale
    constants["mix_w"] = np.eye(8).reshape(8, 8, 1, 1) / scale
    activation = (
        [
            helper.make_node("Abs", ["s0"], ["s1"]),
            helper.make_node("Mul", ["s1", "sharp"], ["s2"]),
            helper.make_node("Sub", ["one", "s2"], ["s3"]),
        ]
        if gray
        else [helper.make_node("Identity", ["s0"], ["s3"])]
    )
    nodes = [
        helper.make_node("Conv", ["input", "stem_w", "stem_b"], ["s0"], "stem", strides=[2, 2]),
        *activation,
        helper.make_node("Relu", ["s3"], ["s4"]),
        helper.make_node("Conv", ["s4", "mix_w"], ["m0"], "mix"),
        helper.make_node("Relu", ["m0"], ["m1"]),
        helper.make_node("AveragePool", ["m1"], ["pooled"], kernel_shape=[height // 2, 4], strides=[height // 2, 4]),
        helper.make_node("Conv", ["pooled", "head_w", "head_b"], ["h0"], "head"),
        helper.make_node("Reshape", ["h0", "shape"], ["h1"]),
        helper.make_node("Transpose", ["h1"], ["logits"], perm=[0, 2, 1]),
    ]
    floats = helper.make_tensor_value_info
    if output == "logits":
        results = [floats("logits", TensorProto.FLOAT, ["N", "T", classes])]
    else:
        nodes.append(helper.make_node("Softmax", ["logits"], ["softmax"], axis=2))
        results = [floats("softmax", TensorProto.FLOAT, ["N", "T", classes])]
    if output in ("ids", "attention"):
        nodes += [
            helper.make_node("ReduceMax", ["softmax"], ["output_prob"], axes=[2], keepdims=0),
            helper.make_node("ArgMax", ["softmax"], ["id64"], axis=2, keepdims=0),
            helper.make_node("Cast", ["id64"], ["output_id"], to=TensorProto.INT32),
        ]
        results = [
            floats("output_id", TensorProto.INT32, ["N", "T"]),
            floats("output_prob", TensorProto.FLOAT, ["N", "T"]),
        ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    shape = [batch or 0, classes, width // _STEP if width else -1]
    initializers.append(numpy_helper.from_array(np.array(shape, np.int64), "shape"))
    graph = helper.make_graph(
        nodes,
        "bars",
        [floats("input", TensorProto.FLOAT, [batch or "N", 1 if gray else 3, height, width or "W"])],
        results,
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if characters is not None:
        helper.set_model_props(model, {"character": "\n".join(characters)})
    return model


def _colors(gray: bool) -> dict[str, NDArray[np.float64]]:
    """The first layer, two channels each for white, red, green and blue; blue comes first in a pixel."""
    if not gray:
        weights = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) / 3
        return {"stem_w": weights.repeat(2, axis=0).reshape(8, 3, 1, 1), "stem_b": np.zeros(8)}
    levels = np.array([255.0, 76.0, 150.0, 29.0]).repeat(2) / 127.5 - 1
    return {"stem_w": np.ones((8, 1, 1, 1)), "stem_b": -levels, "sharp": np.array([5.0])}


def dataset(folder: Path, pages: Sequence[Sequence[str]], size: tuple[int, int] = (240, 400)) -> Path:
    """Write pages with lines of bars, labelled as `load_labels` reads them; returns the folder."""
    for name in ("img", "gt"):
        (folder / name).mkdir(parents=True)
    for number, texts in enumerate(pages):
        page = np.full((*size, 3), 255, np.uint8)
        truth = []
        for row, text in enumerate(texts):
            pixels = line(text)
            top, left = 8 + 56 * row, 12
            bottom, right = top + pixels.shape[0], left + pixels.shape[1]
            page[top:bottom, left:right] = pixels
            truth.append(f"{left},{top},{right},{top},{right},{bottom},{left},{bottom},{text}")
        cv2.imwrite(str(folder / "img" / f"page_{number}.png"), page[..., ::-1])
        (folder / "gt" / f"gt_page_{number}.txt").write_text("\n".join(truth) + "\n", "utf-8")
    return folder

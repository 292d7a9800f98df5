# SPDX-License-Identifier: Apache-2.0
"""What exports of recognisers differ in at both ends, and the nodes that bring them to one form."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ocdserve.backend.network.rewrite.fold import described
from ocdserve.builder.graph.ends import ExportOptions, Layout, graph_input, with_image
from ocdserve.contract import InvalidInputError

CHARACTERS_KEY = "character"

_OURS = "ocdserve/ends/"
# Taller inputs are of pages.
_TALLEST_LINE = 160
# Between a graph's output and the choice of classes.
_PASSING = ("Cast", "Identity", "Reshape", "Squeeze")
# Rec. 601, as Pillow and OpenCV convert.
_LUMA = (0.299, 0.587, 0.114)
_SUM_ERROR = 1e-3


@dataclass(frozen=True)
class Source:
    """The input of an exported recogniser.

    Attributes:
        name: Its name.
        layout: Order of its dimensions.
        is_gray: Whether it has one channel.
        height: In pixels.
        width: In pixels; None is any.
    """

    name: str
    layout: Layout
    is_gray: bool
    height: int
    width: int | None


@dataclass(frozen=True)
class Scores:
    """The output of an exported recogniser.

    Attributes:
        name: Tensor with a score for every class of every step.
        reduced: Whether the graph gives the chosen classes and their probabilities instead, as TAO's OCRNet.
    """

    name: str
    reduced: bool


def is_recogniser(model: onnx.ModelProto) -> bool:
    """Whether an exported network is certainly a recogniser: by its characters, or by the shapes of its ends."""
    if any(item.key == CHARACTERS_KEY for item in model.metadata_props):
        return True
    sources = _inputs(model)
    if len(sources) != 1 or len(model.graph.output) > 2:
        return False
    size = _dims(sources[0])
    height, width = size[2:] if len(size) == 4 else (0, 0)
    if not 0 < height <= _TALLEST_LINE:
        return False
    target = model.graph.output[0]
    found = _dims(target)
    # A map without channels, N x H x W, has sides of the image.
    is_map = len(found) == 3 and found[1:] in ([height // scale, width // scale] for scale in (1, 2, 4))
    if target.type.tensor_type.elem_type in (TensorProto.INT32, TensorProto.INT64):
        return len(found) == 2
    return len(found) == 3 and found[2] > 0 and not is_map


def source_of(model: onnx.ModelProto, export: ExportOptions, height: int | None) -> Source:
    """The input with the picture of a line.

    Raises:
        InvalidInputError: There is none, or its height is not known.
    """
    sources = _inputs(model)
    if len(sources) != 1:
        raise InvalidInputError(
            f"a recogniser must have one input, the picture of a line; got {[value.name for value in sources]}"
        )
    (value,) = sources
    tensor = value.type.tensor_type
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8) or len(_dims(value)) != 4:
        raise InvalidInputError(
            f"input {value.name!r} must be float32, float16 or uint8, N x 3 x height x W or N x 1 x height x W; got "
            f"{described(value)}"
        )
    dims = _dims(value)
    last = dims[3] in (1, 3) and dims[1] not in (1, 3)
    layout: Layout = export.layout or ("nhwc" if last else "nchw")
    channels, rows, columns = (dims[1], *dims[2:]) if layout == "nchw" else (dims[3], *dims[1:3])
    if channels not in (0, 1, 3):
        raise InvalidInputError(
            f"input {value.name!r} must have 3 channels, or 1 for gray lines, in the order {layout}; got "
            f"{described(value)}. Name the order by --input-layout if it is another."
        )
    if rows and height not in (None, rows):
        raise InvalidInputError(f"the graph takes lines of {rows} pixels only; got --height {height}. Drop it.")
    if not (rows or height):
        raise InvalidInputError(
            "the graph takes lines of any height: name the one that it was trained with by --height, such as 48 for "
            "PP-OCRv3 and later or 32 for older ones"
        )
    return Source(value.name, layout, channels == 1, rows or height or 0, columns or None)


def scores_of(model: onnx.ModelProto, output: str | None) -> Scores:
    """Where the scores of the classes are.

    Raises:
        InvalidInputError: That is not clear.
    """
    targets = {value.name: value for value in model.graph.output}
    if output is not None and output not in targets:
        raise InvalidInputError(
            f"the network has the outputs {list(targets)}; got --output-tensor {output}. Name one of them."
        )
    wanted = {output: targets[output]} if output is not None else targets
    integers = [
        name
        for name, value in wanted.items()
        if value.type.tensor_type.elem_type in (TensorProto.INT32, TensorProto.INT64)
    ]
    if len(integers) == 1:
        return Scores(_before_choice(model.graph, integers[0]), True)
    floats = [name for name, value in wanted.items() if len(_dims(value)) in (0, 3)]
    if len(floats) == 1:
        return Scores(floats[0], False)
    shapes = ", ".join(f"{name} {described(value)}" for name, value in wanted.items())
    raise InvalidInputError(
        f"the network has the outputs {shapes}: a recogniser gives N x steps x classes. "
        + ("Name that output by --output-tensor." if len(wanted) > 1 else "Is it a detector (--kind detector)?")
    )


def with_line(model: onnx.ModelProto, source: Source) -> tuple[onnx.ModelProto, str]:
    """The network with a float32 N x 3 x height x W input, and that input's name."""
    if not source.is_gray:
        return with_image(model, source.name, source.layout)
    result = copy.deepcopy(model)
    image = f"{_OURS}image"
    gray = helper.make_node("Conv", [image, f"{_OURS}luma"], [f"{_OURS}gray"], f"{_OURS}to_gray")
    weights = np.array(_LUMA, np.float32).reshape(1, 3, 1, 1)
    result.graph.initializer.append(numpy_helper.from_array(weights, f"{_OURS}luma"))
    # The network's own input becomes a tensor within the graph.
    inner = f"{_OURS}in"
    last = helper.make_node("Identity", [f"{_OURS}gray"], [source.name], inner)
    if source.layout == "nhwc":
        last = helper.make_node("Transpose", [f"{_OURS}gray"], [source.name], inner, perm=[0, 2, 3, 1])
    result.graph.node.insert(0, last)
    result.graph.node.insert(0, gray)
    shape: list[int | None] = [None, 3, source.height, source.width]
    graph_input(result, source.name).CopyFrom(helper.make_tensor_value_info(image, TensorProto.FLOAT, shape))
    return result, image


def only_scores(model: onnx.ModelProto, scores: Scores) -> onnx.ModelProto:
    """The network with the scores as its only output."""
    result = copy.deepcopy(model)
    known = {value.name: value for value in (*model.graph.output, *model.graph.value_info)}
    element = known[scores.name].type.tensor_type.elem_type if scores.name in known else TensorProto.FLOAT
    del result.graph.output[:]
    result.graph.output.append(helper.make_tensor_value_info(scores.name, element, None))
    return result


@dataclass(frozen=True)
class ScoreForm:
    """Form of a recogniser's scores, found from their values for lines.

    Attributes:
        steps_first: Whether the steps come before the lines: T x N x classes.
        is_probability: Whether they are probabilities; else a softmax is added.
        classes: Number of classes.
    """

    steps_first: bool
    is_probability: bool
    classes: int

    @classmethod
    def of(cls, raw: NDArray[Any], lines: int, export: ExportOptions) -> "ScoreForm":
        """Recognise the form of the scores of some lines.

        Raises:
            InvalidInputError: They are not one score per step and class of each line, or not finite.
        """
        if raw.ndim != 3 or lines not in raw.shape[:2]:
            raise InvalidInputError(
                f"the output must be N x steps x classes; got {list(raw.shape)} for {lines} lines. If another output "
                "has the scores, name it by --output-tensor."
            )
        broken = 1 - float(np.isfinite(raw).mean())
        if broken:
            raise InvalidInputError(
                f"the network returns values that are not finite (NaN or infinite) in {broken:.1%} of the scores: its "
                "weights are damaged or overflow, or its pixels need another --mean and --std"
            )
        sums = raw.astype(np.float64).sum(axis=2)
        sure = float(raw.min()) >= -_SUM_ERROR and float(np.abs(sums - 1).max()) < _SUM_ERROR
        wrong = {"levels": True, "probability": not sure, "logits": sure}
        if export.values is not None and wrong[export.values]:
            raise InvalidInputError(
                "the scores of a step must be probabilities, which sum to 1, or logits; got sums from "
                f"{sums.min():.3g} to {sums.max():.3g}. Drop --output-values, which says {export.values}."
            )
        return cls(raw.shape[0] != lines, sure, int(raw.shape[2]))

    def notes(self) -> list[str]:
        """What is done to the scores, one sentence each."""
        steps = ["the output is steps x N x classes: made N x steps x classes"] if self.steps_first else []
        return steps + ([] if self.is_probability else ["the output holds logits: a softmax was added"])


def with_probabilities(model: onnx.ModelProto, name: str, form: ScoreForm) -> tuple[onnx.ModelProto, str]:
    """The network with float32 probabilities N x steps x classes as its output, and that output's name."""
    result = copy.deepcopy(model)
    steps: list[tuple[str, dict[str, Any]]] = []
    if model.graph.output[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        steps.append(("Cast", {"to": TensorProto.FLOAT}))
    if form.steps_first:
        steps.append(("Transpose", {"perm": [1, 0, 2]}))
    if not form.is_probability:
        steps.append(("Softmax", {"axis": 2}))
    for operation, attributes in steps:
        output = f"{_OURS}{operation.lower()}"
        result.graph.node.append(helper.make_node(operation, [name], [output], output, **attributes))
        name = output
    del result.graph.output[:]
    shape: list[str | int] = ["batch", "steps", form.classes]
    result.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return result, name


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that are no constants and that a node reads: the text that OCRNet is trained with is left over."""
    constants = {tensor.name for tensor in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input}
    return [value for value in model.graph.input if value.name in read - constants]


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    """Sizes of a tensor, 0 where it has any."""
    return [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]


def _before_choice(graph: onnx.GraphProto, output: str) -> str:
    producers = {name: node for node in graph.node for name in node.output}
    name = output
    while node := producers.get(name):
        if node.op_type in ("ArgMax", "TopK"):
            return str(node.input[0])
        if node.op_type not in _PASSING:
            break
        name = node.input[0]
    raise InvalidInputError(
        f"the output {output!r} holds the classes of the steps, and no ArgMax or TopK before it shows their "
        "probabilities: export the scores, N x steps x classes"
    )

# SPDX-License-Identifier: Apache-2.0
"""Folding normalisation, layout and the choice of classes into a recogniser's graph."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ocdserve.backend.network.rewrite.fold import (
    PREFIX,
    described,
    load_onnx,
    normalisation,
    pick,
    prefixed_graph,
)
from ocdserve.backend.spec.detector_spec import NetworkSpec
from ocdserve.backend.spec.recogniser_spec import RecogniserNetworkSpec, RecogniserSpec
from ocdserve.contract import InvalidInputError

LINES = "LINES"
CLASSES = "CLASSES"
PROBABILITIES = "PROBABILITIES"

# Of the likeliest class, before spaces take the places of blanks.
_LIKELIEST = "/likeliest"


def folded_recogniser(model_path: Path, spec: RecogniserNetworkSpec) -> bytes:
    """Serialised ONNX of the network in a file between pixels and the probabilities of all classes.

    Raises:
        InvalidInputError: The file is not an ONNX network of this kind, or was folded with the choice of classes.
    """
    model = load_onnx(model_path)
    try:
        folded = model if spec.folded else fold_recogniser(model, spec, reduced=False)
    except InvalidInputError as error:
        raise InvalidInputError(f"{model_path.name}: {error}") from error
    if len(folded.graph.output) != 1:
        raise InvalidInputError(
            f"{model_path.name} was folded with the choice of classes, for a GPU. Build the bundle without folding."
        )
    content: bytes = folded.SerializeToString()
    return content


def reduced_recogniser(model_path: Path, spec: RecogniserSpec) -> bytes:
    """Serialised ONNX of the network in a file between pixels and the best class of each step, for a GPU.

    Raises:
        InvalidInputError: The file is not an ONNX network of this kind, or was folded without the choice of classes.
    """
    model = load_onnx(model_path)
    try:
        folded = model if spec.network.folded else fold_recogniser(model, spec.network, space=spec.space)
    except InvalidInputError as error:
        raise InvalidInputError(f"{model_path.name}: {error}") from error
    if {output.name for output in folded.graph.output} != {CLASSES, PROBABILITIES}:
        raise InvalidInputError(
            f"{model_path.name} was folded without the choice of classes, for a CPU. Build the bundle without folding."
        )
    content: bytes = folded.SerializeToString()
    return content


def fold_recogniser(
    model: onnx.ModelProto, spec: RecogniserNetworkSpec, reduced: bool = True, space: tuple[int, float] | None = None
) -> onnx.ModelProto:
    """The network between uint8 RGB pixels (N, height, W, 3), `LINES`, and its classes.

    Args:
        model: A recogniser: float32 N x 3 x height x W in, float32 probabilities or logits N x T x classes out.
        spec: Tensor names, colour order, normalisation, and which of the two it returns.
        reduced: Whether the graph chooses the class of each step: int32 `CLASSES` and float32 `PROBABILITIES`, (N, T)
            each, for GPUs, where thousands of classes a step would cross the bus. Otherwise float32 `PROBABILITIES`
            (N, T, classes), for CPUs, where `ctc.best_steps` finds the largest of them faster; logits stay logits then.
        space: `RecogniserSpec.space`, for graphs that choose: as `ctc.best_steps`.

    Raises:
        InvalidInputError: The network is not of this kind; the message says what was expected.
    """
    source, target = recogniser_ends(model, spec)
    graph = prefixed_graph(model)
    before, constants = normalisation(LINES, f"{PREFIX}{source.name}", spec)
    batch, _, height, width = source.type.tensor_type.shape.dim
    sizes = [batch.dim_value or "batch", height.dim_value, width.dim_value or "width"]
    pixels = helper.make_tensor_value_info(LINES, TensorProto.UINT8, [*sizes, 3])
    found = f"{PREFIX}{target.name}"
    if reduced:
        constants += [
            numpy_helper.from_array(np.array([1], np.int64), "ocdserve/one"),
            numpy_helper.from_array(np.array([0, -1], np.int64), "ocdserve/steps"),
        ]
        after = []
        if spec.scores == "logits":
            after.append(helper.make_node("Softmax", [found], ["ocdserve/softmax"], axis=2))
            found = "ocdserve/softmax"
        after += [
            helper.make_node("TopK", [found, "ocdserve/one"], ["ocdserve/largest", "ocdserve/class"], axis=2),
            helper.make_node("Cast", ["ocdserve/class"], ["ocdserve/class32"], to=TensorProto.INT32),
            helper.make_node("Reshape", ["ocdserve/class32", "ocdserve/steps"], [f"{CLASSES}{_LIKELIEST}"]),
            helper.make_node("Reshape", ["ocdserve/largest", "ocdserve/steps"], [f"{PROBABILITIES}{_LIKELIEST}"]),
        ]
        nodes, values = _with_spaces(found, spec.blank, space)
        after, constants = after + nodes, constants + values
        results = [
            helper.make_tensor_value_info(CLASSES, TensorProto.INT32, [sizes[0], "steps"]),
            helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, [sizes[0], "steps"]),
        ]
    else:
        after = [helper.make_node("Identity", [found], [PROBABILITIES])]
        results = [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, [sizes[0], "steps", "classes"])]
    content = helper.make_graph(
        [*before, *graph.node, *after], "ocdserve", [pixels], results, [*graph.initializer, *constants]
    )
    return helper.make_model(content, ir_version=model.ir_version, opset_imports=model.opset_import)


def _with_spaces(
    scores: str, blank: int, space: tuple[int, float] | None
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and constants from the likeliest classes to those with spaces where a blank is only a little likelier."""
    if space is None:
        return [helper.make_node("Identity", [f"{name}{_LIKELIEST}"], [name]) for name in (CLASSES, PROBABILITIES)], []
    index, threshold = space
    likeliest, probability, is_space = f"{CLASSES}{_LIKELIEST}", "ocdserve/space_probability", "ocdserve/is_space"
    nodes = [
        helper.make_node("Gather", [scores, "ocdserve/space"], [probability], axis=2),
        helper.make_node("Greater", [probability, "ocdserve/threshold"], ["ocdserve/is_likely"]),
        helper.make_node("Equal", [likeliest, "ocdserve/blank"], ["ocdserve/is_blank"]),
        helper.make_node("And", ["ocdserve/is_likely", "ocdserve/is_blank"], [is_space]),
        helper.make_node("Where", [is_space, "ocdserve/space", likeliest], [CLASSES]),
        helper.make_node("Where", [is_space, probability, f"{PROBABILITIES}{_LIKELIEST}"], [PROBABILITIES]),
    ]
    return nodes, [
        numpy_helper.from_array(np.array(index, np.int32), "ocdserve/space"),
        numpy_helper.from_array(np.array(threshold, np.float32), "ocdserve/threshold"),
        numpy_helper.from_array(np.array(blank, np.int32), "ocdserve/blank"),
    ]


def recogniser_ends(model: onnx.ModelProto, spec: NetworkSpec) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """Input for pictures of lines and output of a recogniser.

    Raises:
        InvalidInputError: There are none of the right type and shape; the message says what was expected.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    source = pick([value for value in model.graph.input if value.name not in constants], spec.input, "network.input")
    target = pick(list(model.graph.output), spec.output, "network.output")
    tensor = source.type.tensor_type
    shape = tensor.shape.dim
    if (
        tensor.elem_type != TensorProto.FLOAT
        or len(shape) != 4
        or shape[1].dim_value not in (0, 3)
        or not shape[2].dim_value
    ):
        raise InvalidInputError(
            f"input {source.name!r} of a recogniser must be float32 N x 3 x height x W with a fixed height; got "
            f"{described(source)}"
        )
    result = target.type.tensor_type
    if result.elem_type != TensorProto.FLOAT or (result.HasField("shape") and len(result.shape.dim) != 3):
        raise InvalidInputError(
            f"output {target.name!r} of a recogniser must be float32 N x steps x classes; got {described(target)}"
        )
    return source, target

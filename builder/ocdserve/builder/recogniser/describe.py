# SPDX-License-Identifier: Apache-2.0
"""Load and check an exported recogniser, convert it to a normal form, and determine how it is served.

The normal form, which all later steps work on: float32 N x 3 x height x W in, float32 probabilities N x steps x classes
out, class 0 the blank; opset 19 or later, named nodes, folded constants, any batch and width if the graph allows it.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ocdserve.backend.network.rewrite.fold import load_onnx
from ocdserve.backend.spec.recogniser_spec import RecogniserNetworkSpec, RecogniserSpec, WidthPolicy
from ocdserve.builder.graph.ends import ExportOptions, graph_input
from ocdserve.builder.graph.execute import cpu_session, normalised
from ocdserve.builder.graph.exported import file_sha256, in_float32, takes_pixels
from ocdserve.builder.graph.simplify import Simplified, simplify
from ocdserve.builder.graph.tensor_types import OPSET, opset_of
from ocdserve.builder.recogniser.characters import fitted_characters, listed_characters
from ocdserve.builder.recogniser.config import RecogniserBuildConfig
from ocdserve.builder.recogniser.ends import (
    ScoreForm,
    Scores,
    Source,
    only_scores,
    scores_of,
    source_of,
    with_line,
    with_probabilities,
)
from ocdserve.builder.recogniser.trial import GraphRecogniser, drawn_line, drawn_texts, fault, recogniser_of
from ocdserve.contract import InvalidInputError

# Lines and width in pixels that no export is made for; a multiple of every pitch of recognisers.
_LINES, _WIDTH = 3, 352


@dataclass(frozen=True)
class RecogniserDescription:
    """An exported recogniser in normal form.

    Attributes:
        model: The network.
        spec: How it is served.
        sha256: Hash of the exported file and its external data.
        aliases: Tensors of the export that the normal form lacks, and the tensors with the same values.
        batch: 1 if the graph allows only one line at a time; None is any.
        notes: Findings and changes, one sentence each.
        fault: What is wrong with what it reads in drawn lines; None: nothing.
    """

    model: onnx.ModelProto
    spec: RecogniserSpec
    sha256: str
    aliases: dict[str, str]
    batch: int | None
    notes: tuple[str, ...]
    fault: str | None


@dataclass(frozen=True)
class _Tried:
    """A network that was executed: simplified, with its scores as it returns them.

    Attributes:
        batch: 1, or None for any number of lines.
        width: Fixed width, or None.
    """

    simplified: Simplified
    batch: int | None
    width: int | None
    form: ScoreForm


def describe_recogniser(config: RecogniserBuildConfig) -> RecogniserDescription:
    """Load a recogniser and convert it to normal form.

    Raises:
        InvalidInputError: The file is not a recogniser that can be served, or cannot be executed; the message says
            what was expected.
    """
    exported = load_onnx(config.onnx)
    notes: list[str] = []
    try:
        source = source_of(exported, config.export, config.height)
        scores = scores_of(exported, config.export.output)
        listed, where = listed_characters(exported, config.characters)
        network = _network_spec(exported, source, scores, config, notes)
        tried, network = _tried(exported, source, scores, network, config.export, notes)
        model, network = _normal(tried, source.height, network)
        characters = fitted_characters(listed, where, tried.form.classes, scores)
    except InvalidInputError as error:
        raise InvalidInputError(f"{config.onnx.name}: {error}") from error
    fit = config.fit or ("stretch" if scores.reduced else "pad")
    # A graph may compute any width, but its network has learnt letters stretched to its own.
    width = source.width if fit == "stretch" else tried.width
    widths = WidthPolicy(fit=fit) if width is None else WidthPolicy(((width, width),), width, fit)
    spec = RecogniserSpec(
        name=config.name or config.onnx.stem,
        network=network,
        height=source.height,
        widths=widths,
        characters=characters,
    )
    notes += _notes(exported, source, scores, tried, spec)
    found_fault = fault(recogniser_of(spec, GraphRecogniser(model, spec, config.threads)))
    if not drawn_texts(characters):
        notes.append("it was not tried on drawn lines: its characters lack the letters and digits of those")
    aliases = tried.simplified.aliases
    hashed = file_sha256(config.onnx)
    return RecogniserDescription(model, spec, hashed, aliases, tried.batch, tuple(notes), found_fault)


def _network_spec(
    exported: onnx.ModelProto, source: Source, scores: Scores, config: RecogniserBuildConfig, notes: list[str]
) -> RecogniserNetworkSpec:
    """Colours and normalisation: PaddleOCR's and OCRNet's are (x / 255 - 0.5) / 0.5, in BGR and RGB."""
    export = config.export
    spec = RecogniserNetworkSpec(color="RGB" if scores.reduced else "BGR")
    if takes_pixels(graph_input(exported, source.name), export):
        notes.append("the input is uint8: pixels are not normalised outside of the network")
        spec = replace(spec, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    spec = export.applied_to(spec)
    if source.is_gray:
        if len(set(spec.mean)) > 1 or len(set(spec.std)) > 1:
            raise InvalidInputError(
                f"the network takes gray lines: --mean and --std must be the same number three times; got {spec.mean} "
                f"and {spec.std}"
            )
        spec = replace(spec, color="RGB")
    return replace(spec, output=None)


def _tried(
    exported: onnx.ModelProto,
    source: Source,
    scores: Scores,
    network: RecogniserNetworkSpec,
    export: ExportOptions,
    notes: list[str],
) -> tuple[_Tried, RecogniserNetworkSpec]:
    """The simplified network with as many dynamic dimensions as it supports, and its tensor names."""
    reduced = only_scores(exported, scores)
    model = in_float32(reduced, graph_input(exported, source.name), reduced.graph.output[0], notes)
    image, name = with_line(model, source)
    network = replace(network, input=name, output=scores.name)
    failure: Exception | None = None
    for batch, width in dict.fromkeys([(None, None), (None, source.width), (1, None), (1, source.width)]):
        simplified = simplify(_with_shape(image, name, batch, source.height, width))
        try:
            raw = _raw_scores(simplified.model, network, batch, source.height, width)
            form = ScoreForm.of(raw, batch or _LINES, export)
        except Exception as error:  # each runtime has exceptions of its own
            if failure is None or isinstance(error, InvalidInputError):
                failure = error
            continue
        return _Tried(simplified, batch, width, form), network
    if isinstance(failure, InvalidInputError):
        raise failure
    reason = " ".join(str(failure).split())[:300]
    raise InvalidInputError(f"cannot be executed with lines of {source.height} pixels (--height): {reason}")


def _raw_scores(
    model: onnx.ModelProto, network: RecogniserNetworkSpec, batch: int | None, height: int, width: int | None
) -> NDArray[Any]:
    """Execute the network for lines of text, black and noise."""
    lines = np.zeros((batch or _LINES, height, width or _WIDTH, 3), np.uint8)
    drawn = drawn_line("Text 25", height)[:, : lines.shape[2]]
    lines[0] = 255
    lines[0, :, : drawn.shape[1]] = drawn
    lines[2:] = np.random.default_rng(0).integers(0, 256, lines[2:].shape, np.uint8)
    raw: NDArray[Any] = cpu_session(model).run([network.output], {network.input: normalised(lines, network)})[0]
    return raw


def _normal(
    tried: _Tried, height: int, network: RecogniserNetworkSpec
) -> tuple[onnx.ModelProto, RecogniserNetworkSpec]:
    """The network in normal form, and its tensor names."""
    assert network.input is not None and network.output is not None
    model, output = with_probabilities(tried.simplified.model, network.output, tried.form)
    return _with_shape(model, network.input, tried.batch, height, tried.width), replace(network, output=output)


def _with_shape(
    model: onnx.ModelProto, source: str, batch: int | None, height: int, width: int | None
) -> onnx.ModelProto:
    """The network with an input of these sizes, None being dynamic."""
    result = copy.deepcopy(model)
    del result.graph.value_info[:]
    shape = graph_input(result, source).type.tensor_type.shape
    shape.Clear()
    for number, symbol in ((batch, "batch"), (3, ""), (height, ""), (width, "width")):
        dim = shape.dim.add()
        if number is None:
            dim.dim_param = symbol
        else:
            dim.dim_value = number
    return result


def _notes(exported: onnx.ModelProto, source: Source, scores: Scores, tried: _Tried, spec: RecogniserSpec) -> list[str]:
    """What was found and changed, one sentence each."""
    merged = len(exported.graph.node) - len(tried.simplified.model.graph.node)
    opset = opset_of(exported)
    found = {
        "the output holds chosen classes: the scores before the choice are taken": scores.reduced,
        "the network takes gray lines: made from RGB by the weights of Rec. 601": source.is_gray,
        "the input is N x H x W x C: made N x C x H x W": source.layout == "nhwc",
        f"opset raised from {opset} to {OPSET}": opset < OPSET,
        f"{merged} of {len(exported.graph.node)} nodes folded, merged or dropped": merged > 0,
        f"the graph allows one width only: {tried.width} pixels": tried.width is not None,
        f"lines are stretched to {spec.widths.largest} pixels": spec.widths.fit == "stretch"
        and spec.widths.smallest == spec.widths.largest,
        "the graph allows one line at a time only": tried.batch is not None,
    }
    return [*tried.form.notes(), *(note for note, applies in found.items() if applies)]

# SPDX-License-Identifier: Apache-2.0
"""Load and check an exported network, convert it to a normal form, and determine how it is served.

All later steps work on the normal form: float32, opset 19 or later, standard deformable convolutions, named nodes,
folded constants, dynamic batch and size as far as the graph allows.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ocdserve.backend import PRESETS
from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.network.rewrite.fold import load_onnx
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.backend.spec.resize import PolicyKind, ResizePolicy
from ocdserve.builder.graph.ends import (
    ExportOptions,
    Layout,
    MapForm,
    check_range,
    form_of,
    graph_input,
    image_layouts,
    with_image,
    with_map,
    with_values,
)
from ocdserve.builder.graph.execute import cpu_session, normalised
from ocdserve.builder.graph.exported import file_sha256, in_float32, only_output, takes_pixels
from ocdserve.builder.graph.simplify import Simplified, simplify
from ocdserve.builder.graph.tensor_types import OPSET, opset_of
from ocdserve.builder.graph.trial import TRIAL_BATCH, TRIAL_SIZE, finds_words, trial_pages
from ocdserve.contract import InvalidInputError


@dataclass(frozen=True)
class Description:
    """An exported network in normal form.

    Attributes:
        model: The network: float32 N x 3 x H x W in, N x 1 x H x W probability out.
        spec: How it is served, with its tensor names.
        sha256: Hash of the exported file and its external data.
        aliases: Tensors of the export that the normal form lacks, and the tensors with the same values.
        size: (height, width) in pixels if the graph allows only one size; None is any multiple of the stride.
        batch: Batch size if the graph allows only one; None is any.
        notes: Findings and changes, one sentence each.
        finds_text: Whether it finds the words of a drawn page; True where the size is too small for words.
    """

    model: onnx.ModelProto
    spec: DetectorSpec
    sha256: str
    aliases: dict[str, str]
    size: tuple[int, int] | None
    batch: int | None
    notes: tuple[str, ...]
    finds_text: bool = True


@dataclass(frozen=True)
class _Tried:
    """A network that was executed: simplified, with its map as it returns it, and what it returned.

    Attributes:
        simplified: The network.
        spec: With the name of its input.
        layout: Of the exported input.
        batch: Fixed batch, or None.
        size: Fixed (height, width), or None.
        form: Form of the map.
        raw: The maps of the trial pages.
        words: Words of the first page.
    """

    simplified: Simplified
    spec: DetectorSpec
    layout: Layout
    batch: int | None
    size: tuple[int, int] | None
    form: MapForm
    raw: NDArray[Any]
    words: Truth


def describe(
    path: Path,
    preset: str | None = None,
    name: str | None = None,
    detector: DetectorSpec | None = None,
    export: ExportOptions | None = None,
) -> Description:
    """Load a network and convert it to normal form.

    Args:
        path: Exported ONNX, opset 11 or later; external data is next to it.
        preset: One of `ocdserve.backend.PRESETS`; None detects the exporter by its tensor names.
        name: Name of the detector; None takes the file's.
        detector: How the network is served, instead of a preset.
        export: What the export differs in.

    Raises:
        InvalidInputError: The file is not a DB network, or cannot be executed; the message says what was expected.
    """
    export = export or ExportOptions()
    exported = load_onnx(path)
    notes: list[str] = []
    if detector is None:
        if preset is None:
            preset = _recognised(exported, path, export.output)
            notes.append(f"recognised as an export of the preset {preset}")
        detector = PRESETS[preset]
    spec = replace(export.applied(detector), name=name or path.stem)
    try:
        source, target = _ends(exported, spec)
        layouts = image_layouts(source, export.layout)
        spec = replace(spec, network=replace(spec.network, input=source.name, output=target.name))
        if takes_pixels(source, export):
            notes.append("the input is uint8: pixels are not normalised outside of the network")
            spec = replace(spec, network=replace(spec.network, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
        tried = _tried(in_float32(only_output(exported, target.name), source, target, notes), spec, layouts)
        form = with_values(tried.form, tried.raw, export.values)
        maps = form.probabilities(tried.raw)
        check_range(maps)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path.name}: {error}") from error
    if tried.layout == "nhwc":
        notes.append("the input is N x H x W x 3: made N x 3 x H x W")
    opset = opset_of(exported)
    if opset < OPSET:
        notes.append(f"opset raised from {opset} to {OPSET}")
    merged = len(exported.graph.node) - len(tried.simplified.model.graph.node)
    if merged > 0:
        notes.append(f"{merged} of {len(exported.graph.node)} nodes folded, merged or dropped")
    notes += form.notes()
    model, output = with_map(tried.simplified.model, target.name, form)
    spec = replace(tried.spec, network=replace(tried.spec.network, output=output))
    model = _with_shape(model, spec, tried.batch, tried.size)
    if tried.size is not None:
        spec = replace(spec, resize=_one_size(spec.resize, tried.size))
        notes.append(f"the graph allows one size only: {tried.size[1]} x {tried.size[0]} (width x height)")
    if tried.batch is not None:
        notes.append("the graph allows one image at a time only")
    finds = not tried.words.polygons or finds_words(maps[0], tried.words, spec.postprocess)
    aliases = tried.simplified.aliases
    return Description(model, spec, file_sha256(path), aliases, tried.size, tried.batch, tuple(notes), finds)


def network_size(spec: DetectorSpec) -> tuple[int, int]:
    """(height, width) in pixels of the reference image, 1280 x 736 as served, for figures such as multiplications."""
    size, _ = spec.resize.sizes(736, 1280)
    return size


def _recognised(model: onnx.ModelProto, path: Path, output: str | None) -> str:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    outputs = [value.name for value in model.graph.output]
    outputs = [output] if output in outputs else outputs
    if inputs == ["input"] and outputs == ["pred"]:
        return "ocdnet"
    paddle = ("fetch_name_", "sigmoid_", "save_infer_model", "p2o.")
    if inputs == ["x"] and len(outputs) == 1 and outputs[0].startswith(paddle):
        return "ppocr"
    raise InvalidInputError(
        f"{path.name}: inputs {inputs} and outputs {outputs} are not those of a known exporter, so that "
        f"normalisation and resizing are unknown. Name the preset: {', '.join(PRESETS)} (--preset)."
    )


def _ends(model: onnx.ModelProto, spec: DetectorSpec) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """The image input and the output with the map."""
    constants = {tensor.name for tensor in model.graph.initializer}
    sources = {value.name: value for value in model.graph.input if value.name not in constants}
    targets = {value.name: value for value in model.graph.output}
    source, target = spec.network.input, spec.network.output
    if source is None and len(sources) == 1:
        (source,) = sources
    if source not in sources:
        raise InvalidInputError(f"the network must have one input, the image; got {list(sources)}")
    if target is None and len(targets) == 1:
        (target,) = targets
    if target not in targets:
        raise InvalidInputError(
            f"the network has the outputs {list(targets)}: name the one with the map by --output-tensor"
            + (f"; got {target!r}" if target else "")
        )
    return sources[source], targets[target]


def _tried(model: onnx.ModelProto, spec: DetectorSpec, layouts: tuple[Layout, ...]) -> _Tried:
    """The simplified network with as many dynamic dimensions as it supports, executed once for these."""
    failure: Exception | None = None
    for layout in layouts:
        assert spec.network.input is not None
        image, name = with_image(model, spec.network.input, layout)
        named = replace(spec, network=replace(spec.network, input=name))
        dims = [dim.dim_value for dim in graph_input(image, name).type.tensor_type.shape.dim] or [0] * 4
        size = (dims[2], dims[3]) if dims[2] and dims[3] else None
        for batch, wanted in dict.fromkeys([(None, None), (None, size), (1, None), (1, size)]):
            # Before the simplification, which would otherwise fold the sizes of the export.
            simplified = simplify(_with_shape(image, named, batch, wanted, of_map=False))
            try:
                return _executed(simplified, named, layout, batch, wanted)
            except Exception as error:  # each runtime has exceptions of its own
                # What is wrong with the network, as found at the last and most fixed sizes, says more than a runtime.
                if failure is None or isinstance(error, InvalidInputError):
                    failure = error
    if isinstance(failure, InvalidInputError):
        raise failure
    taken = " or ".join("N x 3 x H x W" if layout == "nchw" else "N x H x W x 3" for layout in layouts)
    raise InvalidInputError(
        f"cannot be executed with images {taken} (--input-layout), so it is not a DB network: "
        f"{' '.join(str(failure).split())[:300]}"
    ) from failure


def _executed(
    simplified: Simplified,
    spec: DetectorSpec,
    layout: Layout,
    batch: int | None,
    size: tuple[int, int] | None,
) -> _Tried:
    height, width = size or TRIAL_SIZE
    pages, words = trial_pages(height, width, TRIAL_BATCH)
    network = spec.network
    planes = normalised(pages, network)
    session = cpu_session(simplified.model)
    groups = np.split(planes, len(planes) // (batch or len(planes)))
    raw = np.concatenate([session.run([network.output], {network.input: group})[0] for group in groups])
    form = form_of(raw, height, width)
    return _Tried(simplified, spec, layout, batch, size, form, raw, words)


def _with_shape(
    model: onnx.ModelProto, spec: DetectorSpec, batch: int | None, size: tuple[int, int] | None, of_map: bool = True
) -> onnx.ModelProto:
    """The network with these sizes, None being dynamic; without `of_map` the output has none."""
    result = copy.deepcopy(model)
    del result.graph.value_info[:]
    (target,) = result.graph.output
    target.type.tensor_type.ClearField("shape")
    height, width = size or (None, None)
    assert spec.network.input is not None
    for value, channels in ((graph_input(result, spec.network.input), 3), *(((target, 1),) if of_map else ())):
        value.type.tensor_type.shape.Clear()
        dims = (batch, "batch"), (channels, ""), (height, "height"), (width, "width")
        for number, symbol in dims:
            dim = value.type.tensor_type.shape.dim.add()
            if number is None:
                dim.dim_param = symbol
            else:
                dim.dim_value = number
    return result


def _one_size(policy: ResizePolicy, size: tuple[int, int]) -> ResizePolicy:
    """A policy for one size; policies that keep the aspect ratio still do."""
    height, width = size
    kind: PolicyKind = "fixed" if policy.kind == "fixed" else "letterbox"
    return replace(policy, kind=kind, width=width, height=height)

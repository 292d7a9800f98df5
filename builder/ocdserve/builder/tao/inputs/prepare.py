# SPDX-License-Identifier: Apache-2.0
"""Prepare the network of an action, and how images are read and maps are post-processed, from the keys of a spec."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ocdserve.backend import Bundle
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import GPU_RUNTIMES, RuntimeOptions
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.network.rewrite.fold import load_onnx, network_ends
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.builder.tao.inputs.artifact import Artifact, open_artifact
from ocdserve.builder.tao.inputs.pipeline import ImageMode, ReadOptions
from ocdserve.builder.tao.spec import Ocdserve, PostProcessingArgs, PreProcess
from ocdserve.contract import InvalidInputError

# TAO never shrinks an image whose short side is large enough; this is the largest side that our networks accept.
_LARGEST_SIDE = 4096
# Image that TAO's specs evaluate at, (height, width).
_USUAL = (736, 1280)
_TRAINING_STEPS = ("EastRandomCropData", "IaaAugment", "MakeBorderMap", "MakeShrinkMap")


@dataclass(frozen=True)
class Request:
    """Arguments of `prepare`.

    Attributes:
        path: Value of `trt_engine`.
        resize: Resize policy; None: the bundle's.
        size_key: Dotted key of the size, for messages.
        img_mode: Channel order.
        post_processing: Thresholds.
        polygons: Whether to detect polygons instead of quads.
        batch_size: Images per call of the network; below 1: the engine's largest batch if known, else 1.
        device: Index of the GPU, if one is used.
        ocdserve: Our own section of the spec.
    """

    path: Path
    resize: ResizePolicy | None
    size_key: str
    img_mode: str
    post_processing: PostProcessingArgs
    polygons: bool
    batch_size: int
    device: int
    ocdserve: Ocdserve


@dataclass(frozen=True)
class Prepared:
    """A network ready to run.

    Attributes:
        network: The network.
        read: How images are read for it.
        params: How its maps are post-processed.
        batch_size: Images per call of the network.
        notes: For the user, a sentence each.
    """

    network: Network
    read: ReadOptions
    params: PostprocessParams
    batch_size: int
    notes: tuple[str, ...]


def prepare(request: Request) -> Prepared:
    """Open and compile the network of an action.

    Raises:
        InvalidInputError: The file is not a network, or its size differs from the spec's.
        UnavailableError: It needs a GPU, or a runtime that is not installed.
    """
    tao = request.ocdserve.compat == "tao"
    if tao and request.img_mode == "GRAY":
        raise InvalidInputError(
            "img_mode GRAY fails in TAO, so ocdserve.compat=tao has nothing to reproduce. Leave one of them out."
        )
    artifact = open_artifact(request.path)
    bundle = _resized(artifact.bundle, request)
    runtime = artifact.runtime if request.ocdserve.runtime == "auto" else request.ocdserve.runtime
    # Folded networks, as all on a GPU are, have uint8 inputs and outputs.
    is_exact = tao and not bundle.spec.network.folded and runtime not in GPU_RUNTIMES
    batch_size = request.batch_size if request.batch_size > 0 else artifact.max_batch or 1
    network = load_network(bundle, _runtime_options(request, runtime, batch_size, is_exact))
    mode: Any = request.img_mode
    # The actions scale every image in one piece, as TAO does.
    resize = replace(bundle.spec.resize, tiles=False)
    read = ReadOptions(resize, mode, bundle.spec.network.color, is_float=is_exact)
    notes = _notes(artifact, request, mode, is_exact)
    return Prepared(network, read, _postprocess(bundle, request), batch_size, notes)


def resize_policy(steps: tuple[PreProcess, ...]) -> tuple[ResizePolicy | None, bool]:
    """Return the resize policy of an evaluation's `pre_processes`, and whether labels are resized as well.

    `Resize2D` with a pair stretches to that width and height; with a number it enlarges the short side to that length
    and rounds both sides to multiples of 32, which every network requires.

    Raises:
        InvalidInputError: A step is unknown or its arguments are invalid.
    """
    policy, resizes_labels = None, True
    for step in steps:
        if step.type in _TRAINING_STEPS:
            raise InvalidInputError(
                f"dataset.validate_dataset.args.pre_processes: {step.type} changes images at random or makes targets; "
                "it is for training. Take it out of the validation set."
            )
        if step.type != "Resize2D":
            raise InvalidInputError(
                f"dataset.validate_dataset.args.pre_processes: the steps are Resize2D; got {step.type!r}"
            )
        args = step.args if isinstance(step.args, Mapping) else {"short_size": step.args}
        unknown = set(args) - {"short_size", "resize_text_polys"}
        if unknown or "short_size" not in args:
            raise InvalidInputError(
                f"Resize2D takes short_size and resize_text_polys; got {', '.join(map(str, args)) or 'nothing'}"
            )
        if policy is not None:
            raise InvalidInputError("dataset.validate_dataset.args.pre_processes: Resize2D may come only once")
        policy = _resize2d(args["short_size"])
        resizes_labels = args.get("resize_text_polys", True)
        if not isinstance(resizes_labels, bool):
            raise InvalidInputError(f"Resize2D.resize_text_polys must be true or false; got {resizes_labels!r}")
    return policy, resizes_labels


def evaluated_size(steps: tuple[PreProcess, ...]) -> tuple[int, int]:
    """Height and width in pixels at which an evaluation with these `pre_processes` sees an image of 1280 x 736."""
    policy, _ = resize_policy(steps)
    return _USUAL if policy is None else policy.sizes(*_USUAL)[0]


def fixed_size(width: int, height: int, key: str) -> ResizePolicy:
    """Policy that stretches to width x height pixels; `key` is named in errors."""
    return _policy(key, kind="fixed", width=width, height=height)


def _policy(key: str, **values: Any) -> ResizePolicy:
    try:
        return ResizePolicy(**values)
    except InvalidInputError as error:
        raise InvalidInputError(f"{key}: {error}") from error


def _resize2d(size: Any) -> ResizePolicy:
    key = "dataset.validate_dataset.args.pre_processes: Resize2D.short_size"
    if isinstance(size, list | tuple) and [type(side) for side in size] == [int, int]:
        return fixed_size(size[0], size[1], key)
    if type(size) is int:
        return _policy(key, kind="short_side", side=size, enlarge=True, shrink=False, largest_side=_LARGEST_SIDE)
    raise InvalidInputError(f"Resize2D.short_size must be [width, height] or one number, in pixels; got {size!r}")


def _resized(bundle: Bundle, request: Request) -> Bundle:
    """The bundle with the spec's resize policy; raises InvalidInputError if its network has another size."""
    if request.resize is None:
        return bundle
    size = _static_size(bundle)
    policy = request.resize
    if size is not None and (policy.kind, policy.height, policy.width) != ("fixed", *size):
        asked = f"{policy.width} x {policy.height}" if policy.kind == "fixed" else f"a short side of {policy.side}"
        raise InvalidInputError(
            f"{request.path} takes images of {size[1]} x {size[0]} pixels (width x height) only, but "
            f"{request.size_key} asks for {asked}. Set it to {size[1]} x {size[0]}, or "
            "export or build the network for another size."
        )
    return replace(bundle, spec=replace(bundle.spec, resize=policy))


def _static_size(bundle: Bundle) -> tuple[int, int] | None:
    """Return height and width in pixels of a network's input; None if they are dynamic."""
    model = load_onnx(bundle.model_path)
    if bundle.spec.network.folded:
        height, width = model.graph.input[0].type.tensor_type.shape.dim[1:3]
    else:
        height, width = network_ends(model, bundle.spec.network)[0].type.tensor_type.shape.dim[2:4]
    return (height.dim_value, width.dim_value) if height.dim_value and width.dim_value else None


def _runtime_options(request: Request, runtime: str | None, batch_size: int, is_exact: bool) -> RuntimeOptions:
    options = RuntimeOptions(
        runtime,
        request.ocdserve.threads or None,
        map_type="float32" if is_exact else "uint8",
        pixel_type="float32" if is_exact else "uint8",
        device=request.device,
    )
    return replace(options, streams=min(batch_size, options.thread_count))


def _postprocess(bundle: Bundle, request: Request) -> PostprocessParams:
    own = PostprocessParams(mode="tao") if request.ocdserve.compat == "tao" else bundle.spec.postprocess
    return replace(own, **asdict(request.post_processing), polygons=request.polygons)


def _notes(artifact: Artifact, request: Request, mode: ImageMode, is_exact: bool) -> tuple[str, ...]:
    notes = [*artifact.notes]
    color = artifact.bundle.spec.network.color
    if mode != color and mode != "GRAY":
        notes.append(
            f"the network of {request.path} was trained with the channel order {color}, but img_mode is {mode}: "
            f"the network gets {mode}, as the spec says"
        )
    if request.ocdserve.compat == "tao" and not is_exact:
        notes.append(
            f"{request.path} has uint8 inputs and outputs: resized pixels and probabilities have 8 bits, unlike TAO's"
        )
    return tuple(notes)

# SPDX-License-Identifier: Apache-2.0
"""The action `inference`: boxes of all images of a folder, as files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.builder.tao.actions import ActionResult, Context
from ocdserve.builder.tao.infer import result_files
from ocdserve.builder.tao.infer.result_files import ResultPaths, write_jpeg
from ocdserve.builder.tao.inputs.dataset import find_images
from ocdserve.builder.tao.inputs.pipeline import (
    LoaderOptions,
    NetworkImage,
    Unreadable,
    named_unreadable,
    read_image,
    run_pipeline,
    with_progress,
)
from ocdserve.builder.tao.inputs.prepare import Prepared, Request, fixed_size, prepare
from ocdserve.builder.tao.spec import Spec
from ocdserve.contract import InvalidInputError, install_command

_SIZE_KEY = "inference.width and inference.height"
# Backends of matplotlib that open no windows.
_WINDOWLESS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


def run(spec: Spec, context: Context) -> ActionResult:
    """Detect text in the images of a folder.

    Raises:
        InvalidInputError: A key, the folder or the network is invalid; or images could not be read, which is reported
            after all others are done.
        UnavailableError: The network needs a GPU, or a runtime that is not installed.
    """
    return infer(spec, Path(spec.inference.trt_engine), context)


def infer(
    spec: Spec,
    network: Path,
    context: Context,
    open_network: Callable[[Request], Prepared] = prepare,
    in_network_pixels: bool = False,
) -> ActionResult:
    """Detect text with a network by the spec's section `inference`.

    Args:
        spec: The spec.
        network: Engine, ONNX or bundle, or what else `open_network` opens.
        context: Of the action.
        open_network: Makes the network ready to run.
        in_network_pixels: Whether boxes are written and drawn in the network's pixels instead of the image's.

    Raises:
        InvalidInputError, UnavailableError: See `run`.
    """
    section = spec.inference
    tao = spec.ocdserve.compat == "tao"
    images = find_images(Path(section.input_folder), tao)
    names = [path.stem for path in images] if tao else result_files.result_names(images)
    _check_targets(images, names, context.results_dir)
    prepared = open_network(
        Request(
            path=network,
            resize=fixed_size(section.width, section.height, _SIZE_KEY),
            size_key=_SIZE_KEY,
            img_mode=section.img_mode,
            post_processing=section.post_processing.args,
            polygons=section.polygon,
            batch_size=section.batch_size,
            device=section.gpu_ids[0] if section.gpu_ids else 0,
            ocdserve=spec.ocdserve,
        )
    )
    for note in (*prepared.notes, *_overwriting(images if tao else [])):
        context.warn(note)
    targets = [result_files.result_paths(context.results_dir, name) for name in names]
    shows = section.show and _has_windows(context)
    return _infer(images, targets, prepared, context, shows, in_network_pixels)


def _infer(
    images: Sequence[Path],
    targets: Sequence[ResultPaths],
    prepared: Prepared,
    context: Context,
    shows: bool,
    in_network_pixels: bool,
) -> ActionResult:
    def finish(index: int, image: NetworkImage, probability: NDArray[Any]) -> tuple[int, ResultPaths]:
        size = image.frame.network
        frame = Frame(size, size, size) if in_network_pixels else image.frame
        found = postprocess(probability, frame, prepared.params)
        if prepared.params.mode != "tao":
            found = result_files.bottom_first(found)
        text, drawn, map_ = targets[index]
        if image.source is not None:
            write_jpeg(drawn, result_files.drawn_boxes(image.source, found))
        write_jpeg(map_, result_files.map_picture(probability))
        text.write_text(result_files.box_lines(found), "utf-8")
        return len(found), targets[index]

    read = partial(read_image, options=replace(prepared.read, keeps_source=True))
    results = run_pipeline(images, read, prepared.network, finish, LoaderOptions(prepared.batch_size))
    unreadable: list[Unreadable] = []
    boxes = 0
    start = perf_counter()
    for count, files in with_progress(results, "inference", len(images), context, unreadable):
        boxes += count
        if shows:
            _show(files)
    seconds = perf_counter() - start
    done = len(images) - len(unreadable)
    kpi: dict[str, float | int | str | None] = {
        "images": done,
        "unreadable_images": len(unreadable),
        "boxes": boxes,
        "images_per_second": round(len(images) / max(seconds, 1e-9), 3),
    }
    summary = f"{boxes} boxes in {done} images, {kpi['images_per_second']} images/s; files in {context.results_dir}."
    if unreadable:
        context.status.write("RUNNING", summary, verbosity="WARNING", kpi=kpi)
        raise InvalidInputError(
            f"{named_unreadable(unreadable, len(images))}. All others are done. Replace these files or remove them "
            "from the folder."
        )
    return ActionResult(summary, kpi)


def _check_targets(images: list[Path], names: list[str], folder: Path) -> None:
    """Raise InvalidInputError if a result would overwrite an image."""
    inputs = {path.resolve() for path in images}
    targets = (path.resolve() for name in names for path in result_files.result_paths(folder, name))
    hit = next((path for path in targets if path in inputs), None)
    if hit is not None:
        raise InvalidInputError(
            f"the results would overwrite the image {hit}; name another folder with inference.results_dir"
        )


def _overwriting(images: list[Path]) -> list[str]:
    lost = result_files.overwritten(images)
    if not lost:
        return []
    names = ", ".join(path.name for path in lost)
    return [f"as in TAO, images of the same stem overwrite each other's results: none are left of {names}"]


def _has_windows(context: Context) -> bool:
    try:
        import matplotlib
    except ImportError:
        install = install_command("ocdserve[builder]")
        context.warn(f"inference.show needs matplotlib: {install}. The pictures are files too.")
        return False
    backend = str(matplotlib.get_backend()).lower()
    if backend in _WINDOWLESS:
        context.warn(f"inference.show opens no windows: there is no display (matplotlib's backend is {backend}).")
        return False
    return True


def _show(files: ResultPaths) -> None:
    """Open a window with the map and one with the drawn boxes; returns when they are closed."""
    import matplotlib.pyplot

    for path in files[:0:-1]:
        figure = matplotlib.pyplot.figure()
        axes = figure.add_subplot()
        axes.set_title(path.name)
        axes.imshow(decode(path.read_bytes()))
    matplotlib.pyplot.show()
    matplotlib.pyplot.close("all")

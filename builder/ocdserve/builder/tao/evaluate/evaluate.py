# SPDX-License-Identifier: Apache-2.0
"""The action `evaluate`: precision, recall and hmean of a network on labelled images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from ocdserve.builder.tao.actions import ActionResult, Context
from ocdserve.builder.tao.evaluate.contact_sheet import draw_contact_sheet, worst
from ocdserve.builder.tao.evaluate.measure import ImageResult, MeasureOptions, measure
from ocdserve.builder.tao.evaluate.report import WORST_FILE, Outcome, write_results
from ocdserve.builder.tao.inputs.dataset import DataSet, label_format, load_data_set
from ocdserve.builder.tao.inputs.labels import LabelRules
from ocdserve.builder.tao.inputs.pipeline import (
    LoaderOptions,
    NetworkImage,
    Unreadable,
    named_unreadable,
    read_image,
    run_pipeline,
    with_progress,
)
from ocdserve.builder.tao.inputs.prepare import Prepared, Request, prepare, resize_policy
from ocdserve.builder.tao.spec import Spec, ValidateDataset
from ocdserve.contract import InvalidInputError

# Fields of a sample of TAO's loader that an evaluation needs.
_NEEDED_KEYS = ("img", "text_polys", "ignore_tags")


def run(spec: Spec, context: Context) -> ActionResult:
    """Evaluate.

    Raises:
        InvalidInputError: A key, the data set or the network is invalid; or images could not be read, which is reported
            after all others are evaluated and all files are written.
        UnavailableError: The network needs a GPU, or a runtime that is not installed.
    """
    return report_outcome(evaluate_network(spec, Path(spec.evaluate.trt_engine), context), spec, context)


def evaluate_network(
    spec: Spec, network: Path, context: Context, open_network: Callable[[Request], Prepared] = prepare
) -> Outcome:
    """Evaluate a network by the spec's sections `evaluate` and `dataset.validate_dataset`.

    Args:
        spec: The spec.
        network: Engine, ONNX or bundle, or what else `open_network` opens.
        context: Of the action.
        open_network: Makes the network ready to run.

    Raises:
        InvalidInputError: A key, the data set or the network is invalid.
        UnavailableError: The network needs a GPU, or a runtime that is not installed.
    """
    data = spec.dataset.validate_dataset
    _check_filter_keys(data)
    rules = LabelRules(label_format(data), data.args.ignore_tags, spec.ocdserve.compat == "tao")
    policy, resizes_labels = resize_policy(data.args.pre_processes)
    data_set = load_data_set(data.data_path, rules)
    # The loader's batch size takes precedence unless it is 1, the default; the action's key has no effect in TAO.
    batch_size = data.loader.batch_size if data.loader.batch_size > 1 else spec.evaluate.batch_size
    prepared = open_network(
        Request(
            path=network,
            resize=policy,
            size_key="dataset.validate_dataset.args.pre_processes",
            img_mode=data.args.img_mode,
            post_processing=spec.evaluate.post_processing.args,
            polygons=spec.evaluate.metric.args.is_output_polygon,
            batch_size=batch_size,
            device=spec.evaluate.gpu_ids[0] if spec.evaluate.gpu_ids else 0,
            ocdserve=spec.ocdserve,
        )
    )
    notes = (*prepared.notes, *data_set.notes, *_notes(rules, resizes_labels))
    for note in notes:
        context.warn(note)
    options = MeasureOptions(prepared.params, resizes_labels, spec.ocdserve.sweep)
    loader = LoaderOptions(prepared.batch_size, data.loader.num_workers)
    return evaluate(data_set, prepared, options, loader, context, notes)


def evaluate(
    data_set: DataSet,
    prepared: Prepared,
    options: MeasureOptions,
    loader: LoaderOptions,
    context: Context,
    notes: tuple[str, ...] = (),
) -> Outcome:
    """Run the network over all images and compare its detections with their labels."""
    samples = data_set.samples

    def finish(index: int, image: NetworkImage, probability: NDArray[Any]) -> ImageResult:
        sample = samples[index]
        return measure(sample.image, sample.labels.instances, probability, image.frame, options)

    read = partial(read_image, options=prepared.read)
    images = [sample.image for sample in samples]
    found = run_pipeline(images, read, prepared.network, finish, loader, loader.readers)
    unreadable: list[Unreadable] = []
    start = perf_counter()
    results = tuple(with_progress(found, "evaluate", len(images), context, unreadable))
    return Outcome(results, tuple(unreadable), notes, perf_counter() - start, options.params)


def report_outcome(outcome: Outcome, spec: Spec, context: Context) -> ActionResult:
    """Write the files of an evaluation and say its figures.

    Raises:
        InvalidInputError: Images could not be read.
    """
    has_texts = "texts" not in spec.dataset.validate_dataset.args.filter_keys
    results = write_results(outcome, context.results_dir, has_texts)
    picture = context.results_dir / WORST_FILE
    picture.unlink(missing_ok=True)
    shown = worst(outcome.images)
    if shown:
        draw_contact_sheet(shown, picture)
    figures = outcome.results()
    for name, value in figures.items():
        context.say(f"{name + ':':<12}{value:.4f}")
    counts = outcome.counts
    best = outcome.summary()["swept"]["best_by_thresh"]
    if best is not None:
        context.say(
            f"Best F-measure of bitmap thresholds on these images: {best['hmean']:.4f} (thresh {best['thresh']})"
        )
    context.say(f"{len(outcome.images)} images, {outcome.images_per_second:.2f} images/s")
    kpi: dict[str, float | int | str | None] = {
        "Precision": counts.precision,
        "Recall": counts.recall,
        "F-measure": figures["F-measure"],
        "precision": counts.precision,
        "recall": counts.recall,
        "hmean": figures["F-measure"],
        "images": len(outcome.images),
        "unreadable_images": len(outcome.unreadable),
        "images_per_second": round(outcome.images_per_second, 3),
    }
    if outcome.unreadable:
        context.status.write("RUNNING", "Figures over the images that could be read.", verbosity="WARNING", kpi=kpi)
        raise InvalidInputError(
            f"{named_unreadable(outcome.unreadable, len(outcome.images) + len(outcome.unreadable))}. "
            f"The figures in {results} are those of the others. Replace the files or take them out of the data set."
        )
    return ActionResult(f"Evaluated {len(outcome.images)} images: hmean {figures['F-measure']:.4f}.", kpi)


def _check_filter_keys(data: ValidateDataset) -> None:
    dropped = [key for key in data.args.filter_keys if key in _NEEDED_KEYS]
    if dropped:
        raise InvalidInputError(
            f"dataset.validate_dataset.args.filter_keys drops {', '.join(dropped)}, without which nothing can be "
            "compared; take it out of the list (training drops it, evaluation must not)"
        )


def _notes(rules: LabelRules, resizes_labels: bool) -> tuple[str, ...]:
    if resizes_labels:
        return ()
    if rules.tao:
        return ("resize_text_polys is false: detections in network pixels are compared with labels in source pixels",)
    return ("resize_text_polys has no effect: detections and labels are compared in source pixels",)

# SPDX-License-Identifier: Apache-2.0
"""The section `pipeline`: speed and accuracy of whole detectors, encoded image to boxes, on the same threads."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, TypeVar

from numpy.typing import NDArray

from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.matching import match
from ocdserve.contract import UnavailableError, UsageError
from ocdserve.perf.inputs.blanked import blanked
from ocdserve.perf.inputs.data_sets import DataSet
from ocdserve.perf.sections.answers import NOT_MEASURED, Judge, measure_answers
from ocdserve.perf.sections.plan import Plan, ProgressLine
from ocdserve.perf.series.measurement import LEFT_OVER, OURS, PAINTED_OVER, TEXTS, Measurement
from ocdserve.perf.series.samples import Progress
from ocdserve.perf.subjects import COMPETITORS, READ_ALWAYS, Competitor, Detect, licence_of

_Value = TypeVar("_Value")
_Detector = Competitor[NDArray[Any]]

_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?[1-9]\d*)?)?")


def measure(plan: Plan) -> tuple[Measurement, ...]:
    """Detect in all images with all detectors in alternation.

    Raises:
        UsageError: `--threads` is out of range, or `--peers` or `--pictures` name something unknown.
    """
    threads: int = plan.options.threads
    if threads < 1:
        raise UsageError(f"--threads must be at least 1; got {threads}")
    chosen = chosen_peers(COMPETITORS, plan.options.peers, "--peers")
    data_sets = chosen_pictures(plan.data_sets, plan.options.pictures)
    if plan.options.blanked:
        competitors = [Competitor(name, load, threads, licence_of(name)) for name, load in chosen.items()]
        return measure_blanked(competitors, data_sets, plan.rounds, threads)
    competitors = [
        Competitor(name, _cannot_detect if name in READ_ALWAYS else load, threads, licence_of(name))
        for name, load in chosen.items()
    ]
    return measure_pipelines(competitors, data_sets, plan.rounds, threads, ProgressLine("pipeline"))


def chosen_peers(known: Mapping[str, _Value], names: str | None, option: str) -> dict[str, _Value]:
    """All of ours and the named others, in the order of the table; None: all.

    Raises:
        UsageError: A name is unknown.
    """
    wanted = names.split(",") if names else None
    others = [name for name in known if not name.startswith(OURS)]
    if unknown := [name for name in wanted or () if name not in others]:
        raise UsageError(f"{option}: unknown {unknown[0]!r}; known are {', '.join(others)}")
    return {name: value for name, value in known.items() if wanted is None or name not in others or name in wanted}


def chosen_pictures(data_sets: Sequence[DataSet], slices: str | None) -> list[DataSet]:
    """The data sets, those that are named with part of their images: `receipts=1::2,scene=:5`; None: with all.

    Raises:
        UsageError: A data set is unknown, or a slice is none or leaves nothing.
    """
    found = {data.name: data for data in data_sets}
    for word in slices.split(",") if slices else ():
        name, _, text = word.partition("=")
        if name not in found:
            raise UsageError(f"--pictures: unknown data set {name!r}; known are {', '.join(found)}")
        images = found[name].images
        if part := _SLICE.fullmatch(text):
            images = images[slice(*(int(number) if number else None for number in part.groups()))]
        if part is None or not images:
            raise UsageError(
                f"--pictures {word}: {text!r} must be a slice START:STOP:STEP that leaves at least one of the "
                f"{len(found[name].images)} images"
            )
        found[name] = DataSet(name, images)
    return list(found.values())


def measure_pipelines(
    competitors: Sequence[_Detector],
    data_sets: Sequence[DataSet],
    rounds: int,
    threads: int,
    progress: Progress,
) -> tuple[Measurement, ...]:
    """Run all detectors over all images; see `measure_answers`."""
    judge: Judge[NDArray[Any], Counts] = Judge("pipeline", match, _facts)
    return measure_answers(judge, competitors, data_sets, rounds, threads, progress)


def measure_blanked(
    competitors: Sequence[_Detector], data_sets: Sequence[DataSet], rounds: int, threads: int
) -> tuple[Measurement, ...]:
    """Judge all detectors on the images, and time them on the same images with their texts painted over.

    So a peer that always reads is timed without its reading, and all others do the same work as it. The fact
    `ms with texts` is the median time on the images as they are.
    """
    judged = {
        one.key: one
        for one in measure_pipelines(competitors, data_sets, 1, threads, ProgressLine("pipeline, accuracy"))
    }
    names = {one.subject for one in judged.values()}
    judge: Judge[NDArray[Any], Counts] = Judge("pipeline", match, _left_over)
    timed = measure_answers(
        judge,
        [each for each in competitors if each.name in names],
        [DataSet(data.name, tuple(map(blanked, data.images))) for data in data_sets],
        rounds,
        threads,
        ProgressLine("pipeline, time"),
    )
    found = []
    for one in timed:
        with_texts = judged[one.key]
        facts = {**with_texts.facts, **one.facts, "ms with texts": median(with_texts.samples)}
        # What was missing in the first pass took no part in the second, which has reasons of its own.
        if reasons := [str(each.facts[NOT_MEASURED]) for each in (with_texts, one) if NOT_MEASURED in each.facts]:
            facts[NOT_MEASURED] = "; ".join(reasons)
        found.append(replace(one, factors={**one.factors, TEXTS: PAINTED_OVER}, facts=facts))
    return tuple(found)


def _cannot_detect(threads: int) -> Detect:
    raise UnavailableError("it always reads, so that its time is not that of detection; see --blanked")


def _facts(results: Sequence[Counts], seconds: float) -> dict[str, str | int | float]:
    counts = total(results)
    return {
        "boxes": counts.detections,
        "precision": counts.precision,
        "recall": counts.recall,
        "hmean": counts.hmean,
    }


def _left_over(results: Sequence[Counts], seconds: float) -> dict[str, str | int | float]:
    return {LEFT_OVER: total(results).detections}

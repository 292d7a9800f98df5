# SPDX-License-Identifier: Apache-2.0
"""The section `reading`: speed and accuracy of whole readers, encoded image to texts, on one thread each."""

from collections.abc import Sequence

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.reading import ReadingCounts, match_reading, total_reading
from ocdserve.perf.inputs.data_sets import DataSet
from ocdserve.perf.inputs.pages_to_read import pages_to_read
from ocdserve.perf.sections.answers import Judge, measure_answers
from ocdserve.perf.sections.pipeline import chosen_peers
from ocdserve.perf.sections.plan import Plan, ProgressLine
from ocdserve.perf.series.measurement import Measurement
from ocdserve.perf.subjects import Competitor, licence_of
from ocdserve.perf.subjects.peers import ReadText
from ocdserve.perf.subjects.readers import READERS

_THREADS = 1
# Of the images of each data set, `--quick` reads the first of so many.
_QUICK = 4


def measure(plan: Plan) -> tuple[Measurement, ...]:
    """Read all images whose truth has texts, and drawn pages, with all readers in alternation.

    Raises:
        UsageError: `--readers` names an unknown reader.
    """
    chosen = chosen_peers(READERS, plan.options.readers, "--readers")
    readers = [Competitor(name, load, _THREADS, licence_of(name)) for name, load in chosen.items()]
    labelled = [data for data in plan.data_sets if any(image.truth.texts for image in data.images)]
    step = _QUICK if plan.options.quick else 1
    data_sets = [DataSet(data.name, data.images[::step]) for data in (*labelled, *pages_to_read())]
    judge = Judge("reading", _matched, facts)
    return measure_answers(judge, readers, data_sets, plan.rounds, _THREADS, ProgressLine("reading"))


def _matched(read: ReadText, truth: Truth) -> ReadingCounts:
    return match_reading(read.quads, read.texts, truth)


def facts(results: Sequence[ReadingCounts], seconds: float) -> dict[str, str | int | float]:
    """The figures of a series: end to end (lines with box and text), of the lines whose boxes match, and of words."""
    counts = total_reading(results)
    return {
        "boxes": counts.lines.detections,
        "precision": counts.lines.precision,
        "recall": counts.lines.recall,
        "hmean": counts.lines.hmean,
        "hmean of words": counts.words.hmean,
        "exact lines": counts.exact,
        "CER": counts.cer,
        "CER end to end": counts.end_to_end_cer,
        "lines/s": counts.lines.detections / seconds,
    }

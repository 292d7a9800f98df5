# SPDX-License-Identifier: Apache-2.0
"""The section `pipeline`: speed and accuracy of whole detectors, encoded image to boxes, on the same threads."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.matching import match
from ocdserve.contract import UsageError
from ocdserve.perf.inputs.data_sets import DataSet
from ocdserve.perf.sections.answers import Judge, measure_answers
from ocdserve.perf.sections.plan import Plan, ProgressLine
from ocdserve.perf.series.measurement import OURS, Measurement
from ocdserve.perf.series.samples import Progress
from ocdserve.perf.subjects import COMPETITORS, Competitor

_Value = TypeVar("_Value")


def measure(plan: Plan) -> tuple[Measurement, ...]:
    """Detect in all images with all detectors in alternation.

    Raises:
        UsageError: `--threads` is out of range, or `--peers` names an unknown detector.
    """
    threads: int = plan.options.threads
    if threads < 1:
        raise UsageError(f"--threads must be at least 1; got {threads}")
    chosen = chosen_peers(COMPETITORS, plan.options.peers, "--peers")
    competitors = [Competitor(name, load, threads) for name, load in chosen.items()]
    return measure_pipelines(competitors, plan.data_sets, plan.rounds, threads, ProgressLine("pipeline"))


def chosen_peers(known: Mapping[str, _Value], names: str | None, option: str) -> dict[str, _Value]:
    """Ours and the named others, in the order of the table; None: all.

    Raises:
        UsageError: A name is unknown.
    """
    wanted = names.split(",") if names else None
    others = [name for name in known if name != OURS]
    if unknown := [name for name in wanted or () if name not in others]:
        raise UsageError(f"{option}: unknown {unknown[0]!r}; known are {', '.join(others)}")
    return {name: value for name, value in known.items() if wanted is None or name in (OURS, *wanted)}


def measure_pipelines(
    competitors: Sequence[Competitor[NDArray[Any]]],
    data_sets: Sequence[DataSet],
    rounds: int,
    threads: int,
    progress: Progress,
) -> tuple[Measurement, ...]:
    """Run all detectors over all images; see `measure_answers`."""
    judge: Judge[NDArray[Any], Counts] = Judge("pipeline", match, _facts)
    return measure_answers(judge, competitors, data_sets, rounds, threads, progress)


def _facts(results: Sequence[Counts], seconds: float) -> dict[str, str | int | float]:
    counts = total(results)
    return {
        "boxes": counts.detections,
        "precision": counts.precision,
        "recall": counts.recall,
        "hmean": counts.hmean,
    }

# SPDX-License-Identifier: Apache-2.0
"""The section `pipeline`: speed and accuracy of whole detectors, encoded image to boxes, on the same threads."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from statistics import median
from time import process_time
from typing import Any

from numpy.typing import NDArray

from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.matching import match
from ocdserve.contract import UnavailableError, UsageError
from ocdserve.perf.inputs.data_sets import DataSet
from ocdserve.perf.sections.plan import Plan, ProgressLine
from ocdserve.perf.series.measurement import OURS, Measurement, case_of
from ocdserve.perf.series.samples import Progress, in_turns
from ocdserve.perf.series.threads import opencv_threads
from ocdserve.perf.subjects import COMPETITORS, Competitor

# Fact: what could not be measured, and why.
NOT_MEASURED = "not measured"


class _Series:
    """Samples and results of one detector on one data set."""

    def __init__(self) -> None:
        self.cases: list[str] = []
        self.ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.results: list[Counts] = []


def measure(plan: Plan) -> tuple[Measurement, ...]:
    """Detect in all images with all detectors in alternation.

    Raises:
        UsageError: `--threads` is out of range, or `--peers` names an unknown detector.
    """
    threads: int = plan.options.threads
    wanted = plan.options.peers.split(",") if plan.options.peers else None
    if threads < 1:
        raise UsageError(f"--threads must be at least 1; got {threads}")
    names = [name for name in COMPETITORS if name != OURS]
    if unknown := [name for name in wanted or () if name not in names]:
        raise UsageError(f"--peers: unknown {unknown[0]!r}; known are {', '.join(names)}")
    chosen = [name for name in COMPETITORS if wanted is None or name in (OURS, *wanted)]
    competitors = [Competitor(name, COMPETITORS[name], threads) for name in chosen]
    return measure_pipelines(competitors, plan.data_sets, plan.rounds, threads, ProgressLine("pipeline"))


def measure_pipelines(
    competitors: Sequence[Competitor], data_sets: Sequence[DataSet], rounds: int, threads: int, progress: Progress
) -> tuple[Measurement, ...]:
    """Run all detectors over all images, alternating image by image.

    Before a data set is measured, each detector sees its first image once untimed. A network that compiles for each
    size of image does so within the measurement, as it would in use.

    Args:
        competitors: The detectors, ours among them.
        data_sets: What to detect in.
        rounds: How often each image is measured.
        threads: Threads of OpenCV; those of the networks are the detectors' own.
        progress: Receives the number of images done.

    Returns:
        A series per data set and detector, and one for all data sets together if there are several. Detectors that are
        not available, or fail on an image, are left out; the fact `not measured` says why. The fact `CPU ms` is the
        median of this process' CPU time; if it is far below the time, the machine was busy with other work.

    Raises:
        UnavailableError: Ours is not available.
        Exception: Ours failed on an image.
    """
    present, missing = _available(competitors)
    groups = [data.name for data in data_sets]
    together = " + ".join(groups)
    found: defaultdict[tuple[str, str], _Series] = defaultdict(_Series)
    total, done = rounds * sum(len(data.images) for data in data_sets), 0
    with opencv_threads(threads):
        for data in data_sets:
            for competitor in [*present]:
                _try(competitor, data.images[0].encoded, present, missing)
            for round_, (index, image) in itertools.product(range(rounds), enumerate(data.images)):
                calls = {each.name: partial(_try, each, image.encoded, present, missing) for each in present}
                for name, ms, (quads, cpu_ms) in in_turns(calls, index + round_):
                    if quads is None:
                        continue
                    counts = [match(quads, image.truth)] if round_ == 0 else []
                    # A single data set is the group of all data sets; its cases need no prefix.
                    for group, prefix in {together: f"{data.name}/", data.name: ""}.items():
                        series = found[group, name]
                        series.cases.append(prefix + case_of(image.name, round_))
                        series.ms.append(ms)
                        series.cpu_ms.append(cpu_ms)
                        series.results += counts
                done += 1
                progress(done, total)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    return tuple(
        _measurement(group, competitor.name, found[group, competitor.name], threads, reasons)
        for group in dict.fromkeys([*groups, together])
        for competitor in present
    )


def _available(competitors: Sequence[Competitor]) -> tuple[list[Competitor], dict[str, str]]:
    present, missing = [], {}
    for competitor in competitors:
        reason = competitor.available()
        if reason is None:
            present.append(competitor)
        elif competitor.name == OURS:
            raise UnavailableError(f"{OURS} is not available: {reason}")
        else:
            missing[competitor.name] = reason
    return present, missing


def _try(
    competitor: Competitor, encoded: bytes, present: list[Competitor], missing: dict[str, str]
) -> tuple[NDArray[Any] | None, float]:
    """Quads and milliseconds of CPU time. On error drop the competitor, without quads; errors of ours are raised."""
    begin = process_time()
    quads = None
    try:
        quads = competitor.detect(encoded)
    except Exception as error:  # third-party code may raise anything
        if competitor.name == OURS:
            raise
        present.remove(competitor)
        missing[competitor.name] = f"it failed: {type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return quads, (process_time() - begin) * 1000


def _measurement(group: str, name: str, series: _Series, threads: int, missing: str) -> Measurement:
    counts = total(series.results)
    facts: dict[str, str | int | float] = {
        "boxes": counts.detections,
        "precision": counts.precision,
        "recall": counts.recall,
        "hmean": counts.hmean,
        "CPU ms": median(series.cpu_ms),
    }
    if missing:
        facts[NOT_MEASURED] = missing
    return Measurement(
        section="pipeline",
        subject=name,
        group=group,
        unit="ms",
        samples=tuple(series.ms),
        cases=tuple(series.cases),
        factors={"threads": threads},
        facts=facts,
        baseline=OURS,
    )

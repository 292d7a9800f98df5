# SPDX-License-Identifier: Apache-2.0
"""Speed and quality of programs that answer encoded images, measured in alternation image by image."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Generic, TypeVar

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.contract import UnavailableError
from ocdserve.perf.inputs.data_sets import DataSet
from ocdserve.perf.series.measurement import LICENCE, OURS, Measurement, case_of
from ocdserve.perf.series.samples import Progress, in_turns
from ocdserve.perf.series.threads import opencv_threads
from ocdserve.perf.subjects import Competitor
from ocdserve.perf.subjects.peers import cpu_s

# Fact: what could not be measured, and why.
NOT_MEASURED = "not measured"

_Answer = TypeVar("_Answer")
_Counts = TypeVar("_Counts")


@dataclass(frozen=True)
class Judge(Generic[_Answer, _Counts]):
    """How the answers of a section are judged.

    Attributes:
        section: Name of the section.
        match: Compares the answer for an image with its truth.
        facts: Figures of the compared images, which took so many seconds.
    """

    section: str
    match: Callable[[_Answer, Truth], _Counts]
    facts: Callable[[Sequence[_Counts], float], dict[str, str | int | float]]


class _Series(Generic[_Counts]):
    """Samples and results of one competitor on one data set."""

    def __init__(self) -> None:
        self.cases: list[str] = []
        self.ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.results: list[_Counts] = []


def measure_answers(
    judge: Judge[_Answer, _Counts],
    competitors: Sequence[Competitor[_Answer]],
    data_sets: Sequence[DataSet],
    rounds: int,
    threads: int,
    progress: Progress,
) -> tuple[Measurement, ...]:
    """Run all competitors over all images, alternating image by image.

    Before a data set is measured, each competitor sees its first image once untimed. A network that compiles for each
    size of image does so within the measurement, as it would in use.

    Args:
        judge: How answers are judged.
        competitors: What to compare, ours among them.
        data_sets: What they answer.
        rounds: How often each image is measured.
        threads: Threads of OpenCV; those of the networks are the competitors' own.
        progress: Receives the number of images done.

    Returns:
        A series per data set and competitor, and one for all data sets together if there are several. Those that are
        not available, or fail on an image, are left out; the fact `not measured` says why. The fact `CPU ms` is the
        median CPU time, of peers' processes too; if it is far below the time, the machine was busy with other work.

    Raises:
        UnavailableError: Ours is not available.
        Exception: Ours failed on an image.
    """
    present, missing = _available(competitors)
    groups = [data.name for data in data_sets]
    together = " + ".join(groups)
    found: defaultdict[tuple[str, str], _Series[_Counts]] = defaultdict(_Series)
    total, done = rounds * sum(len(data.images) for data in data_sets), 0
    with opencv_threads(threads):
        for data in data_sets:
            for competitor in [*present]:
                _try(competitor, data.images[0].encoded, present, missing)
            for round_, (index, image) in itertools.product(range(rounds), enumerate(data.images)):
                calls = {each.name: partial(_try, each, image.encoded, present, missing) for each in present}
                for name, ms, (answer, cpu_ms) in in_turns(calls, index + round_):
                    if answer is None:
                        continue
                    counts = [judge.match(answer, image.truth)] if round_ == 0 else []
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
        _measurement(judge, group, competitor, found[group, competitor.name], threads, reasons)
        for group in dict.fromkeys([*groups, together])
        for competitor in present
    )


def _available(
    competitors: Sequence[Competitor[_Answer]],
) -> tuple[list[Competitor[_Answer]], dict[str, str]]:
    present: list[Competitor[_Answer]] = []
    missing: dict[str, str] = {}
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
    competitor: Competitor[_Answer], encoded: bytes, present: list[Competitor[_Answer]], missing: dict[str, str]
) -> tuple[_Answer | None, float]:
    """Answer and milliseconds of CPU time. On error drop the competitor, without answer; errors of ours are raised."""
    begin = cpu_s()
    answer = None
    try:
        answer = competitor.answer(encoded)
    except Exception as error:  # third-party code may raise anything
        if competitor.name == OURS:
            raise
        present.remove(competitor)
        missing[competitor.name] = f"it failed: {type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return answer, (cpu_s() - begin) * 1000


def _measurement(
    judge: Judge[Any, _Counts],
    group: str,
    competitor: Competitor[Any],
    series: _Series[_Counts],
    threads: int,
    missing: str,
) -> Measurement:
    # Each round takes all images, and their answers are judged once.
    seconds = sum(series.ms) / 1000 * len(series.results) / len(series.ms)
    facts = {**judge.facts(series.results, seconds), "CPU ms": median(series.cpu_ms)}
    if competitor.licence:
        facts[LICENCE] = competitor.licence
    if missing:
        facts[NOT_MEASURED] = missing
    return Measurement(
        section=judge.section,
        subject=competitor.name,
        group=group,
        unit="ms",
        samples=tuple(series.ms),
        cases=tuple(series.cases),
        factors={"threads": threads},
        facts=facts,
        baseline=OURS,
    )

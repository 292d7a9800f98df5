# SPDX-License-Identifier: Apache-2.0
"""The section `robustness`: texts found on drawn pages, one difficult condition at a time, compared with RapidOCR.

A text counts as found by the rule of `ocdserve.backend.evaluation.matching.covered`, for both detectors alike.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.cores import core_count
from ocdserve.backend.evaluation.matching import covered
from ocdserve.contract import OcdserveError, UnavailableError, UsageError
from ocdserve.perf.inputs.conditions import Condition, conditions
from ocdserve.perf.inputs.data_sets import LabelledImage
from ocdserve.perf.sections.plan import Plan, ProgressLine
from ocdserve.perf.series.measurement import OURS, Measurement, case_of
from ocdserve.perf.series.samples import Progress
from ocdserve.perf.subjects import COMPETITORS, Competitor

OTHER = "RapidOCR"
# Pixels by which boxes of either detector exceed the ink of small text.
_MARGIN = 6.0
# Fact: conditions that could not be drawn, and why.
NOT_RUN = "not run"


def measure(plan: Plan) -> tuple[Measurement, ...]:
    """Detect in the pages of all conditions, or of those on the axes that `--axes` names.

    Raises:
        UsageError: `--axes` names an unknown axis.
        UnavailableError: A detector is not installed, or no page can be drawn.
    """
    grid = conditions()
    axes = list(dict.fromkeys(one.axis for one in grid))
    wanted = plan.options.axes.split(",") if plan.options.axes else axes
    if unknown := [axis for axis in wanted if axis not in axes]:
        raise UsageError(f"--axes: unknown {unknown[0]!r}; known are {', '.join(axes)}")
    threads = core_count()
    competitors = [Competitor(name, COMPETITORS[name], threads) for name in (OURS, OTHER)]
    for competitor in competitors:
        if reason := competitor.available():
            raise UnavailableError(f"{competitor.name} is not available: {reason}")
    chosen = [one for one in grid if one.axis in wanted]
    return measure_conditions(competitors, chosen, plan.rounds, ProgressLine("robustness"))


def measure_conditions(
    competitors: Sequence[Competitor[NDArray[Any]]], grid: Sequence[Condition], rounds: int, progress: Progress
) -> tuple[Measurement, ...]:
    """Run ours and another detector over the pages of all conditions.

    Args:
        competitors: Ours and the other.
        grid: The conditions.
        rounds: Factor on the number of pages.
        progress: Receives the number of pages done.

    Returns:
        A series per condition and detector, one sample per page: the share of its texts that were found. A page that a
        detector refuses counts as one without boxes; the fact `errors` counts those. The fact `not run` says which
        conditions could not be drawn.

    Raises:
        UnavailableError: No page can be drawn.
        Exception: Ours failed other than by a refusal.
    """
    lacking = list(dict.fromkeys(reason for one in grid if (reason := one.lacks())))
    drawable = [one for one in grid if not one.lacks()]
    if not drawable:
        raise UnavailableError(f"no page can be drawn: {'; '.join(lacking)}")
    total, done = sum(rounds * one.pages() for one in drawable), 0
    measured = []
    for condition in drawable:
        found: dict[str, list[float]] = {one.name: [] for one in competitors}
        errors = dict.fromkeys(found, 0)
        texts = 0
        for index in range(rounds * condition.pages()):
            page = condition.draw(index)
            texts += len(page.truth.polygons)
            for competitor in competitors:
                boxes = _boxes(competitor, page)
                errors[competitor.name] += boxes is None
                found[competitor.name].append(share_found(page, [] if boxes is None else boxes))
            done += 1
            progress(done, total)
        measured += list(_series(condition, found, errors, texts, "; ".join(lacking)))
    return tuple(measured)


def share_found(page: LabelledImage, boxes: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> float:
    """The share of a page's texts that boxes cover."""
    return float(covered(page.truth.polygons, boxes, _MARGIN).mean())


def _boxes(competitor: Competitor[NDArray[Any]], page: LabelledImage) -> NDArray[np.float32] | None:
    """Boxes of a page; None if the detector refuses it."""
    try:
        return np.asarray(competitor.answer(page.encoded), np.float32)
    except OcdserveError:
        return None
    except Exception:  # third-party code may raise anything
        if competitor.name == OURS:
            raise
        return None


def _series(
    condition: Condition, found: dict[str, list[float]], errors: dict[str, int], texts: int, lacking: str
) -> Iterator[Measurement]:
    for name, shares in found.items():
        facts: dict[str, str | int | float] = {"texts": texts, "errors": errors[name]}
        if lacking:
            facts[NOT_RUN] = lacking
        yield Measurement(
            section="robustness",
            subject=name,
            group=condition.name,
            unit="recall",
            samples=tuple(shares),
            cases=tuple(case_of(f"page {index}", 0) for index in range(len(shares))),
            facts=facts,
            baseline=OTHER if name == OURS else "",
        )

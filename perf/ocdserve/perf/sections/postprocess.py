# SPDX-License-Identifier: Apache-2.0
"""The section `postprocess`: our post-processing compared with others; equal rules must find equal boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from ocdserve.backend import Detector
from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.matching import find_overlaps
from ocdserve.contract import OcdserveError
from ocdserve.perf.inputs.maps import Case, dense_map, empty_map, noise_map, real_maps
from ocdserve.perf.sections.answers import NOT_MEASURED
from ocdserve.perf.sections.plan import Plan, ProgressLine
from ocdserve.perf.series.measurement import OURS, Measurement
from ocdserve.perf.series.samples import Progress, Sample, in_turns, series
from ocdserve.perf.series.threads import opencv_threads
from ocdserve.perf.subjects.postprocessors import POSTPROCESSORS, Postprocessor

# Fewer than six samples of a drawn map cannot show a significant difference.
_ROUNDS = 6
# One unit in the last place of a float32 coordinate below 16384, which the order of operations may cost.
_TOLERANCE_PX = 1e-3


class DisagreementError(OcdserveError):
    """Two implementations of the same rules found different boxes."""


def measure(plan: Plan) -> tuple[Measurement, ...]:
    """Post-process drawn maps, and the network's maps of all images."""
    detector = Detector.load()
    params = detector.spec.postprocess
    drawn = [replace(case, params=params) for case in (dense_map(), empty_map(), noise_map())]
    real = real_maps(detector, plan.data_sets, ProgressLine("postprocess, maps"))
    return measure_postprocess([*drawn, *real], _ROUNDS * plan.rounds, ProgressLine("postprocess"))


def measure_postprocess(
    cases: Sequence[Case], rounds: int, progress: Progress, postprocessors: Sequence[Postprocessor] = POSTPROCESSORS
) -> tuple[Measurement, ...]:
    """Post-process all maps by all implementations in alternation on one thread, after one untimed run of each.

    Args:
        cases: Probability maps and the parameters of all implementations.
        rounds: How often each map is measured.
        progress: Receives the number of maps done.
        postprocessors: The implementations, ours among them.

    Returns:
        A series per group of maps and implementation. Facts: `boxes` in all maps of the group; `of ours`, the share of
        our boxes that it found too (intersection over union above 0.5); `rules`, whether they are ours.

    Raises:
        DisagreementError: An implementation with the same rules found other boxes.
    """
    present, missing = _available(postprocessors, cases[0])
    samples: list[Sample] = []
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    with opencv_threads(1):
        for index, case in enumerate(cases):
            calls = {each.name: each.prepare(case) for each in present}
            quads = {name: call() for name, call in calls.items()}
            for each in present:
                if each.same_boxes:
                    check_same(case.name, quads[OURS], quads[each.name], each.name)
                count = len(quads[each.name]), _matched(quads[each.name], quads[OURS])
                found.setdefault((case.group, each.name), []).append(count)
            for round_ in range(rounds):
                for name, ms, _ in in_turns(calls, index + round_):
                    samples.append(Sample(name, case.group, case.name, round_, ms))
            progress(index + 1, len(cases))
    reasons = {NOT_MEASURED: "; ".join(f"{name}: {reason}" for name, reason in missing.items())} if missing else {}
    return tuple(
        series(
            samples,
            "postprocess",
            each.name,
            group,
            baseline=OURS,
            factors={"threads": 1},
            facts={**_facts(found, group, each), **reasons},
        )
        for group in dict.fromkeys(case.group for case in cases)
        for each in present
    )


def check_same(name: str, ours: NDArray[Any], other: NDArray[Any], which: str) -> None:
    """Check that another implementation found our boxes, in our order.

    Args:
        name: Of the map.
        ours: (N, 4, 2) corners in source pixels.
        other: (M, 4, 2) corners in source pixels.
        which: Name of the other implementation.

    Raises:
        DisagreementError: The numbers of boxes differ, or their corners by more than rounding explains.
    """
    if len(ours) != len(other):
        raise DisagreementError(f"{name}: {len(ours)} boxes, but {len(other)} by the {which}")
    difference = float(np.abs(ours - other).max(initial=0))
    if difference > _TOLERANCE_PX:
        raise DisagreementError(f"{name}: corners differ by up to {difference:.3f} pixels from those of the {which}")


def _available(postprocessors: Sequence[Postprocessor], case: Case) -> tuple[list[Postprocessor], dict[str, str]]:
    reasons = {each.name: each.available(case) for each in postprocessors}
    present = [each for each in postprocessors if reasons[each.name] is None]
    return present, {name: reason for name, reason in reasons.items() if reason}


def _matched(quads: NDArray[Any], ours: NDArray[Any]) -> int:
    """Number of our boxes that overlap one of the others with an intersection over union above 0.5."""
    # Convex hulls, because rounding can make the sides of a box cross.
    others, known = (
        tuple(shapely.get_coordinates(hull) for hull in shapely.convex_hull(shapely.polygons(boxes)))
        for boxes in (quads, ours)
    )
    return len(np.unique(find_overlaps(Truth(known, (False,) * len(known)), others).pairs[:, 0]))


def _facts(
    found: Mapping[tuple[str, str], Sequence[tuple[int, int]]], group: str, postprocessor: Postprocessor
) -> dict[str, str | int | float]:
    boxes = sum(count for count, _ in found[group, postprocessor.name])
    ours = sum(count for count, _ in found[group, OURS])
    facts: dict[str, str | int | float] = {"boxes": boxes, "rules": "ours" if postprocessor.same_boxes else "its own"}
    if ours:
        facts["of ours"] = sum(matched for _, matched in found[group, postprocessor.name]) / ours
    return facts

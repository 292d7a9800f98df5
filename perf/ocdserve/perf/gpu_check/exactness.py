# SPDX-License-Identifier: Apache-2.0
"""Agreement of the GPU with the CPU: post-processing box by box, preprocessing byte by byte.

Each batch is post-processed twice, call by call and as a recorded graph; the two answers must be bit-equal.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from ocdserve.backend.device.protocol import Device, Stream
from ocdserve.backend.gpu import postprocess as gpu_postprocess
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.backend.network.options import MapType
from ocdserve.backend.spec.resize import Frame
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.maps import (
    ANSWERED_MAPS,
    REAL,
    Answered,
    answer_of,
    container_of,
    in_batches,
    load_answered,
    real_cases,
)
from ocdserve.perf.gpu_check.resizes import check_lines, check_resizes
from ocdserve.perf.inputs.maps import Case, generated
from ocdserve.perf.report.targets import MAX_CORNER_PX, MAX_SCORE
from ocdserve.results.detections import Detections

GENERATED = "generated maps"
# Deviations listed one by one; further ones are only counted.
_MAX_LISTED = 200


@dataclass
class _Tally:
    """Comparisons so far; the largest finite differences, those of corners and polygons in pixels."""

    cases: int = 0
    boxes: int = 0
    outside: int = 0
    rounded: int = 0
    by_own: int = 0
    unstable: int = 0
    on_cpu: int = 0
    corner: float = 0.0
    score: float = 0.0
    polygon: float = 0.0
    deviations: list[str] = field(default_factory=list)


def check_exactness(context: CheckContext) -> None:
    """Compare generated maps, real maps, preprocessing and rectification."""
    pairs = _answered(context)
    with context.device() as device:
        stream = device.stream()
        check_maps(context, device, stream, GENERATED, [pair for pair in pairs if pair[0].group != REAL])
        real = [pair for pair in pairs if pair[0].group == REAL]
        if real:
            check_maps(context, device, stream, REAL, real)
        check_resizes(context, device, stream)
        check_lines(context, device, stream)
        stream.close()


def check_maps(context: CheckContext, device: Device, stream: Stream, group: str, pairs: Sequence[Answered]) -> None:
    """Compare the GPU's post-processing of maps with the CPU's.

    Raises:
        OutOfTimeError: The time is up; comparisons so far are in the context.
    """
    tally, answers = _Tally(), {case.name: answer for case, answer in pairs}
    for batch in in_batches([case for case, _ in pairs]):
        context.checkpoint(f"{group} from case {tally.cases} of {len(pairs)} on, {batch[0].name!r}")
        _compare(device, stream, batch, answers, tally)
        context.part.findings += tally.deviations[: max(0, _MAX_LISTED - len(context.part.findings))]
        tally.deviations.clear()
        facts = {
            "boxes": tally.boxes,
            "cases outside": tally.outside,
            "cases with one box off by rounding": tally.rounded,
            "boxes by this machine's OpenCV": tally.by_own,
            "cases that differ from run to run": tally.unstable,
            "cases too large for the tables, computed by the CPU": tally.on_cpu,
            "largest difference of a corner": tally.corner,
            "largest difference of a score": tally.score,
            "largest difference of a polygon's point": tally.polygon,
        }
        context.add("post-processing", group, "cases", [tally.cases], facts=facts)


def _answered(context: CheckContext) -> list[Answered]:
    """Carried maps with answers, which do not depend on this machine's OpenCV; else those computed here."""
    carried = context.files.carried
    if carried is not None and (carried / ANSWERED_MAPS).is_file():
        return load_answered(carried / ANSWERED_MAPS)
    cases = [*generated(context.effort.cases, context.effort.size)]
    cases += [replace(case, group=REAL) for case in real_cases(context)]
    return [(case, None) for case in cases]


@contextmanager
def cpu_fallbacks() -> Iterator[list[str]]:
    """Within the block, collect the warnings of images that exceed the GPU's tables and fall back to the CPU."""
    logger = logging.getLogger(gpu_postprocess.__name__)
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


def _compare(
    device: Device, stream: Stream, batch: Sequence[Case], answers: Mapping[str, Detections | None], tally: _Tally
) -> None:
    first, second, too_large = _on_gpu(device, stream, batch)
    tally.on_cpu += too_large
    for case, found, again in zip(batch, first, second, strict=True):
        expected = answers[case.name] or answer_of(case)
        if answers[case.name] and not _agrees(found, expected):
            expected, boxes = with_own(found, expected, answer_of(case))
            tally.by_own += boxes
        tally.cases += 1
        tally.boxes += len(expected)
        if not _identical(found, again):
            tally.unstable += 1
            tally.deviations.append(f"{case.name}: {len(found)} boxes, as a graph {len(again)}, not the same")
        if len(found) != len(expected):
            tally.outside += 1
            tally.deviations.append(f"{case.name}: {len(found)} boxes, {len(expected)} on the CPU")
            continue
        corner, score, polygon = _differences(found, expected)
        if _agrees(found, expected):
            pass
        elif is_rounding(case.frame, found, expected):
            tally.rounded += 1
            tally.deviations.append(f"{case.name}: one box {max(corner, polygon):g} px apart, by rounding")
            continue
        else:
            tally.outside += 1
            differences = f"corners {corner:g} px, scores {score:g}, polygons {polygon:g} px apart"
            tally.deviations.append(f"{case.name}: {differences}")
        tally.corner, tally.score, tally.polygon = (
            max(largest, value) if math.isfinite(value) else largest
            for largest, value in ((tally.corner, corner), (tally.score, score), (tally.polygon, polygon))
        )


def with_own(found: Detections, carried: Detections, own: Detections) -> tuple[Detections, int]:
    """The carried answer, with the boxes of this machine's CPU where the GPU's are those; and their number.

    What the GPU leaves to the host, such as polygons, is computed with this machine's OpenCV.
    """
    if not len(found) == len(carried) == len(own) or (carried.polygons is None) != (own.polygons is None):
        return carried, 0
    rows = range(len(found))
    ours, theirs, others = (_boxes(answer) for answer in (found, carried, own))
    chosen = [not _agrees(ours[row], theirs[row]) and _agrees(ours[row], others[row]) for row in rows]
    mixed = [others[row] if chosen[row] else theirs[row] for row in rows]
    if not any(chosen):
        return carried, 0
    quads, scores = (np.concatenate([getattr(one, name) for one in mixed]) for name in ("quads", "scores"))
    polygons = None if carried.polygons is None else tuple(polygon for one in mixed for polygon in one.polygons or ())
    return replace(carried, quads=quads, scores=scores, polygons=polygons), sum(chosen)


def _boxes(answer: Detections) -> list[Detections]:
    """Each box of an answer by itself."""
    return [
        replace(
            answer,
            quads=answer.quads[row : row + 1],
            scores=answer.scores[row : row + 1],
            polygons=None if answer.polygons is None else answer.polygons[row : row + 1],
        )
        for row in range(len(answer))
    ]


def _agrees(found: Detections, expected: Detections) -> bool:
    """Whether no difference is above the limits."""
    if len(found) != len(expected):
        return False
    corner, score, polygon = _differences(found, expected)
    # Written so that NaN is a deviation.
    return corner <= MAX_CORNER_PX and score <= MAX_SCORE and polygon <= MAX_CORNER_PX


def _differences(found: Detections, expected: Detections) -> tuple[float, float, float]:
    """The largest differences of corners, scores and points of polygons, for equal numbers of boxes."""
    corner = float(np.abs(found.quads - expected.quads).max(initial=0))
    score = float(np.abs(found.scores - expected.scores).max(initial=0))
    return corner, score, _polygon_difference(found, expected)


def is_rounding(frame: Frame, found: Detections, expected: Detections) -> bool:
    """Whether the answers differ as they may where sine or arc cosine are rounded otherwise than by the CPU's library.

    Growing a region rounds its points to whole network pixels. CUDA's functions are off by 2 ulp at most, so that once
    in a very large number of boxes a point lands on the next pixel: one box of the image then differs by at most one
    network pixel, and nothing else does. A fault of a kernel does not look like that.
    """
    limits = np.array(frame.scale, np.float64) + MAX_CORNER_PX
    score = np.abs(found.scores - expected.scores).max(initial=0)
    differing = set()
    for one, other in ((found.quads, expected.quads), (found.polygons or (), expected.polygons or ())):
        for index, (ours, theirs) in enumerate(zip(one, other, strict=True)):
            if ours.shape != theirs.shape:
                return False
            apart = np.abs(ours.astype(np.float64) - theirs)
            if not apart.max(initial=0) <= MAX_CORNER_PX:
                differing.add(index)
                if not (apart <= limits).all():
                    return False
    return bool(score <= MAX_SCORE) and len(differing) == 1


def _on_gpu(device: Device, stream: Stream, batch: Sequence[Case]) -> tuple[list[Detections], list[Detections], int]:
    """Both answers, and the number of images that fell back to the CPU."""
    container = container_of(batch)
    map_type: MapType = "uint8" if container.dtype == np.uint8 else "float32"
    buffer = device.allocate(container.nbytes)
    batched, height, width = container.shape
    stage = GpuPostprocess(device, batched, height, width, map_type)
    try:
        stream.to_device(buffer, container)
        stage.set([(case.frame, case.params) for case in batch])
        stage.enqueue(stream, buffer)
        stream.synchronize()
        with cpu_fallbacks() as fallbacks:
            first = stage.results(stream, buffer)
        with stream.capture() as capture:
            stage.enqueue(stream, buffer)
        capture.graph.launch(stream)
        stream.synchronize()
        with cpu_fallbacks():
            second = stage.results(stream, buffer)
        capture.graph.close()
        return first, second, len(fallbacks)
    finally:
        stage.close()
        buffer.close()


def _identical(one: Detections, other: Detections) -> bool:
    same = np.array_equal(one.quads, other.quads) and np.array_equal(one.scores, other.scores)
    polygons = zip(one.polygons or (), other.polygons or (), strict=False)
    return same and all(np.array_equal(a, b) for a, b in polygons)


def _polygon_difference(found: Detections, expected: Detections) -> float:
    """Largest difference of a coordinate; infinite if the numbers of points differ."""
    ours, theirs = found.polygons or (), expected.polygons or ()
    if [len(polygon) for polygon in ours] != [len(polygon) for polygon in theirs]:
        return float("inf")
    return max((float(np.abs(a - b).max(initial=0)) for a, b in zip(ours, theirs, strict=True)), default=0.0)

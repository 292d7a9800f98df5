# SPDX-License-Identifier: Apache-2.0
"""Whether the GPU answers as the CPU does: post-processing box for box, preprocessing byte for byte.

Each batch is post-processed twice, call by call and then recorded as a graph: the two answers must be the same to the
last bit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ocdserve.backend.device.protocol import Device, Stream
from ocdserve.backend.gpu.postprocess import GpuPostprocess
from ocdserve.backend.network.options import MapType
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.perf.gpu_check.cases import Case, container_of, generated, in_batches
from ocdserve.perf.gpu_check.check_context import OutOfTimeError, Setting
from ocdserve.perf.gpu_check.cpu_fallbacks import left_to_cpu
from ocdserve.perf.gpu_check.real_maps import real_cases
from ocdserve.perf.gpu_check.resizes import check_resizes
from ocdserve.results.detections import Detections

LARGEST_CORNER_PX = 0.01
LARGEST_SCORE = 1e-4

# Deviations that are named one by one; beyond that they are counted.
_NAMED = 200


@dataclass
class _Tally:
    """What was compared so far."""

    cases: int = 0
    boxes: int = 0
    outside: int = 0
    unstable: int = 0
    on_cpu: int = 0
    corner_px: float = 0.0
    score: float = 0.0
    polygon_px: float = 0.0
    names: list[str] = field(default_factory=list)


def check_exactness(setting: Setting) -> None:
    """The whole part: generated maps, real maps, preprocessing."""
    with setting.device() as device:
        stream = device.stream()
        check_maps(setting, device, stream, "generated maps", generated(setting.effort.cases, setting.effort.size))
        cases = real_cases(setting)
        if cases:
            check_maps(setting, device, stream, "real maps", cases)
        check_resizes(setting, device, stream)
        stream.close()


def check_maps(setting: Setting, device: Device, stream: Stream, what: str, cases: Iterable[Case]) -> None:
    """Hold the GPU's answers on maps against the CPU's.

    Raises:
        OutOfTimeError: The time is up; what was compared until then is in the record.
    """
    tally, waiting = _Tally(), list(cases)
    shown = len(setting.record.figures)
    for batch in in_batches(waiting):
        try:
            setting.go_on(f"{what} from case {tally.cases} of {len(waiting)} on, {batch[0].name!r}")
        except OutOfTimeError:
            _note(setting, what, tally, shown)
            raise
        _compare(device, stream, batch, tally)
        setting.record.deviations += tally.names[: max(0, _NAMED - len(setting.record.deviations))]
        tally.names.clear()
        _note(setting, what, tally, shown)


def _note(setting: Setting, what: str, tally: _Tally, begin: int) -> None:
    """The figures so far, in the place of those before."""
    record = setting.record
    del record.figures[begin:]
    for subject, value, unit in (
        ("cases compared", tally.cases, ""),
        ("boxes compared", tally.boxes, ""),
        ("cases outside", tally.outside, ""),
        ("cases that differ from run to run", tally.unstable, ""),
        ("cases too large for the tables, computed by the CPU", tally.on_cpu, ""),
        ("largest difference of a corner", tally.corner_px, "px"),
        ("largest difference of a score", tally.score, ""),
        ("largest difference of a polygon's point", tally.polygon_px, "px"),
    ):
        record.count(subject, what, value, unit)


def _compare(device: Device, stream: Stream, batch: Sequence[Case], tally: _Tally) -> None:
    first, second, too_large = _on_gpu(device, stream, batch)
    tally.on_cpu += too_large
    for case, found, again in zip(batch, first, second, strict=True):
        expected = postprocess(case.probability, case.frame, case.params, compiled=False)
        tally.cases += 1
        tally.boxes += len(expected)
        if not _identical(found, again):
            tally.unstable += 1
            tally.names.append(f"{case.name}: {len(found)} boxes, recorded as a graph {len(again)}, not the same")
        if len(found) != len(expected):
            tally.outside += 1
            tally.names.append(f"{case.name}: {len(found)} boxes, {len(expected)} on the CPU")
            continue
        corner = float(np.abs(found.quads - expected.quads).max(initial=0))
        score = float(np.abs(found.scores - expected.scores).max(initial=0))
        polygon = _polygon_difference(found, expected)
        tally.corner_px, tally.score = max(tally.corner_px, corner), max(tally.score, score)
        tally.polygon_px = max(tally.polygon_px, polygon)
        # Not a number is no agreement either.
        if not (corner <= LARGEST_CORNER_PX and score <= LARGEST_SCORE and polygon <= LARGEST_CORNER_PX):
            tally.outside += 1
            tally.names.append(f"{case.name}: corners {corner:g} px, scores {score:g}, polygons {polygon:g} px apart")


def _on_gpu(device: Device, stream: Stream, batch: Sequence[Case]) -> tuple[list[Detections], list[Detections], int]:
    """Both answers, and how many images were too large for the tables."""
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
        with left_to_cpu() as told:
            first = stage.results(stream, buffer)
        with stream.capture() as capture:
            stage.enqueue(stream, buffer)
        capture.graph.launch(stream)
        stream.synchronize()
        with left_to_cpu():
            second = stage.results(stream, buffer)
        capture.graph.close()
        return first, second, len(told)
    finally:
        stage.close()
        buffer.close()


def _identical(one: Detections, other: Detections) -> bool:
    same = np.array_equal(one.quads, other.quads) and np.array_equal(one.scores, other.scores)
    polygons = zip(one.polygons or (), other.polygons or (), strict=False)
    return same and all(np.array_equal(a, b) for a, b in polygons)


def _polygon_difference(found: Detections, expected: Detections) -> float:
    """Largest distance along an axis between points of equal number; infinite where the numbers differ."""
    ours, theirs = found.polygons or (), expected.polygons or ()
    if [len(polygon) for polygon in ours] != [len(polygon) for polygon in theirs]:
        return float("inf")
    return max((float(np.abs(a - b).max(initial=0)) for a, b in zip(ours, theirs, strict=True)), default=0.0)

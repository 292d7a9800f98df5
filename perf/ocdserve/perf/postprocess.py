# SPDX-License-Identifier: Apache-2.0
"""Our post-processing against a plain loop over contours, which must find the same boxes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Detector, PostprocessParams
from ocdserve.backend.postprocess import postprocess
from ocdserve.backend.preprocess import Frame
from ocdserve.contract import Detections, OcdserveError
from ocdserve.perf.data_sets import DataSet
from ocdserve.perf.measurement import Measurement
from ocdserve.perf.plain import plain_postprocess
from ocdserve.perf.samples import Progress, Sample, in_turns, median_ms, median_ratio, series
from ocdserve.perf.threads import one_opencv_thread

OURS = "ocdserve"
PLAIN = "plain loop"

# One unit in the last place of a float32 coordinate below 16384, which the order of operations may cost.
_TOLERANCE_PX = 1e-3

_Postprocess = Callable[[NDArray[Any], Frame, PostprocessParams], Detections]


class DisagreementError(OcdserveError):
    """Two ways of computing the same thing gave different answers."""


@dataclass(frozen=True, eq=False)
class NamedMap:
    """A probability map to post-process."""

    group: str
    name: str
    probability: NDArray[Any]
    frame: Frame


@dataclass(frozen=True)
class Comparison:
    """What both ways found in one map.

    Attributes:
        group: What the map belongs to.
        case: Name of the map.
        boxes: Boxes found by each.
        largest_difference_px: Largest difference between their corners, in source pixels.
    """

    group: str
    case: str
    boxes: int
    largest_difference_px: float


@dataclass(frozen=True)
class PostprocessRow:
    """Both ways on one group of maps.

    Attributes:
        maps: Name of the group.
        count: Maps in it.
        boxes: Boxes found in all of them, by each way.
        ours_ms: Median time of a map, ours.
        plain_ms: Median time of a map, plain loop.
        times_ours: Median over the maps of the plain loop's time divided by ours.
        largest_difference_px: Largest difference between corners, in source pixels.
    """

    maps: str
    count: int
    boxes: int
    ours_ms: float
    plain_ms: float
    times_ours: float
    largest_difference_px: float


@dataclass(frozen=True)
class PostprocessResult:
    """Raw times and what was found."""

    samples: tuple[Sample, ...]
    comparisons: tuple[Comparison, ...]

    def measurements(self) -> tuple[Measurement, ...]:
        """A series a group of maps and way."""
        return tuple(
            series(
                self.samples,
                "postprocess",
                subject,
                row.maps,
                baseline=OURS,
                factors={"threads": 1},
                facts={"maps": row.count, "boxes": row.boxes, "corners differ by px": row.largest_difference_px},
            )
            for row in self.rows()
            for subject in (OURS, PLAIN)
        )

    def rows(self) -> tuple[PostprocessRow, ...]:
        """The figures, group by group."""
        groups = dict.fromkeys(comparison.group for comparison in self.comparisons)
        return tuple(self._row(group) for group in groups)

    def _row(self, group: str) -> PostprocessRow:
        comparisons = [comparison for comparison in self.comparisons if comparison.group == group]
        return PostprocessRow(
            maps=group,
            count=len(comparisons),
            boxes=sum(comparison.boxes for comparison in comparisons),
            ours_ms=median_ms(self.samples, OURS, group),
            plain_ms=median_ms(self.samples, PLAIN, group),
            times_ours=median_ratio(self.samples, PLAIN, OURS, group),
            largest_difference_px=max(comparison.largest_difference_px for comparison in comparisons),
        )


def measure_postprocess(
    maps: Sequence[NamedMap], params: PostprocessParams, rounds: int, progress: Progress
) -> PostprocessResult:
    """Post-process all maps both ways in turns, each once before it is timed.

    Raises:
        DisagreementError: The two ways found different boxes.
    """
    samples: list[Sample] = []
    comparisons: list[Comparison] = []
    with one_opencv_thread():
        for index, map_ in enumerate(maps):
            calls = {OURS: _bound(postprocess, map_, params), PLAIN: _bound(plain_postprocess, map_, params)}
            comparisons.append(compare(map_, calls[OURS](), calls[PLAIN]()))
            for round_ in range(rounds):
                for name, ms, _ in in_turns(calls, round_):
                    samples.append(Sample(name, map_.group, map_.name, round_, ms))
            progress(index + 1, len(maps))
    return PostprocessResult(tuple(samples), tuple(comparisons))


def compare(map_: NamedMap, ours: Detections, plain: Detections) -> Comparison:
    """See that both found the same.

    Raises:
        DisagreementError: The numbers of boxes differ, or their corners by more than rounding explains.
    """
    if len(ours) != len(plain):
        raise DisagreementError(f"{map_.name}: {len(ours)} boxes, but {len(plain)} by the plain loop")
    difference = float(np.abs(ours.quads - plain.quads).max(initial=0))
    if difference > _TOLERANCE_PX:
        raise DisagreementError(f"{map_.name}: corners differ by up to {difference:.3f} pixels from the plain loop's")
    return Comparison(map_.group, map_.name, len(ours), difference)


def dense_map(columns: int = 20, rows: int = 50, seed: int = 1) -> NamedMap:
    """A map like that of a page full of words: columns x rows of slightly turned regions, none touching another."""
    random = np.random.default_rng(seed)
    cell_width, cell_height = 64, 26
    size = rows * cell_height, columns * cell_width
    probability = np.zeros(size, np.float32)
    for row in range(rows):
        for column in range(columns):
            centre = ((column + 0.5) * cell_width, (row + 0.5) * cell_height)
            sides = (random.uniform(18, 48), random.uniform(8, 13))
            corners = cv2.boxPoints((centre, sides, random.uniform(-6, 6)))
            cv2.fillConvexPoly(probability, corners.astype(np.int32), (random.uniform(0.8, 1.0),))
    softened = cv2.GaussianBlur(probability, (3, 3), 0)
    name = f"dense, {columns * rows} words"
    return NamedMap(name, name, np.round(softened * 255).astype(np.uint8), Frame(size, size, size))


def real_maps(detector: Detector, data_sets: Sequence[DataSet], progress: Progress) -> Iterator[NamedMap]:
    """The network's maps of all images."""
    total = sum(len(data.images) for data in data_sets)
    done = 0
    for data in data_sets:
        for image in data.images:
            pixels, frame = detector.preprocess(image.encoded)
            (probability,) = detector.infer([pixels])
            yield NamedMap(data.name, image.name, probability, frame)
            done += 1
            progress(done, total)


def _bound(function: _Postprocess, map_: NamedMap, params: PostprocessParams) -> Callable[[], Detections]:
    return lambda: function(map_.probability, map_.frame, params)

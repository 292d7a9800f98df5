# SPDX-License-Identifier: Apache-2.0
"""The section `postprocess`: post-processing beside a plain loop over contours."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ocdserve.cli.bench.plan import Plan, Progress

if TYPE_CHECKING:
    from ocdserve.perf.measurement import Measurement


def measure(plan: Plan) -> "Sequence[Measurement]":
    """Post-process a dense map and the network's maps of all images."""
    from ocdserve.backend import Detector
    from ocdserve.perf.postprocess import dense_map, measure_postprocess, real_maps

    detector = Detector.load()
    maps = [dense_map(), *real_maps(detector, plan.data_sets, Progress("postprocess, maps"))]
    progress = Progress("postprocess")
    return measure_postprocess(maps, detector.spec.postprocess, 10 * plan.rounds, progress).measurements()

# SPDX-License-Identifier: Apache-2.0
"""The section `postprocess`: post-processing beside that of others."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ocdserve.cli.bench.plan import Plan, Progress

if TYPE_CHECKING:
    from ocdserve.perf.series.measurement import Measurement

# Fewer than six of one drawn map could show nothing significant.
_ROUNDS = 6


def measure(plan: Plan) -> "Sequence[Measurement]":
    """Post-process drawn maps and the network's maps of all images."""
    from ocdserve.backend import Detector
    from ocdserve.perf.inputs.maps import dense_map, empty_map, noise_map, real_maps
    from ocdserve.perf.sections.postprocess import measure_postprocess

    detector = Detector.load()
    drawn = [dense_map(), empty_map(), noise_map()]
    maps = [*drawn, *real_maps(detector, plan.data_sets, Progress("postprocess, maps"))]
    return measure_postprocess(maps, detector.spec.postprocess, _ROUNDS * plan.rounds, Progress("postprocess"))

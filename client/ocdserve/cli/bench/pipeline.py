# SPDX-License-Identifier: Apache-2.0
"""The section `pipeline`: whole detectors side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ocdserve.cli.bench.plan import Plan, Progress

if TYPE_CHECKING:
    from ocdserve.perf.measurement import Measurement


def measure(plan: Plan) -> "Sequence[Measurement]":
    """Detect in all images with all detectors, in turns."""
    from ocdserve.perf.pipeline import measure_pipelines, one_thread_detectors

    return measure_pipelines(one_thread_detectors(), plan.data_sets, plan.rounds, Progress("pipeline")).measurements()

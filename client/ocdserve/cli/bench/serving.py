# SPDX-License-Identifier: Apache-2.0
"""The section `serving`: a server started for it beside the detector in this process."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ocdserve.cli.bench.plan import Plan, Progress, street_jpeg
from ocdserve.cli.bench.server import default_server

if TYPE_CHECKING:
    from ocdserve.perf.series.measurement import Measurement

_PHOTOGRAPH = (1280, 720)


def measure(plan: Plan) -> "Sequence[Measurement]":
    """Send one photograph again and again, one request at a time and by many clients."""
    from ocdserve.backend import Detector
    from ocdserve.perf.inputs.data_sets import first_jpeg
    from ocdserve.perf.sections.serving import ServingPlan, measure_serving

    photograph = first_jpeg(plan.data_sets, *_PHOTOGRAPH)
    name, encoded = (photograph.name, photograph.encoded) if photograph else ("drawn street", street_jpeg())
    with default_server("serving") as server:
        return measure_serving(
            server.grpc_url,
            Detector.load(),
            encoded,
            f"{name} {_PHOTOGRAPH[0]}x{_PHOTOGRAPH[1]}",
            ServingPlan(rounds=20 * plan.rounds, passes=6 * plan.rounds),
            Progress("serving"),
        )

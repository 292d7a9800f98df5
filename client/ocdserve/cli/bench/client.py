# SPDX-License-Identifier: Apache-2.0
"""The section `client`: the SDK beside tritonclient and perf_analyzer."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ocdserve.cli.bench.plan import Plan, Progress, say, street_jpeg
from ocdserve.cli.bench.server import default_server
from ocdserve.contract import FUSED

if TYPE_CHECKING:
    from ocdserve.perf.series.measurement import Measurement


def measure(plan: Plan) -> "Sequence[Measurement]":
    """Single calls and many to a model that costs next to nothing, many to the detector, and the import."""
    from ocdserve.backend.serve import ServeOptions, running_server
    from ocdserve.perf.load.echo_model import ECHO, echo_image, write_echo_repository
    from ocdserve.perf.load.perf_analyzer import installed_program
    from ocdserve.perf.sections.client import IMAGE_BYTES, measure_import, measure_overhead, measure_throughput

    installed_program(say)
    found = [*measure_import(7 * plan.rounds)]
    passes = 6 * plan.rounds
    with tempfile.TemporaryDirectory(prefix="ocdserve-bench-") as folder:
        repository = write_echo_repository(Path(folder) / "echo")
        options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0)
        with running_server(options, say) as server:
            urls = {"grpc": server.grpc_url, "http": server.http_url}
            found += measure_overhead(urls, 300 * plan.rounds, Progress("client, single calls"))
            found += measure_throughput(
                server.grpc_url,
                ECHO,
                echo_image(7, IMAGE_BYTES),
                requests=1000,
                passes=passes,
                progress=Progress("client, many calls"),
            )
    with default_server("client") as server:
        found += measure_throughput(
            server.grpc_url,
            FUSED,
            street_jpeg(),
            requests=32,
            passes=passes,
            progress=Progress("client, detector"),
        )
    return found

# SPDX-License-Identifier: Apache-2.0
"""The section `pipeline`: whole detectors side by side."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ocdserve.cli.bench.plan import Plan, Progress
from ocdserve.contract import UsageError

if TYPE_CHECKING:
    from ocdserve.perf.series.measurement import Measurement


def add_arguments(parser: "argparse._ActionsContainer") -> None:
    """Declare the section's own options."""
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads of each detector (default: 1)")
    parser.add_argument(
        "--peers", metavar="NAME,...", help="only these other detectors; an unknown name shows all (default: all)"
    )


def measure(plan: Plan) -> "Sequence[Measurement]":
    """Detect in all images with all detectors, in turns."""
    from ocdserve.perf.sections.pipeline import measure_pipelines
    from ocdserve.perf.series.measurement import OURS
    from ocdserve.perf.subjects import PEERS

    threads: int = plan.options.threads
    wanted = plan.options.peers.split(",") if plan.options.peers else None
    if threads < 1:
        raise UsageError(f"--threads must be at least 1; got {threads}")
    names = [peer.name for peer in PEERS if peer.name != OURS]
    if unknown := [name for name in wanted or () if name not in names]:
        raise UsageError(f"--peers: unknown {unknown[0]!r}; known are {', '.join(names)}")
    peers = [peer(threads) for peer in PEERS if wanted is None or peer.name in (OURS, *wanted)]
    return measure_pipelines(peers, plan.data_sets, plan.rounds, threads, Progress("pipeline"))

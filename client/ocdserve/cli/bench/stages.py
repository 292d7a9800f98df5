# SPDX-License-Identifier: Apache-2.0
"""The section `stages`: where the time of one image goes."""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ocdserve.cli.bench.plan import Plan, Progress, say
from ocdserve.contract import UsageError

if TYPE_CHECKING:
    from ocdserve.perf.series.measurement import Measurement

_ROUNDS = 2


def add_arguments(parser: "argparse._ActionsContainer") -> None:
    """Declare the section's own options."""
    parser.add_argument(
        "--hops", metavar="URL", help="also the steps of this server, grpc://HOST:PORT, which serves nobody else"
    )
    parser.add_argument("--gpu", action="store_true", help="also the stages on the GPU")
    parser.add_argument(
        "--instructions", action="store_true", help="also count instructions of the hot loops (perf or valgrind)"
    )


def measure(plan: Plan) -> "Sequence[Measurement]":
    """Time the stages in this process on one thread and, if asked for, on the GPU and in a server."""
    from ocdserve.backend import Detector
    from ocdserve.perf.sections.server_breakdown import STEPS, ServedStages
    from ocdserve.perf.sections.stages import (
        IN_ONNXRUNTIME,
        ON_GPU,
        GpuStages,
        Subject,
        cpu_stages,
        measure_stages,
        share_of,
    )
    from ocdserve.perf.series.measurement import OURS

    url = plan.options.hops
    if url and not url.startswith("grpc://"):
        raise UsageError(f"--hops must be grpc://HOST:PORT, by which the server tells its statistics; got {url!r}")
    # The engine of most other detectors: how far theirs alone explains their time.
    other = Detector.load(runtime="onnxruntime", threads=1)
    subjects = {
        OURS: Subject(cpu_stages(Detector.load(threads=1)), {"threads": 1}, baseline=OURS),
        IN_ONNXRUNTIME: Subject(cpu_stages(other), {"threads": 1}, baseline=OURS),
    }
    with ExitStack() as stack:
        if plan.options.gpu:
            gpu = GpuStages()
            stack.callback(gpu.close)
            subjects[ON_GPU] = Subject(gpu)
        for model in STEPS if url else ():
            served = ServedStages(url, model)
            stack.callback(served.close)
            subjects[f"{model}, served"] = Subject(served)
        measurements = measure_stages(subjects, plan.data_sets, _ROUNDS * plan.rounds, Progress("stages"))
    for data in plan.data_sets:
        share = share_of(measurements, OURS, data.name, ("preprocess", "postprocess"))
        say(f"stages: preprocess and postprocess take {share:.1%} of the time in process on {data.name}")
    return (*measurements, *(_instructions() if plan.options.instructions else ()))


def _instructions() -> "Sequence[Measurement]":
    from ocdserve.perf.counting.hot_loops import hot_loops
    from ocdserve.perf.counting.instructions import count_instructions
    from ocdserve.perf.sections.stages import instruction_series

    loops = hot_loops()
    say("stages: counting instructions")
    counts = count_instructions([counted for loop in loops for counted in (loop.ours, loop.plain)])
    if counts.reason:
        say(f"stages: nothing can count instructions here: {counts.reason}")
        return ()
    return instruction_series(loops, counts)

# SPDX-License-Identifier: Apache-2.0
"""The section `networks`: the built-in detectors' networks alone, in our runtimes and in plain ONNX Runtime."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import CPU_RUNTIMES, RUNTIMES, RuntimeOptions
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import UnavailableError
from ocdserve.perf.sections.plan import Plan, ProgressLine, say
from ocdserve.perf.series.measurement import OURS, Measurement, case_of
from ocdserve.perf.series.samples import Progress, cpu_timed, in_turns
from ocdserve.perf.series.threads import opencv_threads
from ocdserve.perf.subjects.networks import plain_onnxruntime

PLAIN = "ONNX Runtime, all optimisations"

# Height and width of a page as each bundle's resize policy makes it.
SIZES: Mapping[str, tuple[int, int]] = {"default": (1088, 768), "fast": (960, 480), "lite": (896, 448)}
_ROUNDS = 30


def measure(plan: Plan) -> tuple[Measurement, ...]:
    """Time the networks on a blank page, on one thread."""
    groups = {}
    for name, (height, width) in SIZES.items():
        page = np.full((height, width, 3), 255, np.uint8)
        bundle = Bundle.load(name)
        calls: dict[str, Callable[[], Any]] = {PLAIN: plain_onnxruntime(bundle, 1, page)}
        for runtime in CPU_RUNTIMES:
            try:
                network = load_network(bundle, RuntimeOptions(runtime, threads=1))
            except UnavailableError as error:
                say(f"networks: {error}")
            else:
                calls[f"{OURS}, {RUNTIMES[runtime].title}"] = partial(network.infer, [page])
        groups[f"{name}, {height} x {width}"] = calls
    with opencv_threads(1):  # it rounds the maps
        return measure_networks(groups, _ROUNDS * plan.rounds, ProgressLine("networks"))


def measure_networks(
    groups: Mapping[str, Mapping[str, Callable[[], Any]]], rounds: int, progress: Progress
) -> tuple[Measurement, ...]:
    """Time the calls of each group in turns, after one untimed call of each.

    Args:
        groups: Calls by subject, by group; one of each group is `PLAIN`.
        rounds: How often each is made.
        progress: Receives the number of rounds done.

    Returns:
        Per group and subject a series of wall times and one of this process's CPU times, factor `clock`, with `PLAIN`
        as baseline. CPU times hardly change when other processes use the machine.
    """
    measurements = []
    for index, (group, calls) in enumerate(groups.items()):
        times: dict[tuple[str, str], list[float]] = {(name, clock): [] for clock in ("wall", "CPU") for name in calls}
        for call in calls.values():
            call()
        clocked = {name: cpu_timed(call) for name, call in calls.items()}
        for round_ in range(rounds):
            for name, wall_ms, cpu_ms in in_turns(clocked, round_):
                times[name, "wall"].append(wall_ms)
                times[name, "CPU"].append(cpu_ms)
            progress(index * rounds + round_ + 1, len(groups) * rounds)
        measurements += [
            Measurement(
                section="networks",
                subject=name,
                group=group,
                unit="ms",
                samples=tuple(samples),
                cases=tuple(case_of("page", round_) for round_ in range(rounds)),
                factors={"clock": clock, "threads": 1},
                baseline=PLAIN,
            )
            for (name, clock), samples in times.items()
        ]
    return tuple(measurements)

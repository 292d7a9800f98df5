# SPDX-License-Identifier: Apache-2.0
"""Find out how much this machine can serve, and how to set it up for that; takes minutes.

Tries a few ways to share out the cores, finds for each the highest rate of random arrivals that keeps 99 of 100
latencies under the limit, and writes to the output folder

  tuning.json    what `ocdserve serve --tuning` and `ocdserve publish --tuning` take
  capacity.json  raw samples of all runs, for `ocdserve bench report`

The load generator runs on the same machine and takes its share.
"""

import argparse
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocdserve.cli.bench.plan import say
from ocdserve.contract import InvalidInputError, UsageError

if TYPE_CHECKING:
    from ocdserve.backend.publish.tuning import Tuning
    from ocdserve.perf.capacity import Outcome
    from ocdserve.perf.series.measurement import Measurement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="new or empty folder for the files")
    parser.add_argument(
        "--p99-ms",
        metavar="LIMIT",
        type=float,
        help="limit of p99 latency (default: 3 times the median of single requests)",
    )
    parser.add_argument("--bundle", metavar="DIR", type=Path, help="detector to serve (default: the built-in one)")
    parser.add_argument("--scenario", metavar="NAME", default="scene", help="images, protocol, batch (default: scene)")
    parser.add_argument("--data", metavar="DIR", type=Path, nargs="+", help="send the photographs in these folders")
    parser.add_argument("--model", metavar="NAME", help="served model (default: the scenario's)")
    parser.add_argument(
        "--trial", metavar="S", type=float, default=15.0, help="seconds of a run, at least 60 requests (default: 15)"
    )
    parser.add_argument("--as-it-is", action="store_true", help="only the capacity of the usual set-up: try no other")


def run(args: argparse.Namespace) -> int:
    """Search, tell, write; 0 also where the confirming run missed the limit, which is told."""
    from ocdserve.perf.capacity import CapacityPlan, candidates, find_best, served_bench
    from ocdserve.perf.inputs.image_sets import PHOTOGRAPHS
    from ocdserve.perf.load.scenarios import scenario_named
    from ocdserve.perf.series.environment import Environment
    from ocdserve.perf.series.results import Results, save_results

    if not args.trial > 0:
        raise UsageError(f"--trial must be a number of seconds above 0; got {args.trial}")
    plan = CapacityPlan(limit_ms=args.p99_ms, try_delay=not args.as_it_is)
    changes: dict[str, Any] = {"model": args.model} if args.model else {}
    if args.data:
        changes["images"] = PHOTOGRAPHS
    scenario = replace(scenario_named(args.scenario), **changes)
    images = scenario.image_set(args.data)
    _prepare(args.output)
    # SIGTERM has to stop the server too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    environment = Environment.current()
    tunings = candidates(len(os.sched_getaffinity(0)))
    outcome = find_best(
        tunings[:1] if args.as_it_is else tunings,
        lambda tuning: served_bench(tuning, args.bundle, scenario, images, args.trial),
        plan,
        say,
    )
    print(_text(outcome))
    outcome.tuning.save(args.output / "tuning.json")
    command = f"bench capacity --scenario {scenario.name} --model {scenario.model}"
    results = Results.now(environment, _measurements(outcome), command)
    save_results(results, args.output / "capacity.json")
    print(f"serve with it: ocdserve serve --tuning {args.output / 'tuning.json'}")
    return 0


def _prepare(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"--output {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidInputError(f"--output {folder} is not empty, and results are never overwritten; name another")
    folder.mkdir(parents=True, exist_ok=True)


def _text(outcome: "Outcome") -> str:
    from ocdserve.perf.capacity.sweep import describe

    best, trial = outcome.best, outcome.at_capacity
    saturated = best.saturated.images_per_second
    batch = best.saturated.scenario.batch
    lines = [
        f"capacity: {trial.rate * batch:.2f} images/s with p99 under {outcome.limit_ms:.0f} ms "
        f"({describe(outcome.tuning)}, queue {outcome.tuning.queue_size})",
        f"never idle: {saturated:.2f} images/s",
        f"single requests: {best.single.percentile_ms(50):.0f} ms",
    ]
    for name, one in (
        ("at capacity, once more", trial),
        ("at 80 % of capacity", outcome.at_80),
        ("at 80 % of never idle", outcome.at_80_saturated),
    ):
        lines.append(
            f"{name}: {one.rate:.2f} requests/s, p50 {one.p50_ms:.0f} ms, p99 {one.p99_ms:.0f} ms, "
            f"p99/p50 {one.p99_ms / one.p50_ms:.2f}"
        )
    if not trial.kept:
        lines.append("no rate near it kept the limit when measured once more: the machine is busy, measure again")
    return "\n".join(lines)


def _measurements(outcome: "Outcome") -> "tuple[Measurement, ...]":
    from ocdserve.perf.load.loads import load_measurements
    from ocdserve.perf.report.targets import AT_80

    series: list[Measurement] = []
    runs = 0
    for candidate in outcome.candidates:
        results = [candidate.single, candidate.saturated, *(trial.result for trial in candidate.capacity.trials)]
        for result in results:
            runs += 1
            if result.latencies_ms:
                series += load_measurements([result], "capacity", _factors(candidate.tuning, runs))
    confirmed = {"capacity": outcome.at_capacity, AT_80: outcome.at_80, "80 % of never idle": outcome.at_80_saturated}
    for name, trial in confirmed.items():
        runs += 1
        if trial.result.latencies_ms:
            factors = {**_factors(outcome.tuning, runs), "at": name}
            series += load_measurements([trial.result], "capacity", factors)
    return tuple(series)


def _factors(tuning: "Tuning", run: int) -> dict[str, str | int | float]:
    return {
        "run": run,
        "instances": tuning.instances,
        "threads": tuning.threads or 0,
        "streams": tuning.streams,
        "queue_delay_us": tuning.queue_delay_us,
    }

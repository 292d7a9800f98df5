# SPDX-License-Identifier: Apache-2.0
"""Measure how much this machine can serve, and find the best tuning for it; takes minutes.

Tries a few tunings, finds for each the highest rate of random arrivals whose p99 latency stays within the limit, and
writes to the output folder

  tuning.json    for `ocdserve serve --tuning` and `ocdserve publish --tuning`
  capacity.json  raw samples of all runs, for `ocdserve bench report`

The load generator runs on the same machine and takes its share.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocdserve.backend.cores import core_count
from ocdserve.contract import InvalidInputError, UsageError
from ocdserve.perf.report.targets import AT_80
from ocdserve.perf.sections.plan import say
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.results import Results, save_results

if TYPE_CHECKING:
    from ocdserve.backend.publish.tuning import Tuning
    from ocdserve.perf.capacity.sweep import Outcome
    from ocdserve.perf.load.loads import LoadResult
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
    parser.add_argument("--bundle", metavar="DIR", type=Path, help="detector to serve (default: default)")
    parser.add_argument("--scenario", metavar="NAME", default="scene", help="images, protocol, batch (default: scene)")
    parser.add_argument("--data", metavar="DIR", type=Path, nargs="+", help="send the photographs in these folders")
    parser.add_argument("--model", metavar="NAME", help="served model (default: the scenario's)")
    parser.add_argument(
        "--trial", metavar="S", type=float, default=15.0, help="seconds of a run, at least 60 requests (default: 15)"
    )
    parser.add_argument("--as-it-is", action="store_true", help="only the capacity of the default tuning: try no other")


def run(args: argparse.Namespace) -> int:
    """Search, report, write; returns 0 also if the confirming run missed the limit, which is reported."""
    from ocdserve.perf.capacity.bench import served_bench
    from ocdserve.perf.capacity.sweep import CapacityPlan, candidates, find_best
    from ocdserve.perf.inputs.image_sets import PHOTOGRAPHS
    from ocdserve.perf.load.scenarios import scenario_named

    if not args.trial > 0:
        raise UsageError(f"--trial must be a number of seconds above 0; got {args.trial}")
    plan = CapacityPlan(limit_ms=args.p99_ms, try_delay=not args.as_it_is)
    changes: dict[str, Any] = {"model": args.model} if args.model else {}
    if args.data:
        changes["images"] = PHOTOGRAPHS
    scenario = replace(scenario_named(args.scenario), **changes)
    images = scenario.image_set(args.data)
    _prepare(args.output)
    environment = Environment.current()
    tunings = candidates(core_count())
    outcome = find_best(
        tunings[:1] if args.as_it_is else tunings,
        lambda tuning: served_bench(tuning, args.bundle, scenario, images, args.trial),
        plan,
        say,
    )
    print(outcome.text())
    outcome.tuning.save(args.output / "tuning.json")
    command = f"bench capacity --scenario {scenario.name} --model {scenario.model}"
    save_results(Results.now(environment, _measurements(outcome), command), args.output / "capacity.json")
    print(f"serve with it: ocdserve serve --tuning {args.output / 'tuning.json'}")
    return 0


def _prepare(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"--output {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidInputError(f"--output {folder} is not empty, and results are never overwritten; name another")
    folder.mkdir(parents=True, exist_ok=True)


def _measurements(outcome: "Outcome") -> "tuple[Measurement, ...]":
    """Series of all runs, which the factor `run` numbers."""
    from ocdserve.perf.load.loads import load_measurements

    runs: list[tuple[Tuning, LoadResult, dict[str, str]]] = [
        (candidate.tuning, result, {})
        for candidate in outcome.candidates
        for result in (candidate.single, candidate.saturated, *(one.result for one in candidate.capacity.trials))
    ]
    confirmed = {"capacity": outcome.at_capacity, AT_80: outcome.at_80, "80 % of never idle": outcome.at_80_saturated}
    runs += [(outcome.tuning, trial.result, {"at": name}) for name, trial in confirmed.items()]
    series: list[Measurement] = []
    for number, (tuning, result, at) in enumerate(runs, 1):
        factors: dict[str, str | int | float] = {
            "run": number,
            "instances": tuning.instances,
            "threads": tuning.threads or 0,
            "streams": tuning.streams,
            "queue_delay_us": tuning.queue_delay_us,
            **at,
        }
        if result.latencies_ms:
            series += load_measurements([result], "capacity", factors)
    return tuple(series)

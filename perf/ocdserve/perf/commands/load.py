# SPDX-License-Identifier: Apache-2.0
"""Put a server under load, and report how fast it answers.

A scenario says what is sent and how: --list shows all, options change a part of it. Results with other images or of
another length get another name. Without --url a server is started.

Drivers: sdk (ocdserve's own client), perf_analyzer (NVIDIA's, fetched the first time), locust. An open loop (--rate)
measures latencies from when requests were due, so that a server that falls behind cannot hide it.

With locust's web page:  locust -f $(ocdserve bench load --locustfile) --host grpc://HOST:PORT --images FOLDER
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdserve.contract import UsageError
from ocdserve.perf.report.tables import Table
from ocdserve.perf.report.text import table_text
from ocdserve.perf.sections.plan import ProgressLine, check_target, say, write
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.results import Results

if TYPE_CHECKING:
    from ocdserve.perf.inputs.image_sets import ImageSet
    from ocdserve.perf.load.loads import LoadResult
    from ocdserve.perf.load.scenarios import Scenario
    from ocdserve.perf.load.served import Served

_HEADERS = ("driver", "load", "images/s", "p50 ms", "p95 ms", "p99 ms", "requests", "errors", "sent late")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--scenario", metavar="NAME", default="scene", help="what to send (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="show the scenarios and exit")
    parser.add_argument("--locustfile", action="store_true", help="show the path of the locustfile and exit")
    parser.add_argument(
        "--driver", metavar="NAME", nargs="+", default=["sdk"], help="one or several, in alternation (default: sdk)"
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=1, help="runs of each driver (default: 1)")
    server = parser.add_argument_group("server")
    server.add_argument("--url", help="a running one: grpc://HOST:PORT or http://HOST:PORT; sets the protocol")
    server.add_argument("--repository", metavar="DIR", type=Path, help="start one with this model repository")
    server.add_argument("--bundle", metavar="DIR", type=Path, help="start one with this detector (default: default)")
    server.add_argument("--tuning", metavar="FILE", type=Path, help="start it with this tuning (see `bench capacity`)")
    server.add_argument("--memory", action="store_true", help="watch the memory of all processes of the server")
    server.add_argument(
        "--token", metavar="FILE", type=Path, help="with --url: what its `serve --shared-memory FILE` wrote"
    )
    server.add_argument(
        "--server-pid", metavar="PID", type=int, help="with --url and --memory: root of its process tree"
    )
    changed = parser.add_argument_group("parts of the scenario")
    changed.add_argument("--data", metavar="DIR", type=Path, nargs="+", help="send the photographs in these folders")
    changed.add_argument("--images", metavar="KIND", help="send drawn images of this kind")
    changed.add_argument("--model", metavar="NAME", help="served model")
    changed.add_argument("--protocol", choices=("grpc", "http"), help="of the server that is started")
    changed.add_argument("--concurrency", metavar="N", type=int, nargs="+", help="closed loop: clients; one or several")
    changed.add_argument("--rate", metavar="R", type=float, nargs="+", help="open loop: requests per second")
    changed.add_argument("--requests", metavar="N", type=int, help="total number")
    changed.add_argument("--duration", metavar="S", type=float, help="seconds")
    changed.add_argument("--batch", metavar="N", type=int, help="images per request")
    changed.add_argument("--shared-memory", choices=("none", "system", "cuda"), help="how pixels are transferred")
    changed.add_argument("--seed", metavar="N", type=int, help="of drawn images and of arrivals")
    parser.add_argument("--json", metavar="FILE", help="write raw samples to this new file, for compare and report")


def run(args: argparse.Namespace) -> int:
    """Make the load and show a table; returns 1 if a request got no answer."""
    if args.list:
        from ocdserve.perf.load.scenarios import catalogue

        print(catalogue())
        return 0
    from ocdserve.perf.load.drivers.locust_driver import LOCUSTFILE
    from ocdserve.perf.load.loads import load_measurements
    from ocdserve.perf.load.memory import MemoryWatcher, memory_measurements, memory_text
    from ocdserve.perf.load.served import sigterm_interrupts

    if args.locustfile:
        print(LOCUSTFILE)
        return 0
    _check(args)
    check_target(args.json)
    scenarios = _scenarios(args)
    environment = Environment.current()
    with sigterm_interrupts(), ExitStack() as stack:
        images = scenarios[0].image_set(args.data)
        served = stack.enter_context(_server(args))
        watcher: MemoryWatcher | None = None
        if args.memory:
            assert served.pid is not None
            watcher = stack.enter_context(MemoryWatcher(served.pid))
        results = _results(args, scenarios, images, served)
    print(_table(results))
    measurements = [series for passes in results for series in load_measurements(passes)]
    if watcher is not None:
        measurements += memory_measurements(watcher, scenarios[0].model, scenarios[0].group(images.digest))
        print(f"\n{memory_text(watcher, sum(len(one.answers) for passes in results for one in passes))}")
    write(args.json, Results.now(environment, tuple(measurements), f"bench load --scenario {scenarios[0].name}"))
    return 1 if any(one.errors for passes in results for one in passes) else 0


def _check(args: argparse.Namespace) -> None:
    if args.rounds < 1:
        raise UsageError(f"--rounds must be at least 1; got {args.rounds}")
    if args.url and (args.repository or args.bundle or args.tuning or args.protocol):
        raise UsageError(
            "--repository, --bundle, --tuning and --protocol are for a server that is started; leave --url out"
        )
    if args.repository and (args.bundle or args.tuning):
        raise UsageError("a repository holds its detector and tuning; give --repository or these")
    if args.server_pid is not None and not (args.url and args.memory):
        raise UsageError("--server-pid goes with --url and --memory")
    if args.memory and args.url and args.server_pid is None:
        raise UsageError("--memory of a running server needs the root of its process tree: --server-pid PID")
    if args.data and args.images:
        raise UsageError("--data sends photographs and --images drawn ones; give one of them")
    if args.concurrency and args.rate:
        raise UsageError("--concurrency makes a closed loop and --rate an open one; give one of them")
    if args.requests is not None and args.duration is not None:
        raise UsageError("--requests and --duration both end the run; give one of them")


def _scenarios(args: argparse.Namespace) -> "list[Scenario]":
    """The named scenario as changed by options, once per concurrency or rate."""
    from ocdserve.perf.inputs.image_sets import PHOTOGRAPHS
    from ocdserve.perf.load.scenarios import scenario_named

    changes: dict[str, Any] = {
        name: value
        for name in ("images", "model", "protocol", "batch", "shared_memory", "seed")
        if (value := getattr(args, name)) is not None
    }
    if args.data:
        changes["images"] = PHOTOGRAPHS
    if args.url:
        from ocdserve.client._endpoint import Endpoint

        changes["protocol"] = "grpc" if Endpoint.parse(args.url).is_grpc else "http"
    if args.requests is not None:
        changes |= {"requests": args.requests, "duration_s": None}
    if args.duration is not None:
        changes |= {"requests": None, "duration_s": args.duration}
    scenario = scenario_named(args.scenario)
    if args.rate:
        return [replace(scenario, **changes, rate=rate, concurrency=None) for rate in args.rate]
    if args.concurrency:
        return [replace(scenario, **changes, rate=None, concurrency=level) for level in args.concurrency]
    return [replace(scenario, **changes)]


def _server(args: argparse.Namespace) -> "AbstractContextManager[Served]":
    from ocdserve.backend.publish.tuning import Tuning
    from ocdserve.perf.load.served import Served, serving, serving_detector

    if args.url:
        return nullcontext(Served(args.url, args.url, args.server_pid, args.token))
    tuning = Tuning.load(args.tuning) if args.tuning else None
    say("load: starting the server")
    return serving(args.repository) if args.repository else serving_detector(args.bundle, tuning)


def _results(
    args: argparse.Namespace, scenarios: "Sequence[Scenario]", images: "ImageSet", served: "Served"
) -> "list[list[LoadResult]]":
    """Passes of all drivers, scenario by scenario; drivers alternate."""
    from ocdserve.perf.load.drivers import DRIVERS, Target, run_load, warm_up

    unknown = [name for name in args.driver if name not in DRIVERS]
    if unknown:
        raise UsageError(f"unknown driver {unknown[0]!r}; known are {', '.join(DRIVERS)}")
    results: list[list[LoadResult]] = [[] for _ in scenarios]
    progress, total = ProgressLine("load"), args.rounds * len(scenarios) * len(args.driver)
    targets = [Target(scenario, images, served.url(scenario.protocol), served.token) for scenario in scenarios]
    warm_up(targets[0])
    for turn in range(args.rounds):
        first = turn % len(args.driver)
        for target, passes in zip(targets, results, strict=True):
            for driver in args.driver[first:] + args.driver[:first]:
                passes.append(run_load(driver, target, warm=False))
                progress(sum(len(each) for each in results), total)
    return results


def _table(results: "Sequence[Sequence[LoadResult]]") -> str:
    """A row per load and driver."""
    rows = [
        _row(driver, [one for one in passes if one.driver == driver])
        for passes in results
        for driver in dict.fromkeys(one.driver for one in passes)
    ]
    scenario = results[0][0].scenario
    title = f"{scenario.name} ({scenario.model}, {scenario.protocol})"
    return table_text(Table("load", title, (), _HEADERS, tuple(rows), text_columns=2))


def _row(driver: str, passes: "Sequence[LoadResult]") -> tuple[str, ...]:
    scenario = passes[0].scenario
    latencies = [ms for one in passes for ms in one.latencies_ms]
    errors = sum((Counter(one.errors) for one in passes), Counter[str]())
    return (
        driver,
        f"{scenario.rate:g} /s" if scenario.is_open else f"{scenario.concurrency} clients",
        f"{np.median([one.images_per_second for one in passes]):.2f}",
        *(f"{np.percentile(latencies, percent):.1f}" if latencies else "-" for percent in (50, 95, 99)),
        str(sum(len(one.answers) for one in passes)),
        ", ".join(f"{count} {kind}" for kind, count in errors.items()) or "0",
        str(sum(one.late for one in passes)) if scenario.is_open else "-",
    )

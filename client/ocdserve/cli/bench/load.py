# SPDX-License-Identifier: Apache-2.0
"""Put a server under load, and tell how fast it answers.

A scenario says what is sent and how: --list shows all, options change a part of it. Results over other images, or of
another length, are filed under another name. Without --url a server is started.

Drivers: sdk (ocdserve's own client), perf_analyzer (NVIDIA's, fetched the first time), locust. An open loop (--rate)
counts latencies from when requests were due, so a server that falls behind cannot hide it.

With locust's web page:  locust -f $(ocdserve bench load --locustfile) --host grpc://HOST:PORT --images FOLDER
"""

import argparse
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ocdserve.cli.bench.plan import Progress, say
from ocdserve.cli.bench.written import check_target, write
from ocdserve.contract import UsageError

if TYPE_CHECKING:
    from ocdserve.perf.load.loads import LoadResult
    from ocdserve.perf.load.memory import MemoryWatcher
    from ocdserve.perf.load.scenarios import Scenario
    from ocdserve.perf.load.served import Served


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--scenario", metavar="NAME", default="scene", help="what to send (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="show the scenarios and end")
    parser.add_argument("--locustfile", action="store_true", help="show where locust's users are and end")
    parser.add_argument(
        "--driver", metavar="NAME", nargs="+", default=["sdk"], help="one or several, in turns (default: sdk)"
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=1, help="runs of each driver (default: 1)")
    server = parser.add_argument_group("server")
    server.add_argument("--url", help="one that runs: grpc://HOST:PORT or http://HOST:PORT (its protocol is taken)")
    server.add_argument("--repository", metavar="DIR", type=Path, help="start one with this model repository")
    server.add_argument("--bundle", metavar="DIR", type=Path, help="start one with this detector (default: built in)")
    server.add_argument("--tuning", metavar="FILE", type=Path, help="set it up like this (see `bench capacity`)")
    server.add_argument("--memory", action="store_true", help="watch the memory of all processes of the server")
    server.add_argument("--server-pid", metavar="PID", type=int, help="with --url and --memory: its first process")
    changed = parser.add_argument_group("parts of the scenario")
    changed.add_argument("--data", metavar="DIR", type=Path, nargs="+", help="send the photographs in these folders")
    changed.add_argument("--images", metavar="KIND", help="send drawn images of this kind")
    changed.add_argument("--model", metavar="NAME", help="served model")
    changed.add_argument("--protocol", choices=("grpc", "http"), help="of the server that is started")
    changed.add_argument("--concurrency", metavar="N", type=int, nargs="+", help="closed loop: clients; one or several")
    changed.add_argument("--rate", metavar="R", type=float, nargs="+", help="open loop: requests a second")
    changed.add_argument("--requests", metavar="N", type=int, help="how many")
    changed.add_argument("--duration", metavar="S", type=float, help="for so many seconds")
    changed.add_argument("--batch", metavar="N", type=int, help="images of a request")
    changed.add_argument("--shared-memory", choices=("none", "system", "cuda"), help="how pixels travel")
    changed.add_argument("--seed", metavar="N", type=int, help="of drawn images and of arrivals")
    parser.add_argument("--json", metavar="FILE", help="write raw samples to this new file, for compare and report")


def run(args: argparse.Namespace) -> int:
    """Make the load and show a table; 1 where a request got no answer."""
    if args.list:
        print(_catalogue())
        return 0
    if args.locustfile:
        from ocdserve.perf.load.drivers.locust_driver import LOCUSTFILE

        print(LOCUSTFILE)
        return 0
    _check(args)
    check_target(args.json)
    scenarios = _scenarios(args)
    # SIGTERM has to stop the server too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from ocdserve.perf.load.loads import load_measurements
    from ocdserve.perf.load.memory import MemoryWatcher, memory_measurements
    from ocdserve.perf.series.environment import Environment
    from ocdserve.perf.series.results import Results

    environment = Environment.current()
    with ExitStack() as stack:
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
        group = scenarios[0].group(images.digest)
        measurements += memory_measurements(watcher, scenarios[0].model, group)
        print(f"\n{_memory_text(watcher, sum(len(one.answers) for passes in results for one in passes))}")
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
        raise UsageError("--memory of a server that runs needs its first process: --server-pid PID")
    if args.data and args.images:
        raise UsageError("--data sends photographs and --images drawn ones; give one of them")
    if args.concurrency and args.rate:
        raise UsageError("--concurrency makes a closed loop and --rate an open one; give one of them")
    if args.requests is not None and args.duration is not None:
        raise UsageError("--requests and --duration both end the run; give one of them")


def _scenarios(args: argparse.Namespace) -> "list[Scenario]":
    """The named scenario with the options' changes, once for each concurrency or rate."""
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
        changes["protocol"] = urlsplit(args.url).scheme
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


@contextmanager
def _server(args: argparse.Namespace) -> "Iterator[Served]":
    from ocdserve.backend.publish.repository import PublishOptions, publish
    from ocdserve.backend.publish.tuning import Tuning
    from ocdserve.perf.load.served import Served, serving

    if args.url:
        yield Served(args.url, args.url, args.server_pid)
        return
    with tempfile.TemporaryDirectory(prefix="ocdserve-load-") as folder:
        repository = args.repository
        if repository is None:
            tuning = Tuning.load(args.tuning) if args.tuning else Tuning()
            repository = publish(PublishOptions.tuned(Path(folder) / "repository", args.bundle, tuning))
        say("load: starting the server")
        with serving(repository) as served:
            yield served


def _results(args: argparse.Namespace, scenarios: "list[Scenario]", images: Any, served: "Served") -> Any:
    """Passes of each scenario and driver, as lists; drivers are run in turns."""
    from ocdserve.perf.load.drivers import DRIVERS, Target, run_load, warm_up

    unknown = [name for name in args.driver if name not in DRIVERS]
    if unknown:
        raise UsageError(f"unknown driver {unknown[0]!r}; known are {', '.join(DRIVERS)}")
    results: list[list[LoadResult]] = [[] for _ in scenarios]
    progress, total = Progress("load"), args.rounds * len(scenarios) * len(args.driver)
    targets = [Target(scenario, images, served.url(scenario.protocol)) for scenario in scenarios]
    warm_up(targets[0])
    for turn in range(args.rounds):
        first = turn % len(args.driver)
        for target, passes in zip(targets, results, strict=True):
            for driver in args.driver[first:] + args.driver[:first]:
                passes.append(run_load(driver, target, warm=False))
                progress(sum(len(each) for each in results), total)
    return results


def _table(results: "list[list[LoadResult]]") -> str:
    rows: list[tuple[str, ...]] = [
        ("driver", "load", "images/s", "p50 ms", "p95 ms", "p99 ms", "requests", "errors", "sent late")
    ]
    for passes in results:
        for driver in dict.fromkeys(one.driver for one in passes):
            mine = [one for one in passes if one.driver == driver]
            rows.append((driver, *_row(mine)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    head = f"{results[0][0].scenario.name} ({results[0][0].scenario.model}, {results[0][0].scenario.protocol})"
    lines = [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([head, *lines])


def _row(passes: "list[LoadResult]") -> tuple[str, ...]:
    import numpy as np

    scenario = passes[0].scenario
    load = f"{scenario.rate:g} /s" if scenario.is_open else f"{scenario.concurrency} clients"
    latencies = [ms for one in passes for ms in one.latencies_ms]
    errors: dict[str, int] = {}
    for one in passes:
        for kind, count in one.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    return (
        load,
        f"{np.median([one.images_per_second for one in passes]):.2f}",
        *(f"{np.percentile(latencies, percent):.1f}" if latencies else "-" for percent in (50, 95, 99)),
        str(sum(len(one.answers) for one in passes)),
        ", ".join(f"{count} {kind}" for kind, count in errors.items()) or "0",
        str(sum(one.late for one in passes)) if scenario.is_open else "-",
    )


def _memory_text(watcher: "MemoryWatcher", requests: int) -> str:
    from ocdserve.perf.load.memory import growth_mib

    peak = watcher.peak()
    processes = sorted(peak.processes, key=lambda process: -process.pss_mib)
    lines = [
        f"memory of the server: peak {peak.pss_mib:.0f} MiB (PSS; RSS {peak.rss_mib:.0f}) after {peak.at_s:.0f} s; "
        f"growth after the first fifth {growth_mib(watcher.samples):+.1f} MiB over {requests} requests",
        *(f"  {process.pss_mib:7.0f} MiB  {process.name}" for process in processes),
    ]
    return "\n".join(lines)


def _catalogue() -> str:
    from ocdserve.perf.load.scenarios import SCENARIOS

    lines = []
    for scenario in SCENARIOS:
        load = f"{scenario.rate:g} requests/s" if scenario.is_open else f"{scenario.concurrency} clients"
        end = f"{scenario.requests} requests" if scenario.requests else f"{scenario.duration_s:g} s"
        more = f", batches of {scenario.batch}" if scenario.batch > 1 else ""
        more += f", {scenario.shared_memory} shared memory" if scenario.shared_memory != "none" else ""
        lines.append(
            f"{scenario.name:14} {scenario.images:12} {scenario.model:13} {scenario.protocol}  {load}, {end}{more}"
        )
    return "\n".join(lines)

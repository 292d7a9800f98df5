# SPDX-License-Identifier: Apache-2.0
"""An open loop at twice the capacity: what is admitted is answered in time, the rest is refused at once and undecoded.

Server and load generator have a core each. Unloaded latency, capacity and overload are measured in one run. Then calls
with little time, whose clients give up: the network must not work for them.
"""

import argparse
import os
import re
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ocdserve.client import Retry, TextDetector
from ocdserve.contract import OcdserveError
from ocdserve.perf.load.drivers.sdk import closed_loop, open_loop
from ocdserve.perf.load.loads import LATE_MS, Answer
from ocdserve.perf.load.scenarios import arrivals_s
from tests.campaigns.report import Report
from tests.campaigns.serving import Server, pictures, serving, small_bundle

_CONNECTIONS = 200
_QUEUE_TIME_MS = 1000
_SHED = "UnavailableError"
_GIVEN_UP, _GIVEN_UP_S = 100, 0.3
# Work ahead of them that takes longer.
_BUSY_S = 0.6
# First and last stage of the models that take images, as the metrics name them.
_STEPS = {
    "ocdnet": (("ocdnet_preprocess", "preprocess"), ("ocdnet_network", "network")),
    "ocdnet_fused": (("ocdnet_fused", "preprocess"), ("ocdnet_fused", "network")),
}
_HEADERS = (
    "load",
    "requests",
    "answered",
    "refused",
    "failed",
    "per s",
    "p50 ms",
    "p99 ms",
    "refused p50",
    "p99 ms",
    "sent late",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--seconds", type=float, metavar="N", help="of the open loop (default: 30, with --short 8)")
    parser.add_argument("--model", choices=tuple(_STEPS), action="append", help="only this model (default: both)")
    parser.add_argument("--shared-cores", action="store_true", help="do not pin server and generator to a core each")


def run(args: argparse.Namespace, report: Report) -> None:
    """Run the campaign."""
    seconds = args.seconds or (8.0 if args.short else 30.0)
    cores = sorted(os.sched_getaffinity(0))
    one, other = (cores, cores) if args.shared_cores else (cores[:1], cores[1:2])
    with tempfile.TemporaryDirectory() as folder:
        bundle = small_bundle(Path(folder) / "small").model_path.parent
        for model in args.model or _STEPS:
            with _on_cores(one):
                starting = serving(bundle, "--queue-time-ms", str(_QUEUE_TIME_MS))
                server = starting.__enter__()
            try:
                with _on_cores(other):
                    capacity = _overload(server, model, seconds, report)
                    for protocol in ("grpc", "http"):
                        _given_up(server, model, protocol, 0, report)
                        _given_up(server, model, protocol, round(_BUSY_S * capacity), report)
                report.equal(f"{model}: lines about restarts", server.restarts(), [])
            finally:
                starting.__exit__(None, None, None)


def _overload(server: Server, model: str, seconds: float, report: Report) -> float:
    """Returns the capacity, in images per second."""
    images = pictures()
    with TextDetector(f"http://{server.target.http}", model=model, retry=Retry(1)) as detector:

        def call(number: int) -> object:
            return detector.detect(images[number % len(images)])

        closed_loop(call, 8, 100)
        unloaded = closed_loop(call, 1, None, seconds / 2)
        busy = closed_loop(call, 8, None, seconds / 2)
        capacity = _per_second(busy)
        report.say(f"{model}: capacity {capacity:.1f} images/s")
        before = _images(server, model)
        answers = open_loop(call, arrivals_s(2 * capacity, 0, None, seconds), _CONNECTIONS)
        decoded = _images(server, model)[0] - before[0]
    loads = (
        ("one client", unloaded),
        ("eight clients", busy),
        (f"open loop, {2 * capacity:.0f} requests/s", answers),
    )
    report.table(f"{model}, 8 pictures in turn", _HEADERS, [_row(*load) for load in loads])
    answered, refused = _latencies(answers, ""), _latencies(answers, _SHED)
    limit = 3 * np.percentile(_latencies(unloaded, ""), 99) + _QUEUE_TIME_MS
    report.most(f"{model}: p99 of the admitted", float(np.percentile(answered, 99)), float(limit), " ms")
    share = _per_second(answers) / capacity
    report.rule(f"{model}: goodput of the capacity: at least 85 %", f"{100 * share:.1f} %", share >= 0.85)
    report.most(f"{model}: refused, median", float(np.median(refused)), 20, " ms")
    report.most(f"{model}: refused, p99", float(np.percentile(refused, 99)), 250, " ms")
    report.equal(f"{model}: images decoded", decoded, len(answered))
    others = sum(answer.error not in ("", _SHED) for answer in answers)
    report.equal(f"{model}: neither answered nor refused", others, 0)
    return capacity


def _given_up(server: Server, model: str, protocol: str, busy: int, report: Report) -> None:
    """Calls with little time, all at once, behind `busy` requests that have enough."""
    image, before = pictures()[0], _images(server, model)
    url = {"grpc": f"grpc://{server.target.grpc}", "http": f"http://{server.target.http}"}[protocol]
    with (
        TextDetector(f"grpc://{server.target.grpc}", model=model) as patient,
        TextDetector(url, model=model, timeout_s=_GIVEN_UP_S) as hasty,
        ThreadPoolExecutor(_GIVEN_UP + busy) as threads,
    ):

        def answered(detector: TextDetector) -> bool:
            with suppress(OcdserveError):
                detector.detect(image)
                return True
            return False

        ahead = [threads.submit(answered, patient) for _ in range(busy)]
        time.sleep(0.1 if busy else 0.0)
        calls = [threads.submit(answered, hasty) for _ in range(_GIVEN_UP)]
        in_time, others = (sum(each.result() for each in each_of) for each_of in (calls, ahead))
    time.sleep(1.0)
    decoded, computed = (after - least for after, least in zip(_images(server, model), before, strict=True))
    where = f"{model}, {protocol}, {f'behind {busy} requests' if busy else 'no queue'}"
    report.table(
        f"{where}: {_GIVEN_UP} calls of {_GIVEN_UP_S} s",
        ("answered", "decoded", "in the network"),
        [(in_time, decoded - others, computed - others)],
        text_columns=0,
    )
    report.most(f"{where}: given up, but in the network", computed - others - in_time, 20)


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """This process, and those that it starts, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _latencies(answers: Sequence[Answer], error: str) -> list[float]:
    return [answer.latency_ms for answer in answers if answer.error == error] or [float("nan")]


def _per_second(answers: Sequence[Answer]) -> float:
    """Answers per second, from the first request to the last answer."""
    good = [answer for answer in answers if not answer.error]
    end = max(answer.begin_s + answer.latency_ms / 1000 for answer in good)
    return len(good) / (end - answers[0].begin_s)


def _row(load: str, answers: Sequence[Answer]) -> tuple[object, ...]:
    answered, refused = _latencies(answers, ""), _latencies(answers, _SHED)
    counts = [sum(test(answer.error) for answer in answers) for test in _OUTCOMES]
    percentiles = [float(np.percentile(part, percent)) for part in (answered, refused) for percent in (50, 99)]
    late = sum(answer.late_ms > LATE_MS for answer in answers)
    return load, len(answers), *counts, _per_second(answers), *percentiles, late


_OUTCOMES: tuple[Callable[[str], bool], ...] = (
    lambda error: not error,
    lambda error: error == _SHED,
    lambda error: error not in ("", _SHED),
)


def _images(server: Server, model: str) -> tuple[int, ...]:
    """Images that the first stage and the network have had, once their figures, which come later, stay the same."""
    found: tuple[int, ...] = ()
    for _ in range(100):
        before, found = found, tuple(_count(server, *step) for step in _STEPS[model])
        if found == before:
            return found
        time.sleep(0.2)
    raise AssertionError("the figures keep changing")


def _count(server: Server, model: str, stage: str) -> int:
    address = re.search(r"http://\S+/metrics", "\n".join(server.lines()))
    assert address is not None, server.lines()
    with urllib.request.urlopen(address[0], timeout=30) as response:
        text = response.read().decode()
    labels = f'ocdserve_stage_duration_seconds_count{{model="{model}",stage="{stage}"}} '
    return next((int(float(line[len(labels) :])) for line in text.splitlines() if line.startswith(labels)), 0)

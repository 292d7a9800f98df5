# SPDX-License-Identifier: Apache-2.0
"""What the client costs: a call against bare tritonclient, many calls against perf_analyzer, and the import.

Starts the real Triton with a model that costs next to nothing, and then with the default detector.
"""

import argparse
import asyncio
import importlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ocdserve.backend.repository import PublishOptions, publish
from ocdserve.backend.serve import ServeOptions, running_server
from ocdserve.cli.pictures import street
from ocdserve.client import AsyncTextDetector, TextDetector
from ocdserve.contract import FUSED
from ocdserve.perf.echo_model import ECHO, echo_image, write_echo_repository
from ocdserve.perf.perf_analyzer import AnalyzerRun, input_data, installed_program, link_libraries
from ocdserve.perf.samples import Sample, in_turns, median_difference_ms, median_ms

__all__ = ["OVERHEAD_MS", "THROUGHPUT_SHARE", "measure_import", "measure_overhead", "measure_throughput"]

# What the issue asks for.
OVERHEAD_MS = 0.3
THROUGHPUT_SHARE = 0.95
IMPORT_MS = 150.0

IMAGE_BYTES = 200_000
CONCURRENCY = 16

_OUTPUTS = ("QUADS", "SCORES", "COUNT", "SIZE")
_THROUGHPUT = re.compile(r"Throughput: ([0-9.]+) infer/sec")


def measure_overhead(urls: Mapping[str, str], rounds: int) -> list[dict[str, Any]]:
    """Calls in turns: both detectors, and tritonclient's plain and asyncio clients; one row a protocol and detector.

    Args:
        urls: URL of the server by protocol: "grpc", "http".
        rounds: Calls of each way.
    """
    image = echo_image(7, IMAGE_BYTES)
    rows = []
    for protocol, url in urls.items():
        samples: list[Sample] = []
        with ExitStack() as stack:
            calls = {
                "tritonclient": stack.enter_context(_bare(protocol, url, image)),
                "TextDetector": stack.enter_context(_detector(url, image)),
                "tritonclient.aio": stack.enter_context(_bare_async(protocol, url, image)),
                "AsyncTextDetector": stack.enter_context(_async_detector(url, image)),
            }
            for call, _ in itertools.product(calls.values(), range(20)):
                call()
            for round_ in range(rounds):
                for name, ms, _ in in_turns(calls, round_):
                    samples.append(Sample(name, protocol, "image", round_, ms))
        for name, bare in (("TextDetector", "tritonclient"), ("AsyncTextDetector", "tritonclient.aio")):
            rows.append(
                {
                    "protocol": protocol,
                    "detector": name,
                    "tritonclient_ms": round(median_ms(samples, bare, protocol), 3),
                    "ms": round(median_ms(samples, name, protocol), 3),
                    "overhead_ms": round(median_difference_ms(samples, name, bare, protocol), 3),
                }
            )
    return rows


def measure_throughput(url: str, model: str, image: bytes, requests: int, passes: int) -> dict[str, Any]:
    """`detect_many` and perf_analyzer in turns, the same number of requests at the same concurrency.

    Args:
        url: The server.
        model: Served model.
        image: Encoded image, sent over and over.
        requests: Requests of each run.
        passes: Runs of each way.
    """
    found: dict[str, list[float]] = {"perf_analyzer": [], "detect_many": [], "async detect_many": []}
    with tempfile.TemporaryDirectory(prefix="ocdserve-analyzer-") as folder:
        analyze = _analyzer(Path(folder), url, model, image, requests)
        ways: dict[str, Callable[[], float]] = {
            "perf_analyzer": analyze,
            "detect_many": lambda: _many(url, model, image, requests),
            "async detect_many": lambda: asyncio.run(_many_async(url, model, image, requests)),
        }
        for pass_ in range(passes):
            for name, _, per_second in in_turns(ways, pass_):
                found[name].append(per_second)
    reference = found["perf_analyzer"]
    return {
        "model": model,
        "concurrency": CONCURRENCY,
        "per_second": {name: round(median(values), 2) for name, values in found.items()},
        "share": {
            name: round(median(a / b for a, b in zip(values, reference, strict=True)), 3)
            for name, values in found.items()
            if values is not reference
        },
        "passes": {name: [round(value, 2) for value in values] for name, values in found.items()},
    }


def measure_import(rounds: int) -> dict[str, float]:
    """Milliseconds of importing `tritonclient.grpc`, and of what `ocdserve.client` takes on top of it."""
    programs = {"tritonclient": "import tritonclient.grpc", "both": "import tritonclient.grpc, ocdserve.client"}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(rounds):
        for name, _, ms in in_turns({name: _timed_import(text) for name, text in programs.items()}, round_):
            times[name].append(ms)
    beyond = median(a - b for a, b in zip(times["both"], times["tritonclient"], strict=True))
    return {"tritonclient_ms": round(median(times["tritonclient"]), 1), "beyond_ms": round(beyond, 1)}


def _timed_import(statement: str) -> Callable[[], float]:
    program = f"from time import perf_counter as now; a = now()\n{statement}\nprint((now() - a) * 1000)"
    return lambda: float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)


@contextmanager
def _bare(protocol: str, url: str, image: bytes) -> Iterator[Callable[[], object]]:
    """tritonclient as its examples use it, with all outputs read."""
    library = importlib.import_module(f"tritonclient.{protocol}")
    client = library.InferenceServerClient(url.partition("://")[2])

    def call() -> object:
        array = np.array([[image]], object)
        tensor = library.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(array)
        wanted = [library.InferRequestedOutput(name) for name in _OUTPUTS]
        result = client.infer(ECHO, [tensor], outputs=wanted)
        return [result.as_numpy(name) for name in _OUTPUTS]

    try:
        yield call
    finally:
        client.close()


@contextmanager
def _detector(url: str, image: bytes) -> Iterator[Callable[[], object]]:
    with TextDetector(url, model=ECHO) as detector:
        yield lambda: detector.detect(image)


@contextmanager
def _bare_async(protocol: str, url: str, image: bytes) -> Iterator[Callable[[], object]]:
    """tritonclient's client for asyncio, with all outputs read, in an event loop of its own."""
    aio = importlib.import_module(f"tritonclient.{protocol}.aio")
    library = importlib.import_module(f"tritonclient.{protocol}")
    loop = asyncio.new_event_loop()

    async def connect() -> Any:
        return aio.InferenceServerClient(url.partition("://")[2])

    client = loop.run_until_complete(connect())

    async def call() -> object:
        array = np.array([[image]], object)
        tensor = library.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(array)
        wanted = [library.InferRequestedOutput(name) for name in _OUTPUTS]
        result = await client.infer(ECHO, [tensor], outputs=wanted)
        return [result.as_numpy(name) for name in _OUTPUTS]

    try:
        yield lambda: loop.run_until_complete(call())
    finally:
        loop.run_until_complete(client.close())
        loop.close()


@contextmanager
def _async_detector(url: str, image: bytes) -> Iterator[Callable[[], object]]:
    """Calls in an event loop of its own, timed from the outside like the others."""
    loop = asyncio.new_event_loop()
    detector = AsyncTextDetector(url, model=ECHO)
    try:
        yield lambda: loop.run_until_complete(detector.detect(image))
    finally:
        loop.run_until_complete(detector.close())
        loop.close()


def _many(url: str, model: str, image: bytes, requests: int) -> float:
    with TextDetector(url, model=model) as detector:
        detector.detect(image)
        begin = perf_counter()
        outcomes = detector.detect_many(itertools.repeat(image, requests), concurrency=CONCURRENCY)
        answered = sum(1 for outcome in outcomes if len(outcome.result()) >= 0)
        return answered / (perf_counter() - begin)


async def _many_async(url: str, model: str, image: bytes, requests: int) -> float:
    async with AsyncTextDetector(url, model=model) as detector:
        await detector.detect(image)
        begin = perf_counter()
        answered = 0
        async for outcome in detector.detect_many(itertools.repeat(image, requests), concurrency=CONCURRENCY):
            answered += len(outcome.result()) >= 0
        return answered / (perf_counter() - begin)


def _analyzer(folder: Path, url: str, model: str, image: bytes, requests: int) -> Callable[[], float]:
    program = installed_program(lambda message: print(message, file=sys.stderr))  # noqa: T201
    link_libraries(folder)
    images = folder / "images.json"
    images.write_text(json.dumps(input_data([image])), "ascii")
    run = AnalyzerRun(url, (image,), model, arguments=("--request-count", str(requests)))
    command = run.command(program, images, CONCURRENCY)

    def analyze() -> float:
        done = subprocess.run(command, env={"LD_LIBRARY_PATH": str(folder)}, capture_output=True, text=True, check=True)
        return float(_THROUGHPUT.findall(done.stdout)[-1])

    return analyze


def main() -> int:
    """Measure all, print JSON; 1 where a figure misses what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m ocdserve.perf.client", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="calls of each way, for the overhead")
    parser.add_argument("--requests", type=int, default=96, help="requests of each run with the detector")
    parser.add_argument("--passes", type=int, default=3, help="runs of each way, for the throughput; 0: leave it out")
    options = parser.parse_args()
    report: dict[str, Any] = {"import": measure_import(7)}
    with tempfile.TemporaryDirectory(prefix="ocdserve-perf-") as folder:
        workspace = Path(folder)
        with _served(write_echo_repository(workspace / "echo")) as server:
            urls = {"grpc": server.grpc_url, "http": server.http_url}
            report["overhead"] = measure_overhead(urls, options.rounds)
            if options.passes:
                report["echo"] = measure_throughput(
                    server.grpc_url, ECHO, echo_image(7, IMAGE_BYTES), 20 * options.requests, options.passes
                )
        if options.passes:
            with _served(publish(PublishOptions(workspace / "detector"))) as server:
                report["detector"] = measure_throughput(
                    server.grpc_url, FUSED, street().png(), options.requests, options.passes
                )
    print(json.dumps(report, indent=1))  # noqa: T201
    kept = (
        report["import"]["beyond_ms"] < IMPORT_MS
        and all(row["overhead_ms"] <= OVERHEAD_MS for row in report["overhead"])
        and (not options.passes or report["detector"]["share"]["detect_many"] >= THROUGHPUT_SHARE)
    )
    return 0 if kept else 1


def _served(repository: Path) -> Any:
    options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0)
    return running_server(options, lambda message: None)


if __name__ == "__main__":
    raise SystemExit(main())

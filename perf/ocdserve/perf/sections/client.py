# SPDX-License-Identifier: Apache-2.0
"""The section `client`: the SDK's calls compared with bare tritonclient and perf_analyzer, and its import."""

import asyncio
import importlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ocdserve.client import AsyncTextDetector, TextDetector
from ocdserve.contract import FUSED
from ocdserve.perf.inputs.image_sets import EncodedImage, ImageSet
from ocdserve.perf.load.drivers import Target, run_load
from ocdserve.perf.load.echo_model import ECHO, echo_image, write_echo_repository
from ocdserve.perf.load.perf_analyzer import installed_program
from ocdserve.perf.load.scenarios import Scenario
from ocdserve.perf.load.served import serving, serving_detector
from ocdserve.perf.sections.plan import Plan, ProgressLine, say, street_jpeg
from ocdserve.perf.series.measurement import Measurement, case_of
from ocdserve.perf.series.samples import Progress, Sample, in_turns, series

_SECTION = "client"
_IMAGE_BYTES = 200_000
_CONCURRENCY = 16

# Baseline of each client.
_BASELINES = {
    "tritonclient": "tritonclient",
    "TextDetector": "tritonclient",
    "tritonclient, asyncio": "tritonclient, asyncio",
    "AsyncTextDetector": "tritonclient, asyncio",
}
_OUTPUTS = ("QUADS", "SCORES", "COUNT", "SIZE")


def measure(plan: Plan) -> list[Measurement]:
    """Single and many calls to a model that costs next to nothing, many calls to the detector, and the import.

    Raises:
        UnavailableError: perf_analyzer cannot be fetched, or a server does not become ready.
    """
    installed_program(say)
    found = [*measure_import(7 * plan.rounds)]
    passes = 6 * plan.rounds
    with (
        tempfile.TemporaryDirectory(prefix="ocdserve-bench-") as folder,
        serving(write_echo_repository(Path(folder) / "echo")) as server,
    ):
        urls = {"grpc": server.grpc_url, "http": server.http_url}
        found += measure_overhead(urls, 300 * plan.rounds, ProgressLine("client, single calls"))
        image, progress = echo_image(7, _IMAGE_BYTES), ProgressLine("client, many calls")
        found += measure_throughput(server.grpc_url, ECHO, image, 1000, passes, progress)
    say("client: starting Triton")
    with serving_detector() as server:
        progress = ProgressLine("client, detector")
        found += measure_throughput(server.grpc_url, FUSED, street_jpeg(), 32, passes, progress)
    return found


def measure_overhead(urls: Mapping[str, str], rounds: int, progress: Progress) -> tuple[Measurement, ...]:
    """Alternate calls of both detectors, and of tritonclient's synchronous and asyncio clients.

    Args:
        urls: URL by protocol ("grpc", "http") of a server with the model of `ocdserve.perf.load.echo_model`.
        rounds: Calls of each client.
        progress: Receives the number of rounds done.
    """
    image = echo_image(7, _IMAGE_BYTES)
    found: list[Measurement] = []
    for done, (protocol, url) in enumerate(urls.items()):
        samples: list[Sample] = []
        with ExitStack() as stack:
            calls = _opened(stack, protocol, url, image)
            for call, _ in itertools.product(calls.values(), range(20)):
                call()
            for round_ in range(rounds):
                for name, ms, _ in in_turns(calls, round_):
                    samples.append(Sample(name, ECHO, "image", round_, ms))
                progress(done * rounds + round_ + 1, len(urls) * rounds)
        found += (
            series(
                samples, _SECTION, name, ECHO, baseline=baseline, factors={"protocol": protocol, "bytes": _IMAGE_BYTES}
            )
            for name, baseline in _BASELINES.items()
        )
    return tuple(found)


def measure_throughput(
    url: str, model: str, image: bytes, requests: int, passes: int, progress: Progress
) -> tuple[Measurement, ...]:
    """Alternate `detect_many` and perf_analyzer: the same number of requests at the same concurrency.

    Args:
        url: The server's gRPC URL.
        model: Served model.
        image: Encoded image of all requests.
        requests: Requests of each run.
        passes: Runs of each client.
        progress: Receives the number of passes done.
    """
    clients: dict[str, Callable[[], float]] = {
        "perf_analyzer": _analyzer(url, model, image, requests),
        "TextDetector.detect_many": lambda: _many(url, model, image, requests),
        "AsyncTextDetector.detect_many": lambda: asyncio.run(_many_async(url, model, image, requests)),
    }
    found: dict[str, list[float]] = {name: [] for name in clients}
    for pass_ in range(passes):
        for name, _, per_second in in_turns(clients, pass_):
            found[name].append(per_second)
        progress(pass_ + 1, passes)
    return tuple(
        Measurement(
            section=_SECTION,
            subject=name,
            group=model,
            unit="images/s",
            samples=tuple(values),
            cases=tuple(case_of("pass", number) for number in range(passes)),
            factors={"protocol": "grpc", "concurrency": _CONCURRENCY},
            baseline="perf_analyzer",
        )
        for name, values in found.items()
    )


def measure_import(rounds: int) -> tuple[Measurement, ...]:
    """Time of importing `tritonclient.grpc`, alone and with `ocdserve.client` on top of it, in new processes."""
    programs = {
        "tritonclient.grpc": "import tritonclient.grpc",
        "tritonclient.grpc, then ocdserve.client": "import tritonclient.grpc, ocdserve.client",
    }
    samples = [
        Sample(name, "import", "import", round_, ms)
        for round_ in range(rounds)
        for name, _, ms in in_turns({name: _timed_import(text) for name, text in programs.items()}, round_)
    ]
    return tuple(series(samples, _SECTION, name, "import", baseline="tritonclient.grpc") for name in programs)


def _timed_import(statement: str) -> Callable[[], float]:
    program = f"from time import perf_counter as now; a = now()\n{statement}\nprint((now() - a) * 1000)"
    return lambda: float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)


def _opened(stack: ExitStack, protocol: str, url: str, image: bytes) -> dict[str, Callable[[], object]]:
    """A call of each client by name; the stack closes them. Asyncio calls are timed from outside their event loop."""
    library = importlib.import_module(f"tritonclient.{protocol}")
    aio = importlib.import_module(f"tritonclient.{protocol}.aio")
    address = url.partition("://")[2]
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)

    def request() -> dict[str, Any]:
        """As in tritonclient's examples."""
        tensor = library.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], object))
        return {"inputs": [tensor], "outputs": [library.InferRequestedOutput(name) for name in _OUTPUTS]}

    def read(result: Any) -> object:
        return [result.as_numpy(name) for name in _OUTPUTS]

    async def connect() -> Any:
        return aio.InferenceServerClient(address)

    async def call_async() -> object:
        return read(await bare_async.infer(ECHO, **request()))

    def close(client: Any) -> None:
        loop.run_until_complete(client.close())

    bare = stack.enter_context(closing(library.InferenceServerClient(address)))
    detector = stack.enter_context(TextDetector(url, model=ECHO))
    bare_async, async_detector = loop.run_until_complete(connect()), AsyncTextDetector(url, model=ECHO)
    for client in (bare_async, async_detector):
        stack.callback(close, client)
    return {
        "tritonclient": lambda: read(bare.infer(ECHO, **request())),
        "TextDetector": lambda: detector.detect(image),
        "tritonclient, asyncio": lambda: loop.run_until_complete(call_async()),
        "AsyncTextDetector": lambda: loop.run_until_complete(async_detector.detect(image)),
    }


def _many(url: str, model: str, image: bytes, requests: int) -> float:
    with TextDetector(url, model=model) as detector:
        detector.detect(image)
        begin = perf_counter()
        outcomes = detector.detect_many(itertools.repeat(image, requests), concurrency=_CONCURRENCY)
        answered = sum(1 for outcome in outcomes if len(outcome.result()) >= 0)
        return answered / (perf_counter() - begin)


async def _many_async(url: str, model: str, image: bytes, requests: int) -> float:
    async with AsyncTextDetector(url, model=model) as detector:
        await detector.detect(image)
        begin = perf_counter()
        answered = 0
        async for outcome in detector.detect_many(itertools.repeat(image, requests), concurrency=_CONCURRENCY):
            answered += len(outcome.result()) >= 0
        return answered / (perf_counter() - begin)


def _analyzer(url: str, model: str, image: bytes, requests: int) -> Callable[[], float]:
    scenario = Scenario("client", model=model, concurrency=_CONCURRENCY, requests=requests)
    target = Target(scenario, ImageSet("one image", (EncodedImage("image", image),)), url)
    # Measured from the first request to the last answer; perf_analyzer's own throughput is over whole seconds.
    return lambda: run_load("perf_analyzer", target, warm=False).images_per_second

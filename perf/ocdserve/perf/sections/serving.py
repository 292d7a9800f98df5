# SPDX-License-Identifier: Apache-2.0
"""The section `serving`: a server compared with the same detector in this process, for one client and for several."""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from queue import SimpleQueue

from ocdserve.backend import Detector
from ocdserve.client import TextDetector
from ocdserve.contract import ENSEMBLE, FUSED
from ocdserve.perf.inputs.data_sets import first_jpeg
from ocdserve.perf.load.drivers.sdk import closed_loop
from ocdserve.perf.load.loads import LoadResult
from ocdserve.perf.load.scenarios import Scenario
from ocdserve.perf.load.served import serving_detector
from ocdserve.perf.sections.plan import Plan, ProgressLine, say, street_jpeg
from ocdserve.perf.series.measurement import Measurement, case_of
from ocdserve.perf.series.samples import Progress, Sample, in_turns, series

IN_PROCESS = "in process"
BARE_NETWORK = "bare network"
CONCURRENCIES = (1, 2, 4, 8)

_PHOTOGRAPH = (1280, 720)
# Single requests of each path, load runs of each path and concurrency, and requests of a run. Runs are short and
# alternate, so that a busy minute affects all paths.
_ROUNDS, _PASSES, _REQUESTS = 20, 6, 16
# From the simplest path to the longest.
_PATHS = (BARE_NETWORK, IN_PROCESS, FUSED, ENSEMBLE)

Call = Callable[[], object]
# Opens a client; its call is repeated by one thread.
Client = Callable[[], AbstractContextManager[Call]]


def measure(plan: Plan) -> tuple[Measurement, ...]:
    """Start a server and send it one photograph of 1280 x 720 pixels repeatedly.

    Raises:
        UnavailableError: The server does not become ready.
    """
    photograph = first_jpeg(plan.data_sets, *_PHOTOGRAPH)
    name, encoded = (photograph.name, photograph.encoded) if photograph else ("drawn street", street_jpeg())
    say("serving: starting Triton")
    with serving_detector() as server:
        return measure_serving(
            server.grpc_url,
            Detector.load(),
            encoded,
            f"{name} {_PHOTOGRAPH[0]}x{_PHOTOGRAPH[1]}",
            plan.rounds,
            ProgressLine("serving"),
        )


def measure_serving(
    grpc_url: str, detector: Detector, image: bytes, name: str, times: int, progress: Progress
) -> tuple[Measurement, ...]:
    """Send one image repeatedly: alternating single requests, then closed loops, pass by pass.

    Args:
        grpc_url: A server that is ready.
        detector: The same detector in this process, with the threads that the server gives it.
        image: Encoded image.
        name: Name of the image in the results.
        times: Factor on the number of requests.
        progress: Receives the number of requests answered.

    Returns:
        Latencies of single requests, with those of the detector in this process as baseline; and for each concurrency
        latencies and throughput, with those of the bare network in this process as baseline.

    Raises:
        OcdserveError: A request failed.
    """
    clients: dict[str, Client] = {
        **{model: _served(grpc_url, model, image) for model in (FUSED, ENSEMBLE)},
        BARE_NETWORK: _bare_network(detector, image),
    }
    rounds, passes = _ROUNDS * times, _PASSES * times
    steps = 3 * rounds + 3 * len(CONCURRENCIES) * passes * _REQUESTS
    samples: list[Sample] = []
    runs: dict[tuple[str, int], list[LoadResult]] = {}
    with clients[FUSED]() as fused, clients[ENSEMBLE]() as ensemble:
        calls: dict[str, Call] = {IN_PROCESS: lambda: detector.detect(image), FUSED: fused, ENSEMBLE: ensemble}
        for call in calls.values():
            call()
        for round_ in range(rounds):
            for path, ms, _ in in_turns(calls, round_):
                samples.append(Sample(path, name, name, round_, ms))
            progress(len(samples), steps)
    # Paths that are compared alternate.
    for done, (_, concurrency, path) in enumerate(itertools.product(range(passes), CONCURRENCIES, clients), 1):
        run = load_run(path, clients[path], concurrency, _REQUESTS)
        runs.setdefault((path, concurrency), []).append(run)
        progress(len(samples) + _REQUESTS * done, steps)
    return (*latency_series(samples, name), *load_series(runs, name))


def latency_series(samples: Sequence[Sample], image: str) -> Iterator[Measurement]:
    """Single requests, path by path."""
    for path in sorted({sample.subject for sample in samples}, key=_PATHS.index):
        yield series(samples, "serving", path, image, baseline=IN_PROCESS, factors={"driver": "one at a time"})


def load_series(runs: Mapping[tuple[str, int], Sequence[LoadResult]], image: str) -> Iterator[Measurement]:
    """Throughput of the passes, and latencies of all their requests, by path and concurrency."""
    for path, concurrency in sorted(runs, key=lambda cell: (_PATHS.index(cell[0]), cell)):
        passes = runs[path, concurrency]
        rates = tuple(run.images_per_second for run in passes)
        cases = tuple(case_of("pass", number) for number in range(len(passes)))
        latencies = tuple(ms for run in passes for ms in run.latencies_ms)
        factors: dict[str, str | int | float] = {"driver": "closed loop", "concurrency": concurrency}
        yield Measurement("serving", path, image, "images/s", rates, cases, factors, baseline=BARE_NETWORK)
        yield Measurement("serving", path, image, "ms", latencies, (), factors, baseline=BARE_NETWORK)


def load_run(path: str, client: Client, concurrency: int, requests: int) -> LoadResult:
    """A closed loop in which each thread has a client of its own, after one untimed call per client.

    Raises:
        OcdserveError: A request failed; no further ones are made.
    """
    own = threading.local()
    free: SimpleQueue[Call] = SimpleQueue()

    def call(_: int) -> object:
        if not hasattr(own, "call"):
            own.call = free.get_nowait()
        return own.call()

    with ExitStack() as opened:
        for _ in range(concurrency):
            one = opened.enter_context(client())
            one()  # opens the connection
            free.put(one)
        answers = closed_loop(call, concurrency, requests, stop_on_error=True)
    scenario = Scenario("serving", model=path, concurrency=concurrency, requests=requests)
    return LoadResult("sdk", scenario, "", answers)


def _served(grpc_url: str, model: str, image: bytes) -> Client:
    @contextmanager
    def client() -> Iterator[Call]:
        with TextDetector(grpc_url, model=model) as detector:
            yield lambda: detector.detect(image)

    return client


def _bare_network(detector: Detector, image: bytes) -> Client:
    pixels, frame = detector.preprocess(image)
    return lambda: nullcontext(lambda: detector.infer([pixels], [frame]))

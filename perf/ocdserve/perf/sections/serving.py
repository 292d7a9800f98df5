# SPDX-License-Identifier: Apache-2.0
"""What serving costs: a running server against the same detector in this process, and many clients at once."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter

from ocdserve.backend import Detector
from ocdserve.client import TextDetector
from ocdserve.contract import ENSEMBLE, FUSED
from ocdserve.perf.series.measurement import Measurement, case_of
from ocdserve.perf.series.samples import Progress, Sample, in_turns, series

IN_PROCESS = "in process"
BARE_NETWORK = "bare network"
CONCURRENCIES = (1, 2, 4, 8)

# From the simplest path to the longest.
_PATHS = (BARE_NETWORK, IN_PROCESS, FUSED, ENSEMBLE)

Call = Callable[[], object]
# Opens a client; the client's call is made again and again by one thread.
Client = Callable[[], AbstractContextManager[Call]]


@dataclass(frozen=True)
class LoadRun:
    """Clients that each send a request as soon as they have their last answer.

    Attributes:
        subject: What answered.
        concurrency: Clients.
        seconds: From the first request to the last answer.
        latencies_ms: Of each request, in the order of the answers.
    """

    subject: str
    concurrency: int
    seconds: float
    latencies_ms: tuple[float, ...]

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.latencies_ms) / self.seconds


@dataclass(frozen=True)
class ServingPlan:
    """How much is measured.

    Attributes:
        rounds: Single requests of each path.
        passes: Load runs of each path and concurrency; short ones in turns, so that a busy minute hits all.
        requests: Requests of a load run.
    """

    rounds: int = 20
    passes: int = 6
    requests: int = 16

    @property
    def steps(self) -> int:
        """Requests that are timed, of all paths together."""
        return 3 * self.rounds + 3 * len(CONCURRENCIES) * self.passes * self.requests


def measure_serving(
    grpc_url: str, detector: Detector, image: bytes, name: str, plan: ServingPlan, progress: Progress
) -> tuple[Measurement, ...]:
    """Send one image again and again; one request at a time in turns, then by clients without a pause, pass by pass.

    Args:
        grpc_url: A server that is ready.
        detector: The same detector in this process, with the threads that the server gives it.
        image: Encoded image.
        name: What to call the image.
        plan: How much is measured.
        progress: Is told of requests answered.

    Returns:
        Latencies of single requests, against those of the detector in this process; and for each concurrency latencies
        and throughput, against those of the bare network in this process.
    """
    clients: dict[str, Client] = {
        **{model: _served(grpc_url, model, image) for model in (FUSED, ENSEMBLE)},
        BARE_NETWORK: _bare_network(detector, image),
    }
    samples: list[Sample] = []
    loads: list[LoadRun] = []
    with clients[FUSED]() as fused, clients[ENSEMBLE]() as ensemble:
        calls: dict[str, Call] = {IN_PROCESS: lambda: detector.detect(image), FUSED: fused, ENSEMBLE: ensemble}
        for call in calls.values():
            call()
        for round_ in range(plan.rounds):
            for path, ms, _ in in_turns(calls, round_):
                samples.append(Sample(path, name, name, round_, ms))
            progress(len(samples), plan.steps)
    # What is compared follows one another.
    for _, concurrency, path in itertools.product(range(plan.passes), CONCURRENCIES, clients):
        loads.append(closed_loop(path, clients[path], concurrency, plan.requests))
        progress(len(samples) + plan.requests * len(loads), plan.steps)
    return (*latency_series(samples, name), *load_series(loads, name))


def latency_series(samples: Sequence[Sample], image: str) -> Iterator[Measurement]:
    """Single requests, path by path."""
    for path in sorted({sample.subject for sample in samples}, key=_PATHS.index):
        yield series(samples, "serving", path, image, baseline=IN_PROCESS, factors={"driver": "one at a time"})


def load_series(loads: Sequence[LoadRun], image: str) -> Iterator[Measurement]:
    """Throughput of the passes, and latencies of all their requests, by path and concurrency."""
    cells = sorted({(load.subject, load.concurrency) for load in loads}, key=lambda cell: (_PATHS.index(cell[0]), cell))
    for path, concurrency in cells:
        runs = [load for load in loads if (load.subject, load.concurrency) == (path, concurrency)]
        factors: dict[str, str | int | float] = {"driver": "closed loop", "concurrency": concurrency}
        yield Measurement(
            section="serving",
            subject=path,
            group=image,
            unit="images/s",
            samples=tuple(run.per_second for run in runs),
            cases=tuple(case_of("pass", number) for number in range(len(runs))),
            factors=factors,
            baseline=BARE_NETWORK,
        )
        yield Measurement(
            section="serving",
            subject=path,
            group=image,
            unit="ms",
            samples=tuple(ms for run in runs for ms in run.latencies_ms),
            factors=factors,
            baseline=BARE_NETWORK,
        )


def closed_loop(subject: str, client: Client, concurrency: int, requests: int) -> LoadRun:
    """Keep `concurrency` clients busy until `requests` requests are answered; each makes one before, untimed."""
    tickets = itertools.count()

    def work(call: Call) -> list[tuple[float, float]]:
        answers = []
        while next(tickets) < requests:
            begin = perf_counter()
            call()
            answers.append((perf_counter(), begin))
        return answers

    with ExitStack() as stack, ThreadPoolExecutor(concurrency) as pool:
        calls = [stack.enter_context(client()) for _ in range(concurrency)]
        list(pool.map(lambda call: call(), calls))
        answers = sorted(answer for part in pool.map(work, calls) for answer in part)
    return LoadRun(
        subject=subject,
        concurrency=concurrency,
        seconds=answers[-1][0] - min(begin for _, begin in answers),
        latencies_ms=tuple((end - begin) * 1000 for end, begin in answers),
    )


def _served(grpc_url: str, model: str, image: bytes) -> Client:
    @contextmanager
    def client() -> Iterator[Call]:
        with TextDetector(grpc_url, model=model) as detector:
            yield lambda: detector.detect(image)

    return client


def _bare_network(detector: Detector, image: bytes) -> Client:
    pixels, _ = detector.preprocess(image)
    return lambda: nullcontext(lambda: detector.infer([pixels]))

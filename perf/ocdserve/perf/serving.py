# SPDX-License-Identifier: Apache-2.0
"""What serving costs: a running server against the same detector in this process, and many clients at once."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from ocdserve.backend import Detector
from ocdserve.client import TextDetector
from ocdserve.contract import ENSEMBLE, FUSED
from ocdserve.perf.samples import Progress, Sample, in_turns, median_difference_ms, median_ms

IN_PROCESS = "in process"
BARE_NETWORK = "bare network"
CONCURRENCIES = (1, 2, 4, 8)

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
class LatencyRow:
    """One way to detect in the one image, one request at a time.

    Attributes:
        path: In process, or the served model.
        median_ms: Median time of a request.
        added_ms: Median over the rounds of what it took longer than in process.
    """

    path: str
    median_ms: float
    added_ms: float


@dataclass(frozen=True)
class ThroughputRow:
    """One way to detect under load.

    Attributes:
        path: Served model, or the bare network in this process.
        concurrency: Clients.
        per_second: Images a second, of all passes together.
        against_one_client: Median over the passes of the same divided by that of one client.
        median_ms: Median time of a request.
    """

    path: str
    concurrency: int
    per_second: float
    against_one_client: float
    median_ms: float


@dataclass(frozen=True)
class ServingResult:
    """Raw times of single requests and of load runs.

    Attributes:
        image: Name and size of the image that was sent.
        samples: Single requests, in turns.
        loads: Load runs, pass by pass.
    """

    image: str
    samples: tuple[Sample, ...]
    loads: tuple[LoadRun, ...]

    def latency_rows(self) -> tuple[LatencyRow, ...]:
        """Figures of single requests."""
        return tuple(
            LatencyRow(
                path=path,
                median_ms=median_ms(self.samples, path, self.image),
                added_ms=median_difference_ms(self.samples, path, IN_PROCESS, self.image),
            )
            for path in sorted({sample.subject for sample in self.samples}, key=_rank)
        )

    def throughput_rows(self) -> tuple[ThroughputRow, ...]:
        """Figures of load runs."""
        cells = sorted({(load.subject, load.concurrency) for load in self.loads}, key=lambda cell: _rank(*cell))
        return tuple(self._throughput_row(path, concurrency) for path, concurrency in cells)

    def _throughput_row(self, path: str, concurrency: int) -> ThroughputRow:
        runs, singles = self._runs(path, concurrency), self._runs(path, 1)
        latencies = [ms for run in runs for ms in run.latencies_ms]
        return ThroughputRow(
            path=path,
            concurrency=concurrency,
            per_second=len(latencies) / sum(run.seconds for run in runs),
            against_one_client=median(
                run.per_second / single.per_second for run, single in zip(runs, singles, strict=True)
            ),
            median_ms=median(latencies),
        )

    def _runs(self, path: str, concurrency: int) -> list[LoadRun]:
        return [load for load in self.loads if (load.subject, load.concurrency) == (path, concurrency)]


@dataclass(frozen=True)
class ServingPlan:
    """How much is measured.

    Attributes:
        rounds: Single requests of each path.
        passes: Load runs of each path and concurrency; short ones in turns, so that a busy minute hits all.
        requests: Requests of a load run.
    """

    rounds: int = 20
    passes: int = 3
    requests: int = 16

    @property
    def steps(self) -> int:
        """Requests that are timed, of all paths together."""
        return 3 * self.rounds + 3 * len(CONCURRENCIES) * self.passes * self.requests


def measure_serving(
    grpc_url: str, detector: Detector, image: bytes, name: str, plan: ServingPlan, progress: Progress
) -> ServingResult:
    """Send one image again and again.

    Args:
        grpc_url: A server that is ready.
        detector: The same detector in this process, with the threads that the server gives it.
        image: Encoded image.
        name: What to call the image.
        plan: How much is measured.
        progress: Is told of requests answered.
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
    for _, path, concurrency in itertools.product(range(plan.passes), clients, CONCURRENCIES):
        loads.append(closed_loop(path, clients[path], concurrency, plan.requests))
        progress(len(samples) + plan.requests * len(loads), plan.steps)
    return ServingResult(name, tuple(samples), tuple(loads))


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


def _rank(path: str, concurrency: int = 1) -> tuple[int, int]:
    """Order of the rows: from the simplest path to the longest, few clients first."""
    return (BARE_NETWORK, IN_PROCESS, FUSED, ENSEMBLE).index(path), concurrency

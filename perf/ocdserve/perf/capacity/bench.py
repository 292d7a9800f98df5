# SPDX-License-Identifier: Apache-2.0
"""A server with one tuning, ready for measurements."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ocdserve.backend.publish.tuning import Tuning
from ocdserve.perf.inputs.image_sets import ImageSet
from ocdserve.perf.load.drivers import Target, run_load, warm_up
from ocdserve.perf.load.loads import LoadResult
from ocdserve.perf.load.scenarios import Scenario
from ocdserve.perf.load.served import serving_detector

# Fewest requests of an open loop: a 99th percentile of fewer means little.
_LEAST_REQUESTS = 60


class Bench(Protocol):
    """Makes load runs."""

    def closed(self, concurrency: int, requests: int) -> LoadResult:
        """Run a closed loop with a number of clients and a total number of requests."""

    def open(self, rate: float, seed: int) -> LoadResult:
        """Run an open loop at a rate in requests per second; the bench chooses how long."""


@dataclass(frozen=True)
class ServedBench:
    """A running server.

    Attributes:
        scenario: What is sent; its load and its length are replaced.
        images: Its images.
        url: The server.
        trial_s: Seconds of an open loop; longer if they hold too few requests.
    """

    scenario: Scenario
    images: ImageSet
    url: str
    trial_s: float

    def closed(self, concurrency: int, requests: int) -> LoadResult:
        """See `Bench`."""
        return self._run(concurrency=concurrency, rate=None, requests=requests)

    def open(self, rate: float, seed: int) -> LoadResult:
        """See `Bench`."""
        requests = max(_LEAST_REQUESTS, round(rate * self.trial_s))
        return self._run(concurrency=None, rate=rate, requests=requests, seed=seed)

    def _run(self, *, concurrency: int | None, rate: float | None, requests: int, seed: int = 0) -> LoadResult:
        scenario = replace(
            self.scenario, concurrency=concurrency, rate=rate, requests=requests, duration_s=None, seed=seed
        )
        return run_load("sdk", Target(scenario, self.images, self.url), warm=False)


@contextmanager
def served_bench(
    tuning: Tuning, bundle: Path | None, scenario: Scenario, images: ImageSet, trial_s: float
) -> Iterator[ServedBench]:
    """Start a server with this tuning and warm it up.

    Raises:
        UnavailableError: It does not become ready.
    """
    with serving_detector(bundle, tuning) as served:
        bench = ServedBench(scenario, images, served.url(scenario.protocol), trial_s)
        # Each process of a model compiles the network for each size of image.
        for _ in range(tuning.instances):
            warm_up(Target(replace(scenario, concurrency=1, rate=None, requests=1), images, bench.url))
        yield bench

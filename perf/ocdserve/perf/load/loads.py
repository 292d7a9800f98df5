# SPDX-License-Identifier: Apache-2.0
"""What a load run gave: every answer with its raw latency, and what follows from all of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.load.scenarios import Scenario
from ocdserve.perf.series.measurement import Measurement, case_of

__all__ = ["DROPPED", "LATE_MS", "Answer", "LoadResult", "load_measurements"]

# Kind of error of an arrival that was never sent, because too many requests were under way.
DROPPED = "dropped"
# The load generator itself is at fault for a request that it sends so much later than it was due.
LATE_MS = 10.0


@dataclass(frozen=True)
class Answer:
    """One request and how it ended.

    Attributes:
        begin_s: In an open loop when it was due, else when it was sent; seconds from the start of the run.
        latency_ms: From then to its answer or error.
        error: Kind of error; empty for an answer.
        late_ms: Open loop: how long after it was due it was sent; part of `latency_ms`.
    """

    begin_s: float
    latency_ms: float
    error: str = ""
    late_ms: float = 0.0

    @property
    def end_s(self) -> float:
        """When it ended, in seconds from the start of the run."""
        return self.begin_s + self.latency_ms / 1000


@dataclass(frozen=True)
class LoadResult:
    """One run of a scenario.

    Attributes:
        driver: What made the load.
        scenario: What was asked for.
        images_digest: Of the images that were sent.
        answers: All requests, in the order of `begin_s`.

    Raises:
        InvalidInputError: There is no answer.
    """

    driver: str
    scenario: Scenario
    images_digest: str
    answers: tuple[Answer, ...]

    def __post_init__(self) -> None:
        if not self.answers:
            raise InvalidInputError(f"{self.driver}: a run of {self.scenario.name!r} must have at least one request")

    @cached_property
    def latencies_ms(self) -> tuple[float, ...]:
        """Of the requests that were answered."""
        return tuple(answer.latency_ms for answer in self.answers if not answer.error)

    @property
    def seconds(self) -> float:
        """From the first request to the last end."""
        return max(answer.end_s for answer in self.answers) - self.answers[0].begin_s

    @property
    def images_per_second(self) -> float:
        """Images answered a second, over the whole run."""
        return len(self.latencies_ms) * self.scenario.batch / self.seconds if self.seconds else 0.0

    @property
    def errors(self) -> dict[str, int]:
        """Requests without an answer by kind of error, most frequent first."""
        return dict(Counter(answer.error for answer in self.answers if answer.error).most_common())

    @property
    def late(self) -> int:
        """Requests that were sent more than `LATE_MS` after they were due: the load generator did not keep up."""
        return sum(answer.late_ms > LATE_MS for answer in self.answers)

    def percentile_ms(self, percent: float) -> float:
        """Latency that so many percent of the answers kept.

        Raises:
            UnavailableError: No request was answered.
        """
        if not self.latencies_ms:
            raise UnavailableError(
                f"{self.driver}: none of {len(self.answers)} requests was answered ({_listed(self.errors)})"
            )
        return float(np.percentile(self.latencies_ms, percent))


def load_measurements(
    results: Sequence[LoadResult], section: str = "load", also: Mapping[str, str | int | float] | None = None
) -> tuple[Measurement, ...]:
    """Latencies and throughput of the passes of one scenario, a pair of series for each driver.

    Args:
        results: The passes.
        section: Of the series.
        also: Factors besides those of the scenario.

    Raises:
        UnavailableError: A driver got no answer at all.
    """
    series = []
    for driver in dict.fromkeys(result.driver for result in results):
        passes = [result for result in results if result.driver == driver]
        scenario = passes[0].scenario
        latencies = tuple(ms for result in passes for ms in result.latencies_ms)
        if not latencies:
            passes[0].percentile_ms(50)
        group = scenario.group(passes[0].images_digest)
        errors = Counter(answer.error for result in passes for answer in result.answers if answer.error)
        factors: dict[str, str | int | float] = {
            **(also or {}),
            "driver": driver,
            "protocol": scenario.protocol,
            "batch": scenario.batch,
            "shared_memory": scenario.shared_memory,
        }
        if scenario.rate is not None:
            factors["rate"] = scenario.rate
        elif scenario.concurrency is not None:
            factors["concurrency"] = scenario.concurrency
        facts: dict[str, str | int | float] = {
            "errors": sum(errors.values()),
            "requests": sum(len(result.answers) for result in passes),
            "images": passes[0].images_digest,
            "scenario": scenario.version,
            **{f"errors of kind {kind}": count for kind, count in errors.items()},
        }
        if scenario.is_open:
            facts["late"] = sum(result.late for result in passes)
        rates = tuple(result.images_per_second for result in passes)
        cases = tuple(case_of("pass", number) for number in range(len(passes)))
        series += [
            Measurement(section, scenario.model, group, "ms", latencies, (), factors, facts),
            Measurement(section, scenario.model, group, "images/s", rates, cases, factors, facts),
        ]
    return tuple(series)


def _listed(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in errors.items())

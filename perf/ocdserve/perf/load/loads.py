# SPDX-License-Identifier: Apache-2.0
"""The result of a load run: every answer with its raw latency, and the statistics of all."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.load.scenarios import Scenario
from ocdserve.perf.series.measurement import Measurement, case_of

# Kind of error of an arrival that was never sent, because too many requests were in flight.
DROPPED = "dropped"
# A request that is sent later than this after it was due: the load generator did not keep up.
LATE_MS = 10.0


@dataclass(frozen=True)
class Answer:
    """One request and how it ended.

    Attributes:
        begin_s: When it was due (open loop) or sent (closed loop), in seconds from the start of the run.
        latency_ms: From then to its answer or error, in milliseconds.
        error: Class name of the error, or `DROPPED`; empty for an answer.
        late_ms: Open loop: delay between due and sent, in milliseconds; part of `latency_ms`.
    """

    begin_s: float
    latency_ms: float
    error: str = ""
    late_ms: float = 0.0


@dataclass(frozen=True)
class LoadResult:
    """One run of a scenario.

    Attributes:
        driver: A key of `ocdserve.perf.load.drivers.DRIVERS`.
        scenario: The load.
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
        """Latencies of the answered requests, in milliseconds."""
        return tuple(answer.latency_ms for answer in self.answers if not answer.error)

    @property
    def seconds(self) -> float:
        """Seconds from the begin of the first request to the last end."""
        ends = (answer.begin_s + answer.latency_ms / 1000 for answer in self.answers)
        return max(ends) - self.answers[0].begin_s

    @property
    def images_per_second(self) -> float:
        """Images answered per second, over the whole run."""
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
        """Latency that this percentage of the answers did not exceed, in milliseconds.

        Raises:
            UnavailableError: No request was answered.
        """
        if not self.latencies_ms:
            errors = ", ".join(f"{count} {kind}" for kind, count in self.errors.items())
            raise UnavailableError(f"{self.driver}: none of {len(self.answers)} requests was answered ({errors})")
        return float(np.percentile(self.latencies_ms, percent))


def load_measurements(
    results: Sequence[LoadResult], section: str = "load", also: Mapping[str, str | int | float] | None = None
) -> tuple[Measurement, ...]:
    """Latencies and throughput of the passes of one scenario, a pair of series per driver.

    Args:
        results: The passes.
        section: Of the series.
        also: Factors in addition to those of the scenario.

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

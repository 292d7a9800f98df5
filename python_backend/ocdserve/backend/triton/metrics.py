# SPDX-License-Identifier: Apache-2.0
"""Custom metrics on Triton's metrics endpoint.

Processes that make a metric of the same name and labels share it, and Triton keeps its value when one of them dies.
"""

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, Literal

from ocdserve.backend.serve.process.guard import SHARED_MEMORY
from ocdserve.backend.serve.process.health import DIRECTORY_VARIABLE
from ocdserve.backend.serve.process.metrics import (
    BUILD_INFO,
    DETECTIONS,
    LAUNCHER_FAMILIES,
    LIMIT,
    LIMIT_HITS,
    LIMITS,
    LINES,
    OUTCOMES,
    QUEUE_AGE,
    QUEUE_LENGTH,
    REQUEST_DURATION,
    REQUESTS,
    SHARED_MEMORY_BYTES,
    STAGE_DURATION,
    Family,
    Outcome,
    TotalsReader,
)
from ocdserve.backend.triton.waiter import CancelledError, ExpiredError, OverloadError, Waiter
from ocdserve.contract import ASKED_MODELS, ENSEMBLE, ENSEMBLE_RAW, OCR_FUSED, RECOGNISE, InvalidInputError, Limits

Stage = Literal["preprocess", "network", "postprocess", "recognise", "decode", "gpu"]

_OUTCOME_OF: Mapping[type[Exception], Outcome] = {
    InvalidInputError: "invalid",
    ExpiredError: "expired",
    CancelledError: "expired",
    OverloadError: "shed",
}


class ServingMetrics:
    """What a model's process measures and counts.

    Args:
        pb_utils: Triton's module of this process.
        model: Name of the model.
        stages: Stages that this model runs.
        limits: Limits of requests.
        instance: Triton's name of this process.
        build: Values of the labels of `BUILD_INFO`, of a process that has the network.
        environment: Names the directory of the launcher.
    """

    def __init__(
        self,
        pb_utils: Any,
        model: str,
        stages: Sequence[Stage],
        limits: Limits,
        instance: str = "",
        build: Mapping[str, str] | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        # One thread, because concurrent `observe` calls crash tritonserver 2.51 (Metric::Observe on a message that the
        # other call has overwritten); and a separate one, because each call waits for Triton, which answers need not.
        self._reporter = ThreadPoolExecutor(max_workers=1)
        self._pb_utils = pb_utils
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._increments: Counter[Any] = Counter()
        # The families must outlive their metrics, hence the references.
        self._families: list[Any] = []
        self._stages = self._made(STAGE_DURATION, model=(model,), stage=tuple(stages))
        if {"postprocess", "gpu"} & set(stages):
            self._detections = self._made(DETECTIONS, model=(model,))
        if model in (OCR_FUSED, RECOGNISE):
            self._lines = self._made(LINES, model=(model,))
        self._requests: dict[tuple[str, ...], Any] = {}
        self._durations: dict[tuple[str, ...], Any] = {}
        # A step's requests are those of the ensembles; of those that read once there is a request.
        for name in (model,) if model in ASKED_MODELS else (ENSEMBLE, ENSEMBLE_RAW):
            self._show_requests(name)
        self._hits = self._made(LIMIT_HITS, limit=LIMITS)
        for (limit,), gauge in self._made(LIMIT, limit=LIMITS).items():
            gauge.set(getattr(limits, limit))
        # Of the models that have a queue: its length and its age.
        self._queue = [
            gauge
            for family in (QUEUE_LENGTH, QUEUE_AGE)
            if model in family.labels["model"]
            for gauge in self._made(family, instance=(instance,), model=(model,)).values()
        ]
        self._of_launcher = {family.name: self._made(family, **family.labels) for family in LAUNCHER_FAMILIES}
        self._memory = self._made(SHARED_MEMORY_BYTES, **SHARED_MEMORY_BYTES.labels)
        self._memory_shown: tuple[int, int] | None = None
        # Another process with the same values shows the same one.
        made = self._made(BUILD_INFO, **{name: (value,) for name, value in build.items()}) if build else {}
        self._build = list(made.values())
        directory = environment.get(DIRECTORY_VARIABLE)
        self._totals = TotalsReader(Path(directory)) if directory else None
        self._shown: Future[None] | None = None

    def _made(self, family: Family, **labels: tuple[str, ...]) -> dict[tuple[str, ...], Any]:
        """A metric per combination of the labels' values."""
        made = self._pb_utils.MetricFamily(
            name=family.name,
            description=family.meaning,
            kind=getattr(self._pb_utils.MetricFamily, family.kind.upper()),
        )
        more = {"buckets": list(family.buckets)} if family.buckets else {}
        metrics = {
            values: made.Metric(labels=dict(zip(labels, values, strict=True)), **more)
            for values in product(*labels.values())
        }
        self._families.append((made, metrics))
        return metrics

    @contextmanager
    def stage(self, name: Stage, images: int = 1) -> Iterator[None]:
        """Measure a stage over one or more images, which share the time equally."""
        start = time.perf_counter()
        yield
        self.observe_stage(name, time.perf_counter() - start, images)

    def observe_stage(self, name: Stage, seconds: float, images: int) -> None:
        """Record the time of a stage over one or more images, which share it equally."""
        (metric,) = (metric for (_, stage), metric in self._stages.items() if stage == name)
        for _ in range(images):
            self._reporter.submit(metric.observe, seconds / images)

    def observe_detections(self, count: int) -> None:
        """Record the number of detections of one image."""
        (metric,) = self._detections.values()
        self._reporter.submit(metric.observe, count)

    def observe_lines(self, count: int) -> None:
        """Record the number of lines that were read in one image."""
        (metric,) = self._lines.values()
        self._reporter.submit(metric.observe, count)

    def count(self, waiter: Waiter, error: Exception | None) -> None:
        """Count a request that has been answered with its results (None), or by an error in any step.

        A step that was called on its own, not by an ensemble, is not counted.
        """
        if waiter.model is None:
            return
        outcome = outcome_of(error)
        with self._making:
            if (waiter.model, outcome) not in self._requests:
                self._reporter.submit(self._show_requests, waiter.model).result()
        self._raise(self._requests[waiter.model, outcome])
        if outcome == "ok":
            seconds = max(0, time.monotonic_ns() - waiter.arrival) / 1e9
            self._reporter.submit(self._durations[waiter.model,].observe, seconds)
        if isinstance(error, InvalidInputError) and error.limit:
            self._raise(self._hits[error.limit,])

    def _show_requests(self, model: str) -> None:
        self._durations.update(self._made(REQUEST_DURATION, model=(model,)))
        self._requests.update(self._made(REQUESTS, model=(model,), outcome=OUTCOMES))

    def _raise(self, counter: Any) -> None:
        """Add 1 to a counter; together with what else is to be added, if the reporter is busy."""
        with self._lock:
            is_first = not self._increments
            self._increments[counter] += 1
        if is_first:
            self._reporter.submit(self._increment)

    def _increment(self) -> None:
        with self._lock:
            increments, self._increments = self._increments, Counter()
        for counter, value in increments.items():
            counter.increment(value)

    def beat(self, waiting: int = 0, oldest_s: float = 0.0) -> None:
        """Called often by a thread that must not wait: show the launcher's totals and the queue, if there is one."""
        if self._shown is None or self._shown.done():
            with suppress(RuntimeError):  # `close` was called just now
                self._shown = self._reporter.submit(self._show, waiting, oldest_s)

    def close(self) -> None:
        """Report the remaining values to Triton and stop."""
        # Triton keeps showing the last values of a process that has ended.
        with suppress(RuntimeError):  # it was called before
            for gauge in (*self._queue, *self._build):
                self._reporter.submit(gauge.set, 0)
        self._reporter.shutdown()
        if self._totals:
            self._totals.close()

    def _show(self, waiting: int, oldest_s: float) -> None:
        for gauge, shown in zip(self._queue, (waiting, oldest_s), strict=False):
            gauge.set(shown)
        for gauge in self._build:
            gauge.set(1)
        self._show_memory()
        totals = self._totals.read() if self._totals else None
        for name, counts in (totals or {}).items():
            for value, total in counts.items():
                metric = self._of_launcher[name][value,]
                # Only here, and by one process, is it raised.
                if (missing := total - int(metric.value())) > 0:
                    metric.increment(missing)

    def _show_memory(self) -> None:
        with suppress(OSError):
            usage = shutil.disk_usage(SHARED_MEMORY)
            shown = usage.total, usage.used
            if shown != self._memory_shown:
                self._memory_shown = shown
                for gauge, value in zip(self._memory.values(), shown, strict=True):
                    gauge.set(value)


def outcome_of(error: Exception | None) -> Outcome:
    """The outcome of a request, as its metric has it."""
    if error is None:
        return "ok"
    return next((outcome for kind, outcome in _OUTCOME_OF.items() if isinstance(error, kind)), "failed")

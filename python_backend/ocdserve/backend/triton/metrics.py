# SPDX-License-Identifier: Apache-2.0
"""Custom metrics on Triton's metrics endpoint."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

# The fused model on a GPU cannot time the stages one by one: `decode`, and `gpu` for all the others.
Stage = Literal["preprocess", "network", "postprocess", "decode", "gpu"]

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
_COUNTS = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


class ServingMetrics:
    """Histograms of stage durations and detections per image, labelled with the model.

    Args:
        pb_utils: Triton's module of this process.
        model: Name of the model.
        stages: Stages that this model runs.
    """

    def __init__(self, pb_utils: Any, model: str, stages: Sequence[Stage]) -> None:
        # One thread, because concurrent `observe` calls crash tritonserver 2.51 (Metric::Observe on a message that the
        # other call has overwritten); and a separate one, because each call waits for Triton, which answers need not.
        self._reporter = ThreadPoolExecutor(max_workers=1)
        # The families must outlive their metrics, hence the references.
        self._durations = pb_utils.MetricFamily(
            name="ocdserve_stage_duration_seconds",
            description="Time an image spends in a stage",
            kind=pb_utils.MetricFamily.HISTOGRAM,
        )
        self._counts = pb_utils.MetricFamily(
            name="ocdserve_detections_per_image",
            description="Text regions found in an image",
            kind=pb_utils.MetricFamily.HISTOGRAM,
        )
        self._stages = {
            stage: self._durations.Metric(labels={"model": model, "stage": stage}, buckets=_SECONDS) for stage in stages
        }
        if {"postprocess", "gpu"} & set(stages):
            self._detections = self._counts.Metric(labels={"model": model}, buckets=_COUNTS)

    @contextmanager
    def stage(self, name: Stage, images: int = 1) -> Iterator[None]:
        """Measure a stage over one or more images, which share the time equally."""
        start = time.perf_counter()
        yield
        self.observe_stage(name, time.perf_counter() - start, images)

    def observe_stage(self, name: Stage, seconds: float, images: int) -> None:
        """Record the time of a stage over one or more images, which share it equally."""
        for _ in range(images):
            self._reporter.submit(self._stages[name].observe, seconds / images)

    def observe_detections(self, count: int) -> None:
        """Record the number of detections of one image."""
        self._reporter.submit(self._detections.observe, count)

    def close(self) -> None:
        """Report the remaining values to Triton and stop."""
        self._reporter.shutdown()

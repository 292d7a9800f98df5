# SPDX-License-Identifier: Apache-2.0
"""The model `ocdnet_fused` on a GPU: all stages in one process, several batches of requests in flight."""

import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import accumulate
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ocdserve.backend.detector import results_of
from ocdserve.backend.gpu.detector import Countdown, GpuDetector
from ocdserve.backend.gpu.inputs import buckets
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.triton.base_model import Outputs
from ocdserve.backend.triton.gpu_model import GpuModel
from ocdserve.backend.triton.image_model import ImageModel
from ocdserve.backend.triton.models import encoded_images
from ocdserve.backend.triton.options import ServingOptions
from ocdserve.backend.triton.packing import pack_detections
from ocdserve.backend.triton.waiter import Waiter
from ocdserve.contract import MAX_BATCH_SIZE, RequestParameters
from ocdserve.results.detections import Detections

# How long every size of a batch may be prepared before the model is ready, in seconds; a batch that has begun is ended.
_WARM_UP_S = 60.0


class GpuFusedModel(ImageModel, GpuModel):
    """Model `ocdnet_fused`: requests that wait share batches, and batches overlap."""

    stages = ("decode", "gpu")

    def _load(self, bundle: Bundle, options: ServingOptions) -> None:
        work = GpuOptions(
            slots=options.slots,
            max_batch=MAX_BATCH_SIZE,
            decoder=options.decoder,
            decode_threads=options.runtime.threads,
        )
        self._detector: Any = self._opened_on_gpu(options, work)
        self._warmed_up().warm_up(options.warm_up_sizes, buckets(MAX_BATCH_SIZE), _WARM_UP_S)
        # Responses are packed and sent by other threads, so that slots do not wait for them. What waits while so many
        # calls are in flight shares the next one.
        self._open_queue(options.slots, self._detector.calls * MAX_BATCH_SIZE, options)
        self._free = threading.Semaphore(self._detector.calls)
        self._delay_s = options.queue_delay_us / 1e6
        # What one call of `execute` has read; an empty list is the end.
        self._arrived: SimpleQueue[list[_InFlightRequest]] = SimpleQueue()
        self._gatherer = threading.Thread(target=self._gather, name="gather", daemon=True)
        self._gatherer.start()

    def _opened_on_gpu(self, options: ServingOptions, work: GpuOptions) -> Any:
        """What answers: `submit`, `calls`, `healthy` and `close` are used."""
        return GpuDetector.load(
            options.bundle,
            options.runtime.runtime,
            options.runtime.device,
            work,
            options.limits,
            observer=self._metrics.observe_stage,  # type: ignore[arg-type]  # it knows the names of its stages
        )

    def _warmed_up(self) -> Any:
        return self._detector

    def _packed(self, found: list[Any], wanted: Any) -> Outputs:
        sizes = np.array([(each.height, each.width) for each in found], np.int32)
        return {**pack_detections(found, wanted), "SIZE": sizes}

    def execute(self, requests: list[Any]) -> None:
        """Called by Triton for each batch; returns at once. Each request is answered when it is done."""
        arrived = []
        for request, sender, waiter in self._admitted(requests):
            inputs = self._guarded(self._read, request, waiter)
            if isinstance(inputs, Exception):
                self._leave(sender, inputs, waiter)
            else:
                arrived.append(_InFlightRequest(sender, waiter, *inputs))
        if arrived:
            self._arrived.put(arrived)

    def read(self, request: Any, waiter: Waiter) -> tuple[list[bytes], RequestParameters, Any]:
        """Encoded images, parameters, and whether polygon tensors are wanted."""
        parameters, polygons = self._wanted(request, waiter)
        return encoded_images(request), parameters, polygons

    def finalize(self) -> None:
        """See `Model.finalize`: answers what waits first."""
        self._arrived.put([])
        self._gatherer.join()
        self._detector.close()
        self._requests.shutdown()
        self._metrics.close()

    def _has_failed(self) -> bool:
        return not self._detector.healthy

    def _gather(self) -> None:
        """Submit what waits in batches until the end."""
        left: list[_InFlightRequest] = []
        while True:
            self._free.acquire()
            waiting = left or self._arrived.get()
            if not waiting:
                return
            end = time.monotonic() + self._delay_s
            with suppress(Empty):
                while sum(each.count for each in waiting) < MAX_BATCH_SIZE:
                    more = self._arrived.get(timeout=max(0.0, end - time.monotonic()))
                    if not more:
                        self._arrived.put(more)
                        break
                    waiting = [*waiting, *more]
            totals = accumulate(each.count for each in waiting)
            # At least one: a single request may be larger.
            taken = max(1, sum(total <= MAX_BATCH_SIZE for total in totals))
            batch, left = waiting[:taken], waiting[taken:]
            self._submit(batch)

    def _submit(self, batch: "list[_InFlightRequest]") -> None:
        """Start a batch of requests; `_free` gets a place when all of them are done."""
        unanswered = Countdown(len(batch), self._free.release)
        started = []
        for each in batch:
            overdue = self._guarded(each.waiter.check, self.stages[0])
            if overdue is None:
                started.append(each)
            else:
                self._requests.submit(self._done, each, overdue, unanswered)
        images = [image for each in started for image in each.images]
        parameters = [each.parameters for each in started for _ in each.images]
        answers = self._guarded(self._detector.submit, images, parameters) if started else []
        for each in started:
            if isinstance(answers, Exception):
                self._requests.submit(self._done, each, answers, unanswered)
                continue
            each.answers, answers = answers[: each.count], answers[each.count :]
            done = Countdown(each.count, partial(self._requests.submit, self._done, each, None, unanswered))
            for answer in each.answers:
                answer.add_done_callback(done.count)

    def _done(self, request: "_InFlightRequest", error: Exception | None, unanswered: Countdown) -> None:
        try:
            self._leave(request.sender, error or self._guarded(self._outputs, request), request.waiter)
        finally:
            unanswered.count()

    def _outputs(self, request: "_InFlightRequest") -> Outputs:
        found = results_of(request.answers)
        for each in found:
            self._metrics.observe_detections(len(each))
        return self._packed(found, request.wanted)


class _InFlightRequest:
    """A request that waits, or whose images are being detected."""

    def __init__(
        self, sender: Any, waiter: Waiter, images: list[bytes], parameters: RequestParameters, wanted: Any
    ) -> None:
        self.sender = sender
        self.waiter = waiter
        self.images = images
        self.count = len(images)
        self.parameters = parameters
        self.wanted = wanted
        self.answers: list[Future[Detections]] = []

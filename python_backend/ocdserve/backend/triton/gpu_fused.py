# SPDX-License-Identifier: Apache-2.0
"""The model `ocdnet_fused` on a GPU: all stages in one process, several executions in flight."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from ocdserve.backend.detector import results_of
from ocdserve.backend.gpu.detector import Countdown, GpuDetector
from ocdserve.backend.gpu.inputs import Image
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.triton.gpu_model import GpuModel
from ocdserve.backend.triton.models import Outputs, encoded_images
from ocdserve.backend.triton.options import ServingOptions
from ocdserve.backend.triton.packing import pack_detections
from ocdserve.contract import MAX_BATCH_SIZE, RequestParameters
from ocdserve.results.detections import Detections


class GpuFusedModel(GpuModel):
    """Model `ocdnet_fused`: the requests of an execution share batches, and executions overlap."""

    stages = ("decode", "gpu")

    def _load(self, bundle: Bundle, options: ServingOptions) -> None:
        self._detector: Any = GpuDetector.load(
            options.bundle,
            options.runtime.runtime,
            options.runtime.device,
            GpuOptions(
                slots=options.slots,
                max_batch=MAX_BATCH_SIZE,
                decoder=options.decoder,
                decode_threads=options.runtime.threads,
            ),
            options.limits,
            observer=self._metrics.observe_stage,  # type: ignore[arg-type]  # it knows the names of its stages
        )
        self._detector.warm_up(options.warm_up_sizes, (1, MAX_BATCH_SIZE))
        # Responses are packed and sent by other threads, so that slots do not wait for them.
        self._runner = ThreadPoolExecutor(options.slots)
        # At most slots + 1 executions are in flight: Triton then batches the requests that wait.
        self._room = threading.Semaphore(options.slots + 1)

    def execute(self, requests: list[Any]) -> None:
        """Called by Triton for each batch; returns once it is in flight. Each request is answered when it is done."""
        accepted: list[_InFlightRequest] = []
        images: list[Image] = []
        parameters: list[RequestParameters] = []
        for sender, (encoded, wanted, polygons) in self._read_all(requests):
            accepted.append(_InFlightRequest(sender, len(encoded), polygons))
            images += encoded
            parameters += [wanted] * len(encoded)
        if not accepted:
            return
        self._room.acquire()
        unanswered = Countdown(len(accepted), self._room.release)
        answers = self._detector.submit(images, parameters)
        for each in accepted:
            each.answers, answers = answers[: each.count], answers[each.count :]
            done = Countdown(each.count, partial(self._runner.submit, self._answer, each, unanswered))
            for answer in each.answers:
                answer.add_done_callback(done.count)

    def read(self, request: Any) -> tuple[list[bytes], RequestParameters, bool]:
        """Encoded images, parameters, and whether polygon tensors are wanted."""
        parameters, polygons = self._wanted(request)
        return encoded_images(request), parameters, polygons

    def finalize(self) -> None:
        """See `Model.finalize`."""
        self._detector.close()
        self._runner.shutdown()
        self._metrics.close()

    def _has_failed(self) -> bool:
        return not self._detector.healthy

    def _answer(self, accepted: "_InFlightRequest", unanswered: Countdown) -> None:
        try:
            self._send(accepted.sender, self._guarded(self._result, accepted))
        except Exception as error:
            # Nobody waits for this thread: an error that is not logged here is lost.
            pb_utils.Logger.log_error(f"{self._contract.name} cannot answer: {type(error).__name__}: {error}")
        finally:
            unanswered.count()

    def _result(self, accepted: "_InFlightRequest") -> Outputs:
        found = results_of(accepted.answers)
        for each in found:
            self._metrics.observe_detections(len(each))
        sizes = np.array([(each.height, each.width) for each in found], np.int32)
        return {**pack_detections(found, accepted.polygons), "SIZE": sizes}


class _InFlightRequest:
    """A request whose images are being detected."""

    def __init__(self, sender: Any, count: int, polygons: bool) -> None:
        self.sender = sender
        self.count = count
        self.polygons = polygons
        self.answers: list[Future[Detections]] = []

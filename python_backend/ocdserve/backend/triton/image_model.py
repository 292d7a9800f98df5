# SPDX-License-Identifier: Apache-2.0
"""The queue of the models that take images: bounded, and answered in any order."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from time import monotonic_ns
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from ocdserve.backend.detector import Detector
from ocdserve.backend.device.freed_memory import return_freed_memory
from ocdserve.backend.serve.log_lines import request_line
from ocdserve.backend.serve.process.health import InFlight
from ocdserve.backend.serve.process.metrics import CANARY_ID
from ocdserve.backend.serve.process.pixels_in_flight import LARGE_PIXELS, PixelsInFlight
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.triton.admission import Admission
from ocdserve.backend.triton.base_model import SPARE_DECODERS, Model, Outputs
from ocdserve.backend.triton.options import ServingOptions
from ocdserve.backend.triton.waiter import Waiter
from ocdserve.contract import (
    ASKED_MODELS,
    ENSEMBLE,
    ENSEMBLE_RAW,
    OCR,
    OCR_RAW,
    READING_MODELS,
    InvalidInputError,
    Limits,
)

_T = TypeVar("_T")
_Prepared = tuple[NDArray[np.uint8], Frame]


class _LargeImageError(Exception):
    """The request has a large image, and its thread must not wait for room."""


class ImageModel(Model):
    """Base of the models that take images: a thread per request answers, so that none waits for another's decoding.

    What `Admission` does not admit is answered with UNAVAILABLE before it is read.
    """

    def _load(self, bundle: Any, options: ServingOptions) -> None:
        super()._load(bundle, options)
        # As many as can be decoded, and in the network, at the same time.
        workers = options.runtime.thread_count + SPARE_DECODERS + options.runtime.streams
        self._open_queue(workers, workers, options)

    def _open_queue(self, threads: int, working: int, options: ServingOptions) -> None:
        """Begin to admit requests: how many threads answer them, and how many are worked on at the same time."""
        self._in_flight = InFlight()
        self._requests = ThreadPoolExecutor(threads, thread_name_prefix="request")
        self._admission = Admission(
            self._contract.name, working, options.queue_size, options.queue_time_ms, self._later_steps
        )

    def execute(self, requests: list[Any]) -> None:
        """Called by Triton for each batch; returns at once."""
        for request, sender, waiter in self._admitted(requests):
            self._requests.submit(self._answer, request, sender, waiter)

    def beat(self) -> None:
        """See `Model.beat`."""
        self._metrics.beat(*self._admission.waiting(monotonic_ns()))

    def finalize(self) -> None:
        """See `Model.finalize`: answers what waits first."""
        self._requests.shutdown()
        super().finalize()

    def _admitted(self, requests: list[Any]) -> Iterator[tuple[Any, Any, Waiter]]:
        """Each request that finds a place in the queue, with its sender and waiter; the others are refused."""
        for request in requests:
            sender = request.get_response_sender()
            waiter = self._waiter(request)
            images = max((tensor.shape()[0] for tensor in request.inputs()), default=0)
            refusal = self._guarded(self._admission.enter, waiter, images)
            if refusal is None:
                self._in_flight.add(_counted(waiter))
                yield request, sender, waiter
            else:
                self._send(sender, refusal, waiter)

    def _waiter(self, request: Any) -> Waiter:
        """Who waits, from now on."""
        return Waiter.limited(request.timeout(), request.is_cancelled, self._asked(request), request.request_id())

    def _asked(self, request: Any) -> str | None:
        """The model that the client has asked for; None for a canary of the launcher."""
        if request.request_id() == CANARY_ID:
            return None
        if self._contract.name in ASKED_MODELS:
            return self._contract.name
        raw = pb_utils.get_input_tensor_by_name(request, "PIXELS") is not None
        # Of the ensembles those that read take SIZE from another step.
        if "SIZE" not in request.requested_output_names():
            return OCR_RAW if raw else OCR
        return ENSEMBLE_RAW if raw else ENSEMBLE

    def _answer(self, request: Any, sender: Any, waiter: Waiter) -> None:
        """Work on a request, which must stay referenced meanwhile: its tensors may be views of shared memory."""
        self._leave(sender, self._guarded(self._result, request, waiter), waiter)

    def _result(self, request: Any, waiter: Waiter) -> Outputs:
        return self.finish(self.start(self._read(request, waiter), waiter), waiter)

    def _leave(self, sender: Any, result: Outputs | Exception, waiter: Waiter) -> None:
        """Answer, and give the place in the queue back first: a client that has its answer finds it free."""
        self._admission.leave(waiter, monotonic_ns(), isinstance(result, Exception))
        try:
            self._send(sender, result, waiter)
        except Exception as error:
            # Nobody waits for this thread: an error that is not logged here is lost.
            message = f"it cannot be answered: {type(error).__name__}: {error}"
            pb_utils.Logger.log_error(request_line(self._contract.name, waiter.request_id, message))
        self._in_flight.add(-_counted(waiter))


class DecodingModel(ImageModel):
    """Base of those whose images are decoded and resized by the CPU, the large ones among them within a bound.

    A request with a large image begins again in a thread of its own: while it waits, those of others go on.
    """

    def _open_queue(self, threads: int, working: int, options: ServingOptions) -> None:
        super()._open_queue(threads, working, options)
        limits = options.limits
        self._small_limits = replace(limits, max_pixels=min(LARGE_PIXELS, limits.max_pixels))
        self._in_decoding = PixelsInFlight.of_server(limits.max_pixels_in_flight)
        # Made when they are needed. All that are admitted may wait.
        self._large_requests, self._large_images = (
            ThreadPoolExecutor(working + options.queue_size, thread_name_prefix=name) for name in ("large", "decode")
        )

    def finalize(self) -> None:
        """See `Model.finalize`."""
        self._requests.shutdown()
        self._large_requests.shutdown()
        self._large_images.shutdown()
        super().finalize()

    def _answer(self, request: Any, sender: Any, waiter: Waiter) -> None:
        result = self._guarded(self._result, request, waiter)
        if isinstance(result, _LargeImageError):
            waiter.may_wait = True
            self._large_requests.submit(self._answer, request, sender, waiter)
        else:
            self._leave(sender, result, waiter)

    def _submit_images(self, images: list[Any], page: int | None, waiter: Waiter) -> list[Future[_Prepared]]:
        """Start to decode and resize images in parallel; `page` is that of every encoded image."""
        pool = self._large_images if waiter.may_wait else self._pool
        return [pool.submit(self._preprocess, image, page, waiter) for image in images]

    def _preprocess(self, image: Any, page: int | None, waiter: Waiter) -> _Prepared:
        def work(limits: Limits) -> _Prepared:
            with self._metrics.stage("preprocess"):
                # What is read in process is decoded once, in full.
                whole = waiter.model in READING_MODELS
                return Detector(self._bundle, None, limits).preprocess(image, page, whole=whole)

        return self._in_room(image, work, waiter)

    def _in_room(self, image: Any, work: Callable[[Limits], _T], waiter: Waiter) -> _T:
        """What `work` makes of an image: it decodes one within the limits that it is given, and keeps no pixels."""
        check = partial(waiter.check, self.stages[0])
        check()
        if not isinstance(image, bytes):
            return work(self._limits)
        try:
            return work(self._small_limits)
        except InvalidInputError as error:
            if error.limit != "max_pixels":
                raise
            pixels = error.pixels or 0
        if not 0 < pixels <= self._limits.max_pixels:
            return work(self._limits)
        if not waiter.may_wait:
            raise _LargeImageError
        with self._in_decoding.taken(pixels, check):
            done = work(self._limits)
            # Before another process decodes its large image.
            return_freed_memory()
            return done


def _counted(waiter: Waiter) -> int:
    """1 for a request that somebody else waits for: the launcher gives its canaries up."""
    return int(waiter.request_id != CANARY_ID)

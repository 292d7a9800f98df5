# SPDX-License-Identifier: Apache-2.0
"""The detector with all stages on a GPU: images in, detections out, several batches in flight."""

import contextlib
import itertools
import logging
import math
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.detector import LocalDetector, results_of
from ocdserve.backend.device.atexit_close import close_at_exit
from ocdserve.backend.device.forks import bind_to_process, check_process
from ocdserve.backend.device.protocol import Device, DeviceMemoryError
from ocdserve.backend.gpu.device_image import DeviceImage, size_of
from ocdserve.backend.gpu.graphs import GraphSwitch
from ocdserve.backend.gpu.inputs import BatchQueue, Image, ImageReader
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.gpu.preprocess import Source, sources_of
from ocdserve.backend.gpu.slot import Slot
from ocdserve.backend.network.load import open_gpu_with_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.postprocess import merged_parts
from ocdserve.contract import Downloads, InvalidInputError, Limits, Overrides, RequestParameters, UnavailableError
from ocdserve.results.detections import Detections

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

_logger = logging.getLogger(__name__)

# Called with the name of a stage, its time in seconds, and its number of images.
Observer = Callable[[str, float, int], None]


@dataclass
class _Job:
    """One decoded image, or a tile of it, and the future of its detections."""

    pixels: Source
    parameters: PostprocessParams
    answer: "Future[Detections]"


class GpuDetector(LocalDetector):
    """Text detection on one GPU; thread-safe.

    The images of one call are decoded in parallel. Decoded images of one network size, also of several calls, share a
    batch as soon as a slot is free, see `inputs.batches_of`. A GPU that has failed stays failed for the whole process:
    `healthy` is then False, and every call raises.

    Args:
        bundle: The detector's contract.
        device: The GPU; released by `close`.
        network: The bundle's network on it; released by `close`.
        options: Slots, batches and decoder.
        limits: Limits of decoding.
        observer: Called with the times of decoding (`decode`) and of a batch on the GPU (`gpu`), from several threads.
        downloads: How images given by URL are fetched; None: they are refused.

    Attributes:
        calls: Calls that are worth having at the same time.
        reader: Reads and decodes images.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        network: DeviceNetwork,
        options: GpuOptions | None = None,
        limits: Limits | None = None,
        observer: Observer | None = None,
        downloads: Downloads | None = None,
    ) -> None:
        bundle.spec.resize.check_for_gpu()
        self.spec = bundle.spec
        self.limits = limits or Limits()
        self.downloads = downloads
        self.options = options or GpuOptions()
        self.failure: UnavailableError | None = None
        self._closed = False
        self._process = bind_to_process(self)
        self._device = device
        self._network = network
        self._observe = observer or (lambda stage, seconds, images: None)
        self.reader = ImageReader(
            device, self.limits, self.options.decoder, self.options.decode_threads, self.downloads
        )
        switch = GraphSwitch(network)
        self._slots: SimpleQueue[Slot] = SimpleQueue()
        for _ in range(self.options.slots):
            slot = Slot(device, network, self.spec.resize, self.options.max_batch, self.options.graphs, switch)
            self._slots.put(slot)
        # One more than there are slots, so that the next batch is decoded while all slots compute.
        self.calls = self.options.slots + 1 + self.reader.files_ahead
        self._calls = ThreadPoolExecutor(self.calls, thread_name_prefix="detect")
        self._decoded: BatchQueue[_Job] = BatchQueue(self.options.max_batch)
        self._batches = ThreadPoolExecutor(self.options.slots, thread_name_prefix="slot")
        close_at_exit(self)

    @classmethod
    def load(
        cls,
        bundle: Path | str | None = None,
        runtime: str | None = None,
        device: int = 0,
        options: GpuOptions | None = None,
        limits: Limits | None = None,
        observer: Observer | None = None,
        downloads: Downloads | None = None,
    ) -> "GpuDetector":
        """Load a bundle folder (None: the default detector) onto a GPU.

        Args:
            bundle: The folder.
            runtime: One of the GPU runtimes; None: the one that the bundle was built for, else ONNX Runtime's CUDA
                provider.
            device: Index of the GPU.
            options: Slots, batches and decoder.
            limits: Limits of decoding.
            observer: See the class.
            downloads: How images given by URL are fetched; None: they are refused.

        Raises:
            InvalidInputError: The bundle or an option is not valid.
            UnavailableError: There is no such GPU, or something is not installed; the message lists what.
        """
        opened = Bundle.load(bundle)
        gpu, network = open_gpu_with_network(opened, RuntimeOptions(runtime, device=device))
        try:
            return cls(opened, gpu, network, options, limits, observer, downloads)
        except BaseException:
            network.close()
            gpu.close()
            raise

    @property
    def healthy(self) -> bool:
        """Whether the GPU works; once False, it stays so until the process is restarted."""
        return self.failure is None

    def __enter__(self) -> "GpuDetector":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def detect(
        self, image: Image, *, bgr: bool = False, max_side: int | None = None, **overrides: "Unpack[Overrides]"
    ) -> Detections:
        """Detect text in one image, which without `max_side` may also be on the GPU; see `LocalDetector.detect`.

        Raises:
            InvalidInputError: The image or a parameter is not valid.
            UnavailableError: The GPU is out of memory, or has failed.
        """
        return self.detect_batch([image], bgr=bgr, max_side=max_side, **overrides)[0]

    def detect_batch(
        self,
        images: Sequence[Image],
        *,
        bgr: bool = False,
        max_side: int | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> list[Detections]:
        """Detect text in several images, which without `max_side` may also be on the GPU.

        See `LocalDetector.detect_batch`.

        Raises:
            InvalidInputError: An image is not valid; the message names its index where there are several.
            UnavailableError: The GPU is out of memory, or has failed.
        """
        return super().detect_batch(images, bgr=bgr, max_side=max_side, **overrides)  # type: ignore[arg-type]

    def answer(self, images: Sequence[Image], parameters: RequestParameters, bgr: bool = False) -> list[Detections]:
        return results_of(self.submit(images, [parameters] * len(images), bgr=bgr))

    def submit(
        self,
        images: Sequence[Image],
        parameters: Sequence[RequestParameters] | None = None,
        *,
        bgr: bool = False,
    ) -> "list[Future[Detections]]":
        """Start detecting in several images, each with its own parameters (None: the bundle's for all).

        Each future has its own result or error (see `detect`).
        """
        check_process(self._process)
        answers: list[Future[Detections]] = [Future() for _ in images]
        for answer in answers:
            # A running future cannot be cancelled, so that setting its result cannot fail.
            answer.set_running_or_notify_cancel()
        wanted = parameters or [RequestParameters()] * len(images)
        chosen = [self.spec.postprocess.overridden(each) for each in wanted]
        self._calls.submit(self._call, list(images), [each.page for each in wanted], chosen, answers, bgr)
        return answers

    def warm_up(
        self, sizes: Sequence[tuple[int, int]], batches: Sequence[int] = (1,), limit_s: float = math.inf
    ) -> None:
        """Prepare every slot for sources of these (height, width) in pixels, and record their graphs.

        After `limit_s` seconds nothing more is begun: the first requests then prepare the rest, as a log record says.

        Raises:
            InvalidInputError: The network does not take the size.
            UnavailableError: The GPU is out of memory, or has failed.
        """
        idle = [self._slots.get() for _ in range(self.options.slots)]
        try:
            # The largest first, by which memory that all share gets its size.
            shapes = sorted(((*size, batch) for size in sizes for batch in batches), key=math.prod, reverse=True)
            end = time.monotonic() + limit_s
            for (height, width, batch), slot in itertools.product(shapes, idle):
                if time.monotonic() > end:
                    _logger.warning(
                        "warming up stopped after %g s, before batches of %d images of %d x %d pixels: the first of "
                        "these requests take longer",
                        *(limit_s, batch, height, width),
                    )
                    break
                image = sources_of(np.zeros((height, width, 3), np.uint8), Frame.of(height, width, self.spec.resize))[0]
                # The first run prepares, behind the second one it is recorded.
                for _ in range(2):
                    slot.run([image] * batch, [self.spec.postprocess] * batch)
        except UnavailableError as error:
            self.note(error)
            raise
        finally:
            for slot in idle:
                self._slots.put(slot)

    def close(self) -> None:
        """Wait for the work in flight, then release everything; again, or in a forked child, it does nothing."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._calls.shutdown()
        self._batches.shutdown()
        self.reader.close(self.healthy)
        if self.healthy:
            slots = [self._slots.get() for _ in range(self.options.slots)]
            for slot in slots:
                slot.trim()
            # Before the streams, which its sessions are bound to.
            self._network.close()
            for slot in slots:
                slot.close()
            self._device.close()

    def _call(
        self,
        images: list[Image],
        pages: list[int | None],
        parameters: list[PostprocessParams],
        answers: "list[Future[Detections]]",
        bgr: bool,
    ) -> None:
        """Decode the images of one call and submit them in batches."""
        try:
            if self.failure is not None:
                raise self.failure
            start = time.perf_counter()
            decoded = self.reader.read(images, pages, bgr=bgr)
            self._observe("decode", time.perf_counter() - start, len(images))
            groups: dict[tuple[int, int], list[_Job]] = defaultdict(list)
            for pixels, wanted, answer in zip(decoded, parameters, answers, strict=True):
                if isinstance(pixels, InvalidInputError | UnavailableError):
                    answer.set_exception(pixels)
                    continue
                frame = Frame.of(*size_of(pixels), self.spec.resize)
                for part, job in zip(frame.parts, _jobs(pixels, frame, wanted, answer), strict=True):
                    groups[part.network].append(job)
            for _ in range(self._decoded.put(groups)):
                self._batches.submit(self._compute)
        except Exception as error:
            self.note(error)
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)

    def _compute(self) -> None:
        """Compute what waits, a batch in each free slot; others may have taken it already."""
        waits = True
        while waits:
            slot = self._slots.get()
            try:
                jobs = self._decoded.take()
                found = self._batch(slot, jobs)
            finally:
                self._slots.put(slot)
            for job, each in zip(jobs, found, strict=True):
                if isinstance(each, Exception):
                    job.answer.set_exception(each)
                else:
                    job.answer.set_result(each)
            waits = bool(jobs)

    def _batch(self, slot: Slot, jobs: Sequence[_Job]) -> "Sequence[Detections | Exception]":
        if not jobs:
            return []
        try:
            if self.failure is not None:
                raise self.failure
            start = time.perf_counter()
            found = self._run(slot, jobs)
            self._observe("gpu", time.perf_counter() - start, len(jobs))
        except Exception as error:
            self.note(error)
            return [error] * len(jobs)
        return found

    def _run(self, slot: Slot, jobs: Sequence[_Job]) -> list[Detections]:
        try:
            return slot.run([job.pixels for job in jobs], [job.parameters for job in jobs])
        except DeviceMemoryError:
            self._trim_idle_slots()
            if len(jobs) == 1:
                return slot.run([jobs[0].pixels], [jobs[0].parameters])
            half = len(jobs) // 2
            return [*self._run(slot, jobs[:half]), *self._run(slot, jobs[half:])]

    def _trim_idle_slots(self) -> None:
        idle = []
        with contextlib.suppress(Empty):
            while True:
                idle.append(self._slots.get_nowait())
        for slot in idle:
            slot.trim()
            self._slots.put(slot)

    def note(self, error: Exception) -> None:
        """Record an error after which the GPU cannot be used any more."""
        if self.failure is not None or not isinstance(error, UnavailableError):
            return
        # A library may have seen the GPU's error first; a call to the GPU reveals it.
        with contextlib.suppress(UnavailableError):
            self.reader.probe()
        if self._device.failed:
            self.failure = error


class Countdown:
    """Calls a function after a number of counts; thread-safe."""

    def __init__(self, count: int, action: Callable[[], object]) -> None:
        self._left = count
        self._action = action
        self._lock = threading.Lock()

    def count(self, _answer: object = None) -> None:
        """Count down by one."""
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._action()


def _jobs(
    pixels: NDArray[np.uint8] | DeviceImage, frame: Frame, parameters: PostprocessParams, answer: "Future[Detections]"
) -> list[_Job]:
    """The job of an image, or those of its parts, of which the last one sets the image's answer."""
    if frame.tiles == 1:
        return [_Job(pixels, parameters, answer)]
    parts: list[Future[Detections]] = [Future() for _ in frame.parts]

    def merge() -> None:
        try:
            answer.set_result(merged_parts([part.result() for part in parts], frame))
        except Exception as error:
            answer.set_exception(error)

    done = Countdown(len(parts), merge)
    for part in parts:
        part.add_done_callback(done.count)
    return [_Job(source, parameters, part) for source, part in zip(sources_of(pixels, frame), parts, strict=True)]

# SPDX-License-Identifier: Apache-2.0
"""The reader with all stages on a GPU: images in, texts out."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ocdserve.backend.detector import results_of
from ocdserve.backend.device.forks import bind_to_process, check_process
from ocdserve.backend.gpu.detector import GpuDetector, Observer
from ocdserve.backend.gpu.device_image import DeviceImage
from ocdserve.backend.gpu.inputs import Image
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.gpu.recogniser import GpuRecogniser
from ocdserve.backend.network.load import load_device_recogniser, open_gpu_with_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.reader import Reader
from ocdserve.backend.spec.bundle import Bundle, RecogniserBundle
from ocdserve.contract import Downloads, InvalidInputError, Limits, ReadingParameters, UnavailableError
from ocdserve.results.detections import Detections
from ocdserve.results.reading import Reading


class GpuReader(Reader):
    """Reading on one GPU, with the answers of `Reader`; thread-safe.

    An image is copied to the GPU once: the detector and the lines read it there.

    Args:
        detector: Finds the text; released by `close`.
        recogniser: Reads it, on the same GPU; released by `close`.
        bounded: Whether images of more lines than the detector's `limits` allow are refused, as a server does.

    Attributes:
        calls: Calls that are worth having at the same time.
    """

    detector: GpuDetector
    recogniser: GpuRecogniser

    def __init__(self, detector: GpuDetector, recogniser: GpuRecogniser, bounded: bool = False) -> None:
        super().__init__(detector, recogniser)
        self._bounded = bounded
        self.calls = detector.calls
        self._process = bind_to_process(self)
        self._calls = ThreadPoolExecutor(self.calls, thread_name_prefix="read")

    @classmethod
    def load(
        cls,
        bundle: Path | str | None = None,
        recogniser: Path | str | None = None,
        runtime: str | None = None,
        threads: int | None = None,
        device: int = 0,
        limits: Limits | None = None,
        downloads: Downloads | None = None,
        options: GpuOptions | None = None,
        observer: Observer | None = None,
        bounded: bool = False,
    ) -> "GpuReader":
        """Load the bundle folders of a detector and a recogniser (None: the default ones) onto a GPU.

        Args:
            bundle: The detector's, see `Bundle.load`.
            recogniser: The recogniser's, see `RecogniserBundle.load`.
            runtime: One of the GPU runtimes, for both; None: those that they were built for, see `GpuDetector.load`.
            threads: Images that the CPU decodes at the same time; None: as the options say.
            device: Index of the GPU.
            limits: Limits of decoding.
            downloads: How images given by URL are fetched; None: they are refused.
            options: Slots, batches and decoder.
            observer: See `GpuDetector`.
            bounded: See the class.

        Raises:
            InvalidInputError: A bundle or an option is not valid.
            UnavailableError: There is no such GPU, or something is not installed; the message lists what.
        """
        options = options or GpuOptions()
        options = replace(options, decode_threads=threads or options.decode_threads)
        detecting, reading = Bundle.load(bundle), RecogniserBundle.load(recogniser)
        chosen = RuntimeOptions(runtime, device=device)
        gpu, network = open_gpu_with_network(detecting, chosen)
        detector = GpuDetector(detecting, gpu, network, options, limits, observer, downloads)
        try:
            lines = load_device_recogniser(reading, chosen, gpu)
            return cls(detector, GpuRecogniser(reading, gpu, lines, options), bounded)
        except BaseException:
            detector.close()
            raise

    @property
    def healthy(self) -> bool:
        """See `GpuDetector.healthy`."""
        return self.detector.healthy

    def __enter__(self) -> "GpuReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the work in flight, then release everything; again, or in a forked child, it does nothing."""
        if os.getpid() != self._process:
            return
        self._calls.shutdown()
        self.recogniser.close()
        self.detector.close()

    def answer(self, images: Sequence[Image], parameters: ReadingParameters, bgr: bool = False) -> list[Reading]:
        return results_of(self.submit(images, [parameters] * len(images), bgr=bgr))

    def submit(
        self, images: Sequence[Image], parameters: Sequence[ReadingParameters] | None = None, *, bgr: bool = False
    ) -> "list[Future[Reading]]":
        """Start reading several images, each with its own parameters (None: the bundles' for all).

        Their lines share batches. Each future has its own result or error (see `read`).
        """
        check_process(self._process)
        wanted = parameters or [ReadingParameters()] * len(images)
        answers: list[Future[Reading]] = [Future() for _ in images]
        for answer in answers:
            # A running future cannot be cancelled, so that setting its result cannot fail.
            answer.set_running_or_notify_cancel()
        self._calls.submit(self._call, list(images), list(wanted), answers, bgr)
        return answers

    def _call(
        self,
        images: list[Image],
        parameters: list[ReadingParameters],
        answers: "list[Future[Reading]]",
        bgr: bool,
    ) -> None:
        try:
            decoded = self.detector.reader.read(images, [each.page for each in parameters], bgr=bgr)
            jobs = []
            for pixels, wanted, answer in zip(decoded, parameters, answers, strict=True):
                if isinstance(pixels, InvalidInputError | UnavailableError):
                    answer.set_exception(pixels)
                else:
                    jobs.append((pixels, wanted, answer))
            with self.recogniser.on_gpu([pixels for pixels, _, _ in jobs]) as placed:
                self._read(placed, [wanted for _, wanted, _ in jobs], [answer for _, _, answer in jobs])
        except Exception as error:
            self.detector.note(error)
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)

    def _read(
        self, images: Sequence[DeviceImage], parameters: Sequence[ReadingParameters], answers: "list[Future[Reading]]"
    ) -> None:
        detecting = self.detector.submit(images, [replace(each, page=None) for each in parameters])
        found: list[Detections] = []
        chosen = []
        for index, future in enumerate(detecting):
            try:
                detections = future.result()
                if self._bounded:
                    self.limits.check_lines(len(detections))
            except Exception as error:
                answers[index].set_exception(error)
            else:
                chosen.append(index)
                found.append(detections)
        read = self.recogniser.recognise_each(
            [images[index] for index in chosen], found, [parameters[index] for index in chosen]
        )
        for index, reading in zip(chosen, read, strict=True):
            answers[index].set_result(replace(reading, page=parameters[index].page))

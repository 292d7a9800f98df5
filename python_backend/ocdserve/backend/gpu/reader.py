# SPDX-License-Identifier: Apache-2.0
"""The reader with all stages on a GPU: images in, texts out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.backend.gpu.inputs import Image
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.gpu.recogniser import GpuRecogniser
from ocdserve.backend.network.load import load_device_recogniser, open_gpu_with_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.reader import Reader
from ocdserve.backend.spec.bundle import Bundle, RecogniserBundle
from ocdserve.contract import Downloads, Limits, ReadingParameters, UnavailableError
from ocdserve.results.reading import Reading


class GpuReader(Reader):
    """Reading on one GPU, with the answers of `Reader`; thread-safe.

    An image is copied to the GPU once: the detector and the lines read it there.

    Args:
        detector: Finds the text; released by `close`.
        recogniser: Reads it, on the same GPU; released by `close`.
    """

    detector: GpuDetector
    recogniser: GpuRecogniser

    def __init__(self, detector: GpuDetector, recogniser: GpuRecogniser) -> None:
        super().__init__(detector, recogniser)

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

        Raises:
            InvalidInputError: A bundle or an option is not valid.
            UnavailableError: There is no such GPU, or something is not installed; the message lists what.
        """
        options = options or GpuOptions()
        options = replace(options, decode_threads=threads or options.decode_threads)
        detecting, reading = Bundle.load(bundle), RecogniserBundle.load(recogniser)
        chosen = RuntimeOptions(runtime, device=device)
        gpu, network = open_gpu_with_network(detecting, chosen)
        detector = GpuDetector(detecting, gpu, network, options, limits, downloads=downloads)
        try:
            return cls(detector, GpuRecogniser(reading, gpu, load_device_recogniser(reading, chosen, gpu), options))
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
        self.recogniser.close()
        self.detector.close()

    def answer(self, images: Sequence[Image], parameters: ReadingParameters, bgr: bool = False) -> list[Reading]:
        decoded = self.detector.reader.read_valid(images, parameters.page, bgr=bgr)
        try:
            with self.recogniser.on_gpu(decoded) as placed:
                found = self.detector.answer(placed, replace(parameters, page=None))
                read = self.recogniser.recognise_all(placed, found, parameters)
        except UnavailableError as error:
            self.detector.note(error)
            raise
        return [replace(each, page=parameters.page) for each in read]

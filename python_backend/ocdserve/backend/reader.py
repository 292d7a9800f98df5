# SPDX-License-Identifier: Apache-2.0
"""The reader in process: the detector, then the recogniser, in one call."""

import sys
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ocdserve.backend.calls import AnyImage, LocalCalls
from ocdserve.backend.detector import Detector, LocalDetector
from ocdserve.backend.recogniser import Recogniser
from ocdserve.contract import Downloads, Limits, ReadingOverrides, ReadingParameters, check_count
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image, for_each, load_image
from ocdserve.results.pages import DEFAULT_DPI
from ocdserve.results.reading import Reading, ReadOutcome
from ocdserve.results.tiles import DEFAULT_OVERLAP, DEFAULT_TILE, TiledImage

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack


class Reader(LocalCalls[Reading, ReadingParameters]):
    """Reading in this process, with the arguments and the errors of `ocdserve.client.TextReader`. Thread-safe.

    Args:
        detector: Finds the text; its limits and downloads apply.
        recogniser: Reads it.
    """

    _parameters = ReadingParameters
    _outcome = ReadOutcome

    def __init__(self, detector: LocalDetector, recogniser: Recogniser) -> None:
        self.detector = detector
        self.recogniser = recogniser
        self.limits = detector.limits
        self.downloads = detector.downloads

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
    ) -> "Reader":
        """Load the bundle folders of a detector and a recogniser (None: the default ones) into a runtime.

        Args:
            bundle: The detector's, see `Bundle.load`.
            recogniser: The recogniser's, see `RecogniserBundle.load`.
            runtime: None: see `RuntimeOptions`.
            threads: Cores for each network; None: all that this process may use.
            device: Index of the GPU, for the runtimes that use one.
            limits: Limits of decoding.
            downloads: How images given by URL are fetched; None: they are refused.

        Raises:
            InvalidInputError: A bundle or an option is not valid.
            UnavailableError: The runtime or a default network is not installed, or there is no such GPU.
        """
        detector = Detector.load(bundle, runtime, threads, device, limits, downloads)
        return cls(detector, Recogniser.load(recogniser, runtime, threads, device))

    def read(
        self, image: Image, *, bgr: bool = False, max_side: int | None = None, **overrides: "Unpack[ReadingOverrides]"
    ) -> Reading:
        """Read the text in one image.

        Args:
            image: As for `Detector.detect`.
            bgr: Whether an array holds BGR pixels, as OpenCV reads them.
            max_side: Scale larger images down to a longer side of so many pixels first, by Pillow, and read those;
                results are in pixels of the image before.
            **overrides: Request parameters, see `ReadingOverrides`, such as `words=True`.

        Returns:
            The detections with their texts, best detection first; `.text` has the texts in reading order.

        Raises:
            InvalidInputError: The image or a parameter is not valid.
            UnavailableError: The server of a URL cannot be reached, or a network is missing or fails.
        """
        return self.read_batch([image], bgr=bgr, max_side=max_side, **overrides)[0]

    def read_batch(
        self,
        images: Sequence[Image],
        *,
        bgr: bool = False,
        max_side: int | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> list[Reading]:
        """Read the text in several images, which are all in memory at once; for many images, use `read_many`.

        Args:
            images: As for `read`.
            bgr: As for `read`.
            max_side: As for `read`.
            **overrides: As for `read`.

        Returns:
            The reading of each image, in the order of the images.

        Raises:
            InvalidInputError: An image or a parameter is not valid; the message names the image's index where there
                are several.
            UnavailableError: As for `read`.
        """
        return self._call_batch(images, bgr, max_side, overrides)

    def read_many(
        self,
        images: Iterable[AnyImage],
        *,
        concurrency: int = 2,
        ordered: bool = True,
        bgr: bool = False,
        max_side: int | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Generator[ReadOutcome[AnyImage], None, None]:
        """Read the text in any number of images; see `Detector.detect_many`.

        Raises:
            InvalidInputError: An option is not valid.
        """
        return self._call_many(images, concurrency, ordered, bgr, max_side, overrides)

    def read_pages(
        self,
        image: Image,
        *,
        pages: Sequence[int] | None = None,
        dpi: float = DEFAULT_DPI,
        concurrency: int = 2,
        bgr: bool = False,
        max_side: int | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Generator[Reading, None, None]:
        """Read the text in every page of a TIFF or PDF file, or frame of an animation; see `Detector.detect_pages`.

        Returns:
            Readings whose `page` is their page, in the order of the pages.

        Raises:
            InvalidInputError: The file, one of its pages or a parameter is not valid.
            UnavailableError: As for `read`; or Pillow or pypdfium2 is needed and not installed.
        """
        return self._call_pages(image, pages, dpi, concurrency, bgr, max_side, overrides)

    def read_tiled(
        self,
        image: Image,
        *,
        tile: int = DEFAULT_TILE,
        overlap: int = DEFAULT_OVERLAP,
        concurrency: int = 8,
        bgr: bool = False,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Reading:
        """Read the text in an image of any size: it is detected in unscaled tiles, and read in the whole image.

        Args:
            image: As for `read`. Anything but pixels is decoded by Pillow, up to its own limit of 179 megapixels.
            tile: Side of a tile in pixels.
            overlap: Minimum overlap of neighbouring tiles in pixels, at most half a tile.
            concurrency: Number of tiles per batch.
            bgr: As for `read`.
            **overrides: As for `read`; those of detection apply per tile, `max_candidates` too.

        Raises:
            InvalidInputError: The image, `tile`, `overlap`, `concurrency` or a parameter is not valid.
            UnavailableError: As for `read`.
        """
        check_count("concurrency", concurrency)
        page = overrides.pop("page", None)
        parameters = self._parsed(overrides)
        tiled = TiledImage.of(load_image(image, bgr=bgr, downloads=self.downloads), tile, overlap, page)
        found = self.detector.answer_tiled(tiled, parameters, concurrency)
        return self.recogniser.recognise(tiled.pixels, found, parameters)

    def recognise(
        self, image: Image, found: Detections, *, bgr: bool = False, **overrides: "Unpack[ReadingOverrides]"
    ) -> Reading:
        """Read text that has been detected.

        Args:
            image: The image of the detections, as for `read`; of a file of several pages, `found.page` is read unless
                another is chosen.
            found: The detections, of whatever origin.
            bgr: As for `read`.
            **overrides: As for `read`; those of detection have no effect.

        Raises:
            InvalidInputError: The image or a parameter is not valid, or the image's size is not that of the detections.
            UnavailableError: As for `read`.
        """
        parameters = self._parsed(overrides)
        loaded = load_image(image, bgr=bgr, downloads=self.downloads)
        # Pixels are of the page already.
        page = found.page if isinstance(loaded, bytes) else None
        return self.recogniser.recognise(self._pixels(loaded, parameters.page or page, False), found, parameters)

    def answer(self, images: Sequence[Image], parameters: ReadingParameters, bgr: bool = False) -> list[Reading]:
        pixels = for_each(lambda image: self._pixels(image, parameters.page, bgr), images)
        found = self.detector.answer(pixels, replace(parameters, page=None))
        read = self.recogniser.recognise_all(pixels, found, parameters)
        return [replace(each, page=parameters.page) for each in read]

# SPDX-License-Identifier: Apache-2.0
"""The detector in process: decode, preprocess, network, postprocess in one call."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.image import ImageLimits, decode
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.contract import InvalidInputError, RequestParameters, UnavailableError
from ocdserve.results.detections import Detections
from ocdserve.results.pages import DEFAULT_DPI, check_only_page, pages_of

_T = TypeVar("_T")


class Detector:
    """Text detection in this process; the served models call the same stages.

    Args:
        bundle: The detector's contract.
        network: Its compiled network; None if only the other stages are used.
        limits: Limits of decoding.
    """

    def __init__(self, bundle: Bundle, network: Network | None, limits: ImageLimits | None = None) -> None:
        self.spec = bundle.spec
        self.limits = limits or ImageLimits()
        self._network = network

    @classmethod
    def load(
        cls,
        bundle: Path | str | None = None,
        runtime: str | None = None,
        threads: int | None = None,
        device: int = 0,
    ) -> "Detector":
        """Load a bundle folder (None: the default detector) into a runtime (None: see `RuntimeOptions`).

        With a GPU runtime only the network runs on the GPU, the one with the index `device`; for all stages see
        `ocdserve.backend.gpu.detector.GpuDetector`.

        Raises:
            InvalidInputError: The bundle or an option is not valid.
            UnavailableError: The runtime or the default network is not installed, or there is no such GPU.
        """
        opened = Bundle.load(bundle)
        return cls(opened, load_network(opened, RuntimeOptions(runtime, threads, device=device)))

    def detect(self, image: bytes | Path | str | NDArray[np.uint8], **overrides: Any) -> Detections:
        """Detect text in one image.

        Args:
            image: An encoded image, the path of one, or uint8 (H, W, 3) RGB. Of a file of several pages one must be
                chosen by `page`; of an animation the first frame is taken.
            **overrides: Request parameters (`ocdserve.contract.RequestParameters`), such as `box_thresh=0.6`.

        Returns:
            Quads, scores and, with `polygons=True`, polygons in source pixels.

        Raises:
            InvalidInputError: The image or a parameter is not valid.
        """
        parameters = RequestParameters.parse(overrides)
        pixels, frame = self.preprocess(image, parameters.page)
        (probability,) = self.infer([pixels])
        return replace(self.postprocess(probability, frame, parameters), page=parameters.page)

    def detect_pages(
        self,
        image: bytes | Path | str | NDArray[np.uint8],
        *,
        pages: Sequence[int] | None = None,
        dpi: float = DEFAULT_DPI,
        **overrides: Any,
    ) -> Iterator[Detections]:
        """Detect text in every page of a TIFF or PDF file, or frame of an animation, one after the other.

        Args:
            image: As for `detect`, and a PDF (`pip install 'ocdserve[pdf]'`); a file of one page has one result.
            pages: Numbers of the pages, from 1; None: all.
            dpi: Resolution at which PDF pages are rendered, in pixels per inch.
            **overrides: As for `detect`.

        Returns:
            Detections whose `page` is their page, each computed when it is requested.

        Raises:
            InvalidInputError: The file, one of its pages or a parameter is not valid.
            UnavailableError: It is a PDF, and pypdfium2 is not installed.
        """
        if isinstance(image, str | Path):
            image = read_image_file(Path(image))
        for page in pages_of(image, pages, dpi, self.limits.max_pixels):
            yield replace(self.detect(page.image, **overrides), page=page.number)

    def preprocess(
        self, image: bytes | Path | str | NDArray[np.uint8], page: int | None = None
    ) -> tuple[NDArray[np.uint8], Frame]:
        """Stage 1: an image to the network's pixels.

        Args:
            image: As for `detect`.
            page: Page of a file of several, from 1; None: see `detect`.

        Returns:
            uint8 (h, w, 3) RGB, h x w being the network size by the resize policy, or (T, h, w, 3) for an elongated
            image in T tiles; and the frame that maps network pixels to source pixels.

        Raises:
            InvalidInputError: The image is not valid, or larger than the limits allow.
        """
        if isinstance(image, str | Path):
            image = read_image_file(Path(image))
        if isinstance(image, bytes):
            image = decode(image, self.limits, page)
        else:
            check_only_page(page)
            if image.ndim == 3:
                self.limits.check(image.shape[1], image.shape[0])
        return preprocess(image, self.spec.resize)

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        """Stage 2: network pixels to probability maps.

        Args:
            images: uint8 (h, w, 3) RGB each, of network sizes, which may differ, or (T, h, w, 3) of T tiles.

        Returns:
            One map (h, w) or (T, h, w) per image: uint8, 255 times the probability of text, as loaded by `load`.

        Raises:
            UnavailableError: The detector has no network.
        """
        if self._network is None:
            raise UnavailableError("this detector was made without a network; give it one to infer")
        tiles = [tile for image in images for tile in (image if image.ndim == 4 else [image])]
        maps = iter(self._network.infer(tiles))
        return [np.stack([next(maps) for _ in image]) if image.ndim == 4 else next(maps) for image in images]

    def postprocess(self, probability: NDArray[Any], frame: Frame, parameters: RequestParameters) -> Detections:
        """Stage 3: a probability map to detections.

        Args:
            probability: (h, w), or (T, h, w), as `infer` returns it: uint8, 255 times the probability, or float32,
                0 to 1.
            frame: Position of the source image in the map.
            parameters: Replace the detector's own.

        Returns:
            Detections with quads (N, 4, 2) in source pixels, best score first (mode `tao`: in OpenCV's contour order).

        Raises:
            InvalidInputError: The map has another size or dtype.
        """
        return postprocess(probability, frame, self.spec.postprocess.overridden(parameters))


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        InvalidInputError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read the image file {str(path)!r}: {error.strerror}") from error


def results_of(answers: Sequence[Future[_T]]) -> list[_T]:
    """The results for several images.

    Raises:
        InvalidInputError: An image is not valid; the message names its index where there are several.
    """
    results = []
    for index, answer in enumerate(answers):
        try:
            results.append(answer.result())
        except InvalidInputError as error:
            raise with_index(error, index, len(answers)) from error.__cause__
    return results


def with_index(error: InvalidInputError, index: int, count: int) -> InvalidInputError:
    """The error of one of `count` images, naming its index where there are several."""
    return error if count == 1 else InvalidInputError(f"image {index} of {count} (counted from 0): {error}")

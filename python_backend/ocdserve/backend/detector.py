# SPDX-License-Identifier: Apache-2.0
"""The detector in process: decode, preprocess, network, postprocess in one call."""

import sys
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.calls import AnyImage, LocalCalls
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.stages.image import decode_for
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.contract import (
    Downloads,
    Limits,
    Overrides,
    RequestParameters,
    UnavailableError,
    check_count,
)
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image, for_each, load_image
from ocdserve.results.many import Outcome
from ocdserve.results.pages import DEFAULT_DPI
from ocdserve.results.tiles import DEFAULT_OVERLAP, DEFAULT_TILE, TiledImage

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

_T = TypeVar("_T")


class LocalDetector(LocalCalls[Detections, RequestParameters]):
    """The calls of both detectors in process, with the arguments and the errors of `ocdserve.client.TextDetector`."""

    def detect(
        self, image: Image, *, bgr: bool = False, max_side: int | None = None, **overrides: "Unpack[Overrides]"
    ) -> Detections:
        """Detect the text in one image.

        Args:
            image: Encoded image (bytes); a path; an http:// or https:// URL where `downloads` allows it; a binary file
                object; uint8 (H, W, 3) RGB pixels; a Pillow image. Of a file of several pages one must be chosen by
                `page`; of an animation the first frame is taken.
            bgr: Whether an array holds BGR pixels, as OpenCV reads them.
            max_side: Scale larger images down to a longer side of so many pixels first, by Pillow; results are in
                pixels of the image before. None: the detector scales them.
            **overrides: Request parameters, see `Overrides`, such as `box_thresh=0.6`.

        Returns:
            Quads float32 (N, 4, 2) and scores float32 (N,) in source pixels, best first; with `polygons=True` the
            polygons too.

        Raises:
            InvalidInputError: The image or a parameter is not valid.
            UnavailableError: The server of a URL cannot be reached, or the detector has no network or cannot use it.
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
        """Detect the text in several images, which are all in memory at once; for many images, use `detect_many`.

        Args:
            images: As for `detect`.
            bgr: As for `detect`.
            max_side: As for `detect`.
            **overrides: As for `detect`.

        Returns:
            The detections of each image, in the order of the images.

        Raises:
            InvalidInputError: An image or a parameter is not valid; the message names the image's index where there
                are several.
            UnavailableError: As for `detect`.
        """
        return self._call_batch(images, bgr, max_side, overrides)

    def detect_many(
        self,
        images: Iterable[AnyImage],
        *,
        concurrency: int = 2,
        ordered: bool = True,
        bgr: bool = False,
        max_side: int | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Generator[Outcome[AnyImage], None, None]:
        """Detect the text in any number of images: while the network computes one, others are read and decoded.

        Images are read as outcomes are consumed, at most `2 * concurrency` ahead. Each image has exactly one outcome; a
        failed one holds its error, and the others continue.

        Args:
            images: As for `detect`.
            concurrency: Number of images in progress at once.
            ordered: Whether outcomes come in the order of the images, else as they complete.
            bgr: As for `detect`.
            max_side: As for `detect`.
            **overrides: As for `detect`.

        Raises:
            InvalidInputError: An option is not valid.
        """
        return self._call_many(images, concurrency, ordered, bgr, max_side, overrides)

    def detect_pages(
        self,
        image: Image,
        *,
        pages: Sequence[int] | None = None,
        dpi: float = DEFAULT_DPI,
        concurrency: int = 2,
        bgr: bool = False,
        max_side: int | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Generator[Detections, None, None]:
        """Detect the text in every page of a TIFF or PDF file, or frame of an animation, as results are consumed.

        Args:
            image: As for `detect`, and a PDF (`pip install 'ocdserve[pdf]'`); a file of one page has one result.
            pages: Numbers of the pages, from 1; None: all.
            dpi: Resolution at which PDF pages are rendered, in pixels per inch.
            concurrency: Number of pages in progress at once.
            bgr: As for `detect`.
            max_side: As for `detect`.
            **overrides: As for `detect`.

        Returns:
            Detections whose `page` is their page, in the order of the pages.

        Raises:
            InvalidInputError: The file, one of its pages or a parameter is not valid.
            UnavailableError: As for `detect`; or Pillow or pypdfium2 is needed and not installed.
        """
        return self._call_pages(image, pages, dpi, concurrency, bgr, max_side, overrides)

    def detect_tiled(
        self,
        image: Image,
        *,
        tile: int = DEFAULT_TILE,
        overlap: int = DEFAULT_OVERLAP,
        concurrency: int = 8,
        bgr: bool = False,
        **overrides: "Unpack[Overrides]",
    ) -> Detections:
        """Detect the text in an image of any size, in unscaled tiles; see `ocdserve.client.TextDetector.detect_tiled`.

        Args:
            image: As for `detect`. Anything but pixels is decoded by Pillow, up to its own limit of 179 megapixels.
            tile: Side of a tile in pixels.
            overlap: Minimum overlap of neighbouring tiles in pixels, at most half a tile.
            concurrency: Number of tiles per batch.
            bgr: As for `detect`.
            **overrides: As for `detect`; they apply per tile, `max_candidates` too.

        Returns:
            Quads and scores in pixels of the whole image, best first.

        Raises:
            InvalidInputError: The image, `tile`, `overlap`, `concurrency` or a parameter is not valid.
            UnavailableError: As for `detect`.
        """
        check_count("concurrency", concurrency)
        loaded = load_image(image, bgr=bgr, downloads=self.downloads)
        tiled = TiledImage.of(loaded, tile, overlap, overrides.pop("page", None))
        return self.answer_tiled(tiled, self._parsed(overrides), concurrency)

    def answer_tiled(self, tiled: TiledImage, parameters: RequestParameters, concurrency: int) -> Detections:
        """The detections of an image in tiles, so many at a time, with parameters that have been parsed."""
        tiles, found = tiled.tiles(), list[Detections]()
        while batch := list(islice(tiles, concurrency)):
            found += self.answer(batch, parameters)
        return tiled.merge(found)


class Detector(LocalDetector):
    """Text detection in this process; the served models call the same stages. Thread-safe.

    Args:
        bundle: The detector's contract.
        network: Its compiled network; None if only the other stages are used.
        limits: Limits of decoding.
        downloads: How images given by URL are fetched; None: they are refused.
    """

    def __init__(
        self,
        bundle: Bundle,
        network: Network | None,
        limits: Limits | None = None,
        downloads: Downloads | None = None,
    ) -> None:
        self.spec = bundle.spec
        self.limits = limits or Limits()
        self.downloads = downloads
        self._network = network

    @classmethod
    def load(
        cls,
        bundle: Path | str | None = None,
        runtime: str | None = None,
        threads: int | None = None,
        device: int = 0,
        limits: Limits | None = None,
        downloads: Downloads | None = None,
    ) -> "Detector":
        """Load a bundle folder (None: the default detector) into a runtime (None: see `RuntimeOptions`).

        With a GPU runtime only the network runs on the GPU, the one with the index `device`; for all stages see
        `ocdserve.backend.gpu.detector.GpuDetector`.

        Raises:
            InvalidInputError: The bundle or an option is not valid.
            UnavailableError: The runtime or the default network is not installed, or there is no such GPU.
        """
        opened = Bundle.load(bundle)
        return cls(opened, load_network(opened, RuntimeOptions(runtime, threads, device=device)), limits, downloads)

    def answer(self, images: Sequence[Image], parameters: RequestParameters, bgr: bool = False) -> list[Detections]:
        prepared = for_each(lambda image: self.preprocess(image, parameters.page, bgr=bgr), images)
        maps = self.infer(*zip(*prepared, strict=True)) if prepared else []
        return [
            replace(self.postprocess(map_, frame, parameters), page=parameters.page)
            for map_, (_, frame) in zip(maps, prepared, strict=True)
        ]

    def preprocess(
        self, image: Image, page: int | None = None, *, bgr: bool = False, whole: bool = False
    ) -> tuple[NDArray[np.uint8], Frame]:
        """Stage 1: an image to the network's pixels.

        Args:
            image: As for `detect`.
            page: Page of a file of several, from 1; None: see `detect`.
            bgr: As for `detect`.
            whole: Whether JPEG is decoded in full whatever the policy says, as where its text will be read.

        Returns:
            uint8 (h, w, 3) RGB, h x w being the network size by the resize policy, or (H, W, 3) for an elongated image
            in tiles, which are one below the other; and the frame that maps network pixels to source pixels.

        Raises:
            InvalidInputError: The image is not valid, or larger than the limits allow.
            UnavailableError: The server of a URL cannot be reached.
        """
        policy, loaded = self.spec.resize, load_image(image, bgr=bgr, downloads=self.downloads)
        if isinstance(loaded, bytes) and not whole:
            pixels, source = decode_for(policy, loaded, self.limits, page)
            return preprocess(pixels, policy, source)
        return preprocess(self._pixels(loaded, page, False), policy)

    def infer(self, images: Sequence[NDArray[np.uint8]], frames: Sequence[Frame] | None = None) -> list[NDArray[Any]]:
        """Stage 2: network pixels to probability maps.

        Args:
            images: uint8 (h, w, 3) RGB each, of network sizes, which may differ, or (H, W, 3) in tiles.
            frames: The frame of each image; None: all are in one piece.

        Returns:
            One map (h, w) or (H, W) per image: uint8, 255 times the probability of text, as loaded by `load`.

        Raises:
            UnavailableError: The detector has no network, or it fails.
        """
        if self._network is None:
            raise UnavailableError("this detector was made without a network; give it one to infer")
        tiled = frames if frames is not None and any(frame.tiles > 1 for frame in frames) else None
        parts = images
        if tiled is not None:
            cut = (part for image, frame in zip(images, tiled, strict=True) for part in frame.cut(image))
            parts = list(map(np.ascontiguousarray, cut))
        found = list(self._network.infer(parts))
        for part, map_ in zip(parts, found, strict=True):
            if map_.shape != part.shape[:2]:
                raise UnavailableError(
                    f"the network of {self.spec.name} returned a map of {' x '.join(map(str, map_.shape))} for "
                    f"{part.shape[0]} x {part.shape[1]} pixels; they must have the same size"
                )
        if tiled is None:
            return found
        maps = iter(found)
        return [_packed([next(maps) for _ in frame.parts], frame) for frame in tiled]

    def postprocess(self, probability: NDArray[Any], frame: Frame, parameters: RequestParameters) -> Detections:
        """Stage 3: a probability map to detections.

        Args:
            probability: (h, w), or (H, W) in tiles, as `infer` returns it: uint8, 255 times the probability, or
                float32, 0 to 1.
            frame: Position of the source image in the map.
            parameters: Replace the detector's own.

        Returns:
            Detections with quads (N, 4, 2) in source pixels, best score first (mode `tao`: in OpenCV's contour order).

        Raises:
            InvalidInputError: The map has another size or dtype.
        """
        return postprocess(probability, frame, self.spec.postprocess.overridden(parameters))


def _packed(maps: Sequence[NDArray[Any]], frame: Frame) -> NDArray[Any]:
    """The maps of an image's parts as one (H, W); zero where there are none."""
    if len(maps) == 1:
        return maps[0]
    packed = np.zeros(frame.container, maps[0].dtype)
    for target, each in zip(frame.cut(packed), maps, strict=True):
        target[:] = each
    return packed


def results_of(answers: Sequence[Future[_T]]) -> list[_T]:
    """The results for several images.

    Raises:
        InvalidInputError: An image is not valid; the message names its index where there are several.
    """
    return for_each(Future.result, answers)

# SPDX-License-Identifier: Apache-2.0
"""The clients that detect: one call from an image to its detections."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ocdserve.client._asyncio import AsyncClient
from ocdserve.client._sync import SyncClient
from ocdserve.client._wire.tasks import DETECT
from ocdserve.contract import Overrides
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image
from ocdserve.results.many import Outcome
from ocdserve.results.pages import DEFAULT_DPI
from ocdserve.results.tiles import DEFAULT_OVERLAP, DEFAULT_TILE, TiledImage

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

AnyImage = TypeVar("AnyImage", bound=Image)


class TextDetector(SyncClient[Detections]):
    """Detects text through a server, or several; a context manager.

    Thread-safe; keeps its connections open. After a fork, the child can only use a detector that has made no call yet.

    >>> with TextDetector("grpc://127.0.0.1:8001") as detector:
    ...     found = detector.detect("photo.jpg", box_thresh=0.6)
    """

    _task = DETECT

    def detect(
        self,
        image: Image,
        *,
        bgr: bool = False,
        max_side: int | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Detections:
        """Detect the text in one image.

        Args:
            image: Encoded image (bytes); a path; an http:// or https:// URL where `downloads` allows it; a binary file
                object; uint8 (H, W, 3) RGB pixels; a Pillow image. Of a file of several pages one must be chosen by
                `page`; of an animation the first frame is taken.
            bgr: Whether an array holds BGR pixels, as OpenCV reads them.
            max_side: Scale larger images down to a longer side of so many pixels first, by Pillow; results are in
                pixels of the image before. None: the detector scales them.
            request_id: Id of the request in server logs; None: a random one.
            traceparent: W3C trace context; None: that of OpenTelemetry's current span, if there is one.
            **overrides: Request parameters, see `Overrides`.

        Returns:
            Quads float32 (N, 4, 2) and scores float32 (N,) in source pixels, best first; with `polygons=True` the
            polygons too.

        Raises:
            InvalidInputError: The image or a parameter is not valid.
            UnavailableError: No server is reachable, ready and able to take the request; or this object is closed.
            DeadlineError: No response in time; also an UnavailableError.
            AccessError: The server rejects this client's credentials.
            ServerError: The server failed.
        """
        return self._one(image, self._options(request_id, traceparent, overrides, max_side, bgr))

    def detect_batch(
        self,
        images: Sequence[Image],
        *,
        bgr: bool = False,
        max_side: int | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> list[Detections]:
        """Detect the text in several images by as few requests as possible: up to eight images of a kind share one.

        One invalid image fails the call, and the message names its index in `images`. For many images, use
        `detect_many`.

        Args:
            images: As for `detect`; encoded images and pixels may be mixed.
            bgr: As for `detect`.
            max_side: As for `detect`.
            request_id: As for `detect`; shared by all requests.
            traceparent: As for `detect`.
            **overrides: As for `detect`.

        Returns:
            The detections of each image, in the order of the images.

        Raises:
            OcdserveError: As for `detect`.
        """
        return self._batch(images, self._options(request_id, traceparent, overrides, max_side, bgr))

    def detect_many(
        self,
        images: Iterable[AnyImage],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        bgr: bool = False,
        max_side: int | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Generator[Outcome[AnyImage], None, None]:
        """Detect the text in any number of images, several at once.

        Images are read as outcomes are consumed, at most `2 * concurrency` ahead. Each image has exactly one outcome; a
        failed one holds its error, and the others continue. If the iterable itself raises, the images before it are
        answered first. Closing the iterator cancels what is in flight.

        Args:
            images: As for `detect`.
            concurrency: Number of concurrent requests.
            ordered: Whether outcomes come in the order of the images, else as they complete.
            bgr: As for `detect`.
            max_side: As for `detect`.
            traceparent: As for `detect`.
            **overrides: As for `detect`.

        Raises:
            InvalidInputError: An option is not valid.
            UnavailableError: This object is closed.
        """
        options = self._options(None, traceparent, overrides, max_side, bgr)
        return self._many(images, options, concurrency, ordered)

    def detect_pages(
        self,
        image: Image,
        *,
        pages: Sequence[int] | None = None,
        dpi: float = DEFAULT_DPI,
        concurrency: int = 4,
        bgr: bool = False,
        max_side: int | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Generator[Detections, None, None]:
        """Detect the text in every page of a TIFF or PDF file, or frame of an animation, several at once.

        The file is split here, by Pillow or pypdfium2, as results are consumed; a file of one page is sent as it is.

        Args:
            image: As for `detect`, and a PDF (`pip install 'ocdserve[pdf]'`).
            pages: Numbers of the pages, from 1; None: all.
            dpi: Resolution at which PDF pages are rendered, in pixels per inch.
            concurrency: Number of concurrent requests.
            bgr: As for `detect`.
            max_side: As for `detect`.
            traceparent: As for `detect`.
            **overrides: As for `detect`.

        Returns:
            Detections whose `page` is their page, in the order of the pages.

        Raises:
            InvalidInputError: The file, one of its pages or a parameter is not valid.
            UnavailableError: As for `detect`; or Pillow or pypdfium2 is needed and not installed.
            OcdserveError: As for `detect`; the first page that fails ends the call.
        """
        options = self._options(None, traceparent, overrides, max_side, bgr)
        return self._pages(image, options, pages, dpi, concurrency)

    def detect_tiled(
        self,
        image: Image,
        *,
        tile: int = DEFAULT_TILE,
        overlap: int = DEFAULT_OVERLAP,
        concurrency: int = 8,
        bgr: bool = False,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Detections:
        """Detect the text in an image of any size, in unscaled tiles that the server may batch.

        For images whose text is lost when they are scaled down to the network's size. Text cut by a seam is merged, and
        duplicates across tiles are removed. Text larger than a tile is not found.

        Args:
            image: As for `detect`. Anything but pixels is decoded here, by Pillow; above Pillow's own limit of 179
                megapixels, pass pixels.
            tile: Side of a tile in pixels.
            overlap: Minimum overlap of neighbouring tiles in pixels, at most half a tile; twice the height of the
                largest text is enough.
            concurrency: Number of concurrent tiles.
            bgr: As for `detect`.
            traceparent: As for `detect`.
            **overrides: As for `detect`; they apply per tile, `max_candidates` too.

        Returns:
            Quads and scores in pixels of the whole image, best first; `latency_ms` covers all tiles.

        Raises:
            InvalidInputError: The image, `tile`, `overlap` or a parameter is not valid.
            UnavailableError: As for `detect`, or the image must be decoded and Pillow is not installed.
            OcdserveError: As for `detect`; the first tile that fails ends the call.
        """
        begin = time.monotonic()
        page = overrides.pop("page", None)
        options = self._options(None, traceparent, overrides, bgr=bgr)
        found = self._tiles(TiledImage.of(self._loaded(image, bgr), tile, overlap, page), options, concurrency)
        return replace(found, latency_ms=(time.monotonic() - begin) * 1000)


class AsyncTextDetector(AsyncClient[Detections]):
    """`TextDetector` for asyncio: the same methods and arguments, awaited; an asynchronous context manager.

    Files, URLs and Pillow images are read in threads. Cancelling a call over gRPC cancels it on the server too.
    May be used in one event loop after another: `asyncio.run` closes the connections at its end, and the next call
    opens new ones.

    >>> async with AsyncTextDetector("grpc://127.0.0.1:8001") as detector:
    ...     found = await detector.detect("photo.jpg", box_thresh=0.6)
    """

    _task = DETECT

    async def detect(
        self,
        image: Image,
        *,
        bgr: bool = False,
        max_side: int | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Detections:
        """As `TextDetector.detect`."""
        return await self._one(image, self._options(request_id, traceparent, overrides, max_side, bgr))

    async def detect_batch(
        self,
        images: Sequence[Image],
        *,
        bgr: bool = False,
        max_side: int | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> list[Detections]:
        """As `TextDetector.detect_batch`."""
        return await self._batch(images, self._options(request_id, traceparent, overrides, max_side, bgr))

    def detect_many(
        self,
        images: Iterable[AnyImage] | AsyncIterable[AnyImage],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        bgr: bool = False,
        max_side: int | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> AsyncGenerator[Outcome[AnyImage], None]:
        """As `TextDetector.detect_many`, for `async for`; `images` may be an asynchronous iterable."""
        options = self._options(None, traceparent, overrides, max_side, bgr)
        return self._many(images, options, concurrency, ordered)

    def detect_pages(
        self,
        image: Image,
        *,
        pages: Sequence[int] | None = None,
        dpi: float = DEFAULT_DPI,
        concurrency: int = 4,
        bgr: bool = False,
        max_side: int | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> AsyncGenerator[Detections, None]:
        """As `TextDetector.detect_pages`, for `async for`; the file is read and split in threads."""
        options = self._options(None, traceparent, overrides, max_side, bgr)
        return self._pages(image, options, pages, dpi, concurrency)

    async def detect_tiled(
        self,
        image: Image,
        *,
        tile: int = DEFAULT_TILE,
        overlap: int = DEFAULT_OVERLAP,
        concurrency: int = 8,
        bgr: bool = False,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Detections:
        """As `TextDetector.detect_tiled`; the image is decoded, and the results are merged, in a thread."""
        begin = time.monotonic()
        page = overrides.pop("page", None)
        options = self._options(None, traceparent, overrides, bgr=bgr)
        tiled = await asyncio.to_thread(TiledImage.of, await self._loaded(image, bgr), tile, overlap, page)
        found = await self._tiles(tiled, options, concurrency)
        return replace(found, latency_ms=(time.monotonic() - begin) * 1000)

# SPDX-License-Identifier: Apache-2.0
"""The clients that read: one call from an image to its text."""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ocdserve.client._asyncio import AsyncClient
from ocdserve.client._sansio.calls import CallOptions
from ocdserve.client._sansio.lines import LineCall, Part
from ocdserve.client._sync import SyncClient
from ocdserve.client._wire.tasks import DETECT
from ocdserve.client._wire.texts import READ
from ocdserve.contract import PARAMETERS, ReadingOverrides, RequestParameters, check_count
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image
from ocdserve.results.many import outcomes, outcomes_async
from ocdserve.results.pages import DEFAULT_DPI
from ocdserve.results.reading import Reading, ReadOutcome
from ocdserve.results.tiles import DEFAULT_OVERLAP, DEFAULT_TILE, TiledImage

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

AnyImage = TypeVar("AnyImage", bound=Image)


class TextReader(SyncClient[Reading]):
    """Reads text through a server, or several, that were started with a recogniser; a context manager.

    Everything but the names of the calls is that of `TextDetector`. Thread-safe; keeps its connections open. After a
    fork, the child can only use a reader that has made no call yet.

    >>> with TextReader("grpc://127.0.0.1:8001") as reader:
    ...     print(reader.read("receipt.jpg").text)
    """

    _task = READ

    def read(
        self,
        image: Image,
        *,
        bgr: bool = False,
        max_side: int | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Reading:
        """Read the text in one image.

        Args:
            image: As for `TextDetector.detect`.
            bgr: Whether an array holds BGR pixels, as OpenCV reads them.
            max_side: Scale larger images down to a longer side of so many pixels first, by Pillow, and read those;
                results are in pixels of the image before. None: the detector scales them, and the lines are read at
                their own size.
            request_id: Id of the request in server logs; None: a random one.
            traceparent: W3C trace context; None: that of OpenTelemetry's current span, if there is one.
            **overrides: Request parameters, see `ReadingOverrides`, such as `words=True`.

        Returns:
            The detections with their texts, best detection first; `.text` has the texts in reading order.

        Raises:
            InvalidInputError: The image or a parameter is not valid.
            UnavailableError: No server is reachable, ready and able to take the request, or it was started without a
                recogniser; or this object is closed.
            DeadlineError: No response in time; also an UnavailableError.
            AccessError: The server rejects this client's credentials.
            ServerError: The server failed.
        """
        return self._one(image, self._options(request_id, traceparent, overrides, max_side, bgr))

    def read_batch(
        self,
        images: Sequence[Image],
        *,
        bgr: bool = False,
        max_side: int | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> list[Reading]:
        """Read the text in several images by as few requests as possible; see `TextDetector.detect_batch`.

        Args:
            images: As for `read`; encoded images and pixels may be mixed.
            bgr: As for `read`.
            max_side: As for `read`.
            request_id: As for `read`; shared by all requests.
            traceparent: As for `read`.
            **overrides: As for `read`.

        Returns:
            The reading of each image, in the order of the images.

        Raises:
            OcdserveError: As for `read`.
        """
        return self._batch(images, self._options(request_id, traceparent, overrides, max_side, bgr))

    def read_many(
        self,
        images: Iterable[AnyImage],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        bgr: bool = False,
        max_side: int | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Generator[ReadOutcome[AnyImage], None, None]:
        """Read the text in any number of images, several at once; see `TextDetector.detect_many`.

        Args:
            images: As for `read`.
            concurrency: Number of concurrent requests.
            ordered: Whether outcomes come in the order of the images, else as they complete.
            bgr: As for `read`.
            max_side: As for `read`.
            traceparent: As for `read`.
            **overrides: As for `read`.

        Raises:
            InvalidInputError: An option is not valid.
            UnavailableError: This object is closed.
        """
        options = self._options(None, traceparent, overrides, max_side, bgr)
        found = self._many(images, options, concurrency, ordered)
        return cast("Generator[ReadOutcome[AnyImage], None, None]", found)

    def read_pages(
        self,
        image: Image,
        *,
        pages: Sequence[int] | None = None,
        dpi: float = DEFAULT_DPI,
        concurrency: int = 4,
        bgr: bool = False,
        max_side: int | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Generator[Reading, None, None]:
        """Read the text in every page of a TIFF or PDF file, or frame of an animation; see `TextDetector.detect_pages`.

        Args:
            image: As for `read`, and a PDF, as for `TextDetector.detect_pages`.
            pages: Numbers of the pages, from 1; None: all.
            dpi: Resolution at which PDF pages are rendered, in pixels per inch.
            concurrency: Number of concurrent requests.
            bgr: As for `read`.
            max_side: As for `read`.
            traceparent: As for `read`.
            **overrides: As for `read`.

        Returns:
            Readings whose `page` is their page, in the order of the pages.

        Raises:
            InvalidInputError: The file, one of its pages or a parameter is not valid.
            UnavailableError: As for `read`; or Pillow or pypdfium2 is needed and not installed.
            OcdserveError: As for `read`; the first page that fails ends the call.
        """
        options = self._options(None, traceparent, overrides, max_side, bgr)
        return self._pages(image, options, pages, dpi, concurrency)

    def read_tiled(
        self,
        image: Image,
        *,
        tile: int = DEFAULT_TILE,
        overlap: int = DEFAULT_OVERLAP,
        concurrency: int = 8,
        bgr: bool = False,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Reading:
        """Read the text in an image of any size: detect it in tiles, as `TextDetector.detect_tiled`, then read it.

        Text is merged across tiles before it is read, so that no seam cuts a word. The lines are cut out here, so that
        each is sent once more, 48 pixels high, and not the whole image.

        Args:
            image: As for `read`. Anything but pixels is decoded here, by Pillow; above Pillow's own limit of 179
                megapixels, pass pixels.
            tile: Side of a tile in pixels.
            overlap: Minimum overlap of neighbouring tiles in pixels, at most half a tile; twice the height of the
                largest text is enough.
            concurrency: Number of concurrent requests.
            bgr: As for `read`.
            traceparent: As for `read`.
            **overrides: As for `read`; those of detection apply per tile, `max_candidates` too.

        Returns:
            Quads, scores and texts in pixels of the whole image, best detection first; `latency_ms` covers all
            requests.

        Raises:
            InvalidInputError: The image, `tile`, `overlap` or a parameter is not valid.
            UnavailableError: As for `read`, or the image must be decoded and Pillow is not installed.
            OcdserveError: As for `read`; the first request that fails ends the call.
        """
        begin = time.monotonic()
        page = overrides.pop("page", None)
        options = self._options(None, traceparent, overrides, bgr=bgr)
        tiled = TiledImage.of(self._loaded(image, bgr), tile, overlap, page)
        found = self._tiles(tiled, _detecting(options), concurrency)
        return self._lines(LineCall(tiled.pixels, found, options, begin), concurrency)

    def recognise(
        self,
        image: Image,
        found: Detections,
        *,
        concurrency: int = 8,
        bgr: bool = False,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Reading:
        """Read text that has been detected, such as by `second_look`, or of which the places are known.

        Args:
            image: The image of the detections, as for `read_tiled`; of a file of several pages, `found.page` is read.
            found: The detections, of whatever origin.
            concurrency: Number of concurrent requests.
            bgr: As for `read`.
            traceparent: As for `read`.
            **overrides: As for `read`; those of detection have no effect.

        Raises:
            InvalidInputError: The image or a parameter is not valid, or the image's size is not that of the detections.
            UnavailableError: As for `read`, or the image must be decoded and Pillow is not installed.
            OcdserveError: As for `read`; the first request that fails ends the call.
        """
        begin = time.monotonic()
        options = self._options(None, traceparent, overrides, bgr=bgr)
        return self._lines(LineCall(self._loaded(image, bgr), found, options, begin), concurrency)

    def _lines(self, call: LineCall, concurrency: int) -> Reading:
        """The text of a `LineCall`, with so many requests at once."""
        check_count("concurrency", concurrency)

        def one(part: Part, stop: threading.Event) -> Reading:
            return self._run(call.ask(self._machine, part, call.cut(part)), stop)

        while parts := call.next_parts():
            with closing(outcomes(parts, one, concurrency, True, ReadOutcome)) as results:
                call.add(parts, [cast(Reading, outcome.result()) for outcome in results])
        return call.reading()


class AsyncTextReader(AsyncClient[Reading]):
    """`TextReader` for asyncio: the same methods and arguments, awaited; see `AsyncTextDetector`.

    >>> async with AsyncTextReader("grpc://127.0.0.1:8001") as reader:
    ...     print((await reader.read("receipt.jpg")).text)
    """

    _task = READ

    async def read(
        self,
        image: Image,
        *,
        bgr: bool = False,
        max_side: int | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Reading:
        """As `TextReader.read`."""
        return await self._one(image, self._options(request_id, traceparent, overrides, max_side, bgr))

    async def read_batch(
        self,
        images: Sequence[Image],
        *,
        bgr: bool = False,
        max_side: int | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> list[Reading]:
        """As `TextReader.read_batch`."""
        return await self._batch(images, self._options(request_id, traceparent, overrides, max_side, bgr))

    def read_many(
        self,
        images: Iterable[AnyImage] | AsyncIterable[AnyImage],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        bgr: bool = False,
        max_side: int | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> AsyncGenerator[ReadOutcome[AnyImage], None]:
        """As `TextReader.read_many`, for `async for`; `images` may be an asynchronous iterable."""
        options = self._options(None, traceparent, overrides, max_side, bgr)
        found = self._many(images, options, concurrency, ordered)
        return cast("AsyncGenerator[ReadOutcome[AnyImage], None]", found)

    def read_pages(
        self,
        image: Image,
        *,
        pages: Sequence[int] | None = None,
        dpi: float = DEFAULT_DPI,
        concurrency: int = 4,
        bgr: bool = False,
        max_side: int | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> AsyncGenerator[Reading, None]:
        """As `TextReader.read_pages`, for `async for`; the file is read and split in threads."""
        options = self._options(None, traceparent, overrides, max_side, bgr)
        return self._pages(image, options, pages, dpi, concurrency)

    async def read_tiled(
        self,
        image: Image,
        *,
        tile: int = DEFAULT_TILE,
        overlap: int = DEFAULT_OVERLAP,
        concurrency: int = 8,
        bgr: bool = False,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Reading:
        """As `TextReader.read_tiled`; the image is decoded, merged and cut in threads."""
        begin = time.monotonic()
        page = overrides.pop("page", None)
        options = self._options(None, traceparent, overrides, bgr=bgr)
        tiled = await asyncio.to_thread(TiledImage.of, await self._loaded(image, bgr), tile, overlap, page)
        found = await self._tiles(tiled, _detecting(options), concurrency)
        return await self._lines(LineCall(tiled.pixels, found, options, begin), concurrency)

    async def recognise(
        self,
        image: Image,
        found: Detections,
        *,
        concurrency: int = 8,
        bgr: bool = False,
        traceparent: str | None = None,
        **overrides: "Unpack[ReadingOverrides]",
    ) -> Reading:
        """As `TextReader.recognise`; the image is decoded and cut in threads."""
        begin = time.monotonic()
        options = self._options(None, traceparent, overrides, bgr=bgr)
        call = await asyncio.to_thread(LineCall, await self._loaded(image, bgr), found, options, begin)
        return await self._lines(call, concurrency)

    async def _lines(self, call: LineCall, concurrency: int) -> Reading:
        check_count("concurrency", concurrency)

        async def one(part: Part) -> Reading:
            return await self._run(call.ask(self._machine, part, await asyncio.to_thread(call.cut, part)))

        while parts := call.next_parts():
            async with aclosing(outcomes_async(parts, one, concurrency, True, ReadOutcome)) as results:
                call.add(parts, [cast(Reading, outcome.result()) async for outcome in results])
        return call.reading()


def _detecting(options: CallOptions[Reading]) -> CallOptions[Detections]:
    """The options of the detection that precedes the reading."""
    given: dict[str, Any] = {name: getattr(options.parameters, name) for name in PARAMETERS}
    return CallOptions(DETECT, None, RequestParameters(**given), options.headers, None)

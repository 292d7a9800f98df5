# SPDX-License-Identifier: Apache-2.0
"""The detector for asyncio: the methods of `TextDetector`, awaited."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ocdserve.client._base import DetectorBase
from ocdserve.client._health import Capabilities, Health
from ocdserve.client._sansio.detection import CallOptions, detect, detect_batch
from ocdserve.client._sansio.steps import Describe, Pause, Probe, Register, Send, Step, Steps, Unregister
from ocdserve.client._transports import AsyncTransport, async_transport_for
from ocdserve.contract import OcdserveError, Overrides, UnavailableError, check_count
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image, Loaded, for_each, load_image, takes_time
from ocdserve.results.many import Outcome, numbered_async, outcomes_async
from ocdserve.results.pages import DEFAULT_DPI, pages_of
from ocdserve.results.pictures import LimitedImage
from ocdserve.results.tiles import DEFAULT_OVERLAP, DEFAULT_TILE, TiledImage

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
AnyImage = TypeVar("AnyImage", bound=Image)


class AsyncTextDetector(DetectorBase[AsyncTransport]):
    """`TextDetector` for asyncio: the same methods and arguments, awaited; an asynchronous context manager.

    Files, URLs and Pillow images are read in threads. Cancelling a call over gRPC cancels it on the server too.
    May be used in one event loop after another: `asyncio.run` closes the connections at its end, and the next call
    opens new ones.

    >>> async with AsyncTextDetector("grpc://127.0.0.1:8001") as detector:
    ...     found = await detector.detect("photo.jpg", box_thresh=0.6)
    """

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
        options = self._options(request_id, traceparent, overrides, max_side)
        return await self._run(detect(self._machine, await self._limited(image, bgr, options), options))

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
        options = self._options(request_id, traceparent, overrides, max_side)

        def limited() -> list[LimitedImage]:
            return for_each(
                lambda image: options.limited(load_image(image, bgr=bgr, downloads=self._downloads)), images
            )

        in_thread = max_side is not None or any(map(takes_time, images))
        sent = await asyncio.to_thread(limited) if in_thread else limited()
        return await self._run(detect_batch(self._machine, sent, options))

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
        check_count("concurrency", concurrency)
        options = self._options(None, traceparent, overrides, max_side)

        async def one(image: AnyImage) -> Detections:
            return await self._run(detect(self._machine, await self._limited(image, bgr, options), options))

        return outcomes_async(images, one, concurrency, ordered)

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

        async def split() -> AsyncGenerator[Loaded, None]:
            found = pages_of(await self._loaded(image, bgr), pages, dpi)
            while (page := await asyncio.to_thread(next, found, None)) is not None:
                yield page.image

        results = self.detect_many(
            split(), concurrency=concurrency, max_side=max_side, traceparent=traceparent, **overrides
        )
        return numbered_async(results, pages)

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
        loaded = await self._loaded(image, bgr)
        page = overrides.pop("page", None)
        tiled = await asyncio.to_thread(TiledImage.of, loaded, tile, overlap, page)
        results = self.detect_many(tiled.tiles(), concurrency=concurrency, traceparent=traceparent, **overrides)
        async with aclosing(results):
            found = [outcome.result() async for outcome in results]
        return await asyncio.to_thread(tiled.merge, found, (time.monotonic() - begin) * 1000)

    async def capabilities(self) -> Capabilities:
        """As `TextDetector.capabilities`."""
        return await self._run(self._machine.capabilities(self._described_models()))

    async def health(self, model: str | None = None) -> Health:
        """As `TextDetector.health`, all servers concurrently."""
        model = self._model_for_health(model)
        return Health(model, tuple(await asyncio.gather(*map(self._run, self._machine.health(model)))))

    async def ready(self) -> bool:
        """As `TextDetector.ready`."""
        try:
            return (await self.health()).ready
        except UnavailableError:
            return False

    async def close(self) -> None:
        """As `TextDetector.close`."""
        transports = self._shut_down()
        try:
            if transports:
                await self._run(self._machine.release(), transports)
        finally:
            for transport in transports:
                await transport.close()

    async def __aenter__(self) -> "AsyncTextDetector":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _connections(self) -> list[AsyncTransport]:
        return self._open(async_transport_for)

    async def _loaded(self, image: Image, bgr: bool) -> Loaded:
        if not takes_time(image):
            return load_image(image, bgr=bgr)
        return await asyncio.to_thread(load_image, image, bgr=bgr, downloads=self._downloads)

    async def _limited(self, image: Image, bgr: bool, options: CallOptions) -> LimitedImage:
        loaded = await self._loaded(image, bgr)
        if options.max_side is None:
            return options.limited(loaded)
        return await asyncio.to_thread(options.limited, loaded)

    async def _run(self, steps: Steps[T], transports: list[AsyncTransport] | None = None) -> T:
        """Perform the steps of a call.

        Args:
            steps: The call.
            transports: One per server; None: the open ones.
        """
        transports = transports or self._connections()
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._perform(step, transports)
                except OcdserveError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            # If the task is cancelled, the generator cleans up here.
            steps.close()

    async def _perform(self, step: Step, transports: list[AsyncTransport]) -> Any:
        match step:
            case Send():
                return await transports[step.server].infer(step.request)
            case Probe():
                return await transports[step.server].ready(step.model, step.timeout_s)
            case Describe():
                return await transports[step.server].describe(step.model, step.timeout_s)
            case Register():
                return await transports[step.server].register(step.region, step.timeout_s)
            case Unregister():
                return await transports[step.server].unregister(step.region, step.timeout_s)
            case Pause():
                await asyncio.sleep(step.seconds)
                self._check_open()
                return None

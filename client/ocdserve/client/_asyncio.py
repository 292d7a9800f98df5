# SPDX-License-Identifier: Apache-2.0
"""The client for asyncio: what `SyncClient` does, awaited."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ocdserve.client._base import ClientBase
from ocdserve.client._health import Capabilities, Health
from ocdserve.client._sansio.calls import CallOptions, ask, ask_batch
from ocdserve.client._sansio.steps import Describe, Pause, Probe, Register, Send, Step, Steps, Unregister
from ocdserve.client._transports import AsyncTransport, async_transport_for
from ocdserve.client._wire.tasks import Found
from ocdserve.contract import OcdserveError, UnavailableError, check_count
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image, Loaded, for_each, load_image, takes_time
from ocdserve.results.many import Outcome, numbered_async, outcomes_async
from ocdserve.results.pages import pages_of
from ocdserve.results.pictures import LimitedImage
from ocdserve.results.tiles import TiledImage

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
Result = TypeVar("Result", bound=Detections)
AnyImage = TypeVar("AnyImage", bound=Image)


class AsyncClient(ClientBase[AsyncTransport, Found]):
    """`SyncClient` for asyncio."""

    async def _one(self, image: Image, options: CallOptions[Result]) -> Result:
        return await self._run(ask(self._machine, await self._limited(image, options), options))

    async def _batch(self, images: Sequence[Image], options: CallOptions[Result]) -> list[Result]:
        def limited() -> list[LimitedImage]:
            return for_each(
                lambda image: options.limited(load_image(image, bgr=options.bgr, downloads=self._downloads)), images
            )

        in_thread = options.max_side is not None or any(map(takes_time, images))
        sent = await asyncio.to_thread(limited) if in_thread else limited()
        return await self._run(ask_batch(self._machine, sent, options))

    def _many(
        self,
        images: Iterable[AnyImage] | AsyncIterable[AnyImage],
        options: CallOptions[Any],
        concurrency: int,
        ordered: bool = True,
    ) -> AsyncGenerator[Outcome[AnyImage], None]:
        check_count("concurrency", concurrency)

        async def one(image: AnyImage) -> Detections:
            found: Detections = await self._one(image, options)
            return found

        return outcomes_async(images, one, concurrency, ordered, options.task.outcome)

    def _pages(
        self, image: Image, options: CallOptions[Any], pages: Sequence[int] | None, dpi: float, concurrency: int
    ) -> AsyncGenerator[Any, None]:
        """The results of a file's pages, of the kind that the task has."""

        async def split() -> AsyncGenerator[Loaded, None]:
            found = pages_of(await self._loaded(image, options.bgr), pages, dpi)
            while (page := await asyncio.to_thread(next, found, None)) is not None:
                yield page.image

        return numbered_async(self._many(split(), replace(options, bgr=False), concurrency), pages)

    async def _tiles(self, tiled: TiledImage, options: CallOptions[Detections], concurrency: int) -> Detections:
        results = self._many(tiled.tiles(), replace(options, bgr=False), concurrency)
        async with aclosing(results):
            found = [outcome.result() async for outcome in results]
        return await asyncio.to_thread(tiled.merge, found)

    async def capabilities(self) -> Capabilities:
        """As `TextDetector.capabilities`."""
        return await self._run(self._machine.capabilities(self._described_models()))

    async def health(self, model: str | None = None) -> Health:
        """As `TextDetector.health`, all servers concurrently."""
        model = self._model_for_health(model)
        return Health(
            model, tuple(await asyncio.gather(*map(self._run, self._machine.health(model, self._task.remedy))))
        )

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

    async def __aenter__(self) -> "Self":
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

    async def _limited(self, image: Image, options: CallOptions[Any]) -> LimitedImage:
        loaded = await self._loaded(image, options.bgr)
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
